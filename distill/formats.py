"""The generator's file formats, each written from one graph in which all that depends on weights alone is a constant.

B batch, C channels, H W pixels, D width of the latent.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from configs.errors import UserError
from models.comodgan import CoModGenerator

BATCH = torch.export.Dim("batch", min=1, max=4096)
FORMATS = (
    "float",
    "fp16",
    "int8",
    "pt2",
    "page",
)  # beside generator.safetensors and generator.onnx; docs/distill.md says what each is
QUANTISED = ["Conv", "ConvTranspose", "Gemm", "MatMul"]  # the arithmetic; what lies between stays float32


class Edit(nn.Module):
    """A generator whose latent is fixed (None: zeros): image B x 3 x H x W in [-1, 1] -> edit, the same, not clamped."""

    z_1D: torch.Tensor

    def __init__(self, generator: CoModGenerator, z: Sequence[float] | None) -> None:
        super().__init__()
        self.generator = generator
        self.register_buffer("z_1D", torch.tensor([z or [0.0] * generator.config["z_dim"]]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.generator(image, self.z_1D)


class Picture(nn.Module):
    """An edit as a function on pictures: uint8 B x H x W x 3 -> uint8 B x H x W x 3, `dtype` inside."""

    def __init__(self, edit: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.edit, self.dtype = edit, dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image_BCHW = (image.permute(0, 3, 1, 2).float() / 127.5 - 1.0).to(self.dtype)
        edit_BCHW = (self.edit(image_BCHW).float() + 1.0) * 127.5
        return edit_BCHW.round().clamp(0.0, 255.0).to(torch.uint8).permute(0, 2, 3, 1)


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What an exported generator.safetensors says of itself, and its tensors by name. UserError where it is none."""
    try:
        with safe_open(path, "pt") as stream:
            about = {key: json.loads(value) for key, value in (stream.metadata() or {}).items()}
            return about, {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a dictionary
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} is not an exported generator.safetensors ({error}): make one with distill/export.py"
        ) from error


def read(path: Path) -> tuple[CoModGenerator, dict[str, Any]]:
    """The generator of an exported generator.safetensors, for use, and what the file says of itself."""
    about, tensors = read_file(path)
    generator = CoModGenerator(**about["config"]).eval().requires_grad_(False)
    generator.load_state_dict(tensors)
    return generator, about


def write(
    folder: Path,
    generator: CoModGenerator,
    about: dict[str, Any],
    formats: Collection[str],
    calibration_BHWC: Any,
    onnx: bool = True,
) -> None:
    """Write generator.safetensors, generator.onnx and those of `formats` (see FORMATS; the page is not of them).

    calibration_BHWC: uint8 pictures like those to come, for int8. onnx: False writes no .onnx.
    """
    tensors = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
    save_file(
        tensors, folder / "generator.safetensors", {key: json.dumps(value) for key, value in about.items()}
    )
    side = about["resolution"]
    image_BCHW, picture_BHWC = torch.zeros(2, 3, side, side), torch.zeros(2, side, side, 3, dtype=torch.uint8)
    edit = folded(Edit(generator, about["z"]), image_BCHW)
    program = trace(Picture(edit), picture_BHWC)
    programs = {"generator.pt2": program} if "pt2" in formats else {}
    if "fp16" in formats:
        sums = folded(Edit(copy.deepcopy(generator).write_as_sums(), about["z"]), image_BCHW).half()
        programs["generator-fp16.pt2"] = trace(Picture(sums, torch.float16), picture_BHWC)
    for name, each in programs.items():
        with _quiet():
            torch.export.save(
                each, folder / name, extra_files={"config.json": json.dumps(about)}
            )  # for torch.export.load
    if not onnx:
        return
    write_onnx(folder / "generator.onnx", program, about)
    if "float" in formats:
        write_onnx(folder / "generator-float.onnx", trace(edit, image_BCHW), about)
    if "int8" in formats:
        write_int8(folder / "generator-int8.onnx", folder / "generator.onnx", calibration_BHWC)
    if "fp16" in formats:
        write_onnx(
            folder / "generator-fp16.onnx", trace(Picture(edit.half(), torch.float16), picture_BHWC), about
        )


def trace(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """The module's graph for any batch, from an example of at least two images (of one, the batch would be a constant)."""
    with torch.no_grad():
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: BATCH},), strict=False)
    for node in list(program.graph.nodes):
        if (
            node.target is torch.ops.aten._assert_tensor_metadata.default
        ):  # names the device that it was traced on: fails on a GPU
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def folded(module: nn.Module, example: torch.Tensor) -> torch.fx.GraphModule:
    """The same function with every value computed now that depends on weights and buffers alone.

    With a fixed latent those are the scaled weights, the powers that demodulate and the whole mapping network, whose weights go.
    """
    traced = trace(module, example).module()
    assert isinstance(traced, torch.fx.GraphModule)
    graph = traced.graph
    known: dict[torch.fx.Node, torch.Tensor] = {}
    for node in list(graph.nodes):
        if node.op == "call_module":  # checks of the example's shape, which newer PyTorch puts in
            graph.erase_node(node)
        elif node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            known[node] = getattr(traced.get_submodule(owner), name).detach()
        elif (
            node.op == "call_function"
            and node.all_input_nodes
            and all(source in known for source in node.all_input_nodes)
        ):
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for node, value in known.items():
        if any(user not in known for user in node.users):
            layout = (
                torch.channels_last if value.dim() == 4 else torch.contiguous_format
            )  # which a GPU's convolutions want
            traced.register_buffer(f"constant_{node.name}", value.contiguous(memory_format=layout))
            with graph.inserting_before(node):
                node.replace_all_uses_with(
                    graph.get_attr(f"constant_{node.name}"), lambda user: user not in known
                )
    graph.eliminate_dead_code()
    return torch.fx.GraphModule(traced, graph)  # takes along what the graph still names


def write_onnx(path: Path, program: torch.export.ExportedProgram, about: dict[str, Any]) -> None:
    """One self-contained graph, opset 18, image -> edit, any batch."""
    import onnx

    with _quiet():
        exported = torch.onnx.export(
            program, (), dynamo=True, opset_version=18, input_names=["image"], output_names=["edit"]
        )
    assert exported is not None  # with dynamo=True there is one
    model = exported.model_proto
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")  # the exporter's stack traces name files of the machine it ran on
    described = {
        key: about[key]
        for key in ("task", "source", "target", "teacher", "resolution", "git_revision", "config")
    }
    onnx.helper.set_model_props(
        model,
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()},
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_int8(path: Path, float_onnx: Path, calibration_BHWC: Any) -> None:
    """The ONNX graph with 8-bit arithmetic where onnxruntime has it, ranges from the calibration pictures (uint8)."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    rows = ({"image": row[None]} for row in calibration_BHWC)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return next(rows, None)

    graph = onnx.load(float_onnx).graph
    weights = {
        tensor.name for tensor in graph.initializer
    }  # onnxruntime before 1.24 runs no MatMul by weights with a range a channel
    dense = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    with _quiet():
        quantize_static(
            float_onnx, path, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=QUANTISED, nodes_to_exclude=dense,
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters talk about their own progress."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
