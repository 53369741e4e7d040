"""The scorer: a CLIP model in open_clip's format, which judges edits; nothing of it is shared with the teacher.

A contrastive batch holds many short prompts that are true of many pictures, so each comes with what it claims. B pictures and texts.
"""

import json
import math
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from models.devices import pick_device
from models.miniature.captions import caption, with_articles
from models.miniature.plants import SPECIES
from models.miniature.scenes import SEASONS, STYLES, Look, Scene, instances, render, scene, shown
from models.miniature.terrain import DISTANT_NOUNS, THINGS
from models.segmenter import masked_crop
from scripts.miniature import data
from scripts.miniature.loop import SHIPPED, Options, autocast, fit, log, write_weights

IMAGE_SIZE = 64
VOCABULARY = 640
OBJECTS = 3  # crops of single objects per scene
EXAMPLE = np.dtype(
    [("pixels", np.uint8, (1 + OBJECTS, IMAGE_SIZE, IMAGE_SIZE, 3)), ("nouns", np.int64, 1 + OBJECTS)]
)
WHOLE, NOTHING = -1, -2  # instead of the number of a noun
SMALLEST_OBJECT = 40  # px of a mask that is worth naming
CAPTION_SHARE = 0.55  # of whole pictures that get a sentence instead of a short prompt
MAX_LOGIT_SCALE = 100.0
SEASON_WORDS = {"summer": ("summer",), "autumn": ("autumn", "fall"), "winter": ("winter", "winter")}
SEASON_ADJECTIVES = {
    "summer": ("green", "leafy"),
    "autumn": ("golden", "colorful"),
    "winter": ("snowy", "snow covered"),
}
STYLE_WORDS = {"photo": ("photo", "picture", "image"), "sketch": ("pencil sketch", "sketch", "drawing")}
BACKGROUND_WORDS = {
    "mountains": ("mountains",), "hills": ("hills",), "distant trees": ("distant trees", "forest"), "sky": ("sky",),
    "ground": ("ground", "field"),
}  # fmt: skip
OBJECT_WORDS = {  # noun phrases by the nouns of scenes.instances
    "tree": ("tree",), "house": ("house", "small house", "building"), "lake": ("lake", "pond"), "path": ("path",), "fence": ("fence",),
    "rocks": ("rocks", "stones"), **BACKGROUND_WORDS,
}  # fmt: skip
NOUNS = tuple(OBJECT_WORDS)
PLURALS = {"rocks", "stones", "mountains", "hills", "distant trees"}
SPECIES_NAMES = (*SPECIES, "mixed", "none")
ANY = -1


class Facts(NamedTuple):
    """What a picture shows or a text claims (ANY: nothing): indices into SEASONS, SPECIES_NAMES, STYLES; nouns and background as bits."""

    season: int = ANY
    species: int = ANY
    style: int = ANY
    nouns: int = 0


def facts(scene: Scene, look: Look, nouns: list[str]) -> Facts:
    """The facts of a picture of these objects of the scene."""
    view = shown(scene, look)
    species = {tree.species for tree in view.trees}
    name = "none" if "tree" not in nouns else species.pop() if len(species) == 1 else "mixed"
    bits = sum(1 << NOUNS.index(noun) for noun in nouns) | any(
        noun in BACKGROUND_WORDS for noun in nouns
    ) << len(NOUNS)
    return Facts(SEASONS.index(view.season), SPECIES_NAMES.index(name), STYLES.index(look.style), bits)


def scene_prompt(rng: random.Random, fact: Facts) -> tuple[str, Facts]:
    """(a short text true of a whole scene, what it claims)."""
    season, style = SEASONS[fact.season], STYLES[fact.style]
    says_season, says_species = rng.random() < 0.6, fact.species < len(SPECIES) and rng.random() < 0.45
    says_style = rng.random() < 0.35 or not (says_season or says_species)
    said = (says_season, says_species, says_style)
    claims = Facts(*(index if says else ANY for index, says in zip(fact[:3], said, strict=True)))
    word, form = rng.choice(SEASON_WORDS[season]), rng.random()
    if says_season and not says_species and form < 0.35:
        phrase = rng.choice(
            (word, f"a {word} landscape", f"a {word} scene", f"trees in {word}", f"in {word}")
        )
    elif says_style and not (says_season or says_species) and form < 0.4:
        return rng.choice(("a ", "")) + rng.choice(STYLE_WORDS[style]), claims
    else:
        phrase = f"{SPECIES_NAMES[fact.species]} tree" if says_species else "tree"
        if says_season:
            phrase = (
                f"{rng.choice(SEASON_ADJECTIVES[season] + (word,))} {phrase}"
                if form < 0.5
                else f"{phrase} in {word}"
            )
        phrase = _perhaps_a(rng, phrase)
    if says_style:
        opening = rng.choice(STYLE_WORDS[style])
        phrase = f"{_perhaps_a(rng, opening)} of {phrase}"
    return with_articles(phrase), claims


def _perhaps_a(rng, phrase):
    return f"a {phrase}" if rng.random() < 0.8 else phrase


def object_prompt(rng: random.Random, fact: Facts, noun: str) -> tuple[str, Facts]:
    """(a short text that names the single object shown, what it claims)."""
    if noun in BACKGROUND_WORDS and rng.random() < 0.15:
        return rng.choice(("the background", "background")), Facts(nouns=1 << len(NOUNS))
    phrase, claims = rng.choice(OBJECT_WORDS[noun]), Facts(nouns=1 << NOUNS.index(noun))
    if noun == "tree":
        if fact.species < len(SPECIES) and rng.random() < 0.35:
            phrase, claims = f"{SPECIES_NAMES[fact.species]} tree", claims._replace(species=fact.species)
        if rng.random() < 0.25:
            phrase, claims = f"{phrase} in {SEASONS[fact.season]}", claims._replace(season=fact.season)
    if noun in ("sky", "ground") and rng.random() < 0.7:
        phrase = f"the {phrase}"
    elif phrase not in PLURALS:
        phrase = _perhaps_a(rng, phrase)
    opening = rng.choice(
        ("", "", "a photo of ", "a picture of ") if STYLES[fact.style] == "photo" else ("", "a sketch of ")
    )
    return with_articles(opening + phrase), claims


def object_crop(picture, area, margin, outside):
    """models.segmenter.masked_crop of arrays: RGB uint8 H x W x 3 and a bool mask."""
    (rows, columns), image_CHW = np.nonzero(area), torch.tensor(picture).permute(2, 0, 1).float()
    box = int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())
    return masked_crop(image_CHW, torch.tensor(area), box, margin, outside).permute(1, 2, 0).byte().numpy()


def _part(rng, area):
    """Sometimes only a part of the object, as a segmenter may propose."""
    keep, corners = np.zeros_like(area), []
    for places in np.nonzero(area):
        side = np.ptp(places) + 1
        first = places.min() + int(side * rng.uniform(0, 0.4))
        corners.append(slice(first, first + max(6, int(side * 0.6))))
    keep[tuple(corners)] = True
    return area & keep


def _example(seed):
    """The whole picture and crops of its objects, as EXAMPLE says."""
    rng, this, look = random.Random(seed * 41 + 6), scene(seed), data.varied_look(seed)
    picture = np.asarray(render(this, look))
    found = [(noun, area) for noun, area in instances(this, look) if area.sum() >= SMALLEST_OBJECT]
    rng.shuffle(found)
    found.sort(
        key=lambda item: item[0] in ("sky", "ground") and rng.random() < 0.6
    )  # the two that every scene has come last
    shots = [(picture, WHOLE)]
    for noun, area in found[:OBJECTS]:
        if rng.random() < 0.3:
            part = _part(rng, area)
            area = part if part.sum() >= SMALLEST_OBJECT else area
        shots.append(
            (object_crop(picture, area, rng.uniform(0, 0.25), rng.uniform(0, 0.6)), NOUNS.index(noun))
        )
    example = np.zeros((), EXAMPLE)
    example["nouns"] = NOTHING
    for index, (pixels, noun) in enumerate(shots):
        small = Image.fromarray(pixels).resize((IMAGE_SIZE, IMAGE_SIZE), Image.BICUBIC)
        example["pixels"][index], example["nouns"][index] = np.asarray(small), noun
    return example


def _describe(rng, seed, noun):
    """(text, its claims, the picture's facts, whether the text is a sentence, true of its own scene alone)."""
    this, look = scene(seed), data.varied_look(seed)
    if noun != WHOLE:
        fact = facts(this, look, [NOUNS[noun]])
        return (*object_prompt(rng, fact, NOUNS[noun]), fact, False)
    distant = [DISTANT_NOUNS[this.far]] if this.far in DISTANT_NOUNS else []
    fact = facts(
        this, look, ["tree", "sky", "ground", *(name for name in THINGS if getattr(this, name)), *distant]
    )
    text, claims = scene_prompt(rng, fact)
    is_sentence = rng.random() < CAPTION_SHARE
    if is_sentence:
        text = caption(this, look, rng.randrange(8), rng.random() < data.SEASON_NAMED_SHARE)
    return text, claims, fact, is_sentence


def _true_of(claims_B4, facts_B4, sentence_B):
    """(B pictures, B texts): whether the text is true of the picture, though it was not made for it."""
    claim, fact = claims_B4[None], facts_B4[:, None]
    true_BB = ((claim[..., :3] == ANY) | (claim[..., :3] == fact[..., :3])).all(-1)
    true_BB &= (claim[..., 3] & fact[..., 3]) == claim[..., 3]
    return true_BB & ~sentence_B & ~np.eye(len(true_BB), dtype=bool)


def make_tokenizer(texts, folder: Path) -> int:
    """Train a small byte-pair tokenizer of these texts, save it where open_clip looks for it, return the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    entries, merges = data.byte_pairs(sorted(set(texts)), VOCABULARY - 4)
    vocabulary = {entry: index for index, entry in enumerate(["<unk>", *entries])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", end_of_word_suffix="</w>")
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.add_special_tokens(
        ["<pad>", "<start>", "<end>"]
    )  # <end> last: open_clip pools at the highest id
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ids)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
    )
    fast.save_pretrained(folder)
    return tokenizer.get_vocab_size()


def train_scorer(options: Options) -> None:
    """Train the scorer in `out`/scorer on whole pictures with sentences or short prompts, and on crops of single objects."""
    import open_clip

    device, folder = pick_device("auto"), Path(options.out) / "scorer"
    folder.mkdir(parents=True, exist_ok=True)
    seeds, examples = data.training_seeds(options), data.rendered(options, "crops", _example, OBJECTS)
    pixels, nouns = examples["pixels"], examples["nouns"]
    rows = np.argwhere(nouns != NOTHING)
    rng = random.Random(4)
    vocabulary = make_tokenizer(
        [_describe(rng, seeds[number], nouns[number, part])[0] for number, part in rows[:20_000]], folder
    )
    log(f"scorer: {len(rows)} pictures, vocabulary of {vocabulary}")
    config = json.loads((SHIPPED / "scorer" / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = vocabulary
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    torch.manual_seed(12)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model = open_clip.CLIP(**config["model_cfg"]).to(device, memory_format=torch.channels_last).train()

    def loss_of_step(step):
        rng = random.Random(step * 53 + 8)
        chosen = rows[torch.randint(len(rows), (options.batch,)).numpy()]
        described = [_describe(rng, seeds[number], nouns[number, part]) for number, part in chosen]
        texts, *true = zip(*described, strict=True)
        also_true_BB = torch.from_numpy(_true_of(*map(np.array, true))).to(device)
        image_BCHW = data.flipped(data.to_tensor(pixels[chosen[:, 0], chosen[:, 1]], device))
        brightness = 1 + 0.1 * torch.randn(len(chosen), 1, 1, 1, device=device)
        image_BCHW = (image_BCHW * brightness + 0.03 * torch.randn_like(image_BCHW)).clamp(-1, 1)
        with autocast(device):
            image_BD, text_BD, scale = model(image_BCHW, tokenizer(list(texts)).to(device))[:3]
        logits_BB = scale.float() * image_BD.float() @ text_BD.float().T
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        return data.contrastive(
            logits_BB.masked_fill(also_true_BB, float("-inf"))
        )  # neither a match nor a mistake

    fit("scorer", model, loss_of_step, options)
    write_weights(model, folder / "open_clip_model.safetensors")
