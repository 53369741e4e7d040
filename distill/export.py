"""Export the newest checkpoint's averaged weights: a generator that needs nothing of this repository.

  python distill/export.py task=tree2winter

Writes <run>/export: generator.safetensors (for PyTorch), generator.onnx (uint8 pictures in and out), config.json, check.json. Each format
is compared with PyTorch on held-out pictures before it is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.cli import entry
from configs.errors import UserError
from configs.loader import pairs_dir, run_dir
from configs.schema import Config

if TYPE_CHECKING:
    from distill.pairs import PairDataset

SECTIONS = ("task", "teacher", "distill")
CHECKED_PICTURES = 16
MAX_LEVELS = 2  # of 255; rounding alone makes 1 where two runtimes sum in another order


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return entry(__doc__, SECTIONS, export, plan, argv)


def export(config: Config) -> Path:
    """Write <run>/export and return it.

    UserError without a checkpoint, and where a format differs from PyTorch by more than MAX_LEVELS 8-bit levels: then nothing there is
    replaced.
    """
    import shutil
    import tempfile

    from safetensors.torch import save_file

    from generate.shards import exclusive, write_json

    run, folder = run_dir(config), run_dir(config) / "export"
    with exclusive(folder, "export"), tempfile.TemporaryDirectory(prefix=".export.", dir=run) as temporary:
        generator, about, held_out = _load(config)
        tensors = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
        save_file(tensors, Path(temporary) / "generator.safetensors", {key: json.dumps(value) for key, value in about.items()})
        _write_onnx(Path(temporary) / "generator.onnx", generator, about)
        check = _check(Path(temporary), generator, about["z"], held_out)
        for name, found in check["formats"].items():
            print(f"export: {name} {found['bytes'] / 1e6:.1f} MB, at most {found['max_levels']} of 255 levels from PyTorch")
            if found["max_levels"] > MAX_LEVELS:
                raise UserError(f"{name} differs from PyTorch by more than {MAX_LEVELS} levels; {folder} is as it was")
        for name in check["formats"]:
            (Path(temporary) / name).chmod(0o644)  # safetensors gives its files to their owner alone
            shutil.move(Path(temporary) / name, folder / name)
        write_json(folder / "config.json", about)
        write_json(folder / "check.json", check)
    return folder


def plan(config: Config) -> dict[str, Any]:
    """What --dry-run prints."""
    from distill.checkpoints import saved

    found = saved(run_dir(config) / "train" / "checkpoints")
    return {"checkpoint": found[-1] if found else "none yet: run distill/train.py", "folder": run_dir(config) / "export"}


def _load(config: Config) -> tuple[Any, dict[str, Any], PairDataset]:
    """The exported module (image B x 3 x H x W in [-1, 1] -> the same), what its files say of themselves, held-out pairs."""
    import torch

    from distill import checkpoints, pairs
    from distill.state import fixed_latent
    from generate.shards import finished_shards, read_manifest
    from models.comodgan import CoModGenerator

    checkpoint = checkpoints.newest(run_dir(config) / "train" / "checkpoints")
    if checkpoint is None:
        raise UserError(f"{run_dir(config) / 'train'} has no checkpoint: run distill/train.py with the same task= and teacher= first")
    generator = CoModGenerator.from_config(checkpoint.state["generator"]).eval().requires_grad_(False)
    generator.load_state_dict(checkpoint.tensors["ema"])
    made_with = checkpoint.state["made_with"]
    locations = pairs.find_pairs(pairs_dir(config), pairs.selected_keys(run_dir(config)))
    _, held_out = pairs.split(pairs.source_ids(locations), made_with["distill.validation_share"], made_with["seed"])
    sampled = made_with["distill.latent"] == "sampled"
    about = {
        "format": 1,
        "config": generator.config,
        "resolution": generator.config["resolution"],
        "z": fixed_latent(config)[0].tolist() if sampled else None,
        "task": config.task.name,
        "source": config.task.source,
        "target": config.task.target,
        "teacher": config.teacher.name,
        "images_seen": checkpoint.state["images"],
        "pairs": len(locations),
        "pairs_sha256": [read_manifest(shard)["sha256"] for shard in finished_shards(pairs_dir(config))],
        "git_revision": _git_revision(),
        "torch": torch.__version__,
    }
    chosen = [locations[place] for place in held_out[:CHECKED_PICTURES]]
    return generator, about, pairs.PairDataset(chosen, about["resolution"])


def _write_onnx(path: Path, generator: Any, about: dict[str, Any]) -> None:
    """One self-contained graph, opset 18: image uint8 B x H x W x 3 -> edit uint8 B x H x W x 3, float32 inside, any batch."""
    import contextlib
    import io
    import warnings

    import onnx
    import torch

    side = about["resolution"]
    picture = _picture_module(generator, about["z"])
    example_BHWC = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter talks about its own progress
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            picture,
            (example_BHWC,),
            dynamo=True,
            opset_version=18,
            input_names=["image"],
            output_names=["edit"],
            dynamic_shapes={"image_BHWC": {0: torch.export.Dim("batch", min=1, max=4096)}},
        )
    assert program is not None  # with dynamo=True there is one
    model = program.model_proto
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")  # the exporter's stack traces name files of the machine it ran on
    described = {key: about[key] for key in ("task", "source", "target", "teacher", "resolution", "git_revision", "config")}
    onnx.helper.set_model_props(model, {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _picture_module(generator: Any, z: list[float] | None) -> Any:
    """A module around the generator: uint8 B x H x W x 3 -> uint8 B x H x W x 3. z: the latent to use, None for zeros."""
    import torch

    class Picture(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = generator
            self.register_buffer("z_1D", None if z is None else torch.tensor([z]))

        def forward(self, image_BHWC: torch.Tensor) -> torch.Tensor:
            image_BCHW = image_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0
            edit_BCHW = (self.generator(image_BCHW, self.z_1D) + 1.0) * 127.5
            return edit_BCHW.round().clamp(0.0, 255.0).to(torch.uint8).permute(0, 2, 3, 1)

    return Picture().eval()


def _check(folder: Path, generator: Any, z: list[float] | None, held_out: PairDataset) -> dict[str, Any]:
    """Differences in 8-bit levels between each file and the checkpoint's weights in PyTorch, on held-out pictures."""
    import numpy as np
    import torch

    from distill.state import load_exported
    from distill.translate import Translator
    from models.comodgan import CoModGenerator

    images_BHWC = np.stack([held_out[place][1].permute(1, 2, 0).numpy() for place in range(len(held_out))])
    again = CoModGenerator.from_config(generator.config).eval()
    load_exported(again, folder / "generator.safetensors")
    formats = {}
    with torch.no_grad():
        expected, loaded = (_picture_module(module, z)(torch.from_numpy(images_BHWC)).numpy().astype(int) for module in (generator, again))
    for name, edits in (("generator.safetensors", loaded), ("generator.onnx", Translator(folder)(images_BHWC))):
        levels, size = np.abs(edits.astype(int) - expected), (folder / name).stat().st_size
        formats[name] = {"max_levels": int(levels.max()), "mean_levels": float(levels.mean()), "bytes": size}
    return {"pictures": len(images_BHWC), "allowed_levels": MAX_LEVELS, "formats": formats}


def _git_revision() -> str:
    """The commit this code is at, '+' appended where files differ from it; 'unknown' outside a clone."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
