"""The scorer: a CLIP model in open_clip's format, which judges edits; nothing of it is shared with the teacher.

B pictures and texts of a batch.
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.devices import pick_device
from models.miniature.captions import caption
from models.miniature.scenes import instances, render, scene
from models.miniature.terrain import DISTANT_NOUNS
from models.miniature.training import data
from models.miniature.training.loop import SHIPPED, Options, autocast, fit, log, write_weights
from models.miniature.training.prompts import NOUNS, facts, object_prompt, scene_prompt
from models.segmenter import masked_crop

IMAGE_SIZE = 64
VOCABULARY = 640
OBJECTS = 3  # crops of single objects per scene
SMALLEST_OBJECT = 40  # px of a mask that is worth naming
CAPTION_SHARE = 0.55  # of whole pictures that get a sentence instead of a short prompt
MAX_LOGIT_SCALE = 100.0


def _small(pixels):
    return np.asarray(Image.fromarray(pixels).resize((IMAGE_SIZE, IMAGE_SIZE), Image.BICUBIC))


def object_crop(picture, area, margin, outside):
    """models.segmenter.masked_crop of arrays: RGB uint8 H x W x 3 and a bool mask."""
    (rows, columns), image_CHW = np.nonzero(area), torch.tensor(picture).permute(2, 0, 1).float()
    box = int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())
    return masked_crop(image_CHW, torch.tensor(area), box, margin, outside).permute(1, 2, 0).byte().numpy()


def _part(rng, area):
    """Sometimes only a part of the object, as a segmenter may propose."""
    rows, columns = np.nonzero(area)
    keep = np.zeros_like(area)
    high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
    top, left = rows.min() + int(high * rng.uniform(0, 0.4)), columns.min() + int(wide * rng.uniform(0, 0.4))
    keep[top : top + max(6, int(high * 0.6)), left : left + max(6, int(wide * 0.6))] = True
    return area & keep


def _examples(seed):
    """The whole picture and crops of its objects: (uint8 (1 + OBJECTS, 64, 64, 3), nouns; -1 for the whole, -2 for none)."""
    rng, this, look = random.Random(seed * 41 + 6), scene(seed), data.varied_look(seed)
    picture = np.asarray(render(this, look))
    pixels = np.zeros((1 + OBJECTS, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    nouns = np.full(1 + OBJECTS, -2)
    pixels[0], nouns[0] = _small(picture), -1
    found = [(noun, area) for noun, area in instances(this, look) if area.sum() >= SMALLEST_OBJECT]
    rng.shuffle(found)
    found.sort(key=lambda item: item[0] in ("sky", "ground") and rng.random() < 0.6)  # the two that every scene has come last
    for index, (noun, area) in enumerate(found[:OBJECTS], 1):
        if rng.random() < 0.3:
            part = _part(rng, area)
            area = part if part.sum() >= SMALLEST_OBJECT else area
        crop = object_crop(picture, area, rng.uniform(0, 0.25), rng.uniform(0, 0.6))
        pixels[index], nouns[index] = _small(crop), NOUNS.index(noun)
    return pixels, nouns


def _describe(rng, number, seed, noun):
    """(text, claims, facts, the number of the scene if the text is a sentence about it alone, else -1)."""
    this, look = scene(seed), data.varied_look(seed)
    if noun >= 0:
        shown = facts(this, look, [NOUNS[noun]])
        return (*object_prompt(rng, shown, NOUNS[noun]), shown, -1)
    present = [name for name in ("house", "lake", "path", "fence", "rocks") if getattr(this, name)]
    distant = [DISTANT_NOUNS[this.far]] if this.far in DISTANT_NOUNS else []
    shown = facts(this, look, ["tree", "sky", "ground", *present, *distant])
    text, claims = scene_prompt(rng, shown)
    if rng.random() < CAPTION_SHARE:
        text = caption(this, look, rng.randrange(8), rng.random() < data.SEASON_NAMED_SHARE)
        return text, claims, shown, number
    return text, claims, shown, -1


def _true_of(claims_B4, facts_B4, sentence_B):
    """(B texts, B pictures): whether the text is true of the picture. A full sentence is true of its own only."""
    claim, fact = claims_B4[:, None], facts_B4[None]
    same = ((claim[..., :3] == -1) | (claim[..., :3] == fact[..., :3])).all(-1)
    same &= (claim[..., 3] & fact[..., 3]) == claim[..., 3]
    same &= (sentence_B < 0)[:, None]
    return same | np.eye(len(same), dtype=bool)


def make_tokenizer(texts, folder: Path):
    """Train a small byte-pair tokenizer of these texts and save it where open_clip looks for it."""
    from tokenizers import decoders, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = data.byte_pairs(sorted(set(texts)), VOCABULARY - 3, unknown="<unk>")
    tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.add_special_tokens(["<pad>", "<start>", "<end>"])  # <end> last: open_clip pools at the highest id
    ids = {token: tokenizer.token_to_id(token) for token in ("<start>", "<end>")}
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=list(ids.items()))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<start>", eos_token="<end>")
    fast.save_pretrained(folder)
    return tokenizer.get_vocab_size()


def train_scorer(options: Options) -> None:
    """Train the scorer in `out`/scorer on whole pictures with sentences or short prompts, and on crops of single objects."""
    import open_clip

    device, folder = pick_device("auto"), Path(options.out) / "scorer"
    folder.mkdir(parents=True, exist_ok=True)
    seeds = data.training_seeds(options)
    pixels, nouns = data.rendered(options, ("crops", "nouns"), _examples, OBJECTS)
    rows = np.argwhere(nouns > -2)

    rng = random.Random(4)
    sample = [_describe(rng, 0, seeds[number], nouns[number, part])[0] for number, part in rows[:20_000]]
    vocabulary = make_tokenizer(sample, folder)
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
        described = [_describe(rng, number, seeds[number], nouns[number, part]) for number, part in chosen]
        texts, claims, shown, sentence = zip(*described, strict=True)
        claims_B4, facts_B4 = np.array(claims), np.array(shown)
        image_BCHW = data.flipped(data.to_tensor(pixels[chosen[:, 0], chosen[:, 1]], device))
        brightness = 1 + 0.1 * torch.randn(len(chosen), 1, 1, 1, device=device)
        image_BCHW = (image_BCHW * brightness + 0.03 * torch.randn_like(image_BCHW)).clamp(-1, 1)
        with autocast(device):
            image_BD, text_BD, scale = model(image_BCHW, tokenizer(list(texts)).to(device))[:3]
        logits_BB = scale.float() * image_BD.float() @ text_BD.float().T
        also_true = torch.from_numpy(_true_of(claims_B4, facts_B4, np.array(sentence)).T).to(device)
        also_true.fill_diagonal_(False)
        logits_BB = logits_BB.masked_fill(also_true, float("-inf"))  # neither a match nor a mistake
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(MAX_LOGIT_SCALE)))
        return data.contrastive(logits_BB)

    fit("scorer", model, loss_of_step, options)
    write_weights(model, folder / "open_clip_model.safetensors")
