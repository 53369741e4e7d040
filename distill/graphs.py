"""The graphs that an export's files are written from.

Everything in them that depends on weights alone is a constant (`folded`).

Shapes: B batch, C channels, H W pixels, D width of the latent.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from models.comodgan import CoModGenerator
from models.pictures import to_levels, to_signed

BATCH = torch.export.Dim("batch", min=1, max=4096)
FROM_EDIT = {"network", "picture", "half_picture"}  # the graphs of Sources that are traced from one edit


class Edit(nn.Module):
    """A generator with a latent of zeros.

    Takes images B x 3 x H x W in [-1, 1] and gives the edits, of the same shape and not clamped.
    """

    z_1D: torch.Tensor

    def __init__(self, generator: CoModGenerator) -> None:
        super().__init__()
        self.generator = generator
        zeros_1D = torch.zeros(1, generator.config["z_dim"])
        self.register_buffer("z_1D", zeros_1D)  # so that `folded` knows it

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.generator(image, self.z_1D)


class Picture(nn.Module):
    """An Edit as a function on pictures, uint8 B x H x W x 3 in and out; dtype: of the network inside."""

    def __init__(self, edit: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.edit = edit
        self.dtype = dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image_BCHW = to_signed(image.permute(0, 3, 1, 2)).to(self.dtype)  # B x 3 x H x W
        edit_BCHW = self.edit(image_BCHW).float()  # B x 3 x H x W
        return to_levels(edit_BCHW).permute(0, 2, 3, 1)  # B x H x W x 3


class Sources:
    """What the files are written from; each graph is traced when the first file asks for it.

    calibration_BHWC: uint8 pictures like those to come, for 8-bit arithmetic.
    """

    def __init__(
        self, generator: CoModGenerator, resolution: int, calibration_BHWC: np.ndarray | None
    ) -> None:
        self.generator = generator
        self.calibration_BHWC = calibration_BHWC
        # Examples to trace with
        self._image_BCHW = torch.zeros(2, 3, resolution, resolution)
        self._image_BHWC = torch.zeros(2, resolution, resolution, 3, dtype=torch.uint8)

    def keep(self, names: Collection[str]) -> None:
        """Drop the traced graphs but for these: each holds the weights anew."""
        needed = {*names}
        if needed & FROM_EDIT:
            needed.add("_edit")
        for name in (*FROM_EDIT, "half_sums", "_edit"):
            if name not in needed:
                self.__dict__.pop(name, None)  # where a cached property keeps its value

    @cached_property
    def _edit(self) -> torch.fx.GraphModule:
        return folded(Edit(self.generator), self._image_BCHW)

    @cached_property
    def network(self) -> ExportedProgram:
        """The network alone: values in [-1, 1], float32 B x 3 x H x W in and out."""
        return trace(self._edit, self._image_BCHW)

    @cached_property
    def picture(self) -> ExportedProgram:
        """The edit of uint8 pictures."""
        return trace(Picture(self._edit), self._image_BHWC)

    @cached_property
    def half_picture(self) -> ExportedProgram:
        """The edit of uint8 pictures, float16 inside."""
        edit = copy.deepcopy(self._edit).half()
        return trace(Picture(edit, torch.float16), self._image_BHWC)

    @cached_property
    def half_sums(self) -> ExportedProgram:
        """The edit of uint8 pictures, float16 inside, as sums, which are faster once compiled."""
        generator = copy.deepcopy(self.generator).write_as_sums()
        edit = folded(Edit(generator), self._image_BCHW).half()
        return trace(Picture(edit, torch.float16), self._image_BHWC)


def trace(module: nn.Module, example: torch.Tensor) -> ExportedProgram:
    """The module's graph for any batch.

    example: an input of at least two images; of one, the batch would be a constant of the graph.
    """
    with torch.no_grad():
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: BATCH},), strict=False)
    # This check names the device that the graph was traced on, and fails on a GPU.
    check_of_device = torch.ops.aten._assert_tensor_metadata.default
    for node in list(program.graph.nodes):
        if node.target is check_of_device:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def folded(module: nn.Module, example: torch.Tensor) -> torch.fx.GraphModule:
    """The same function with every value computed now that depends on weights and buffers alone.

    With a fixed latent those are the scaled weights, the powers that demodulate, and the whole
    mapping network, whose weights go. example: an input, as `trace` asks for it.
    """
    traced = trace(module, example).module()
    assert isinstance(traced, torch.fx.GraphModule)
    graph = traced.graph

    # 1. Compute every node whose inputs are all known, from the weights on.
    known: dict[torch.fx.Node, torch.Tensor] = {}
    for node in list(graph.nodes):
        if node.op == "call_module":  # checks of the example's shape, which newer PyTorch puts in
            graph.erase_node(node)
        elif node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            known[node] = getattr(traced.get_submodule(owner), name).detach()
        elif node.op == "call_function" and node.all_input_nodes and known.keys() >= {*node.all_input_nodes}:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)

    # 2. Keep as a constant what a node uses that is not known itself.
    for node, value in known.items():
        if known.keys() >= node.users.keys():
            continue
        # A GPU's convolutions want their weights channels last.
        layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
        name = f"constant_{node.name}"
        traced.register_buffer(name, value.contiguous(memory_format=layout))
        with graph.inserting_before(node):
            constant = graph.get_attr(name)
        for user in list(node.users):
            if user not in known:
                user.replace_input_with(node, constant)

    # 3. Drop the rest.
    graph.eliminate_dead_code()
    return torch.fx.GraphModule(traced, graph)  # takes along what the graph still names
