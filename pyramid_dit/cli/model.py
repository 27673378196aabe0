"""The model that a command line asks for: which checkpoint, on which device, in which processes."""

from __future__ import annotations

import logging
import os
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import is_repo_id
from ..distributed.launcher import LaunchedProcess
from .options import UsageError

if TYPE_CHECKING:
    from ..checkpoints.folder import CheckpointFolder
    from ..pipelines.official import PyramidDiTForVideoGeneration

logger = logging.getLogger(__name__)


def print_log(options: Namespace, *, is_main: bool) -> None:
    """Print what is logged, with `--verbose` more; of several processes the first one warns."""
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level if is_main else logging.ERROR, format="%(message)s")
    if not is_main:
        warnings.simplefilter("ignore")


def check_sources(options: Namespace) -> None:
    """Look for the model and the LoRAs that are on this machine, before anything is loaded.

    Raises:
        UsageError: One is not there, and can be no repository of the hub.
        ImportError: There is no `peft`, which LoRAs take.
    """
    check_model_name(options.model)
    check_loras(options)


def check_loras(options: Namespace) -> None:
    """Look for the LoRAs, as `check_sources` does."""
    for source, _ in options.lora:
        if not Path(source).exists() and not is_repo_id(source):
            raise UsageError(f"--lora {source!r} is not a file, a folder or a repository")
    if options.lora:
        from ..models.lora import require_peft

        require_peft()


def check_model_name(model: str | None) -> None:
    """Refuse with a `UsageError` what is no folder and can be no repository of the hub."""
    if model is None or Path(model).is_dir():
        return
    if Path(model).exists():
        raise UsageError(f"--model {model!r} is a file, not the folder of a checkpoint")
    if not is_repo_id(model):
        raise UsageError(
            f"--model {model!r} is not a folder, and not OWNER/NAME of a repository on the Hub"
        )


def check_processes(options: Namespace, guidance: float | None) -> None:
    """Find out whether `--gpus` processes can share the work before any is started.

    Args:
        options: What the command line says.
        guidance: Scale of the guidance, by default the model's.

    Raises:
        UsageError: There are too few devices.
        ValueError: The model cannot be split so often.
    """
    from ..distributed.parallel import check_heads, mesh_shape
    from ..json_files import read_json

    device_name(
        options.device,
        LaunchedProcess(options.gpus - 1, options.gpus - 1, options.gpus, options.gpus),
    )
    folder = open_model(options)
    guidance = folder.defaults.guidance_scale if guidance is None else guidance
    config = read_json(folder.path / folder.variant / "config.json")
    _, parts = mesh_shape(options.gpus, guided=guidance > 0)
    check_heads(config["num_attention_heads"], parts)


def open_model(options: Namespace) -> CheckpointFolder:
    """Look into the checkpoint that `--model` and `--variant` name, fetched if need be.

    Raises:
        FileNotFoundError: There is no such folder, repository or variant.
        ConnectionError: The hub cannot be reached.
        ValueError: The variant is ambiguous, or a file cannot be understood.
    """
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "info" if options.verbose else "error")
    from ..checkpoints.hub import open_checkpoint

    # the page lists fast variants beside the others
    return open_checkpoint(options.model, options.variant, fast=getattr(options, "fast", False))


def load_model(
    options: Namespace, folder: CheckpointFolder, launched: LaunchedProcess | None
) -> PyramidDiTForVideoGeneration:
    """Load the model, and join the other processes if there are any.

    Raises:
        UsageError: There is no such device.
        FileNotFoundError: The checkpoint lacks a file.
        ValueError: A file of the checkpoint is damaged or does not fit.
    """
    import torch

    from ..devices.cpu import keep_freed_memory
    from ..distributed.parallel import join_processes

    keep_freed_memory()
    device = device_name(options.device, launched)
    threads = options.threads
    if launched is not None:
        join_processes(torch.device(device))
        threads = threads or max(1, (os.cpu_count() or 1) // launched.local_processes)
    if threads:
        torch.set_num_threads(threads)

    from transformers.utils.logging import disable_progress_bar

    from ..pipelines.official import PyramidDiTForVideoGeneration

    disable_progress_bar()  # of loading; the hub's have been shown by now
    model = PyramidDiTForVideoGeneration.from_pretrained(
        folder.path,
        folder.variant,
        model_dtype=dtype_name(options.dtype, folder, device),
        device="cpu" if options.offload or options.shard else device,
        memory=options.memory,
    )
    _add_loras(model, options.lora)
    if options.offload == "layer":
        model.enable_sequential_cpu_offload(device)
    if options.shard:
        model.shard_weights(device)
    assert model.vae is not None
    model.vae.enable_tiling()
    logger.info("%s: %s, %s, on %s", folder.path, folder.variant, model.dtype, device)
    return model


def _add_loras(model: PyramidDiTForVideoGeneration, loras: Sequence[tuple[str, float]]) -> None:
    names = [f"lora_{number}" for number in range(1, 1 + len(loras))]
    for name, (source, _) in zip(names, loras, strict=True):
        try:
            model.load_lora_weights(source, name)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"--lora {source}: {error}") from error
    if loras:
        model.dit.set_adapters(names, [scale for _, scale in loras])


def dtype_name(asked: str | None, folder: CheckpointFolder, device: str) -> str:
    """The dtype that a model is loaded in: what was asked for, or the model's, or the device's."""
    return asked or folder.model_dtype or ("fp32" if device == "cpu" else "bf16")


def device_name(name: str, launched: LaunchedProcess | None) -> str:
    """The device `name` of this machine, or the one for a launched process.

    Raises:
        UsageError: There is none.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto" and launched is not None and accelerator is None:
        raise UsageError(
            "--gpus: there is no GPU; --device cpu runs that many processes on the CPU, "
            "which is no faster"
        )
    if name == "auto":
        name = accelerator.type if accelerator else "cpu"
    if launched is not None and name != "cpu":
        name = f"{name}:{launched.local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name!r} is unknown") from error
    if device.type == "cpu":
        return name
    if accelerator is None or device.type != accelerator.type:
        there = f"cpu and {accelerator.type}" if accelerator else "only cpu"
        raise UsageError(f"--device {name!r} is not available, {there}")
    count = torch.accelerator.device_count()
    if (device.index or 0) >= count:
        asked = (
            f"--device {name!r}" if launched is None else f"{launched.local_processes} processes"
        )
        raise UsageError(f"{asked}: this machine has {count} GPUs")
    return name
