"""The model card beside an exported generator, in the hub's format, and its way to the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from configs.errors import UserError
from distill.runlog import METRICS, read_metrics

if TYPE_CHECKING:
    from distill.export import FileCheck

CARD = "README.md"
SHEET = "samples.jpg"  # rows of input, teacher's edit, generator's edit
JPEG_QUALITY = 90
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_card(
    folder: Path, train_dir: Path, metadata: Mapping[str, Any], checks: Mapping[str, FileCheck]
) -> None:
    """Write README.md and, where the training has one of this checkpoint, samples.jpg into the folder.

    metadata: that of the exported files. train_dir: <run>/train.
    """
    images = metadata["images_seen"]
    sheet = train_dir / "samples" / f"{images:09d}.png"
    if sheet.is_file():
        Image.open(sheet).convert("RGB").save(folder / SHEET, quality=JPEG_QUALITY)
    held_out = {}
    for entry in read_metrics(train_dir / METRICS):
        if entry["kind"] == "validation" and entry["images"] == images:
            held_out = {"L1": entry["l1"], "LPIPS": entry["lpips"], "PSNR, dB": entry["psnr"]}
    text = TEMPLATES.get_template("card.md").render(
        **metadata, checks=checks, held_out=held_out, sheet=SHEET if sheet.is_file() else ""
    )
    (folder / CARD).write_text(text)


def push(folder: Path, name: str) -> str:
    """Upload an export folder to the hub as OWNER/MODEL, private where it is new; returns its address.

    UserError where the hub is not reached, or refuses.
    """
    from huggingface_hub import HfApi

    from models import hub

    if not hub.NAME.fullmatch(name):
        raise UserError(f"export.push={name}: a name on the hub is OWNER/MODEL")
    if not hub.hub_is_reached():
        raise UserError(
            f"export.push={name}: the hub is not reached. {folder} is complete: where there is a network, "
            f"hf upload {name} {folder}"
        )
    try:
        api = HfApi()
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=[".*"], commit_message="Export")
    except Exception as error:  # noqa: BLE001 - the hub's client and its transport raise a dozen kinds
        raise UserError(
            f"export.push={name}: {hub.what_the_hub_says(name, error)}; {folder} is complete"
        ) from error
    return str(address)
