"""Files of weights that no model hub has: where they are published, and where they lie here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs.files import find_file, model_files
from configs.schema import Segmenter

CACHE = Path(".cache") / "zero2gan"  # below the home folder: what is downloaded that has no cache of its own
SAM = "https://dl.fbaipublicfiles.com/segment_anything/"


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights. sha256: its hash, or the first digits of it."""

    url: str
    bytes: int
    sha256: str
    licence: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


SAM_FILES = {
    "vit_h": PublishedFile(
        f"{SAM}sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        "Apache-2.0",
    ),
    "vit_l": PublishedFile(
        f"{SAM}sam_vit_l_0b3195.pth",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        "Apache-2.0",
    ),
    "vit_b": PublishedFile(
        f"{SAM}sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        "Apache-2.0",
    ),
}
VGG16 = PublishedFile(  # torchvision's VGG16_Weights.IMAGENET1K_V1
    "https://download.pytorch.org/models/vgg16-397923af.pth", 553_433_881, "397923af", "BSD-3-Clause"
)


def download_folder() -> Path:
    """Where scripts/fetch.py puts files that have no cache of their own."""
    return Path.home() / CACHE


def sam_checkpoint(settings: Segmenter) -> Path:
    """The .pth of one of segment-anything's sizes: the one that is named, else scripts/fetch.py's."""
    if settings.checkpoint:
        return Path(find_file(settings.checkpoint)).expanduser()
    return download_folder() / SAM_FILES[settings.model].name


def segmenter_files(settings: Segmenter) -> dict[str, dict[str, str]]:
    """'model', 'checkpoint' and 'detector' -> the hashes of the files of it (configs.files.model_files)."""
    checkpoint = str(sam_checkpoint(settings)) if settings.model in SAM_FILES else settings.checkpoint
    names = {"model": settings.model, "checkpoint": checkpoint, "detector": settings.detector}
    hashes = {}
    for part, name in names.items():
        hashes[part] = model_files(name)
    return hashes
