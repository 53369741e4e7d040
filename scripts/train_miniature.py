#!/usr/bin/env python
"""Trains the miniature world's models from its rendered scenes.

    python scripts/train_miniature.py STAGE [key=value ...]

STAGE is vae, text, unet, scorer, segmenter, all (these five in order), unconditional (on a CPU),
banks (write configs/banks) or check (measure everything). The defaults fit one GPU in about 25
minutes; a CPU needs smaller budgets, e.g. images=8000 batch=16 minutes=30. To resume, run the same
command again; to start anew, remove its checkpoint from the `work` folder. init=FOLDER continues
from existing weights.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.files import ROOT
from scripts.miniature.options import Options, parse


@dataclass(frozen=True)
class Stage:
    """`function` of scripts/miniature/`module`, and the defaults of its options, which fit a GPU.

    The module is imported when the stage runs: torch takes seconds.
    """

    module: str
    function: str
    defaults: Options

    def run(self, assignments: list[str]) -> None:
        """Run the stage with key=value assignments, and let everybody read the weights that it wrote."""
        options = parse(self.defaults, assignments)
        module = importlib.import_module(f"scripts.miniature.{self.module}")
        getattr(module, self.function)(options)
        for path in Path(options.out).rglob("*.safetensors"):
            path.chmod(0o644)  # diffusers and transformers write for the owner alone


STAGES = {
    "vae": Stage(
        "teacher",
        "train_vae",
        Options(minutes=5.0, lr=8e-4, weight_decay=0.0, ema=0.998),
    ),
    "text": Stage(
        "teacher",
        "train_text",
        Options(batch=1024, minutes=1.5, lr=1e-3, weight_decay=0.05, warmup=150),
    ),
    "unet": Stage(
        "teacher",
        "train_unet",
        Options(batch=512, minutes=9.0, lr=6e-4, warmup=400, ema=0.9995),
    ),
    "scorer": Stage(
        "scorer",
        "train_scorer",
        Options(batch=512, minutes=2.5, lr=1e-3, images=20_000, first_seed=300_000, ema=0.995),
    ),
    "segmenter": Stage(
        "segmenter",
        "train_segmenter",
        Options(batch=32, minutes=4.0, lr=1e-3, images=20_000, first_seed=400_000),
    ),
    "unconditional": Stage(
        "unconditional",
        "train_unconditional",
        Options(batch=16, minutes=45.0, lr=8e-4, images=16_000, first_seed=500_000, weight_decay=0.0),
    ),
    "check": Stage("check", "check", Options()),
}
TRAININGS = ("vae", "text", "unet", "scorer", "segmenter")  # in this order: the UNet needs vae and text

BANK_SENTENCES = 200
BANK_LOOKS = {  # file name -> arguments of a Look
    "tree_summer": {"season": "summer"},
    "tree_autumn": {"season": "autumn"},
    "tree_winter": {"season": "winter"},
    "oak": {"season": "any", "species": "oak"},
    "pine": {"season": "any", "species": "pine"},
    "photo": {"season": "any"},
    "sketch": {"season": "any", "style": "sketch"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_help()
        return 0
    stage = arguments[0]
    assignments = arguments[1:]
    if stage == "all":
        for name in TRAININGS:
            STAGES[name].run(assignments)
    elif stage == "banks":
        write_banks(ROOT / "configs" / "banks")
    elif stage in STAGES:
        STAGES[stage].run(assignments)
    else:
        raise SystemExit(f"unknown stage {stage!r}: one of {', '.join((*STAGES, 'all', 'banks'))}")
    return 0


def print_help() -> None:
    """Print what the command does, the keys with their common defaults, and the defaults of each stage."""
    common = vars(Options())
    print(f"{__doc__}\nkeys and their common defaults:")
    for key, value in common.items():
        print(f"  {key}={value}")
    for name, stage in STAGES.items():
        own = []
        for key, value in vars(stage.defaults).items():
            if value != common[key]:
                own.append(f"{key}={value}")
        print(f"{name}: {' '.join(own)}")


def write_banks(folder: Path) -> None:
    """Write one file of sentences for each look of BANK_LOOKS; the same scenes in all."""
    from models.miniature.captions import bank
    from models.miniature.scenes import Look

    folder.mkdir(parents=True, exist_ok=True)
    for name, look in BANK_LOOKS.items():
        path = folder / f"{name}.txt"
        path.write_text("\n".join(bank(Look(**look), BANK_SENTENCES)) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
