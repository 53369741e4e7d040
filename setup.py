"""Package metadata. Work in a clone: `pip install -e '.[dev,demo]'`, or let `make` do it."""

from setuptools import setup

REQUIREMENTS = [
    "accelerate>=1.0",
    "braceexpand>=0.1.7",
    "diffusers>=0.40",  # from_pretrained(dtype=...) of a pipeline
    "jinja2>=3.1",  # the report page; PyTorch brings it anyway
    "kornia>=0.8.2",  # otsu_threshold
    "lpips==0.1.4",
    "fsspec>=2024.2",  # tars behind an address
    "numpy>=1.26",
    "omegaconf>=2.3",
    "onnx>=1.19",
    "onnxruntime>=1.20",
    "onnxscript>=0.7",  # drops the functions that PyTorch 2.6 leaves in a graph
    "open_clip_torch>=3.3,<4",  # local-dir: model folders, tokenizers of transformers 5
    "packaging>=23",
    "pillow>=10.3",
    "psutil>=5.9",  # accelerate brings it
    "pyarrow>=17",
    "pyyaml>=6",
    "safetensors>=0.4.5",
    "segment-anything==1.0",
    "timm>=1.0.10",  # DINO ViT-B/8 for the structure distance; open_clip_torch brings it
    "torch>=2.6",
    "torchmetrics>=1.9",  # the formulas of FID and KID; pure Python
    "torchvision>=0.21",
    "tqdm>=4.66",
    "transformers>=5.0",  # the form of the miniature's tokenizer
    "webdataset>=1.0.2,<2",
]

setup(
    name="zero2gan",
    version="0.1.0",
    description="Distil a pix2pix-zero edit from Stable Diffusion into a Co-Mod-GAN that takes milliseconds",
    license="MIT",
    python_requires=">=3.10",
    packages=[
        "configs",
        "distill",
        "filter",
        "generate",
        "models",
        "models.miniature",
        "scripts",
        "scripts.measure",
        "scripts.miniature",
        "scripts.published",
        "scripts.workbench",
    ],
    entry_points={"console_scripts": ["zero2gan = scripts.zero2gan:main"]},
    install_requires=REQUIREMENTS,
    extras_require={
        "dev": [
            "av>=14.2",
            "mypy>=1.11",
            "playwright>=1.45",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "types-PyYAML",
        ],  # playwright drives a Chromium
        "demo": ["scikit-image>=0.24"],  # its sample photographs
        "inception": [
            "torch-fidelity==0.3.0"
        ],  # FID's own network; 0.4.0 installs a package `tests` that hides ours
        "studio": ["gradio>=6.0,<7"],  # the page of scripts/studio.py
        "video": ["av>=14.2"],  # videos and cameras in distill/translate.py; it carries FFmpeg
        "tracker": ["tensorboard>=2.14"],  # accelerate logs the training to it where it is installed
    },
)
