"""The typed configuration: every key there is, its type, its default and what it means.

A stage gets its own section, never the whole. Defaults are the paper's (Parmar et al. 2023) where it states one, else the reference code's;
presets, teachers and tasks (yaml fragments beside this file) override them, and the command line overrides all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.limits import option

# of generate/editors.py, where each is put together; listed here because torch must not be loaded for --help
METHODS = ("sdedit", "prompt-to-prompt", "A", "B", "C", "D", "pix2pix-zero")


@dataclass
class Task:
    """One edit direction, and what counts as a good pair for it."""

    name: str = option(
        "", "name of the task and of its folder; from task=NAME, of task=custom SOURCE-to-TARGET"
    )
    source: str = option("", "what the input shows: 'tree in summer'")
    target: str = option("", "what the edit shows: 'tree in winter'")
    source_bank: str = option(
        "",
        "text file of sentences about the source, one a line (in configs/banks, or a path); empty: a grammar's",
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
    overlap: float | None = option(None, "keep pairs whose mask IoU is at least this; null: not asked for")
    scene_input: dict[str, str] = option({}, "look of a rendered input scene (models.miniature.scenes.Look)")
    scene_truth: dict[str, str] = option({}, "look of its true edit, the judge in scripts/evaluate.py")


@dataclass
class Teacher:
    """A Stable Diffusion folder in diffusers' layout."""

    name: str = option("", "name of the teacher, from teacher=NAME")
    path: str = option("", "folder or hub name for StableDiffusionPipeline.from_pretrained")
    resolution: int = option(
        0,
        "side of the square images it edits, pixels; 0: what the folder's UNet was made for",
        at_least=0,
    )


@dataclass
class Retrieve:
    """Of a large source, the images nearest to the task's source words by CLIP (Parmar et al. 2023, section 4)."""

    k: int = option(
        0, "so many are kept, nearest first (the paper: 250); 0: all, in the source's order", at_least=0
    )
    aesthetics: float = option(
        0.0, "with k: least aesthetics score, where an image's metadata has one (the paper: 9)"
    )


@dataclass
class Source:
    """Where the inputs come from."""

    images: str = option("", "a folder, an image, a .txt of paths, webdataset .tar (glob, {0..9}, address)")
    prompts: str = option(
        "",
        "or a text file of prompts from which the teacher makes the inputs itself (in configs/banks, or a path)",
    )
    scenes: bool = option(False, "where neither is named, render scenes (the miniature teacher's world)")
    caption: str = option(
        "",
        "one for every image; empty: the image's own (NAME.txt beside it), else captioner, else the task's template",
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
    max_pixels: int = option(100_000_000, "larger images are refused before they are decoded", at_least=1)
    max_unreadable_share: float = option(
        0.05,
        "more unreadable images than this share is an error; fewer are counted and left out",
        at_least=0,
        at_most=1,
    )


@dataclass
class Direction:
    """The edit direction in text-embedding space, 1 x T x D."""

    file: str = option(
        "", "a ready direction (.safetensors or .pt with one 1 x T x D tensor) instead of the sentence banks"
    )
    source_embedding: str = option(
        "",
        "or two mean embeddings as the reference code publishes them: this .pt or .safetensors (cat.pt) ...",
    )
    target_embedding: str = option(
        "", "... and that of the target (dog.pt); their difference is the direction"
    )
    strength: float = option(1.0, "multiplies the direction")
    plus: dict[str, float] = option(
        {}, "further ready directions to add, each with its strength: {FILE: 0.5}"
    )
    sentences: int = option(
        1000,
        "sentences a word that the built-in grammar or the language model makes, where the task names no file",
        at_least=2,
    )
    language_model: str = option(
        "", "model of transformers that writes the sentences (folder or hub name), or the endpoint's"
    )
    endpoint: str = option(
        "",
        "base address of an OpenAI-compatible service (https://HOST/v1; key in OPENAI_API_KEY); empty: a local model",
    )


@dataclass
class Inversion:
    """Regularised DDIM inversion (Parmar et al. 2023, section 3.2)."""

    steps: int | None = option(None, "DDIM steps from the image to noise; null: edit.steps", at_least=1)
    lambda_ac: float = option(20.0, "weight of the auto-correlation term", at_least=0)
    lambda_kl: float = option(20.0, "weight of the KL term", at_least=0)
    outer_iterations: int = option(5, "regularisation rounds a step", at_least=0)
    inner_iterations: int = option(5, "auto-correlation updates a round; one KL update ends it", at_least=1)
    pool_gain: float = option(
        1.0, "factor after each pooling: 1 as the reference code, 2 keeps unit variance as the paper says"
    )


@dataclass
class Edit:
    """Which edit, and for how many steps."""

    method: str = option(
        "pix2pix-zero",
        "pix2pix-zero (the paper's E), its A, B, C, D, sdedit (Meng et al. 2022), or prompt-to-prompt",
        choices=METHODS,
    )
    steps: int = option(100, "DDIM steps of the reference and the edit trajectory", at_least=1)
    strength: float = option(
        0.75, "sdedit: how far towards noise the image is taken, 0 to 1", above=0, at_most=1
    )
    solver: str = option(
        "ddim",
        "ddim, or multistep: DPM-Solver++(2M), no better on the miniature (docs/results.md)",
        choices=("ddim", "multistep"),
    )
    mode: str = option(
        "paper",
        "paper: one x_t, one gradient; official: as the reference code, value by value (docs/generate.md)",
        choices=("paper", "official"),
    )


@dataclass
class Guidance:
    """Cross-attention guidance and classifier-free guidance; both belong to the teacher."""

    amount: float = option(
        0.10,
        "step size on x_t along the gradient of the attention distance; 0.1 real images, 0.15 synthetic",
        at_least=0,
    )
    scale: float = option(5.0, "classifier-free guidance scale")
    negative: str = option(
        "auto",
        "negative prompt: caption, empty, or auto: the caption of an image, empty where a prompt makes the input",
        choices=("auto", "caption", "empty"),
    )
    until: float = option(
        1.0,
        "attention guides this share of the steps, from the noise on; the layout is decided early",
        at_least=0,
        at_most=1,
    )
    maps: str = option(
        "reference",
        "whose maps: reference, a pass of its own, or inversion: those of the way up, which are held until then",
        choices=("reference", "inversion"),
    )


@dataclass
class PromptToPrompt:
    """The baseline edit.method=prompt-to-prompt (Hertz et al. 2022)."""

    cross_replace: float = option(
        0.8, "share of the steps in which the words' maps are taken over", at_least=0, at_most=1
    )
    self_replace: float = option(0.4, "share of the steps in which self-attention is", at_least=0, at_most=1)
    self_side: int = option(16, "in layers of at most so many latent cells a side")


@dataclass
class Generate:
    """Stage 1: making pairs."""

    pairs: int = option(
        15_000, "pairs to make; a folder with fewer images gives one pair an image", at_least=1
    )
    pairs_per_shard: int = option(64, "pairs in one tar: what an interruption can cost", at_least=1)
    batch: int = option(
        0, "images edited together; 0: as many as the GPU's memory holds (16 on a CPU)", at_least=0
    )
    dtype: str = option(
        "float16",
        "float32, float16 or bfloat16 weights and activations",
        choices=("float32", "float16", "bfloat16"),
    )
    compile: bool = option(
        False, "run the UNet through torch.compile: minutes at the start, less time a pair"
    )
    safety_checker: bool = option(True, "leave out what the teacher's safety checker flags, where it has one")
    workers: int = option(4, "threads that read images ahead", at_least=1)
    out: str = option("", "folder of the shards; empty: <run>/pairs")
    save_reconstruction: bool = option(False, "keep the reference pass's picture beside the pair")
    save_latents: bool = option(
        False, "keep the reconstruction and the latents of all beside the pair, float32 .npy"
    )


@dataclass
class Scorer:
    """The CLIP model that judges; never the teacher's own text tower."""

    model: str = option("ViT-L-14", "open_clip model name, or local-dir:FOLDER")
    pretrained: str = option("openai", "open_clip pretrained tag or checkpoint; empty with local-dir")
    gain_unit: float = option(1.0, "a gain of g in the paper's CLIP counts as g x gain_unit in this one")


@dataclass
class Segmenter:
    """For the overlap score: segment-anything's masks or, with a detector, SAM 2's masks of its boxes."""

    model: str = option(
        "vit_h",
        "vit_h, vit_l or vit_b; or a folder with config.json + model.safetensors; with a detector: a SAM 2",
    )
    checkpoint: str = option("", "the .pth for a vit_* model")
    detector: str = option(
        "",
        "a Grounding DINO (hub name or folder) that finds the noun for SAM 2; empty: segment-anything",
    )
    points_per_side: int = option(32, "grid of automatic mask prompts", at_least=1)
    min_predicted_iou: float = option(
        0.88,
        "proposed masks of which the model itself expects less are left out (segment-anything's default)",
    )
    min_stability: float = option(
        0.95, "so are masks that change more than this with the cut-off (segment-anything's default)"
    )
    other_nouns: list[str] = option(["the background", "the sky", "the ground"], "what else a mask may show")


@dataclass
class Filter:
    """Stage 2: scoring pairs."""

    batch: int = option(32, "pairs scored together", at_least=1)
    dtype: str = option(
        "bfloat16",
        "arithmetic of the networks on a GPU, LPIPS excepted; a CPU computes in float32",
        choices=("float32", "bfloat16"),
    )
    select: list[str] = option(
        [], "instead of the task's thresholds, as --select: [overlap=0.7,clip_gain=0.1,keep=0.6,by=clip_gain]"
    )
    reject: list[str] = option(
        ["blank"],
        "a pair with one of these flags is never kept",
        choices=("blank", "unchanged", "no_foreground_input", "no_foreground_edit"),
    )


@dataclass
class Generator:
    """Stage 3's network: Co-Mod-GAN (Zhao et al. 2021), or with generator=comodgan_lite a small one for CPUs, phones and browsers."""

    channel_base: int = option(16_384, "channels at side s: min(channel_max, 2 channel_base / s)", at_least=1)
    channel_max: int = option(512, "most channels of any layer", at_least=1)
    z_dim: int = option(512, "width of the latent z; fixed to zero where distill.latent is 'fixed'")
    w_dim: int = option(512, "width of the mapped latent w", at_least=1)
    code_dim: int = option(1024, "width of the encoder's global code", at_least=1)
    mapping_layers: int = option(8, "layers of the mapping network", at_least=0)
    dropout: float = option(0.5, "dropout on the global code while training", at_least=0, below=1)
    separable: bool = option(False, "depthwise-separable convolutions")
    width: float = option(1.0, "factor on all channels, w_dim and code_dim", above=0)


@dataclass
class Augment:
    """Training-time augmentation with kornia; one geometric draw for both images."""

    flip: float = option(0.5, "probability of a horizontal flip of both", at_least=0, at_most=1)
    crop: float = option(
        0.8, "smallest side of a random crop of both, as a share; 1: none", above=0, at_most=1
    )
    brightness: float = option(0.1, "colour jitter, the same draw for both images", at_least=0)
    contrast: float = option(0.1, "colour jitter, the same draw for both images", at_least=0)
    saturation: float = option(0.1, "colour jitter, the same draw for both images", at_least=0)
    hue: float = option(0.02, "colour jitter, the same draw for both images", at_least=0, at_most=0.5)
    noise: float = option(
        0.02,
        "largest standard deviation of noise added to the input alone, images in [-1, 1]",
        at_least=0,
    )


@dataclass
class Distill:
    """Stage 3: training the generator."""

    images: int = option(1_000_000, "training length, in images shown", at_least=1)
    batch: int = option(64, "images a step, over all processes", at_least=1)
    lr: float = option(0.001, "Adam learning rate", at_least=0)
    beta1: float = option(
        0.9,
        "Adam beta 1; 0 (Co-Mod-GAN) with an adversary. Without one .9 is nearer to the teacher (docs/results.md)",
        at_least=0,
        below=1,
    )
    beta2: float = option(0.99, "Adam beta 2 (Co-Mod-GAN)", at_least=0, below=1)
    warmup_images: int = option(2_000, "linear warm-up of the learning rate", at_least=0)
    l1: float = option(1.0, "weight of L1", at_least=0)
    lpips: float = option(1.0, "weight of LPIPS (VGG16)", at_least=0)
    lpips_crop: int = option(
        0, "side of the random window LPIPS looks at, pixels; 0: the whole image", at_least=0
    )
    adversarial: float = option(0.0, "weight of the adversarial loss; 0: no discriminator", at_least=0)
    r1: float = option(10.0, "R1 gamma of the discriminator (Co-Mod-GAN)", at_least=0)
    r1_every: int = option(16, "steps from one R1 to the next, which then counts so many times", at_least=1)
    latent: str = option(
        "fixed",
        "z while training: 'fixed' (zeros: one edit an input) or 'sampled'",
        choices=("fixed", "sampled"),
    )
    ema_half_life_images: int = option(10_000, "half-life of the moving average of the weights")
    validation_share: float = option(0.05, "share of the input images held out", above=0, below=1)
    max_validation_pairs: int = option(256, "at most so many are measured", at_least=1)
    save_every_images: int = option(
        20_000, "checkpoint, validation and sample grid each so many images", at_least=1
    )
    keep_checkpoints: int = option(2, "newest checkpoints kept", at_least=1)
    workers: int = option(2, "decoding processes", at_least=0)
    cache_gb: float = option(
        4.0,
        "keep the decoded training pictures in memory where all are at most so many GB a process; 0: never",
        at_least=0,
    )
    dtype: str = option("float32", "float32 or bfloat16 autocast", choices=("float32", "bfloat16"))
    compile: bool = option(
        False, "run the networks through torch.compile: minutes at the start, less time a step"
    )
    tracker: str = option(
        "auto",
        "tracker of accelerate (tensorboard, wandb, ...); auto: tensorboard where it is installed; empty: none",
    )
    init: str = option("", "start from these weights: an exported generator.safetensors")
    labels: str = option(
        "",
        "learn a generator.onnx's edits of the inputs in the place of the pairs' own: a small network from a large one",
    )
    adapter_rank: int = option(
        0, "with init: train changes of the weights of at most this rank; 0: the whole weights"
    )


@dataclass
class Export:
    """distill/export.py: generator.safetensors and generator.onnx, and what else."""

    formats: list[str] = option(
        ["float", "fp16", "int8", "pt2"],
        "further formats: float, fp16, int8, pt2, page (docs/distill.md)",
        choices=("float", "fp16", "int8", "pt2", "page"),
    )
    onnxruntime_web: str = option(
        "",
        "the npm package's .tgz that the page needs; empty: fetched once from registry.npmjs.org, then cached",
    )


@dataclass
class Evaluate:
    """scripts/evaluate.py: the paper's tables and sweeps, on held-out scenes or on the photographs of source.images."""

    scenes: int = option(256, "held-out scenes, or at most so many photographs", at_least=1)
    first_seed: int = option(
        3_000_000, "seed of the first scene; validation sweeps use other seeds", at_least=0
    )
    bootstrap: int = option(1000, "resamples of the images for each 95 % interval", at_least=1)
    dino: str = option(
        "hub",
        "structure distance by DINO ViT-B/8: weights file, 'hub' (timm's); empty: VGG16's relu4_3 stands in",
    )
    inception: str = option(
        "",
        "FID and KID by this file of Inception's weights (docs/metrics.md); empty: VGG16's relu5_3 stands in",
    )
    sdedit_strengths: list[float] = option([0.5, 0.6, 0.7, 0.8], "table1: SDEdit's rows, one a strength")
    methods: list[str] = option(["pix2pix-zero", "B", "D"], "sweep: editing methods to compare (edit.method)")
    amounts: list[float] = option([], "guidance amounts to sweep; empty: guidance.amount")
    scales: list[float] = option([], "guidance scales to sweep; empty: guidance.scale")
    strengths: list[float] = option([], "direction strengths to sweep; empty: direction.strength")


@dataclass
class Compare:
    """scripts/compare.py: the same training in several ways."""

    jobs: int = option(
        1,
        "trainings at once; more than one share the GPU, and images a second is then each one's share",
        at_least=1,
    )
    few_pairs: int = option(256, "augment: pairs to train on, the first of the selection")
    init: str = option(
        "models/miniature/generator/generator.safetensors", "transfer: the trained generator to start from"
    )


@dataclass
class Benchmark:
    """scripts/benchmark.py: ours beside a plain loop, in one run."""

    architecture: str = option(
        "",
        "random weights, no download: sd14 (generate, infer), or vit_h (filter); empty: what is configured",
    )
    pairs: int = option(
        16, "pairs that ours is timed on; infer: that the teacher is timed on, 0: no teacher", at_least=0
    )
    plain_pairs: int = option(1, "pairs that the plain loop is timed on", at_least=1)
    calls: int = option(30, "infer: calls of each runtime, of which the middle one counts", at_least=1)
    images_at_once: int = option(1, "infer: images a call", at_least=1)
    side: int = option(
        0,
        "train, infer: side of the pictures, pixels; 0: teacher.resolution, the trained generator's (sd14: 512)",
        at_least=0,
    )
    steps: int = option(
        4,
        "train: steps of distill.batch that each loop is timed on, after as many that are not",
        at_least=1,
    )


@dataclass
class Demo:
    """scripts/demo.py: the whole way on the miniature."""

    scenes: int = option(8, "held-out scenes in the report, and at most so many photographs", at_least=1)
    photos: str = option("", "a folder of photographs to edit too; empty: those that scikit-image installs")


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
    runs_dir: str = option("runs", "everything is written below <runs_dir>/<task>/<teacher>")
    device: str = option(
        "auto", "where all networks run: auto (a GPU where there is one), cpu, cuda or cuda:N"
    )
    seed: int = option(0, "every draw derives from it and from the sample's key")
    json: str = option("", "scripts/benchmark.py also writes its table here")
    force: bool = option(False, "go on in a run folder that was made with another configuration")


REMOVED = {  # keys there were, and what took their place: the end of an error message
    "direction.source_embedding": "direction.files={TARGET.pt: 1, SOURCE.pt: -1} is the same direction",
    "direction.target_embedding": "direction.files={TARGET.pt: 1, SOURCE.pt: -1} is the same direction",
    "direction.plus": "name all files with their weights in direction.files={FILE: 0.5}",
    "direction.language_model": "scripts/write_bank.py writes the sentences; name its file as task.source_bank= or task.target_bank=",
    "direction.endpoint": "scripts/write_bank.py asks the service; name its file as task.source_bank= or task.target_bank=",
    "inversion.steps": "the inversion has as many steps as the edit: edit.steps=",
    "inversion.outer_iterations": "it is the paper's 5 (generate/inversion.py)",
    "inversion.inner_iterations": "it is the reference code's 5 (generate/inversion.py)",
    "edit.solver": "DDIM is the only one: the multistep solver came no nearer to the true edit",
    "prompt_to_prompt.cross_replace": "it is the paper's 0.8 (generate/prompt_to_prompt.py)",
    "prompt_to_prompt.self_replace": "it is the paper's 0.4 (generate/prompt_to_prompt.py)",
    "prompt_to_prompt.self_side": "it is the paper's 16 (generate/prompt_to_prompt.py)",
    "source.max_pixels": "it is 100 million pixels (models/translator.py): scale larger images down first",
    "generate.device": "device= is where all networks run",
    "generate.workers": "it is a constant (generate/pairs.py)",
    "scorer.templates": "they are constants (models/clip_scorer.py)",
    "segmenter.batch": "it is a constant (models/segmenter.py); filter.batch= bounds it",
    "segmenter.points_per_batch": "it is a constant (models/segmenter.py)",
    "segmenter.min_area": "it is a constant (models/segmenter.py)",
    "segmenter.crop_margin": "it is a constant (models/segmenter.py)",
    "segmenter.outside": "it is a constant (models/segmenter.py)",
    "segmenter.min_noun_probability": "it is a constant (models/segmenter.py)",
    "segmenter.min_box_score": "it is a constant (models/segmenter_text.py)",
    "filter.device": "device= is where all networks run",
    "filter.workers": "it is a constant (filter/run.py)",
    "filter.page_pairs": "it is a constant (filter/report.py)",
    "filter.good_margin": "it is a constant (scripts/evaluate_filter.py)",
    "generator.z_dim": "the latent is as wide as w: generator.w_dim=",
    "augment.brightness": "augment.colour= is the strength of all colour jitter",
    "augment.contrast": "augment.colour= is the strength of all colour jitter",
    "augment.saturation": "augment.colour= is the strength of all colour jitter",
    "augment.hue": "augment.colour= is the strength of all colour jitter",
    "distill.beta2": "it is Co-Mod-GAN's 0.99 (distill/train.py)",
    "distill.l1": "it is 1: distill.lpips= and distill.adversarial= weigh the others against it",
    "distill.r1": "it is Co-Mod-GAN's 10 (distill/losses.py)",
    "distill.r1_every": "it is Co-Mod-GAN's 16 (distill/losses.py)",
    "distill.latent": "it is fixed at zero: sampled latents came less near to the teacher",
    "distill.max_validation_pairs": "it is a constant (distill/validation.py)",
    "distill.keep_checkpoints": "it is 2 (distill/checkpoints.py)",
    "distill.cache_gb": "it is a constant (distill/pairs.py)",
    "distill.adapter_rank": "distill.init= alone trains all weights, which needs as few images as adapters did",
    "export.onnxruntime_web": "put the package's .tgz into the cache folder that docs/distill.md names",
    "evaluate.bootstrap": "it is 1000 resamples (scripts/measure/metrics.py)",
    "evaluate.sdedit_strengths": "they are the paper's 0.5 to 0.8 (scripts/evaluate.py)",
    "evaluate.methods": "name them as evaluate.sweep={edit.method: [pix2pix-zero, B]}",
    "evaluate.amounts": "name them as evaluate.sweep={guidance.amount: [1, 3]}",
    "evaluate.scales": "name them as evaluate.sweep={guidance.scale: [3, 5]}",
    "evaluate.strengths": "name them as evaluate.sweep={direction.strength: [1, 2]}",
    "compare.few_pairs": "it is 256 (scripts/compare.py)",
    "compare.init": "the transfer table starts from the shipped generator",
    "benchmark.plain_pairs": "the plain loop is timed on one pair",
    "benchmark.steps": "it is a constant of the device (scripts/measure/timing.py)",
}
