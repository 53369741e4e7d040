"""The attention of a UNet's layers, with its probabilities open to who records or changes them.

Shapes: B rows of a batch, P pixels, D channels of a layer; K keys, which are text tokens in
cross-attention and pixels in self-attention.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

# Asked whether a layer is cross-attention and how many pixels it has, a control returns None, to leave
# the layer alone, or a function from its probabilities (B, heads, P, K) to those to use instead.
AttentionControl = Callable[[bool, int], Callable[[Tensor], Tensor] | None]


class AllMapsRecorded(Exception):
    """Leaves the UNet in its last cross-attention layer: what is behind has no part in the maps."""


class Attention:
    """One attention processor for every layer of a UNet, as diffusers' set_attn_processor takes it.

    A layer takes PyTorch's fused kernel, which never holds its probabilities (B, heads, P, K),
    unless one of two states asks for them:

    - Recording: `maps` is a list; each cross-attention layer appends its probabilities, in order.
      With `leave`, the last of the `cross_layers` raises AllMapsRecorded, which whoever runs the
      UNet catches.
    - Control: `control` may change the probabilities of any layer.
    """

    def __init__(self, cross_layers: int) -> None:
        self.cross_layers = cross_layers
        self.maps: list[Tensor] | None = None
        self.leave = False
        self.control: AttentionControl | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        is_cross = encoder_hidden_states is not None
        context = encoder_hidden_states if is_cross else hidden_states  # B x K x D
        batch, pixels = hidden_states.shape[:2]
        query = _split_heads(attn.to_q(hidden_states), attn.heads)  # B x heads x P x D/heads
        key = _split_heads(attn.to_k(context), attn.heads)  # B x heads x K x D/heads
        value = _split_heads(attn.to_v(context), attn.heads)
        maps = self.maps if is_cross else None
        change = self.control(is_cross, pixels) if self.control else None
        if maps is None and change is None:
            mixed = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        else:
            if attn.upcast_attention:  # Stable Diffusion 2.1: the scores leave float16's range
                query = query.float()
                key = key.float()
            scores = (query * attn.scale) @ key.transpose(-1, -2)  # B x heads x P x K
            probabilities = scores.softmax(-1).to(value.dtype)
            if maps is not None:
                maps.append(probabilities)
                if self.leave and len(maps) == self.cross_layers:
                    raise AllMapsRecorded
            if change is not None:
                probabilities = change(probabilities)
            mixed = probabilities @ value  # B x heads x P x D/heads
        joined = mixed.transpose(1, 2).reshape(batch, pixels, -1)  # B x P x D
        project, dropout = attn.to_out
        return dropout(project(joined))


def _split_heads(x_BPD: Tensor, heads: int) -> Tensor:
    """B x heads x P x D/heads of B x P x D."""
    batch, _, width = x_BPD.shape
    return x_BPD.view(batch, -1, heads, width // heads).transpose(1, 2)
