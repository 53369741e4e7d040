"""What a stage may be told on the command line. Nothing here takes long to import."""

from dataclasses import dataclass


@dataclass
class Options:
    """The key=value arguments of a stage. Whichever of `steps` and `minutes` is reached first ends it."""

    out: str = "models/miniature"  # the finished weights go here
    work: str = "runs/miniature"  # caches and checkpoints
    init: str = ""  # a folder of existing weights to continue from; empty: from scratch
    images: int = 60_000  # scenes rendered for training
    first_seed: int = 0  # of the training scenes
    sketch_share: float = 0.3  # of the training pictures
    batch: int = 64
    steps: int = 0  # 0: no limit
    minutes: float = 4.0  # of training, without rendering; 0: no limit
    lr: float = 5e-4
    warmup: int = 200  # steps
    ema: float = 0.999  # decay of the averaged weights that are kept
    weight_decay: float = 0.01
    compile: bool = False  # worth its minute or two at the start on a GPU
    workers: int = 0  # processes that render; 0: one a core
    save_minutes: float = 3.0  # between checkpoints
    log_steps: int = 50


def parse(defaults: Options, assignments: list[str]) -> Options:
    """`defaults` with key=value assignments.

    SystemExit that lists the known keys for an unknown key or a value of the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(defaults, OmegaConf.from_dotlist(assignments))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        problem = str(error).splitlines()[0]
        known = ", ".join(vars(defaults))
        raise SystemExit(f"{problem}: expected key=value with one of {known}") from error
