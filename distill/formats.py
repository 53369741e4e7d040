"""The files of an exported generator: how each is written, and how it is run to be checked.

FILES is the table of them. A new format is an entry there, and its name among the choices of
export.formats in configs/schema.py. A file's name begins with `generator`, by which export.py finds old ones.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.export import ExportedProgram

from configs.errors import UserError
from distill.graphs import Edit, Picture, Sources
from models.comodgan import CoModGenerator
from models.pictures import HALF_RANGE, images_of
from models.translator import Translator
from models.weights import load_tensors

OPSET = 18  # of ONNX
CHECKED_TOGETHER = 1  # pictures that a file edits at once to be checked
QUANTISED = ["Conv", "ConvTranspose", "Gemm", "MatMul"]  # what lies between stays float32
# The metadata that a .onnx carries
DESCRIPTION = ("task", "source", "target", "teacher", "resolution", "git_revision", "config")

# How far from PyTorch a file's edits may be, in levels of 255
ROUNDING = 2  # two runtimes that sum in another order differ by 1
TEN_BITS = 8  # of mantissa: float16, and TF32, which a GPU computes float32 with
ANY = 255  # 8-bit arithmetic: the loss is measured and told


# ---- writers: each writes to a path what it needs of Sources ----


def write_weights(path: Path, generator: CoModGenerator, metadata: dict[str, Any]) -> None:
    """The weights by their names in models/comodgan.py; the metadata as JSON texts."""
    tensors = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
    save_file(tensors, path, {key: json.dumps(value) for key, value in metadata.items()})


def write_program(path: Path, program: ExportedProgram, metadata: dict[str, Any]) -> None:
    """A graph for torch.export.load, with the metadata as its extra file config.json."""
    with _quiet():
        torch.export.save(program, path, extra_files={"config.json": json.dumps(metadata)})


def write_onnx(path: Path, program: ExportedProgram, metadata: dict[str, Any]) -> None:
    """One self-contained ONNX graph, image -> edit, for any batch, with the metadata of DESCRIPTION."""
    import onnx

    with _quiet():
        exported = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, input_names=["image"], output_names=["edit"]
        )
    assert exported is not None  # with dynamo=True there is one
    model = exported.model_proto
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")  # stack traces, which name files of the machine it ran on
    properties = {}
    for key in DESCRIPTION:
        value = metadata[key]
        properties[key] = value if isinstance(value, str) else json.dumps(value)
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_int8(path: Path, calibration_BHWC: np.ndarray, metadata: dict[str, Any]) -> None:
    """The generator.onnx beside it with 8-bit arithmetic; it has the metadata of that."""
    quantise(path.with_name("generator.onnx"), path, calibration_BHWC)


def quantise(float_onnx: Path, path: Path, calibration_BHWC: np.ndarray) -> None:
    """Write the ONNX graph with 8-bit arithmetic where onnxruntime has it.

    calibration_BHWC: uint8 pictures; the ranges of the 8-bit values are those that they lead to.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    inputs = ({"image": image_HWC[None]} for image_HWC in calibration_BHWC)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return next(inputs, None)

    # onnxruntime before 1.24 runs no MatMul by weights that have a range for each channel
    graph = onnx.load(float_onnx).graph
    weights = {tensor.name for tensor in graph.initializer}
    dense = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    with _quiet():
        quantize_static(
            float_onnx,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=dense,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which talk about their own progress."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


# ---- for the check: the edits, uint8 B x H x W x 3, of such pictures by the file at a path ----


def edit_in_pytorch(generator: CoModGenerator, images_BHWC: np.ndarray) -> np.ndarray:
    """The edits by the generator itself, float32: what those of every file are compared with."""
    picture = Picture(Edit(generator))
    with torch.no_grad():
        return _in_parts(lambda part_BHWC: picture(torch.from_numpy(part_BHWC)).numpy(), images_BHWC)


def edit_by_weights(path: Path, images_BHWC: np.ndarray) -> np.ndarray:
    """The edits by a generator.safetensors, in PyTorch."""
    generator, _ = read_generator(path)
    return edit_in_pytorch(generator, images_BHWC)


def edit_by_translator(path: Path, images_BHWC: np.ndarray) -> np.ndarray:
    """The edits by a .onnx or .pt2 that takes uint8 pictures, as a user runs it."""
    return _in_parts(Translator(path), images_BHWC)


def edit_by_network(path: Path, images_BHWC: np.ndarray) -> np.ndarray:
    """The edits by a .onnx that takes and gives values in [-1, 1]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def edit(part_BHWC: np.ndarray) -> np.ndarray:
        signed_BHWC = (part_BHWC / HALF_RANGE - 1.0).astype(np.float32)  # in float64 until here
        edit_BCHW = session.run(None, {"image": signed_BHWC.transpose(0, 3, 1, 2)})[0]
        return images_of(torch.from_numpy(edit_BCHW))

    return _in_parts(edit, images_BHWC)


def _in_parts(edit: Callable[[np.ndarray], np.ndarray], images_BHWC: np.ndarray) -> np.ndarray:
    """The edits of all images, CHECKED_TOGETHER at a time: 16 of 512 x 512 pixels would take 14 GB."""
    parts = []
    for start in range(0, len(images_BHWC), CHECKED_TOGETHER):
        parts.append(edit(images_BHWC[start : start + CHECKED_TOGETHER]))
    return np.concatenate(parts)


# ---- the table ----


@dataclass(frozen=True)
class FileFormat:
    """One file of an export."""

    name: str  # in <run>/export
    option: str | None  # the entry of export.formats that asks for it; None: it is always written
    needs: str  # the attribute of Sources that it is written from
    write: Callable[[Path, Any, dict[str, Any]], None]  # of its path, what it needs, and the metadata
    edit: Callable[[Path, np.ndarray], np.ndarray]  # its edits, of its path and uint8 pictures
    max_levels: int  # how far from PyTorch any value of an edit may be
    max_levels_on_gpu: int | None = None  # the same where PyTorch has a GPU, if it is another

    def allowed_levels(self) -> int:
        """How far from PyTorch any value of an edit may be on this machine."""
        if self.max_levels_on_gpu is not None and torch.cuda.is_available():
            return self.max_levels_on_gpu
        return self.max_levels


# In the order of writing: files of one graph together, so that it can go; int8 from generator.onnx.
FILES = (
    FileFormat("generator.safetensors", None, "generator", write_weights, edit_by_weights, ROUNDING),
    FileFormat("generator.onnx", None, "picture", write_onnx, edit_by_translator, ROUNDING),
    FileFormat("generator.pt2", "pt2", "picture", write_program, edit_by_translator, ROUNDING, TEN_BITS),
    FileFormat("generator-float.onnx", "float", "network", write_onnx, edit_by_network, ROUNDING),
    FileFormat("generator-fp16.onnx", "fp16", "half_picture", write_onnx, edit_by_translator, TEN_BITS),
    FileFormat("generator-fp16.pt2", "fp16", "half_sums", write_program, edit_by_translator, TEN_BITS),
    FileFormat("generator-int8.onnx", "int8", "calibration_BHWC", write_int8, edit_by_translator, ANY),
)


def write_formats(
    folder: Path,
    generator: CoModGenerator,
    metadata: dict[str, Any],
    formats: Collection[str],
    calibration_BHWC: np.ndarray | None,
    onnx: bool = True,
) -> list[FileFormat]:
    """Write the files that are always written, and those of `formats`; returns what was written.

    formats: entries of export.formats; those that FILES does not know (the page) are for others.
    calibration_BHWC: uint8 pictures like those to come, which only int8 needs. onnx: whether to
    write any .onnx.
    """
    sources = Sources(generator, metadata["resolution"], calibration_BHWC)
    wanted = []
    for file in FILES:
        is_wanted = file.option is None or file.option in formats
        if is_wanted and (onnx or not file.name.endswith(".onnx")):
            wanted.append(file)
    for number, file in enumerate(wanted):
        file.write(folder / file.name, getattr(sources, file.needs), metadata)
        sources.keep({later.needs for later in wanted[number + 1 :]})
    return wanted


# ---- reading generator.safetensors ----


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The metadata of an exported generator.safetensors, and its tensors by name.

    UserError where the file is none.
    """
    try:
        with safe_open(path, "pt") as stream:
            metadata = {key: json.loads(value) for key, value in (stream.metadata() or {}).items()}
            tensors = {}
            for name in stream.keys():  # noqa: SIM118 - it is no dictionary
                tensors[name] = stream.get_tensor(name)
        if "config" not in metadata:
            raise ValueError("its metadata has no config")
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} is not an exported generator.safetensors ({error}): make one with `zero2gan export`"
        ) from error
    return metadata, tensors


def read_generator(path: Path) -> tuple[CoModGenerator, dict[str, Any]]:
    """The generator of an exported generator.safetensors, for use, and the file's metadata.

    UserError where the file is none, or where the generator was trained with sampled latents, as
    earlier versions could.
    """
    metadata, tensors = read_file(path)
    if metadata.get("z") is not None:
        raise UserError(
            f"{path} was trained with sampled latents, and the latent is always zeros now: train anew with "
            "distill/train.py and export that"
        )
    generator = CoModGenerator(**metadata["config"]).eval().requires_grad_(False)
    load_tensors(generator, tensors, str(path), exact=True)
    return generator, metadata
