"""Inputs to pairs: read ahead, captioned, edited a batch at a time, checked, written shard by shard.

B batch, C channels, H W pixels or latent cells.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from configs.errors import UserError
from configs.methods import needs_teacher
from configs.runs import pairs_dir
from configs.schema import Config, Generate
from generate.batch_size import largest_batch
from generate.captions import Captioner, blip_captioner, caption_the_rest
from generate.directions import edit_direction
from generate.editors import Edited, Editor, PictureEditor, picture_editor
from generate.inversion import noise_statistics
from generate.progress import Progress
from generate.shards import Pair, write_shard
from generate.sources import InputImage, InputSource, Unreadable
from models.devices import pick_device
from models.pictures import batch_of, images_of
from models.teacher import Teacher

WORKERS = 4  # threads that read images ahead: reading takes far less time than editing
LIBRARIES = ("torch", "diffusers", "transformers")  # whose versions a pair's record states


def write_shards(
    config: Config, source: InputSource, shards: Mapping[int, range], made_with: str, rank: int
) -> None:
    """Make the pairs of these shards and write them, with a line for every shard in log.txt.

    shards: number of the shard -> indices of its inputs. made_with: hash of what decides the
    pixels. rank: of this process; the first prints how far it is. UserError as PairMaker raises it.
    """
    editor = make_editor(config)
    device = editor.device
    count = sum(map(len, shards.values()))
    most = min(config.generate.pairs_per_shard, count)
    batch = min(config.generate.batch or batch_of_its_own(editor, most), most)
    captioner = blip_captioner(config.source.captioner, device) if config.source.captioner else None
    versions = {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    common = {
        "seed": config.seed,
        **editor.made_by,
        "configuration": made_with,
        "versions": versions,
    }
    maker = PairMaker(editor, replace(config.generate, batch=batch), captioner, common)
    progress = Progress(count, printed=rank == 0)
    if rank == 0:
        print(f"{editor.report}\nbatches of {batch} on {device}", flush=True)
    folder = pairs_dir(config)
    for index, ids in shards.items():
        began = time.monotonic()
        # It grows while the pairs are made; the manifest, which holds it, is written after the last one.
        left_out: list[dict[str, str]] = []
        extra = {"ids": [ids.start, ids.stop], "left_out": left_out, "configuration": made_with}
        write_shard(folder, index, maker.pairs(source, ids, left_out, progress.advance), extra)
        counts = f"{len(ids) - len(left_out)} pairs, {len(left_out)} left out"
        seconds = time.monotonic() - began
        with open(folder / "log.txt", "a") as log:
            log.write(
                f"{datetime.now():%Y-%m-%d %H:%M:%S} {index:06d}.tar: {counts}, {seconds:.1f} s, "
                f"process {rank} on {device}\n"
            )
    if maker.cut and rank == 0 and isinstance(editor, Editor):
        print(
            f"{len(maker.cut)} of {count} captions have more than {editor.teacher.most_tokens} tokens "
            f"and were cut, as {maker.cut[0]}'s (its record has both texts)",
            flush=True,
        )


def batch_of_its_own(editor: Editor | PictureEditor, most: int) -> int:
    """How many pairs an editor makes at once where generate.batch= does not say; at most `most`."""
    return editor.batch if isinstance(editor, PictureEditor) else largest_batch(editor, most)


def make_editor(config: Config) -> Editor | PictureEditor:
    """The configuration's method; with its teacher and its direction, where it has one."""
    device = pick_device(config.device)
    if not needs_teacher(config.edit.method):
        return picture_editor(config.edit.method)(config, device)
    settings = config.generate
    teacher = Teacher(
        config.teacher, device, settings.dtype, compiled=settings.compile, checker=settings.safety_checker
    )
    cache = Path(config.runs_dir) / "directions"
    direction = edit_direction(teacher, config.task, config.direction, cache)
    return Editor(teacher, direction, config)


@dataclass
class PairMaker:
    """Edits the inputs of a source.

    config: with the size of a batch in `batch`. common: what the record of every pair states.
    UserError where an edit is not finite, or where a batch does not fit into memory.
    """

    editor: Editor | PictureEditor
    config: Generate
    captioner: Captioner | None
    common: dict[str, Any]
    cut: list[str] = field(default_factory=list)  # keys of the inputs whose captions were cut

    def pairs(
        self, source: InputSource, ids: range, left_out: list[dict[str, str]], done: Callable[[int], None]
    ) -> Iterator[Pair]:
        """The pairs of the inputs with these indices, in order.

        Unreadable inputs and flagged edits are appended to left_out, as 'id', 'why' and 'reason'.
        done is called after every batch with the number of its inputs.
        """
        for inputs in self._batches(source, ids, left_out):
            yield from self._edit(inputs, left_out)
            done(len(inputs))

    def _batches(
        self, source: InputSource, ids: range, left_out: list[dict[str, str]]
    ) -> Iterator[list[InputImage]]:
        """The readable inputs, in batches; threads read ahead."""
        with ThreadPoolExecutor(WORKERS) as pool:
            waiting = [pool.submit(source.load, index) for index in ids]
            batch: list[InputImage] = []
            for index, item in zip(ids, waiting, strict=True):
                try:
                    batch.append(item.result())
                except Unreadable as error:
                    left_out.append({"id": source.names[index], "why": "unreadable", "reason": str(error)})
                if len(batch) == self.config.batch:
                    yield batch
                    batch = []
            if batch:
                yield batch

    def _edit(self, inputs: Sequence[InputImage], left_out: list[dict[str, str]]) -> Iterator[Pair]:
        """The pairs of one batch, but for flagged ones."""
        # 1. Caption what has no caption of its own, and edit.
        inputs = caption_the_rest(inputs, self.captioner)
        edited = self._edited(inputs)
        # 2. Refuse what is not finite; ask the safety checker.
        self._refuse_not_finite(inputs, edited)
        flagged_B = self._flagged(edited)
        # 3. As arrays: pictures in levels B x H x W x 3, latents B x C x H x W.
        pictures = {name: images_of(picture_BCHW) for name, picture_BCHW in edited.pictures.items()}
        latents = {}
        if self.config.save_latents:
            latents = {name: latent_BCHW.cpu().numpy() for name, latent_BCHW in edited.latents.items()}
        noises = {name: noise_statistics(noise_BCHW) for name, noise_BCHW in edited.noises.items()}
        # 4. A pair for every row.
        for row, item in enumerate(inputs):
            if flagged_B[row]:
                reason = "by the teacher's safety checker"
                left_out.append({"id": str(item.source["id"]), "why": "flagged", "reason": reason})
                continue
            images = {"input": item.image}  # an input that the teacher made is among its pictures
            images |= {name: picture_BHWC[row] for name, picture_BHWC in pictures.items()}
            arrays = {f"{name}_latent": latent_BCHW[row] for name, latent_BCHW in latents.items()}
            noise = {name: statistics_B[row] for name, statistics_B in noises.items()}
            yield Pair(item.key, images, self._record(item, noise), arrays)

    def _edited(self, inputs: Sequence[InputImage]) -> Edited:
        """The editor's result for a batch, or the edits that came with the inputs.

        UserError where the GPU's memory does not hold it.
        """
        ready = [item.edit for item in inputs if item.edit is not None]
        if ready:
            return Edited({"edit": batch_of(ready)})
        images = [item.image for item in inputs if item.image.size]
        image_BCHW = batch_of(images) if images else None  # the teacher makes them from the captions
        captions = [item.caption for item in inputs]
        keys = [item.key for item in inputs]
        reconstruct = self.config.save_reconstruction or self.config.save_latents
        try:
            return self.editor(image_BCHW, captions, keys, reconstruct)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"generate.batch={len(inputs)} does not fit into the GPU's memory: "
                "lower it; 0 finds the largest"
            ) from error

    def _refuse_not_finite(self, inputs: Sequence[InputImage], edited: Edited) -> None:
        """UserError, naming the first such input, where a latent or a picture is not finite.

        It would be a black picture without a word.
        """
        finite_B = torch.ones(len(inputs), dtype=torch.bool)
        for tensor_BCHW in (*edited.latents.values(), *edited.pictures.values()):
            finite_B &= tensor_BCHW.isfinite().flatten(1).all(1).cpu()
        for row, item in enumerate(inputs):
            if not finite_B[row]:
                raise UserError(
                    f"{item.key}: the edit is not finite in generate.dtype={self.config.dtype}; "
                    "take bfloat16 or float32"
                )

    def _flagged(self, edited: Edited) -> list[bool]:
        """Which rows a safety checker flags, in the edit or in an input that the teacher made."""
        flagged_B = list(edited.flagged) or [False] * len(edited.pictures["edit"])
        if not self.config.safety_checker:
            return flagged_B
        for name, picture_BCHW in edited.pictures.items():
            if name == "reconstruction":  # of a picture that was given: it is not the teacher's own
                continue
            for row, flagged in enumerate(self.editor.flagged(picture_BCHW)):
                flagged_B[row] = flagged_B[row] or flagged
        return flagged_B

    def _record(self, item: InputImage, noise: dict[str, dict[str, float]]) -> dict[str, Any]:
        """How a pair was made, to be written down. noise: the statistics of its noises, by name."""
        record = {
            "source": item.source,
            "caption": item.caption,
            "caption_from": item.caption_from,
            "noise": noise,
            **self.common,
        }
        read = self.editor.read_of(item.caption)
        if read is not None:
            record["caption_read"] = read
            self.cut.append(item.key)
        return record
