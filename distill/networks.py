"""The networks of a training run: how they are made, and what a checkpoint holds of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from configs.errors import UserError
from configs.files import ROOT, find_file
from configs.runs import training_side
from configs.schema import Config
from distill.checkpoints import Checkpoint
from distill.ema import EMA
from distill.formats import read_generator
from distill.growth import can_grow, grow
from models.comodgan import CoModGenerator, make_generator
from models.critic import Critic

SHIPPED = ROOT / "models"  # what lies below it is the project's own
MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's, of each parameter


@dataclass
class Networks:
    """The networks of one process, on its device.

    critic: None where distill.adversarial is 0. trained: the parameters that Adam moves, by
    their names in a checkpoint's adam.safetensors. begins: how the generator does, in a line.
    """

    generator: CoModGenerator
    ema: EMA
    critic: Critic | None
    trained: dict[str, nn.Parameter]
    begins: str

    def by_file(self) -> dict[str, nn.Module]:
        """The networks by the names of their files in a checkpoint."""
        networks: dict[str, nn.Module] = {"generator": self.generator, "ema": self.ema.network}
        if self.critic is not None:
            networks["critic"] = self.critic
        return networks


def build_networks(config: Config, device: torch.device) -> Networks:
    """The networks as training starts: weights drawn by config.seed, or those of distill.init.

    UserError where that file is no exported generator, or is one of another configuration; a shipped
    one of another, which the teacher's configuration names for all networks, is passed over.
    """
    settings = config.distill
    resolution = training_side(config)
    sizes = config.generator
    torch.manual_seed(config.seed)
    generator = make_generator(resolution, sizes)
    critic = None
    if settings.adversarial > 0:
        critic = Critic().to(device).to(memory_format=torch.channels_last)
    begins = begin(generator, settings.init)
    generator = generator.to(device).to(memory_format=torch.channels_last)
    for layer in [*generator.ups, *generator.layers]:
        layer.noise_strength.requires_grad_(False)  # no noise is drawn: it gets no gradient
    ema = EMA(generator, settings.ema_half_life_images, settings.batch)
    return Networks(generator, ema, critic, trained_parameters(generator, critic), begins)


def trained_parameters(generator: CoModGenerator, critic: Critic | None) -> dict[str, nn.Parameter]:
    """What Adam moves, by name; the critic's parameters as 'critic.NAME'."""
    parameters = {}
    for name, parameter in generator.named_parameters():
        if parameter.requires_grad:
            parameters[name] = parameter
    if critic is not None:
        for name, parameter in critic.named_parameters():
            parameters[f"critic.{name}"] = parameter
    return parameters


def begin(generator: CoModGenerator, init: str) -> str:
    """Fill the generator from an exported generator.safetensors, where one is named: of its size or smaller.

    Returns how it begins, in a line. UserError as build_networks raises it.
    """
    if not init:
        return "starting from nothing"
    path = Path(find_file(init))
    exported, _ = read_generator(path)
    if can_grow(exported, generator):
        grow(exported, generator)
        return f"starting from {init}; distill.init= starts from nothing"
    if path.resolve().is_relative_to(SHIPPED):
        return f"starting from nothing, as {init} is of another side or of other sizes"
    raise UserError(
        f"{path} was made with {exported.config}, this run's generator is {generator.config}: "
        "set generator.* to match, or distill.init= to start anew"
    )


def checkpoint_tensors(
    networks: Networks, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, torch.Tensor]]:
    """A checkpoint's tensors by file and name: each network's weights, and Adam's state."""
    tensors = {}
    for file, network in networks.by_file().items():
        tensors[file] = network.state_dict()
    adam = {}
    for name, parameter in networks.trained.items():
        for key, tensor in optimizer.state[parameter].items():
            adam[f"{name}.{key}"] = tensor
    return tensors | {"adam": adam}


def load_checkpoint(networks: Networks, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's tensors into the networks and Adam: the reverse of checkpoint_tensors.

    UserError where the checkpoint is of networks of other shapes, or lacks one of them.
    """
    try:
        for file, network in networks.by_file().items():
            network.load_state_dict(checkpoint.tensors[file])
    except (RuntimeError, KeyError) as error:
        folder = checkpoint.path.parent
        raise UserError(
            f"{checkpoint.path} holds other networks: choose another runs_dir=, or delete {folder}"
        ) from error
    adam = checkpoint.tensors["adam"]
    for name, parameter in networks.trained.items():
        if f"{name}.step" in adam:  # not there where a parameter never had a gradient
            # fused Adam wants the step on the parameter's device, the moments also in its layout
            state = {"step": adam[f"{name}.step"].to(parameter.device, copy=True)}
            for moment in MOMENTS:
                state[moment] = torch.empty_like(parameter).copy_(adam[f"{name}.{moment}"])
            optimizer.state[parameter] = state
