"""The paper's Appendix C: what regularising the inversion does for an unconditional diffusion model.

Pictures are inverted without and with regularisation, made again by the model, and edited by sampling
with its copy that DiffusionCLIP fine-tuned to the task's target.

Images are RGB uint8, N x H x W x 3. B batch, C channels, H W pixels, D width of a CLIP feature.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.errors import UserError
from configs.files import digest, model_files
from configs.runs import scorer_files
from configs.schema import Config, Inversion, Source
from generate.inversion import invert, noise_statistics, steps_upwards
from generate.sources import InputImage, InputSource, Unreadable, open_source
from models.devices import pick_device
from models.pictures import batch_of, images_of
from models.unconditional import Unconditional
from scripts.measure.diffusion_clip import PICTURES, SETTINGS, fine_tuned, highest_timestep, sample
from scripts.measure.judges import Judges
from scripts.measure.metrics import psnr
from scripts.measure.tables import averaged, without_interval
from scripts.measure.truth import INPUT, TRUTH, held_out_scenes, true_edit

KEY = "evaluate.unconditional"
PLAIN = "DDIM inversion"
REGULARISED = "regularised inversion"
BATCH = 16
READ_AHEAD = 2  # times the wanted pictures are listed, as some photographs may be unreadable


def rows(config: Config) -> dict[str, Inversion]:
    """Name -> how the pictures of the row are inverted."""
    plain = replace(config.inversion, lambda_ac=0.0, lambda_kl=0.0)
    return {PLAIN: plain, REGULARISED: config.inversion}


def evaluate_unconditional(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What scripts/evaluate.py writes as table.json, and the pictures of the grid by name.

    UserError where no model is named, or weights are missing.
    """
    if not config.evaluate.unconditional:
        raise UserError(f"name a folder with {KEY}=: figure9 edits with an unconditional diffusion model")
    device = pick_device(config.device)
    model = Unconditional(config.evaluate.unconditional, KEY, device)
    judges = Judges(config, device, masks=False)
    side = model.latent_shape[1]
    tuned = _tuned(config, model, judges, side)

    held_out = config.source if config.source.images else held_out_scenes(config)
    inputs = read_pictures(config, held_out, side, config.evaluate.scenes)
    images = {INPUT: np.stack([one.image for one in inputs])}
    if config.task.scene_truth and all("scene_seed" in one.source for one in inputs):
        images[TRUTH] = np.stack([true_edit(config, one.source, side) for one in inputs])
    grid = dict(images)
    measured: dict[str, dict[str, np.ndarray]] = {}
    for name, inversion in rows(config).items():
        print(f"{name}:", flush=True)
        images[name], reconstructed, measured[name] = edit(config, model, tuned, inversion, inputs)
        grid[f"{name}: reconstruction"] = reconstructed
        grid[f"{name}: edit"] = images[name]
    return _table(config, judges, images, measured), grid


def read_pictures(config: Config, source: Source, side: int, count: int) -> list[InputImage]:
    """The first `count` readable pictures of a source, of that side."""
    opened = open_source(source, config.task, side, READ_AHEAD * count)
    return list(islice(_readable(opened), count))


def _readable(opened: InputSource) -> Iterator[InputImage]:
    for index in range(len(opened.names)):
        try:
            yield opened.load(index)
        except Unreadable as error:
            print(f"left out: {error}", flush=True)


def _tuned(config: Config, model: Unconditional, judges: Judges, side: int) -> Unconditional:
    """The model's copy for the task, fine-tuned on the first pictures of the run's own source.

    It lies in <runs_dir>/unconditional by everything that decides it.
    """
    check = judges.networks.target_check
    assert check
    text_D = check.target_D - check.source_D
    inputs = read_pictures(config, config.source, side, PICTURES)
    key = digest(
        model_files(config.evaluate.unconditional),
        config.evaluate.unconditional,
        config.evaluate.unconditional_lr,
        config.scorer,
        scorer_files(config.scorer),
        text_D.tolist(),
        [[one.key, digest(one.image.tolist())] for one in inputs],
        SETTINGS,
        config.seed,
    )
    image_BCHW = batch_of([one.image for one in inputs], model.device)
    cache = Path(config.runs_dir) / "unconditional" / f"{key}.safetensors"
    lr = config.evaluate.unconditional_lr
    return fine_tuned(model, check.scorer, text_D, image_BCHW, lr, config.seed, cache)


def edit(
    config: Config, model: Unconditional, tuned: Unconditional, inversion: Inversion, inputs: list[InputImage]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Edits and reconstructions of the inputs, and columns of N values that the judges do not give."""
    schedule = model.schedule(config.edit.steps)
    top = highest_timestep(model)  # the copy was fine-tuned up to there
    above = [step for step in schedule if step.timestep > top]
    below = [step for step in schedule if step.timestep <= top]
    edits = []
    reconstructions = []
    clipped = []
    statistics: list[dict[str, float]] = []
    for start in range(0, len(inputs), BATCH):
        part = inputs[start : start + BATCH]
        image_BCHW = batch_of([one.image for one in part], model.device)
        generators = [_generator(config.seed, one.key) for one in part]
        no_text_BTD = model.no_text(len(part))
        inverted = invert(
            model, steps_upwards(schedule), image_BCHW, no_text_BTD, generators, inversion
        ).inverted_BCHW
        statistics += noise_statistics(inverted)
        reconstructions.append(images_of(sample(model, inverted, schedule)))
        edit_BCHW = sample(tuned, sample(model, inverted, above), below)
        edits.append(images_of(edit_BCHW))
        clipped.append(clipped_share(edit_BCHW).cpu().numpy())
        print(f"  {start + len(part)}/{len(inputs)} pictures", flush=True)
    reconstructed = np.concatenate(reconstructions)
    columns = {
        "psnr_reconstruction": psnr(reconstructed, np.stack([one.image for one in inputs])),
        "clipped": np.concatenate(clipped),
    }
    for name in ("variance", "auto_correlation"):
        columns[name] = np.array([of_image[name] for of_image in statistics])
    return np.concatenate(edits), reconstructed, columns


def clipped_share(image_BCHW: Tensor) -> Tensor:
    """The share of each picture's values more than a level outside [-1, 1], which are cut off; B."""
    return (image_BCHW.abs() > 1 + 2 / 255).float().mean((1, 2, 3))


def _generator(seed: int, key: str) -> torch.Generator:
    """An image's own random numbers, the same in every row."""
    return torch.Generator().manual_seed(int(digest(seed, key), 16) % 2**63)


def _table(
    config: Config,
    judges: Judges,
    images: Mapping[str, np.ndarray],
    measured: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, Any]:
    """table.json's content; differences are those of the regularised row to the plain one, paired."""
    columns = judges.columns(images, [], Path())
    yardstick, sharpness = (TRUTH, "sharpness_true") if TRUTH in images else (INPUT, "sharpness_input")
    sharp_as = columns[yardstick]["sharpness"].mean()
    cells = {}
    for name in images:
        values = dict(measured.get(name, {})) | columns[name]
        values["sharpness_true" if TRUTH in images else "sharpness_input"] = (
            values.pop("sharpness") / sharp_as
        )
        if name == REGULARISED and "lpips_true" in values:
            values["difference_plain"] = values["lpips_true"] - columns[PLAIN]["lpips_true"]
        cells[name] = averaged(values, config.seed)
        if TRUTH in images and name != TRUTH:
            of_sets = judges.set_network.distances(images[name], images[TRUTH])
            cells[name] |= without_interval({f"{key}_true": value for key, value in of_sets.items()})
    judges.measured_by["FID"] = judges.set_network.name
    return {"images": len(images[INPUT]), "measured_by": judges.measured_by, "rows": cells}
