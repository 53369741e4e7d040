"""Shared fixtures: a Stable Diffusion folder with random weights, small enough to run in a second."""

import shutil
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
MINIATURE = ROOT / "models" / "miniature"


torch.set_num_threads(1)  # the networks here are tiny: more threads only wait for each other


@pytest.fixture(scope="session")
def tiny_teacher_folder(tmp_path_factory) -> Path:
    """A diffusers folder with random weights and the miniature's tokenizer.

    Images are 32 x 32, latents 8 x 8; there is cross-attention at both levels.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("tiny") / "teacher"
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(MINIATURE / "teacher" / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def tiny_teacher(tiny_teacher_folder):
    """The same, loaded."""
    from configs.schema import Teacher as TeacherConfig
    from models.teacher import Teacher

    return Teacher(TeacherConfig("tiny", str(tiny_teacher_folder), 32), torch.device("cpu"))


@pytest.fixture
def banks(tmp_path) -> list[str]:
    """Arguments that name two small sentence banks."""
    (tmp_path / "source.txt").write_text(
        "a photo of a tree in summer\na green tree\n# a comment\n\ntwo trees in summer\n"
    )
    (tmp_path / "target.txt").write_text("a photo of a tree in winter\na snowy tree\ntwo trees in winter\n")
    return [f"task.source_bank={tmp_path}/source.txt", f"task.target_bank={tmp_path}/target.txt"]


@pytest.fixture
def tiny_run(tiny_teacher_folder, banks, tmp_path) -> list[str]:
    """Arguments of a generate run of a second: the tiny teacher, 3 steps, everything below tmp_path."""
    return [
        "task=tree2winter",
        f"teacher.path={tiny_teacher_folder}",
        "teacher.resolution=32",
        "edit.steps=3",
        "generate.pairs=5",
        "generate.pairs_per_shard=2",
        f"runs_dir={tmp_path}/runs",
        *banks,
    ]
