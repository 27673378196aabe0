"""The records of the architectures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from tiny_checkpoint import DIT_CONFIGS

from pyramid_dit import PyramidDiffusionMMDiT, PyramidFluxTransformer
from pyramid_dit.checkpoints.architectures import ARCHITECTURES, architecture_of
from pyramid_dit.checkpoints.hub import TOY_FOLDER

CLASSES = {"pyramid_flux": PyramidFluxTransformer, "pyramid_mmdit": PyramidDiffusionMMDiT}


def test_transformers() -> None:
    assert {name: entry.transformer for name, entry in ARCHITECTURES.items()} == CLASSES
    with torch.device("meta"):
        models = {name: CLASSES[name](**DIT_CONFIGS[name]) for name in CLASSES}
    assert all(architecture_of(model).name == name for name, model in models.items())


def test_looking_into_a_folder_imports_no_model() -> None:
    code = (
        "import sys\n"
        "from pyramid_dit.checkpoints.folder import CheckpointFolder\n"
        f"assert CheckpointFolder.open({str(TOY_FOLDER)!r}).architecture.name == 'pyramid_flux'\n"
        "assert not {'transformers', 'pyramid_dit.models.transformer'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
