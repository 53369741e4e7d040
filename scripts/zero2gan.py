"""zero2gan: one command for every stage.

  zero2gan STAGE [RUN] [keys] [options]

  zero2gan generate task=tree2winter runs_dir=runs/mine     make pairs; it names the run's folder, RUN
  zero2gan filter RUN                                       keep the good ones
  zero2gan train RUN                                        distil a generator
  zero2gan export RUN                                       one small file
  zero2gan translate RUN PICTURES EDITED                    edit pictures with it

A run remembers the keys that it was given (RUN/run.yaml). `zero2gan STAGE --help` tells each one's.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

STAGES = {  # name -> module, what it does
    "demo": ("scripts.demo", "the whole way on the miniature world, with a report"),
    "generate": ("generate.run", "make before/after pairs"),
    "filter": ("filter.run", "score them, keep the good ones"),
    "train": ("distill.train", "distil a generator from them"),
    "export": ("distill.export", "write it as ONNX, safetensors, a web page"),
    "translate": ("distill.translate", "edit pictures and videos with it"),
    "evaluate": ("scripts.evaluate", "the paper's tables, and sweeps of keys, against the true edit"),
    "compare": ("scripts.compare", "the same training in several ways"),
    "benchmark": ("scripts.benchmark", "time a stage beside a plain loop"),
    "studio": ("scripts.studio", "a page with sliders: try an edit before thousands are made"),
    "report": ("scripts.report", "one page about a run"),
    "fetch": ("scripts.fetch", "download the weights of a preset"),
    "verify": ("scripts.verify", "check every file of a run against its hash"),
    "doctor": ("scripts.doctor", "what this machine has, and what is missing"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage that the first word names; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("--help", "-h"):
        print(__doc__.strip() + "\n\nstages:")
        for name, (_, text) in STAGES.items():
            print(f"  {name:10} {text}")
        return 0
    name, *others = arguments
    if name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(STAGES)}"
        print(f"error: no stage '{name}'; {advice}", file=sys.stderr)
        return 2
    module, _ = STAGES[name]
    return import_module(module).main(others)


if __name__ == "__main__":
    raise SystemExit(main())
