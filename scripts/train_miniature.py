#!/usr/bin/env python
"""Trains the miniature world's models from its rendered scenes.

    python scripts/train_miniature.py STAGE [key=value ...]

STAGE is vae, text, unet, scorer, segmenter, all (these five in order), banks (write configs/banks) or check (measure everything). The
defaults fit one GPU in about 25 minutes; a CPU needs smaller budgets, e.g. images=8000 batch=16 minutes=30. To resume, run the same command
again; to start anew, remove its checkpoint from the `work` folder. init=FOLDER continues from existing weights.
"""

import importlib
import sys
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
# module and function of a stage (imported when asked for: torch takes seconds), and what it has other than the common defaults, for a GPU
STAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vae": ("teacher", "train_vae", {"minutes": 5.0, "lr": 8e-4, "weight_decay": 0.0, "ema": 0.998}),
    "text": (
        "teacher",
        "train_text",
        {"batch": 1024, "minutes": 1.5, "lr": 1e-3, "weight_decay": 0.05, "warmup": 150},
    ),
    "unet": (
        "teacher",
        "train_unet",
        {"batch": 512, "minutes": 9.0, "lr": 6e-4, "warmup": 400, "ema": 0.9995},
    ),
    "scorer": (
        "scorer",
        "train_scorer",
        {"batch": 512, "minutes": 2.5, "lr": 1e-3, "images": 20_000, "first_seed": 300_000, "ema": 0.995},
    ),
    "segmenter": (
        "segmenter",
        "train_segmenter",
        {"batch": 32, "minutes": 4.0, "lr": 1e-3, "images": 20_000, "first_seed": 400_000},
    ),
    "check": ("check", "check", {}),
}


def write_banks(folder: Path) -> None:
    """Write one file of sentences for each look of BANK_LOOKS; the same scenes in all."""
    from models.miniature.captions import bank
    from models.miniature.scenes import Look

    folder.mkdir(parents=True, exist_ok=True)
    for name, look in BANK_LOOKS.items():
        (folder / f"{name}.txt").write_text("\n".join(bank(Look(**look), BANK_SENTENCES)) + "\n")
        print(f"wrote {folder / name}.txt")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    from scripts.miniature.loop import Options, parse

    stage, *assignments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if stage in ("-h", "--help", "help"):
        print(f"{__doc__}\nkeys and their common defaults:")
        for key, value in vars(Options()).items():
            print(f"  {key}={value}")
        for name, (*_, values) in STAGES.items():
            print(f"{name}: " + " ".join(f"{key}={value}" for key, value in values.items()))
    elif stage == "banks":
        write_banks(REPOSITORY / "configs" / "banks")
    elif stage not in (*STAGES, "all"):
        raise SystemExit(f"unknown stage {stage!r}: one of {', '.join((*STAGES, 'all', 'banks'))}")
    else:
        for name in [name for name in STAGES if name != "check"] if stage == "all" else [stage]:
            module, function, values = STAGES[name]
            action = getattr(importlib.import_module(f"scripts.miniature.{module}"), function)
            options = parse(Options(**values), assignments)
            action(options)
            for path in Path(options.out).rglob("*.safetensors"):
                path.chmod(0o644)  # safetensors writes for its owner alone
    return 0


if __name__ == "__main__":
    sys.exit(main())
