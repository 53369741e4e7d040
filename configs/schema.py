"""The typed configuration: every key there is, its type, its default and what it means.

A stage gets its own section, never the whole. Defaults are the paper's (Parmar et al. 2023) where it states one, else the reference code's;
presets, teachers and tasks (yaml fragments beside this file) override them, and the command line overrides all.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import Any


def _opt(default: Any, text: str) -> Any:
    """A field with its help text; mutable defaults are copied per instance."""
    return field(default_factory=lambda: copy(default), metadata={"help": text})


@dataclass
class Task:
    """One edit direction, and what counts as a good pair for it."""

    name: str = _opt(
        "", "name of the task and of its folder; from task=NAME, of task=custom SOURCE-to-TARGET"
    )
    source: str = _opt("", "what the input shows: 'tree in summer'")
    target: str = _opt("", "what the edit shows: 'tree in winter'")
    source_bank: str = _opt(
        "",
        "text file of sentences about the source, one a line (in configs/banks, or a path); empty: a grammar's",
    )
    target_bank: str = _opt("", "the same about the target")
    caption: str = _opt("a photo of {source}", "caption for an image that brings none")
    swap: dict[str, str] = _opt({}, "word swap of the baselines: source word -> target word")
    source_noun: str = _opt(
        "", "foreground object of the input, for the overlap score; empty: the whole picture is edited"
    )
    target_noun: str = _opt("", "foreground object of the edit")
    clip_gain: float | None = _opt(
        0.10, "keep pairs whose CLIP gain is at least this in the paper's units: raw, x scorer.gain_unit"
    )
    overlap: float | None = _opt(None, "keep pairs whose mask IoU is at least this; null: not asked for")
    scene_input: dict[str, str] = _opt({}, "look of a rendered input scene (models.miniature.scenes.Look)")
    scene_truth: dict[str, str] = _opt({}, "look of its true edit, the judge in scripts/evaluate.py")


@dataclass
class Teacher:
    """A Stable Diffusion folder in diffusers' layout."""

    name: str = _opt("", "name of the teacher, from teacher=NAME")
    path: str = _opt("", "folder or hub name for StableDiffusionPipeline.from_pretrained")
    resolution: int = _opt(
        0, "side of the square images it edits, pixels; 0: what the folder's UNet was made for"
    )


@dataclass
class Retrieve:
    """Of a large source, the images nearest to the task's source words by CLIP (Parmar et al. 2023, section 4)."""

    k: int = _opt(0, "so many are kept, nearest first (the paper: 250); 0: all, in the source's order")
    aesthetics: float = _opt(
        0.0, "with k: least aesthetics score, where an image's metadata has one (the paper: 9)"
    )


@dataclass
class Source:
    """Where the inputs come from."""

    images: str = _opt("", "a folder, an image, a .txt of paths, webdataset .tar (glob, {0..9}, address)")
    prompts: str = _opt(
        "",
        "or a text file of prompts from which the teacher makes the inputs itself (in configs/banks, or a path)",
    )
    scenes: bool = _opt(False, "where neither is named, render scenes (the miniature teacher's world)")
    caption: str = _opt(
        "",
        "one for every image; empty: the image's own (NAME.txt beside it), else captioner, else the task's template",
    )
    captioner: str = _opt(
        "",
        "BLIP model for images without caption, folder or hub name (Salesforce/blip-image-captioning-base)",
    )
    retrieve: Retrieve = field(default_factory=Retrieve)
    first_seed: int = _opt(
        1_000_000, "seed of the first rendered scene; the miniature was trained on seeds below 1,000,000"
    )
    max_pixels: int = _opt(100_000_000, "larger images are refused before they are decoded")
    max_unreadable_share: float = _opt(
        0.05, "more unreadable images than this share is an error; fewer are counted and left out"
    )


@dataclass
class Direction:
    """The edit direction in text-embedding space, 1 x T x D."""

    file: str = _opt(
        "", "a ready direction (.safetensors or .pt with one 1 x T x D tensor) instead of the sentence banks"
    )
    source_embedding: str = _opt(
        "",
        "or two mean embeddings as the reference code publishes them: this .pt or .safetensors (cat.pt) ...",
    )
    target_embedding: str = _opt("", "... and that of the target (dog.pt); their difference is the direction")
    strength: float = _opt(1.0, "multiplies the direction")
    plus: dict[str, float] = _opt({}, "further ready directions to add, each with its strength: {FILE: 0.5}")
    sentences: int = _opt(
        1000,
        "sentences a word that the built-in grammar or the language model makes, where the task names no file",
    )
    language_model: str = _opt(
        "", "model of transformers that writes the sentences (folder or hub name), or the endpoint's"
    )
    endpoint: str = _opt(
        "",
        "base address of an OpenAI-compatible service (https://HOST/v1; key in OPENAI_API_KEY); empty: a local model",
    )


@dataclass
class Inversion:
    """Regularised DDIM inversion (Parmar et al. 2023, section 3.2)."""

    steps: int | None = _opt(None, "DDIM steps from the image to noise; null: edit.steps")
    lambda_ac: float = _opt(20.0, "weight of the auto-correlation term")
    lambda_kl: float = _opt(20.0, "weight of the KL term")
    outer_iterations: int = _opt(5, "regularisation rounds a step")
    inner_iterations: int = _opt(5, "auto-correlation updates a round; one KL update ends it")
    pool_gain: float = _opt(
        1.0, "factor after each pooling: 1 as the reference code, 2 keeps unit variance as the paper says"
    )


@dataclass
class Edit:
    """Which edit, and for how many steps."""

    method: str = _opt(
        "pix2pix-zero",
        "pix2pix-zero (the paper's E), its A, B, C, D, sdedit (Meng et al. 2022), or prompt-to-prompt",
    )
    steps: int = _opt(100, "DDIM steps of the reference and the edit trajectory")
    strength: float = _opt(0.75, "sdedit: how far towards noise the image is taken, 0 to 1")
    solver: str = _opt(
        "ddim", "ddim, or multistep: DPM-Solver++(2M), no better on the miniature (docs/results.md)"
    )
    mode: str = _opt(
        "paper",
        "paper: one x_t, one gradient; official: as the reference code, value by value (docs/generate.md)",
    )


@dataclass
class Guidance:
    """Cross-attention guidance and classifier-free guidance; both belong to the teacher."""

    amount: float = _opt(
        0.10, "step size on x_t along the gradient of the attention distance; 0.1 real images, 0.15 synthetic"
    )
    scale: float = _opt(5.0, "classifier-free guidance scale")
    negative: str = _opt(
        "auto",
        "negative prompt: caption, empty, or auto: the caption of an image, empty where a prompt makes the input",
    )
    until: float = _opt(
        1.0, "attention guides this share of the steps, from the noise on; the layout is decided early"
    )
    maps: str = _opt(
        "reference",
        "whose maps: reference, a pass of its own, or inversion: those of the way up, which are held until then",
    )


@dataclass
class PromptToPrompt:
    """The baseline edit.method=prompt-to-prompt (Hertz et al. 2022)."""

    cross_replace: float = _opt(0.8, "share of the steps in which the words' maps are taken over")
    self_replace: float = _opt(0.4, "share of the steps in which self-attention is")
    self_side: int = _opt(16, "in layers of at most so many latent cells a side")


@dataclass
class Generate:
    """Stage 1: making pairs."""

    pairs: int = _opt(15_000, "pairs to make; a folder with fewer images gives one pair an image")
    pairs_per_shard: int = _opt(64, "pairs in one tar: what an interruption can cost")
    batch: int = _opt(0, "images edited together; 0: as many as the GPU's memory holds (16 on a CPU)")
    dtype: str = _opt("float16", "float32, float16 or bfloat16 weights and activations")
    compile: bool = _opt(False, "run the UNet through torch.compile: minutes at the start, less time a pair")
    safety_checker: bool = _opt(True, "leave out what the teacher's safety checker flags, where it has one")
    workers: int = _opt(4, "threads that read images ahead")
    device: str = _opt("auto", "auto, cpu, cuda or cuda:N")
    out: str = _opt("", "folder of the shards; empty: <run>/pairs")
    save_reconstruction: bool = _opt(False, "keep the reference pass's picture beside the pair")
    save_latents: bool = _opt(
        False, "keep the reconstruction and the latents of all beside the pair, float32 .npy"
    )


@dataclass
class Scorer:
    """The CLIP model that judges; never the teacher's own text tower."""

    model: str = _opt("ViT-L-14", "open_clip model name, or local-dir:FOLDER")
    pretrained: str = _opt("openai", "open_clip pretrained tag or checkpoint; empty with local-dir")
    templates: list[str] = _opt(["a photo of {}", "a picture of {}", "{}"], "text templates, averaged")
    gain_unit: float = _opt(1.0, "a gain of g in the paper's CLIP counts as g x gain_unit in this one")


@dataclass
class Segmenter:
    """For the overlap score: segment-anything's automatic masks, or with a detector transformers' text-prompted ones."""

    model: str = _opt(
        "vit_h",
        "vit_h, vit_l or vit_b; or a folder with config.json + model.safetensors; with a detector: a SAM 2",
    )
    checkpoint: str = _opt("", "the .pth for a vit_* model")
    detector: str = _opt(
        "",
        "a Grounding DINO (hub name or folder) that finds the noun for transformers' SAM 2; empty: segment-anything",
    )
    min_box_score: float = _opt(
        0.3,
        "with a detector: boxes it trusts less are left out (Grounding DINO's own choice is 0.25 to 0.35)",
    )
    batch: int = _opt(8, "pictures that share a pass of the image encoder")
    points_per_side: int = _opt(32, "grid of automatic mask prompts")
    points_per_batch: int = _opt(
        256, "of these decoded together; 1 GB of GPU memory at segment-anything's own sizes"
    )
    min_predicted_iou: float = _opt(
        0.88,
        "proposed masks of which the model itself expects less are left out (segment-anything's default)",
    )
    min_stability: float = _opt(
        0.95, "so are masks that change more than this with the cut-off (segment-anything's default)"
    )
    min_area: float = _opt(
        0.002, "smaller masks, as a share of the picture, are not looked at: they hardly move an overlap"
    )
    crop_margin: float = _opt(
        0.1, "around a mask's box when the scorer looks at it, as a share of its longer side"
    )
    outside: float = _opt(
        0.3, "how much of the picture outside the mask the scorer sees: 0 grey, 1 untouched"
    )
    min_noun_probability: float = _opt(
        0.5, "a mask counts as the noun where the scorer gives it at least this against the other nouns"
    )
    other_nouns: list[str] = _opt(["the background", "the sky", "the ground"], "what else a mask may show")


@dataclass
class Filter:
    """Stage 2: scoring pairs."""

    batch: int = _opt(32, "pairs scored together")
    device: str = _opt("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = _opt(
        "bfloat16",
        "of the networks' arithmetic on a GPU: bfloat16 (autocast) or float32; a CPU computes in float32",
    )
    workers: int = _opt(4, "threads that decode pairs while others are scored")
    select: list[str] = _opt(
        [], "instead of the task's thresholds, as --select: [overlap=0.7,clip_gain=0.1,keep=0.6,by=clip_gain]"
    )
    reject: list[str] = _opt(
        ["blank"], "flags that no pair may have: blank, unchanged, no_foreground_input, no_foreground_edit"
    )
    page_pairs: int = _opt(120, "pairs whose pictures are in filter.html, about 12 kB each")
    good_margin: float = _opt(
        0.25, "a good edit is nearer to the true one than the input is by this share of its LPIPS"
    )


@dataclass
class Generator:
    """Stage 3's network: Co-Mod-GAN (Zhao et al. 2021), or with generator=comodgan_lite a small one for CPUs, phones and browsers."""

    channel_base: int = _opt(16_384, "channels at side s: min(channel_max, 2 channel_base / s)")
    channel_max: int = _opt(512, "most channels of any layer")
    z_dim: int = _opt(512, "width of the latent z; fixed to zero where distill.latent is 'fixed'")
    w_dim: int = _opt(512, "width of the mapped latent w")
    code_dim: int = _opt(1024, "width of the encoder's global code")
    mapping_layers: int = _opt(8, "layers of the mapping network")
    dropout: float = _opt(0.5, "dropout on the global code while training")
    separable: bool = _opt(False, "depthwise-separable convolutions")
    width: float = _opt(1.0, "factor on all channels, w_dim and code_dim")


@dataclass
class Augment:
    """Training-time augmentation with kornia; one geometric draw for both images."""

    flip: float = _opt(0.5, "probability of a horizontal flip of both")
    crop: float = _opt(0.8, "smallest side of a random crop of both, as a share; 1: none")
    brightness: float = _opt(0.1, "colour jitter, the same draw for both images")
    contrast: float = _opt(0.1, "colour jitter, the same draw for both images")
    saturation: float = _opt(0.1, "colour jitter, the same draw for both images")
    hue: float = _opt(0.02, "colour jitter, the same draw for both images")
    noise: float = _opt(
        0.02, "largest standard deviation of noise added to the input alone, images in [-1, 1]"
    )


@dataclass
class Distill:
    """Stage 3: training the generator."""

    images: int = _opt(1_000_000, "training length, in images shown")
    batch: int = _opt(64, "images a step, over all processes")
    lr: float = _opt(0.001, "Adam learning rate")
    beta1: float = _opt(
        0.9,
        "Adam beta 1; 0 (Co-Mod-GAN) with an adversary. Without one .9 is nearer to the teacher (docs/results.md)",
    )
    beta2: float = _opt(0.99, "Adam beta 2 (Co-Mod-GAN)")
    warmup_images: int = _opt(2_000, "linear warm-up of the learning rate")
    l1: float = _opt(1.0, "weight of L1")
    lpips: float = _opt(1.0, "weight of LPIPS (VGG16)")
    lpips_crop: int = _opt(0, "side of the random window LPIPS looks at, pixels; 0: the whole image")
    adversarial: float = _opt(0.0, "weight of the adversarial loss; 0: no discriminator")
    r1: float = _opt(10.0, "R1 gamma of the discriminator (Co-Mod-GAN)")
    r1_every: int = _opt(16, "steps from one R1 to the next, which then counts so many times")
    latent: str = _opt("fixed", "z while training: 'fixed' (zeros: one edit an input) or 'sampled'")
    ema_half_life_images: int = _opt(10_000, "half-life of the moving average of the weights")
    validation_share: float = _opt(0.05, "share of the input images held out")
    max_validation_pairs: int = _opt(256, "at most so many are measured")
    save_every_images: int = _opt(20_000, "checkpoint, validation and sample grid each so many images")
    keep_checkpoints: int = _opt(2, "newest checkpoints kept")
    workers: int = _opt(2, "decoding processes")
    cache_gb: float = _opt(
        4.0,
        "keep the decoded training pictures in memory where all are at most so many GB a process; 0: never",
    )
    dtype: str = _opt("float32", "float32 or bfloat16 autocast")
    compile: bool = _opt(
        False, "run the networks through torch.compile: minutes at the start, less time a step"
    )
    tracker: str = _opt(
        "auto",
        "tracker of accelerate (tensorboard, wandb, ...); auto: tensorboard where it is installed; empty: none",
    )
    init: str = _opt("", "start from these weights: an exported generator.safetensors")
    labels: str = _opt(
        "",
        "learn a generator.onnx's edits of the inputs in the place of the pairs' own: a small network from a large one",
    )
    adapter_rank: int = _opt(
        0, "with init: train changes of the weights of at most this rank; 0: the whole weights"
    )


@dataclass
class Export:
    """distill/export.py: generator.safetensors and generator.onnx, and what else."""

    formats: list[str] = _opt(
        ["float", "fp16", "int8", "pt2"], "further formats: float, fp16, int8, pt2, page (docs/distill.md)"
    )
    onnxruntime_web: str = _opt(
        "",
        "the npm package's .tgz that the page needs; empty: fetched once from registry.npmjs.org, then cached",
    )


@dataclass
class Evaluate:
    """scripts/evaluate.py: the paper's tables and sweeps, on held-out scenes or on the photographs of source.images."""

    scenes: int = _opt(256, "held-out scenes, or at most so many photographs")
    first_seed: int = _opt(3_000_000, "seed of the first scene; validation sweeps use other seeds")
    bootstrap: int = _opt(1000, "resamples of the images for each 95 % interval")
    dino: str = _opt(
        "hub",
        "structure distance by DINO ViT-B/8: weights file, 'hub' (timm's); empty: VGG16's relu4_3 stands in",
    )
    inception: str = _opt(
        "",
        "FID and KID by this file of Inception's weights (docs/metrics.md); empty: VGG16's relu5_3 stands in",
    )
    sdedit_strengths: list[float] = _opt([0.5, 0.6, 0.7, 0.8], "table1: SDEdit's rows, one a strength")
    methods: list[str] = _opt(["pix2pix-zero", "B", "D"], "sweep: editing methods to compare (edit.method)")
    amounts: list[float] = _opt([], "guidance amounts to sweep; empty: guidance.amount")
    scales: list[float] = _opt([], "guidance scales to sweep; empty: guidance.scale")
    strengths: list[float] = _opt([], "direction strengths to sweep; empty: direction.strength")


@dataclass
class Compare:
    """scripts/compare.py: the same training in several ways."""

    jobs: int = _opt(
        1, "trainings at once; more than one share the GPU, and images a second is then each one's share"
    )
    few_pairs: int = _opt(256, "augment: pairs to train on, the first of the selection")
    init: str = _opt(
        "models/miniature/generator/generator.safetensors", "transfer: the trained generator to start from"
    )


@dataclass
class Benchmark:
    """scripts/benchmark.py: ours beside a plain loop, in one run."""

    architecture: str = _opt(
        "",
        "random weights, no download: sd14 (generate, infer), or vit_h (filter); empty: what is configured",
    )
    pairs: int = _opt(16, "pairs that ours is timed on; infer: that the teacher is timed on, 0: no teacher")
    plain_pairs: int = _opt(1, "pairs that the plain loop is timed on")
    calls: int = _opt(30, "infer: calls of each runtime, of which the middle one counts")
    images_at_once: int = _opt(1, "infer: images a call")
    side: int = _opt(
        0,
        "train, infer: side of the pictures, pixels; 0: teacher.resolution, the trained generator's (sd14: 512)",
    )
    steps: int = _opt(
        4, "train: steps of distill.batch that each loop is timed on, after as many that are not"
    )


@dataclass
class Demo:
    """scripts/demo.py: the whole way on the miniature."""

    scenes: int = _opt(8, "held-out scenes in the report, and at most so many photographs")
    photos: str = _opt("", "a folder of photographs to edit too; empty: those that scikit-image installs")


@dataclass
class Config:
    """Everything."""

    task: Task = field(default_factory=Task)
    teacher: Teacher = field(default_factory=Teacher)
    source: Source = field(default_factory=Source)
    direction: Direction = field(default_factory=Direction)
    inversion: Inversion = field(default_factory=Inversion)
    edit: Edit = field(default_factory=Edit)
    guidance: Guidance = field(default_factory=Guidance)
    prompt_to_prompt: PromptToPrompt = field(default_factory=PromptToPrompt)
    generate: Generate = field(default_factory=Generate)
    scorer: Scorer = field(default_factory=Scorer)
    segmenter: Segmenter = field(default_factory=Segmenter)
    filter: Filter = field(default_factory=Filter)
    generator: Generator = field(default_factory=Generator)
    augment: Augment = field(default_factory=Augment)
    distill: Distill = field(default_factory=Distill)
    export: Export = field(default_factory=Export)
    evaluate: Evaluate = field(default_factory=Evaluate)
    compare: Compare = field(default_factory=Compare)
    benchmark: Benchmark = field(default_factory=Benchmark)
    demo: Demo = field(default_factory=Demo)
    runs_dir: str = _opt("runs", "everything is written below <runs_dir>/<task>/<teacher>")
    seed: int = _opt(0, "every draw derives from it and from the sample's key")
    json: str = _opt("", "scripts/benchmark.py also writes its table here")
    force: bool = _opt(False, "go on in a run folder that was made with another configuration")
