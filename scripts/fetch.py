"""Fetch the published weights that a configuration needs, before its first run.

  zero2gan fetch preset=paper task=cat2dog  says what, how large, which licence; downloads it
  zero2gan fetch preset=paper --dry-run     says it alone
  zero2gan fetch preset=paper --list        says what is on this machine; asks nobody
  zero2gan fetch preset=paper --to weights  into a folder, to carry to a machine without a
                                                     network; says which keys take it there

Models of the hub go into its cache (HF_HOME), other files into ~/.cache/zero2gan: every stage finds them
there without a key. Each file's SHA-256 is compared with the published one and kept in fetched.json. After
an interruption the same command goes on; what is here already is compared again.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from configs.cli import entry
from configs.errors import UserError
from configs.files import find_file, fingerprint, write_json
from configs.schema import Config
from models import hub
from models.published import SAM_FILES, VGG16, PublishedFile, download_folder, sam_checkpoint

SECTIONS = ("task", "teacher", "source", "scorer", "segmenter", "evaluate")
DINO = "timm/vit_base_patch8_224.dino"  # evaluate.dino=hub
RECORD = "fetched.json"
FREE_GB = 1.0  # of the disk that stay free
NOTHING = (
    "nothing to fetch: all weights of this configuration are here (give preset=paper for Stable Diffusion's)"
)
NOT_REACHED = (
    "is not reached: where there is a network, give the same command --to FOLDER, bring the folder, and set "
    "the keys that are printed; --list says what is here"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments, to = split_to(list(sys.argv[1:] if argv is None else argv))
    work = partial(fetch, to=to)
    if "--list" in arguments:
        arguments = [argument for argument in arguments if argument not in ("--list", "--dry-run")]
        work = partial(list_models, to=to)
    return entry(__doc__, SECTIONS, work, partial(plan, to=to), arguments)


def split_to(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The arguments without `--to FOLDER` or `--to=FOLDER`, and the folder."""
    for place, argument in enumerate(arguments):
        option, equals, folder = argument.partition("=")
        if option == "--to":
            end = place + 1
            if not equals:
                folder = "".join(arguments[end : end + 1])
                end += 1
            return arguments[:place] + arguments[end:], Path(folder or "weights").expanduser()
    return arguments, None


# ---- one model ----


@dataclass(frozen=True)
class Published:
    """What is to be fetched: file -> bytes; file -> SHA-256, or its first digits, where it is known."""

    sizes: Mapping[str, int]
    hashes: Mapping[str, str]
    licence: str
    revision: str = ""


@dataclass(frozen=True)
class HubModel:
    """A model of the hub.

    part: what it is for. name: OWNER/MODEL. key: what takes a copy of it, '{}' for the folder. files: the
    names that are wanted, of the last two the first that is there; none: hub.wanted_files.
    """

    part: str
    name: str
    key: str
    files: tuple[str, ...] = ()

    def place(self, to: Path | None) -> Path | None:
        """Its folder, below `to` or in the hub's cache; None where there is none."""
        if to is None:
            return hub.cached(self.name)
        folder = to / self.name.rpartition("/")[2]
        return folder if folder.is_dir() else None

    def published(self) -> Published:
        """What the hub says of it. UserError where it is not reached or has no such model."""
        from huggingface_hub import HfApi

        if not hub.hub_is_reached():
            raise UserError(f"{self.name}: the hub {NOT_REACHED}")
        try:
            info = HfApi().model_info(self.name, files_metadata=True)
        except Exception as error:  # noqa: BLE001 - the hub's client and its transport raise a dozen kinds
            raise UserError(f"{self.name}: {hub.what_the_hub_says(self.name, error)}") from error
        files = {file.rfilename: file for file in info.siblings or ()}
        sizes = {}
        hashes = {}
        for name in self.wanted(list(files)):
            sizes[name] = files[name].size or 0
            large = files[name].lfs
            if large:
                hashes[name] = large.sha256
        licence = getattr(info.card_data, "license", None) or "licence: see its page"
        return Published(sizes, hashes, licence, info.sha or "")

    def download(self, to: Path | None) -> Path:
        """Fetch what is not here yet; the folder."""
        key = self.key.partition("=")[0]
        folder = to / self.name.rpartition("/")[2] if to else None
        return hub.downloaded(self.name, key, self.wanted, folder)

    def wanted(self, names: Sequence[str]) -> list[str]:
        """Of the names of all its files those that are needed."""
        if not self.files:
            return hub.wanted_files(names)
        *others, safe, whole = self.files
        weights = safe if safe in names else whole
        return [name for name in (*others, weights) if name in names]


@dataclass(frozen=True)
class WebFile:
    """A file of weights with an address of its own. folder: where it belongs on this machine."""

    part: str
    file: PublishedFile
    folder: Path
    key: str

    @property
    def name(self) -> str:
        """Without the address."""
        return self.file.name

    def place(self, to: Path | None) -> Path | None:
        """The file, below `to` or where it belongs; None where it is not."""
        file = (to or self.folder) / self.name
        return file if file.is_file() else None

    def published(self) -> Published:
        """What is known of it; nobody is asked."""
        return Published({self.name: self.file.bytes}, {self.name: self.file.sha256}, self.file.licence)

    def download(self, to: Path | None) -> Path:
        """Fetch it where it is not here: whole and as published, or not at all."""
        from torch.hub import download_url_to_file

        file = (to or self.folder) / self.name
        if file.is_file():
            return file
        if not hub.is_reached(self.file.url):
            raise UserError(f"{self.file.url} {NOT_REACHED}")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(self.file.url, str(file), self.file.sha256)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{self.file.url}: {error}: run the same command again") from error
        return file


Model = HubModel | WebFile


# ---- which models ----


def models_of(config: Config) -> list[Model]:
    """The published models that the stages load under a configuration; a path of the user's own is none.

    UserError for a path that is not there, and for weights that nobody publishes.
    """
    segmenter = config.segmenter
    needs_masks = bool(config.task.source_noun)
    named = [
        ("teacher", "teacher.path", config.teacher.path),
        ("configuration", "teacher.config", config.teacher.config),
        ("editor", "edit.pipeline", config.edit.pipeline),
        ("captioner", "source.captioner", config.source.captioner),
    ]
    if needs_masks and segmenter.detector:
        named.append(("detector", "segmenter.detector", segmenter.detector))
        named.append(("segmenter", "segmenter.model", segmenter.model))
    models: list[Model] = []
    for part, key, name in named:
        if not name or Path(find_file(name)).expanduser().exists():
            continue
        if not hub.NAME.fullmatch(name):
            raise UserError(f"{key}={name}: there is no such folder or file, and it is no name on the hub")
        models.append(HubModel(part, name, f"{key}={{}}"))
    models += _scorer(config)
    if needs_masks and segmenter.model in SAM_FILES and not segmenter.detector and not segmenter.checkpoint:
        folder = sam_checkpoint(segmenter).parent
        models.append(WebFile("segmenter", SAM_FILES[segmenter.model], folder, "segmenter.checkpoint={}"))
    if config.evaluate.dino == "hub":
        models.append(HubModel("structure", DINO, "evaluate.dino={}/model.safetensors"))
    return models + _lpips()


def _scorer(config: Config) -> list[Model]:
    """The CLIP model that judges, where it is one of open_clip's tags."""
    from open_clip import get_pretrained_cfg

    model = config.scorer.model
    pretrained = config.scorer.pretrained
    if model.startswith("local-dir:") or Path(find_file(pretrained)).is_file():
        return []
    tag = get_pretrained_cfg(model, pretrained)
    repository, _, file = tag.get("hf_hub", "").rpartition("/")
    if not repository:
        raise UserError(
            f"scorer.model={model} scorer.pretrained={pretrained}: the hub has no such weights that open_clip"
            " knows of: python -c 'import open_clip; print(open_clip.list_pretrained())' names those it knows"
        )
    whole = file or "open_clip_pytorch_model.bin"
    safe = f"{Path(file).stem}.safetensors" if file else "open_clip_model.safetensors"  # as open_clip prefers
    files = ("open_clip_config.json", safe, whole)
    return [HubModel("scorer", repository, "scorer.model=local-dir:{} scorer.pretrained=", files)]


def _lpips() -> list[Model]:
    """VGG16 of LPIPS, where the package that carries it is not installed."""
    from torch.hub import get_dir

    from models.perceptual import packaged_trunk

    if packaged_trunk():
        return []
    return [WebFile("LPIPS", VGG16, Path(get_dir()) / "checkpoints", "cp {} ~/.cache/torch/hub/checkpoints/")]


# ---- what is said and done ----


def plan(config: Config, to: Path | None = None) -> dict[str, Any]:
    """What --dry-run prints."""
    models = models_of(config)
    return describe(models, [model.published() for model in models], to)


def describe(models: Sequence[Model], published: Sequence[Published], to: Path | None) -> dict[str, str]:
    """What each model is for -> its name, size, licence, and whether it is here."""
    lines = {}
    total = 0.0
    for model, content in zip(models, published, strict=True):
        gigabytes = sum(content.sizes.values()) / 1e9
        total += gigabytes
        place = model.place(to)
        state = f"in {place}" if place else "not here"
        lines[model.part] = f"{model.name}, {gigabytes:.2f} GB, {content.licence}, {state}"
    return lines | {"together": f"{total:.2f} GB"}


def list_models(config: Config, to: Path | None = None) -> None:
    """Print what is on this machine, and whether its files are as large as those that were fetched."""
    record = read_record(to or download_folder())
    models = models_of(config)
    if not models:
        print(NOTHING)
    for model in models:
        place = model.place(to)
        state = "not here"
        if place:
            state = f"in {place}, {_state(place, record.get(model.name, {}).get('files', {}))}"
        print(f"{model.part}: {model.name}, {state}")


def _state(place: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether a model's files are those of the record."""
    if not files:
        return "not compared yet (without --list it is)"
    for name, content in files.items():
        file = _file_of(place, name)
        if not file.is_file() or file.stat().st_size != content["bytes"]:
            return f"incomplete: {file} is missing or of another size"
    return f"{sum(content['bytes'] for content in files.values()) / 1e9:.2f} GB"


def fetch(config: Config, to: Path | None = None) -> None:
    """Print what is needed, download what is not here, compare and keep the hashes.

    UserError where it does not fit on the disk, cannot be reached, or differs from what was published.
    """
    models = models_of(config)
    if not models:
        print(NOTHING)
        return
    published = [model.published() for model in models]
    for part, line in describe(models, published, to).items():
        print(f"{part}: {line}", flush=True)
    folder = to or download_folder()
    folder.mkdir(parents=True, exist_ok=True)
    keys = []
    for model, content in zip(models, published, strict=True):
        if not model.place(to):
            _refuse_a_full_disk(content, folder)
        place = model.download(to)
        files = _compared(place, content)
        record = {"revision": content.revision, "licence": content.licence, "files": files}
        write_json(folder / RECORD, read_record(folder) | {model.name: record})
        print(f"{model.part}: {place}, {len(content.hashes)} hashes as published", flush=True)
        keys.append(model.key.format(place))
    if to:
        print("on the other machine:")
        for key in keys:
            print(f"  {key}")


def _refuse_a_full_disk(content: Published, folder: Path) -> None:
    """UserError where a model does not fit."""
    needed = sum(content.sizes.values()) / 1e9
    free = shutil.disk_usage(folder).free / 1e9 - FREE_GB
    if needed > free:
        raise UserError(
            f"{needed:.2f} GB are to be fetched, and the disk of {folder} has {free:.2f} to spare"
        )


def _compared(place: Path, content: Published) -> dict[str, dict[str, Any]]:
    """The fingerprint of each file. UserError where one is not what was published."""
    fingerprints = {}
    for name in content.sizes:
        file = _file_of(place, name)
        fingerprints[name] = fingerprint(file)
        if not fingerprints[name]["sha256"].startswith(content.hashes.get(name, "")):
            raise UserError(
                f"{file} is not what was published (its SHA-256 differs): delete it and run again"
            )
    return fingerprints


def _file_of(place: Path, name: str) -> Path:
    """A file of a model, which lies in a folder or is that file."""
    return place / name if place.is_dir() else place


def read_record(folder: Path) -> dict[str, Any]:
    """Model -> its revision, licence and files, as they were fetched into a folder."""
    file = folder / RECORD
    return json.loads(file.read_text()) if file.is_file() else {}


if __name__ == "__main__":
    sys.exit(main())
