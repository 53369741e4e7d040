"""The scorer: a CLIP model in open_clip's format, which judges edits. It shares nothing with the teacher.

A contrastive batch holds many short prompts that are true of many pictures, so each comes with what
it claims: a text that is true of another picture is neither its match nor a mistake. B pictures and
as many texts, C channels, H W pixels, D width.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from models.devices import pick_device
from models.miniature.captions import caption, with_articles
from models.miniature.plants import SPECIES
from models.miniature.scenes import SEASONS, STYLES, Look, Scene, instances, render, scene, shown
from models.miniature.terrain import DISTANT_NOUNS
from models.miniature.things import THINGS
from models.pictures import batch_of
from models.segmenter import masked_crop
from scripts.miniature import data
from scripts.miniature.loop import SHIPPED, autocast, fit, log, write_weights
from scripts.miniature.options import Options

IMAGE_SIZE = 64
VOCABULARY = 640  # at most
VOCABULARY_TEXTS = 20_000  # that the tokenizer is trained on
OBJECTS = 3  # crops of single objects per scene
EXAMPLE = np.dtype(
    [("pixels", np.uint8, (1 + OBJECTS, IMAGE_SIZE, IMAGE_SIZE, 3)), ("nouns", np.int64, 1 + OBJECTS)]
)
WHOLE = -1  # instead of the number of a noun: the whole scene
NOTHING = -2  # instead of the number of a noun: the scene has too few objects
SMALLEST_OBJECT = 40  # px of a mask that is worth naming
CAPTION_SHARE = 0.55  # of whole pictures that get a sentence instead of a short prompt
BRIGHTNESS_JITTER = 0.1
NOISE = 0.03  # standard deviation of what is added to pictures in [-1, 1]
MAX_LOGIT_SCALE = 100.0

SEASON_WORDS = {"summer": ("summer",), "autumn": ("autumn", "fall"), "winter": ("winter", "winter")}
SEASON_ADJECTIVES = {
    "summer": ("green", "leafy"),
    "autumn": ("golden", "colorful"),
    "winter": ("snowy", "snow covered"),
}
STYLE_WORDS = {"photo": ("photo", "picture", "image"), "sketch": ("pencil sketch", "sketch", "drawing")}
BACKGROUND_WORDS = {
    "mountains": ("mountains",),
    "hills": ("hills",),
    "distant trees": ("distant trees", "forest"),
    "sky": ("sky",),
    "ground": ("ground", "field"),
}
OBJECT_WORDS = {  # noun phrases by the nouns of scenes.instances
    "tree": ("tree",),
    "house": ("house", "small house", "building"),
    "lake": ("lake", "pond"),
    "path": ("path",),
    "fence": ("fence",),
    "rocks": ("rocks", "stones"),
    **BACKGROUND_WORDS,
}
OBJECT_OPENINGS = {"photo": ("", "", "a photo of ", "a picture of "), "sketch": ("", "a sketch of ")}
NOUNS = tuple(OBJECT_WORDS)
PLURALS = {"rocks", "stones", "mountains", "hills", "distant trees"}
SPECIES_NAMES = (*SPECIES, "mixed", "none")
ANY = -1


class Facts(NamedTuple):
    """What a picture shows or a text claims: indices into SEASONS, SPECIES_NAMES, STYLES, and nouns as bits.

    ANY stands for what a text leaves open. Bit i is NOUNS[i], the bit after the last noun the
    background.
    """

    season: int = ANY
    species: int = ANY
    style: int = ANY
    nouns: int = 0


BACKGROUND = Facts(nouns=1 << len(NOUNS))


@dataclass(frozen=True)
class Description:
    """A text, what it claims, and the facts of the picture that it was made for.

    A sentence (`is_sentence`) is true of its own scene alone.
    """

    text: str
    claims: Facts
    facts: Facts
    is_sentence: bool


def train_scorer(options: Options) -> None:
    """Train the scorer in `out`/scorer on pictures with sentences or short prompts, and crops of objects."""
    import open_clip

    device = pick_device("auto")
    folder = Path(options.out) / "scorer"
    folder.mkdir(parents=True, exist_ok=True)
    seeds = data.training_seeds(options)
    examples = data.rendered(options, "crops", make_example, OBJECTS)
    pixels = examples["pixels"]
    nouns = examples["nouns"]
    shots = np.argwhere(
        nouns != NOTHING
    )  # rows of (scene, shot): 0 is the whole picture, the others are crops

    def describe_shot(rng: random.Random, shot: np.ndarray) -> Description:
        number, part = shot
        return describe(rng, seeds[number], nouns[number, part])

    vocabulary_rng = random.Random(4)
    texts = [describe_shot(vocabulary_rng, shot).text for shot in shots[:VOCABULARY_TEXTS]]
    vocabulary = make_tokenizer(texts, folder)
    log(f"scorer: {len(shots)} pictures, vocabulary of {vocabulary}")
    torch.manual_seed(12)
    model = open_clip.CLIP(**write_config(folder, vocabulary))
    model.to(device, memory_format=torch.channels_last).train()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")

    def loss_of_step(step: int) -> torch.Tensor:
        rng = random.Random(step * 53 + 8)
        chosen = shots[torch.randint(len(shots), (options.batch,)).numpy()]
        descriptions = [describe_shot(rng, shot) for shot in chosen]
        image_BCHW = perturbed(batch_of(pixels[chosen[:, 0], chosen[:, 1]], device))
        token_BT = tokenizer([description.text for description in descriptions]).to(device)
        with autocast(device):
            image_BD, text_BD, scale = model(image_BCHW, token_BT)[:3]
        logits_BB = scale.float() * image_BD.float() @ text_BD.float().T
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        # A text that is also true of another picture is neither its match nor a mistake.
        also_true_BB = torch.from_numpy(true_of_others(descriptions)).to(device)
        return data.contrastive(logits_BB.masked_fill(also_true_BB, float("-inf")))

    fit("scorer", model, loss_of_step, options)
    write_weights(model, folder / "open_clip_model.safetensors")


def write_config(folder: Path, vocabulary: int) -> dict[str, Any]:
    """Write the shipped configuration with that vocabulary size; returns the arguments of open_clip.CLIP."""
    config = json.loads((SHIPPED / "scorer" / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = vocabulary
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return config["model_cfg"]


def perturbed(image_BCHW: torch.Tensor) -> torch.Tensor:
    """Pictures in [-1, 1], mirrored or not, with a random brightness and noise."""
    image_BCHW = data.flipped(image_BCHW)
    brightness_B111 = 1 + BRIGHTNESS_JITTER * torch.randn(len(image_BCHW), 1, 1, 1, device=image_BCHW.device)
    return (image_BCHW * brightness_B111 + NOISE * torch.randn_like(image_BCHW)).clamp(-1, 1)


def true_of_others(descriptions: Sequence[Description]) -> np.ndarray:
    """(B pictures, B texts): whether the text is true of the picture, though it was not made for it."""
    claims_1B4 = np.array([description.claims for description in descriptions])[None]
    facts_B14 = np.array([description.facts for description in descriptions])[:, None]
    is_sentence_B = np.array([description.is_sentence for description in descriptions])
    open_or_right_BB3 = (claims_1B4[..., :3] == ANY) | (claims_1B4[..., :3] == facts_B14[..., :3])
    nouns_shown_BB = (claims_1B4[..., 3] & facts_B14[..., 3]) == claims_1B4[..., 3]
    own_BB = np.eye(len(descriptions), dtype=bool)
    return open_or_right_BB3.all(-1) & nouns_shown_BB & ~is_sentence_B & ~own_BB


def make_example(seed: int) -> np.ndarray:
    """The whole picture and crops of its objects, as an EXAMPLE."""
    rng = random.Random(seed * 41 + 6)
    the_scene = scene(seed)
    look = data.varied_look(seed)
    picture = np.asarray(render(the_scene, look))
    example = np.zeros((), EXAMPLE)
    example["nouns"] = NOTHING
    example["pixels"][0] = reduced(picture)
    example["nouns"][0] = WHOLE
    for index, (noun, area) in enumerate(choose_objects(rng, the_scene, look), 1):
        if rng.random() < 0.3:
            part = part_of(rng, area)
            area = part if part.sum() >= SMALLEST_OBJECT else area
        crop = object_crop(picture, area, margin=rng.uniform(0, 0.25), outside=rng.uniform(0, 0.6))
        example["pixels"][index] = reduced(crop)
        example["nouns"][index] = NOUNS.index(noun)
    return example


def choose_objects(rng: random.Random, the_scene: Scene, look: Look) -> list[tuple[str, np.ndarray]]:
    """(noun, mask) of at most OBJECTS objects; sky and ground, which every scene has, are rarer."""
    preferred: list[tuple[str, np.ndarray]] = []
    others: list[tuple[str, np.ndarray]] = []
    objects = [(noun, area) for noun, area in instances(the_scene, look) if area.sum() >= SMALLEST_OBJECT]
    rng.shuffle(objects)
    for noun, area in objects:
        last = noun in ("sky", "ground") and rng.random() < 0.6
        (others if last else preferred).append((noun, area))
    return (preferred + others)[:OBJECTS]


def reduced(pixels: np.ndarray) -> np.ndarray:
    """The picture or crop at the size that the scorer sees."""
    return np.asarray(Image.fromarray(pixels).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def object_crop(picture: np.ndarray, area: np.ndarray, margin: float, outside: float) -> np.ndarray:
    """models.segmenter.masked_crop of arrays: RGB uint8 H x W x 3 and a bool mask H x W."""
    rows, columns = np.nonzero(area)
    box = (int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max()))
    image_CHW = torch.tensor(picture).permute(2, 0, 1).float()
    crop_CHW = masked_crop(image_CHW, torch.tensor(area), box, margin, outside)
    return crop_CHW.permute(1, 2, 0).byte().numpy()


def part_of(rng: random.Random, area: np.ndarray) -> np.ndarray:
    """A part of an object, as a segmenter may propose it: what a window of 60 % of its sides shows of it."""
    window = []
    for places in np.nonzero(area):  # rows, then columns
        side = np.ptp(places) + 1
        first = places.min() + int(side * rng.uniform(0, 0.4))
        window.append(slice(first, first + max(6, int(side * 0.6))))
    keep = np.zeros_like(area)
    keep[tuple(window)] = True
    return area & keep


def describe(rng: random.Random, seed: int, noun: int) -> Description:
    """A text for the whole picture of a scene (`noun` is WHOLE) or for a crop of its object NOUNS[noun]."""
    the_scene = scene(seed)
    look = data.varied_look(seed)
    if noun != WHOLE:
        facts = facts_of(the_scene, look, [NOUNS[noun]])
        text, claims = object_prompt(rng, facts, NOUNS[noun])
        return Description(text, claims, facts, is_sentence=False)
    nouns = ["tree", "sky", "ground", *(thing for thing in THINGS if getattr(the_scene, thing))]
    if the_scene.far in DISTANT_NOUNS:
        nouns.append(DISTANT_NOUNS[the_scene.far])
    facts = facts_of(the_scene, look, nouns)
    text, claims = scene_prompt(rng, facts)
    is_sentence = rng.random() < CAPTION_SHARE
    if is_sentence:
        text = caption(the_scene, look, rng.randrange(8), rng.random() < data.SEASON_NAMED_SHARE)
    return Description(text, claims, facts, is_sentence)


def facts_of(scene: Scene, look: Look, nouns: Sequence[str]) -> Facts:
    """The facts of a picture of these objects of the scene."""
    view = shown(scene, look)
    present = {tree.species for tree in view.trees}
    species = present.pop() if len(present) == 1 else "mixed"
    if "tree" not in nouns:
        species = "none"
    bits = 0
    for noun in nouns:
        bits |= 1 << NOUNS.index(noun)
        if noun in BACKGROUND_WORDS:
            bits |= BACKGROUND.nouns
    return Facts(SEASONS.index(view.season), SPECIES_NAMES.index(species), STYLES.index(look.style), bits)


def scene_prompt(rng: random.Random, facts: Facts) -> tuple[str, Facts]:
    """(a short text that is true of a whole scene, what it claims)."""
    names_season = rng.random() < 0.6
    names_species = facts.species < len(SPECIES) and rng.random() < 0.45
    names_style = rng.random() < 0.35 or not (names_season or names_species)
    claims = Facts(
        season=facts.season if names_season else ANY,
        species=facts.species if names_species else ANY,
        style=facts.style if names_style else ANY,
    )
    season = SEASONS[facts.season]
    word = rng.choice(SEASON_WORDS[season])
    style_words = STYLE_WORDS[STYLES[facts.style]]
    form = rng.random()
    if names_style and not (names_season or names_species) and form < 0.4:
        return rng.choice(("a ", "")) + rng.choice(style_words), claims
    if names_season and not names_species and form < 0.35:
        landscapes = (word, f"a {word} landscape", f"a {word} scene", f"trees in {word}", f"in {word}")
        phrase = rng.choice(landscapes)
    else:
        phrase = f"{SPECIES_NAMES[facts.species]} tree" if names_species else "tree"
        if names_season and form < 0.5:
            phrase = f"{rng.choice((*SEASON_ADJECTIVES[season], word))} {phrase}"
        elif names_season:
            phrase = f"{phrase} in {word}"
        phrase = perhaps_a(rng, phrase)
    if names_style:
        opening = perhaps_a(rng, rng.choice(style_words))
        phrase = f"{opening} of {phrase}"
    return with_articles(phrase), claims


def object_prompt(rng: random.Random, facts: Facts, noun: str) -> tuple[str, Facts]:
    """(a short text that names the single object shown, what it claims)."""
    if noun in BACKGROUND_WORDS and rng.random() < 0.15:
        return rng.choice(("the background", "background")), BACKGROUND
    phrase = rng.choice(OBJECT_WORDS[noun])
    claims = Facts(nouns=1 << NOUNS.index(noun))
    if noun == "tree":
        if facts.species < len(SPECIES) and rng.random() < 0.35:
            phrase = f"{SPECIES_NAMES[facts.species]} tree"
            claims = claims._replace(species=facts.species)
        if rng.random() < 0.25:
            phrase = f"{phrase} in {SEASONS[facts.season]}"
            claims = claims._replace(season=facts.season)
    if noun in ("sky", "ground") and rng.random() < 0.7:
        phrase = f"the {phrase}"
    elif phrase not in PLURALS:
        phrase = perhaps_a(rng, phrase)
    opening = rng.choice(OBJECT_OPENINGS[STYLES[facts.style]])
    return with_articles(opening + phrase), claims


def perhaps_a(rng: random.Random, phrase: str) -> str:
    """The phrase, in four of five cases with the article "a"."""
    return f"a {phrase}" if rng.random() < 0.8 else phrase


def make_tokenizer(texts: Sequence[str], folder: Path) -> int:
    """Train a small byte-pair tokenizer of these texts and save it where open_clip looks for it.

    Returns the size of its vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    entries, merges = data.byte_pairs(sorted(set(texts)), VOCABULARY - 4)  # and four special tokens
    vocabulary = {entry: index for index, entry in enumerate(["<unk>", *entries])}
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    # <end> comes last, as open_clip pools at the highest id.
    tokenizer.add_special_tokens(["<pad>", "<start>", "<end>"])
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
