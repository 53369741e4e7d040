#!/usr/bin/env python
"""Trains the miniature world's models from its rendered scenes.

    python scripts/train_miniature.py STAGE [key=value ...]

STAGE is vae, text, unet, scorer, segmenter, all (these five in order), banks (write configs/banks) or check (measure
everything). The defaults fit one GPU in about 20 minutes; a CPU needs smaller budgets, e.g. images=8000 batch=16
minutes=30. To resume, run the same command again; to start anew, remove its checkpoint from the `work` folder.
init=FOLDER continues from existing weights.
"""

import importlib
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works in a clone that is not installed

BANK_SENTENCES = 200
BANK_LOOKS = {
    "tree_summer": {"season": "summer"},
    "tree_autumn": {"season": "autumn"},
    "tree_winter": {"season": "winter"},
    "oak": {"season": "any", "species": "oak"},
    "pine": {"season": "any", "species": "pine"},
    "photo": {"season": "any"},
    "sketch": {"season": "any", "style": "sketch"},
}
# what a stage has other than the common defaults; minutes are for a GPU
STAGES: dict[str, dict[str, Any]] = {
    "vae": {"minutes": 5.0, "lr": 8e-4, "weight_decay": 0.0, "ema": 0.998},
    "text": {"batch": 1024, "minutes": 1.5, "lr": 1e-3, "weight_decay": 0.05, "warmup": 150},
    "unet": {"batch": 512, "minutes": 9.0, "lr": 6e-4, "warmup": 400, "ema": 0.9995},
    "scorer": {"batch": 512, "minutes": 2.5, "lr": 1e-3, "images": 20_000, "first_seed": 300_000, "ema": 0.995},
    "segmenter": {"batch": 32, "minutes": 4.0, "lr": 1e-3, "images": 20_000, "first_seed": 400_000},
}
ACTIONS = {  # imported when asked for: torch and the libraries take seconds
    "vae": ("autoencoder", "train_vae"),
    "text": ("text", "train_text"),
    "unet": ("teacher", "train_unet"),
    "scorer": ("scorer", "train_scorer"),
    "segmenter": ("segmenter", "train_segmenter"),
    "check": ("check", "check"),
}


def write_banks(folder: Path) -> None:
    """Write one file of sentences for each look of BANK_LOOKS; the same scenes in all."""
    from models.miniature.captions import bank
    from models.miniature.scenes import Look

    folder.mkdir(parents=True, exist_ok=True)
    for name, look in BANK_LOOKS.items():
        (folder / f"{name}.txt").write_text("\n".join(bank(Look(**look), BANK_SENTENCES)) + "\n")
        print(f"wrote {folder / name}.txt")


def _help():
    from models.miniature.training.loop import Options

    print(__doc__)
    print("keys and their common defaults:")
    for field in fields(Options):
        print(f"  {field.name}={field.default}")
    for stage, values in STAGES.items():
        print(f"{stage}: " + " ".join(f"{key}={value}" for key, value in values.items()))


def run(stage: str, assignments: list[str]) -> None:
    """Train one stage, or check."""
    from models.miniature.training.loop import Options, parse

    module, function = ACTIONS[stage]
    action = getattr(importlib.import_module(f"models.miniature.training.{module}"), function)
    action(parse(Options(**STAGES.get(stage, {})), assignments))


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    stage, *assignments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if stage in ("-h", "--help", "help"):
        _help()
    elif stage == "banks":
        write_banks(REPOSITORY / "configs" / "banks")
    elif stage == "all":
        for name in STAGES:
            run(name, assignments)
    elif stage in ACTIONS:
        run(stage, assignments)
    else:
        raise SystemExit(f"unknown stage {stage!r}: one of {', '.join((*ACTIONS, 'all', 'banks'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
