"""The typed configuration: every key there is, its type, its default and what it means.

A stage gets its own section. Defaults are the paper's (Parmar et al. 2023) where it states one, else those
of the reference code. Presets, teachers and tasks (yaml fragments beside this file) override them, and the
command line overrides all. A key that no user has a reason to touch is a constant of the file that uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from configs.limits import option
from configs.methods import METHODS

MOST_SEED = 2**63 - 1  # that PyTorch's generators take


@dataclass
class Task:
    """One edit direction, and what counts as a good pair for it."""

    name: str = option("", "the task and its folder; from task=NAME, of task=custom SOURCE-to-TARGET")
    source: str = option("", "what the input shows: 'tree in summer'", first=True)
    target: str = option("", "what the edit shows: 'tree in winter'", first=True)
    source_bank: str = option(
        "",
        "text file of sentences about the source, one a line (a path, or a file in configs/banks); "
        "empty: a grammar writes them",
    )
    target_bank: str = option("", "the same about the target")
    caption: str = option("a photo of {source}", "caption for an image that brings none")
    swap: dict[str, str] = option({}, "word swap of the baselines: source word -> target word")
    source_noun: str = option(
        "", "foreground object of the input, for the overlap score; empty: the whole picture is edited"
    )
    target_noun: str = option("", "foreground object of the edit")
    clip_gain: float | None = option(
        0.10, "keep pairs whose CLIP gain is at least this in the paper's units: raw, x scorer.gain_unit"
    )
    overlap: float | None = option(
        None, "keep pairs whose mask IoU is at least this; null: not asked for", at_least=0, at_most=1
    )
    scene_input: dict[str, str] = option({}, "look of a rendered input scene (models.miniature.scenes.Look)")
    scene_truth: dict[str, str] = option({}, "look of its true edit, the judge in scripts/evaluate.py")


@dataclass
class Teacher:
    """A Stable Diffusion model: a folder in diffusers' layout, or a single file."""

    name: str = ""  # of teacher=NAME, filled in by configs/loader.py
    path: str = option("", "folder or hub name of a Stable Diffusion 1.x or 2.x, or a single file")
    resolution: int = option(
        0,
        "side of the square images it edits, pixels; 0: what the folder's UNet was made for",
        at_least=0,
    )
    config: str = option(
        "",
        "where the path is a single file (.safetensors or .ckpt, the original layout): a diffusers folder of "
        "the same family, for its configurations, scheduler and tokenizer",
    )


@dataclass
class Retrieve:
    """Of a large source, the images nearest to the source words by CLIP (Parmar et al. 2023, section 4)."""

    k: int = option(
        0, "so many are kept, nearest first (the paper: 250); 0: all, in the source's order", at_least=0
    )
    aesthetics: float = option(
        0.0,
        "with k: least aesthetics score, where an image's metadata has one (the paper: 9)",
        at_least=0,
    )


@dataclass
class Source:
    """Where the inputs come from."""

    images: str = option(
        "", "a folder, an image, a .txt of paths, webdataset .tar (glob, {0..9}, address)", first=True
    )
    prompts: str = option(
        "",
        "or a text file of prompts, from which the teacher makes the inputs itself "
        "(a path, or a file in configs/banks)",
    )
    pairs: str = option(
        "",
        "or pairs that exist: a folder with input/NAME.png and edit/NAME.png, or webdataset .tar with "
        "KEY.input.png and KEY.edit.png (docs/editors.md)",
    )
    pair_names: list[str] = option(
        ["input", "edit"],
        "what source.pairs calls the two pictures: its folders, or its tars' members: [before,after]",
    )
    scenes: bool = False  # of a teacher whose world can be rendered: scenes, where none is named
    caption: str = option(
        "",
        "one for every image; empty: the image's own (NAME.txt beside it), else the captioner's, "
        "else the task's template",
    )
    captioner: str = option(
        "",
        "BLIP model for images without caption, folder or hub name (Salesforce/blip-image-captioning-base)",
    )
    retrieve: Retrieve = field(default_factory=Retrieve)
    first_seed: int = option(
        1_000_000,
        "seed of the first rendered scene; the miniature was trained on seeds below 1,000,000",
        at_least=0,
    )
    max_unreadable_share: float = option(
        0.05,
        "more unreadable images than this share is an error; fewer are counted and left out",
        at_least=0,
        at_most=1,
    )


@dataclass
class Generate:
    """Stage 1: making pairs."""

    pairs: int = option(
        15_000,
        "pairs to make; a folder with fewer images gives one pair an image",
        at_least=1,
        first=True,
    )
    pairs_per_shard: int = option(64, "pairs in one tar: what an interruption can cost", at_least=1)
    batch: int = option(
        0, "images edited together; 0: as many as the GPU's memory holds (16 on a CPU)", at_least=0
    )
    dtype: str = option(
        "float16",
        "of the teacher's weights and activations",
        choices=("float32", "float16", "bfloat16"),
    )
    compile: bool = option(
        False, "run the UNet's blocks through torch.compile: minutes at the start, less time a pass"
    )
    safety_checker: bool = option(True, "leave out what the teacher's safety checker flags, where it has one")
    out: str = option("", "folder of the shards; empty: <run>/pairs")
    save_reconstruction: bool = option(False, "keep the reference pass's picture beside the pair")
    save_latents: bool = option(
        False, "keep the reconstruction and the latents of all beside the pair, float32 .npy"
    )


@dataclass
class Edit:
    """Which edit, and in how many steps."""

    method: str = option(
        "pix2pix-zero",
        "pix2pix-zero (E of the paper's Table 2), that table's A to D, another paper's method, any pipeline "
        "of diffusers, or pairs that exist (docs/editors.md)",
        choices=tuple(METHODS),
    )
    pipeline: str = option(
        "",
        "pipeline: folder or hub name of a diffusers pipeline that takes a picture and a text "
        "(timbrooks/instruct-pix2pix)",
    )
    instruction: str = option(
        "", "pipeline: its text: 'make it winter'; empty: the caption with the words swapped (task.swap)"
    )
    arguments: dict[str, Any] = option(
        {}, "pipeline: further arguments of its call: {num_inference_steps: 20, image_guidance_scale: 1.5}"
    )
    steps: int = option(
        100, "DDIM steps of the inversion, the reference and the edit", at_least=1, first=True
    )
    strength: float = option(
        0.75, "sdedit: how far towards noise the image is taken, as a share of the steps", above=0, at_most=1
    )
    mode: str = option(
        "paper",
        "paper: as the paper has it; official: as the reference code, value by value (docs/generate.md)",
        choices=("paper", "official"),
    )
    keep: float = option(
        0.0,
        "where the edit changes less than this share of a threshold that it finds, the input itself stays: "
        "0.8 for an object or a season, 0 (nowhere) for a style of the whole picture",
        at_least=0,
        first=True,
    )


@dataclass
class Guidance:
    """Cross-attention guidance and classifier-free guidance; both belong to the teacher."""

    amount: float = option(
        0.10,
        "step size on x_t down the gradient of the attention distance; 0.15 where prompts make the inputs",
        at_least=0,
        first=True,
    )
    scale: float = option(5.0, "classifier-free guidance scale", first=True)
    scale_until: float = option(
        1.0,
        "classifier-free guidance in this share of the steps, from the noise on; then the edit's text alone",
        at_least=0,
        at_most=1,
    )
    negative: str = option(
        "auto",
        "negative prompt: caption, empty, or auto: an image's caption, empty where a prompt makes the input",
        choices=("auto", "caption", "empty"),
    )
    until: float = option(
        1.0,
        "attention guides this share of the steps, from the noise on; the layout is decided early",
        at_least=0,
        at_most=1,
    )
    self_attention: float = option(
        0.0,
        "the edit takes the reference's self-attention in this share of the steps, from the noise on",
        at_least=0,
        at_most=1,
    )
    every: int = option(1, "attention guides one of so many of these steps, so many times as far", at_least=1)
    maps: str = option(
        "reference",
        "reference: maps of a reference pass; inversion: those of the inversion, kept until the edit",
        choices=("reference", "inversion"),
    )


@dataclass
class Direction:
    """The edit direction in text-embedding space, 1 x T x D."""

    file: str = option(
        "", "a ready direction instead of the sentences: a .safetensors or .pt with one 1 x T x D tensor"
    )
    files: dict[str, float] = option(
        {}, "or the weighted sum of several such files: {dog.pt: 1, cat.pt: -1} is from cat to dog"
    )
    strength: float = option(1.0, "multiplies the direction", first=True)
    sentences: int = option(
        1000, "sentences a word that the built-in grammar writes, where the task names no file", at_least=2
    )


@dataclass
class Inversion:
    """Regularised DDIM inversion (Parmar et al. 2023, section 3.2), in as many steps as the edit has."""

    lambda_ac: float = option(20.0, "weight of the auto-correlation term; 0: without it", at_least=0)
    lambda_kl: float = option(20.0, "weight of the KL term; 0: without it", at_least=0)
    pool_gain: float = option(
        1.0,
        "factor after each pooling: 1 as the reference code, 2 keeps unit variance as the paper says",
        above=0,
    )


@dataclass
class Filter:
    """Stage 2: scoring pairs."""

    batch: int = option(32, "pairs scored together", at_least=1)
    dtype: str = option(
        "bfloat16",
        "arithmetic of the networks on a GPU, LPIPS excepted; a CPU computes in float32",
        choices=("float32", "bfloat16"),
    )
    generator: str = option(
        "",
        "an exported generator.onnx of this edit: lpips_generator is how far each edit lies from its own; "
        "empty: no such score",
        first=True,
    )
    select: list[str] = option(
        [],
        "instead of the task's thresholds, as --select: "
        "[overlap=0.7,clip_gain=0.1,keep=0.6,by=clip_gain,veto=FILE]",
        first=True,
    )
    reject: list[str] = option(
        ["blank"],
        "a pair with one of these flags is never kept",
        choices=("blank", "unchanged", "no_foreground_input", "no_foreground_edit"),
    )


@dataclass
class Scorer:
    """The CLIP model that judges; never the teacher's own text tower."""

    model: str = option("ViT-L-14", "open_clip model name, or local-dir:FOLDER")
    pretrained: str = option("openai", "open_clip pretrained tag or checkpoint; empty with local-dir")
    gain_unit: float = option(
        1.0, "a gain of g in the paper's CLIP counts as g x gain_unit in this one", above=0
    )


@dataclass
class Segmenter:
    """For the overlap score: segment-anything's automatic masks, or SAM 2's of the boxes of a detector."""

    model: str = option(
        "vit_h",
        "vit_h, vit_l or vit_b; or a folder with config.json + model.safetensors; with a detector: a SAM 2",
    )
    checkpoint: str = option("", "the .pth for a vit_* model; empty: that of scripts/fetch.py")
    detector: str = option(
        "",
        "a Grounding DINO (hub name or folder) that finds the noun for SAM 2; empty: segment-anything",
    )
    points_per_side: int = option(32, "grid of automatic mask prompts", at_least=1)
    min_predicted_iou: float = option(
        0.88,
        "proposed masks of which the model itself expects less are left out (segment-anything's default)",
        at_least=0,
        at_most=1,
    )
    min_stability: float = option(
        0.95,
        "so are masks that change more than this with the cut-off (segment-anything's default)",
        at_least=0,
        at_most=1,
    )
    other_nouns: list[str] = option(["the background", "the sky", "the ground"], "what else a mask may show")


@dataclass
class Distill:
    """Stage 3: training the generator."""

    images: int = option(1_000_000, "training length, in images shown", at_least=1, first=True)
    resolution: int = option(
        0,
        "side of the generator's images, a power of two from 16; pairs are resized on reading; 0: the "
        "teacher's, or the largest power of two below it",
        at_least=0,
    )
    batch: int = option(64, "images a step, over all processes", at_least=1, first=True)
    lr: float = option(0.001, "Adam learning rate", at_least=0, first=True)
    beta1: float = option(
        0.9,
        "Adam beta 1",
        at_least=0,
        below=1,
    )
    warmup_images: int = option(2_000, "linear warm-up of the learning rate", at_least=0)
    lpips: float = option(1.0, "weight of LPIPS (VGG16); that of L1 is 1", at_least=0)
    lpips_crop: int = option(
        0, "side of the random window LPIPS looks at, pixels, from 16; 0: the whole image", at_least=0
    )
    style: float = option(
        0.0,
        "weight of the style loss (Gram matrices of VGG16's features); 0: none, 2: sharper",
        at_least=0,
        first=True,
    )
    adversarial: float = option(
        0.0,
        "how hard the adversary pulls at the picture, the other losses being 1; 0: none, .5: sharper",
        at_least=0,
        first=True,
    )
    ema_half_life_images: int = option(
        10_000, "half-life of the moving average of the weights, in images shown", at_least=0
    )
    validation_share: float = option(0.05, "share of the input images held out", above=0, below=1)
    save_every_images: int = option(
        20_000, "checkpoint, validation and sample grid each so many images", at_least=1
    )
    workers: int = option(2, "decoding processes", at_least=0)
    dtype: str = option("float32", "float32 or bfloat16 autocast", choices=("float32", "bfloat16"))
    compile: bool = option(
        False, "run the networks through torch.compile: minutes at the start, less time a step"
    )
    tracker: str = option(
        "auto",
        "accelerate's tracker (tensorboard, wandb, ...); auto: tensorboard if installed; empty: none",
    )
    init: str = option("", "start from these weights: an exported generator.safetensors", first=True)
    labels: str = option(
        "",
        "a generator.onnx whose edits are learned instead of the pairs': a small network from a large one",
    )


@dataclass
class Augment:
    """Training-time augmentation with kornia; one geometric draw for both images."""

    flip: float = option(0.5, "probability of a horizontal flip of both", at_least=0, at_most=1)
    crop: float = option(
        0.8, "smallest side of a random crop of both, as a share; 1: none", above=0, at_most=1
    )
    colour: float = option(
        0.1,
        "jitter of brightness, contrast and saturation; of hue a fifth; the same draw for both images",
        at_least=0,
        at_most=1,
    )
    noise: float = option(
        0.02,
        "largest standard deviation of noise added to the input alone, images in [-1, 1]",
        at_least=0,
    )


@dataclass
class Generator:
    """Stage 3's network, a Co-Mod-GAN (Zhao et al. 2021); generator=comodgan_lite is a small one."""

    channel_base: int = option(16_384, "channels at side s: min(channel_max, 2 channel_base / s)", at_least=1)
    channel_max: int = option(512, "most channels of any layer", at_least=1)
    w_dim: int = option(512, "width of the latent, before and after the mapping network", at_least=1)
    code_dim: int = option(1024, "width of the encoder's global code", at_least=1)
    mapping_layers: int = option(8, "layers of the mapping network", at_least=0)
    dropout: float = option(0.5, "dropout on the global code while training", at_least=0, below=1)
    separable: bool = option(False, "depthwise-separable convolutions")
    patch: int = option(
        1, "pixels a side of what one place of the finest layer reads and writes; 2: far faster", at_least=1
    )
    width: float = option(1.0, "factor on all channels, w_dim and code_dim", above=0)


@dataclass
class Export:
    """distill/export.py: of which checkpoint, and what beside generator.safetensors and generator.onnx."""

    checkpoint: str = option(
        "newest",
        "newest; best: of those whose validation LPIPS is within 3 % of the lowest, the sharpest",
        choices=("newest", "best"),
        first=True,
    )
    formats: list[str] = option(
        ["float", "fp16", "int8", "pt2"],
        "further formats; docs/distill.md says what each is",
        choices=("float", "fp16", "int8", "pt2", "page"),
        first=True,
    )
    push: str = option("", "also upload the folder to the hub, as OWNER/MODEL; a new one is private")


@dataclass
class Demo:
    """scripts/demo.py: the whole way on the miniature."""

    scenes: int = option(
        8, "held-out scenes in the report, and at most so many photographs", at_least=1, first=True
    )
    photos: str = option(
        "", "a folder of photographs to edit too; empty: those that scikit-image installs", first=True
    )


@dataclass
class Evaluate:
    """scripts/evaluate.py: the paper's tables and sweeps, on held-out scenes or on photographs."""

    scenes: int = option(256, "held-out scenes, or at most so many photographs", at_least=1, first=True)
    first_seed: int = option(
        3_000_000,
        "seed of the first scene; validation sweeps use other seeds",
        at_least=0,
        first=True,
    )
    dino: str = option(
        "hub",
        "structure distance by DINO ViT-B/8: weights file, 'hub' (timm's); empty: VGG16's relu4_3 stands in",
    )
    inception: str = option(
        "",
        "FID and KID by this file of Inception's weights (docs/metrics.md); empty: VGG16's relu5_3 stands in",
    )
    unconditional: str = option(
        "",
        "figure9: an unconditional diffusion model of pixels, folder or hub name of a DDPM or DDIM pipeline",
    )
    unconditional_lr: float = option(
        8e-6, "figure9: Adam learning rate of its copy (DiffusionCLIP's default)", above=0
    )
    sweep: dict[str, list[Any]] = option(
        {"edit.method": ["pix2pix-zero", "B", "D"]},
        "a row for each combination of these values of keys of edit, direction, guidance and inversion; "
        "the methods stay unless they are named",
        first=True,
    )


@dataclass
class Compare:
    """scripts/compare.py: the same training in several ways."""

    jobs: int = option(
        1,
        "trainings at once; more than one share the GPU, and images a second is then each one's share",
        at_least=1,
        first=True,
    )


@dataclass
class Benchmark:
    """scripts/benchmark.py: ours beside a plain loop, in one run."""

    architecture: str = option(
        "",
        "random weights, no download: sd14 (generate, infer), or vit_h (filter); empty: what is configured",
        first=True,
    )
    pairs: int = option(
        16,
        "pairs that ours is timed on; infer: that the teacher is timed on, 0: no teacher",
        at_least=0,
        first=True,
    )
    calls: int = option(
        30, "infer: calls of each runtime, of which the middle one counts", at_least=1, first=True
    )
    images_at_once: int = option(1, "infer: images a call", at_least=1, first=True)
    side: int = option(
        0,
        "train, infer: side of the pictures, pixels; 0: that of the teacher, or of the generator (sd14: 512)",
        at_least=0,
        first=True,
    )


@dataclass
class Studio:
    """scripts/studio.py: edits by hand in a browser, on this machine alone."""

    port: int = option(7860, "of the page's address; 0: any free one", at_least=0, at_most=65_535)


@dataclass
class Config:
    """Everything, in the order in which a user meets it."""

    run: str = ""  # the folder of run=FOLDER, filled in by configs/loader.py
    runs_dir: str = option("runs", "everything is written below <runs_dir>/<task>/<teacher>", first=True)
    device: str = option(
        "auto",
        "where all networks run: auto (a GPU if there is one), cpu, cuda, cuda:N, mps, xpu",
        first=True,
    )
    seed: int = option(
        0, "every random draw derives from it and from the sample's key", at_least=0, at_most=MOST_SEED
    )
    force: bool = option(False, "go on in a run folder that was made with another configuration")
    json: str = option("", "scripts/benchmark.py also writes its table here")
    task: Task = field(default_factory=Task)
    teacher: Teacher = field(default_factory=Teacher)
    source: Source = field(default_factory=Source)
    generate: Generate = field(default_factory=Generate)
    edit: Edit = field(default_factory=Edit)
    guidance: Guidance = field(default_factory=Guidance)
    direction: Direction = field(default_factory=Direction)
    inversion: Inversion = field(default_factory=Inversion)
    filter: Filter = field(default_factory=Filter)
    scorer: Scorer = field(default_factory=Scorer)
    segmenter: Segmenter = field(default_factory=Segmenter)
    distill: Distill = field(default_factory=Distill)
    augment: Augment = field(default_factory=Augment)
    generator: Generator = field(default_factory=Generator)
    export: Export = field(default_factory=Export)
    demo: Demo = field(default_factory=Demo)
    evaluate: Evaluate = field(default_factory=Evaluate)
    compare: Compare = field(default_factory=Compare)
    benchmark: Benchmark = field(default_factory=Benchmark)
    studio: Studio = field(default_factory=Studio)
