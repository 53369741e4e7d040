"""The editing methods there are: edit.method= names one. Light, as --help must not load torch.

A new method is a file with a generate.editors.PictureEditor and an entry here: docs/editors.md shows both.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """What a method is made of.

    Of those that edit with a Stable Diffusion teacher, by generate.editors.Editor:

    - noise, how the image becomes the noise that the edit starts from: 'stochastic', random noise
      is added up to the noisiest level; 'partial', up to edit.strength of the steps; 'ddim', by
      DDIM inversion; 'regularised', by DDIM inversion with the paper's regularisation.
    - text, how the caption becomes the edit's text: by a 'swap' of words or the edit 'direction'.
    - guided: whether the reference's attention maps guide the edit.
    - replaced: whether the reference's attention maps take the place of the edit's.

    Of all others:

    - editor, 'module:Class': a PictureEditor. Neither a teacher nor a direction is loaded for it.
    """

    noise: str = ""
    text: str = ""
    guided: bool = False
    replaced: bool = False
    editor: str = ""


METHODS = {
    "sdedit": Method("partial", "swap"),  # Meng et al. 2022
    "prompt-to-prompt": Method("ddim", "swap", replaced=True),  # Hertz et al. 2022
    "A": Method("stochastic", "swap"),  # A to D: the configurations of the paper's Table 2
    "B": Method("ddim", "swap"),
    "C": Method("regularised", "swap"),
    "D": Method("regularised", "direction"),
    "pix2pix-zero": Method("regularised", "direction", guided=True),
    "pipeline": Method(editor="generate.pipeline_editor:PipelineEditor"),  # any of diffusers
    "pairs": Method(editor="generate.ready_pairs:ReadyPairs"),  # source.pairs: pairs that exist
}


def needs_teacher(name: str) -> bool:
    """Whether a method edits with a Stable Diffusion teacher; so does a name that is none, until it is
    refused.
    """
    return name not in METHODS or not METHODS[name].editor
