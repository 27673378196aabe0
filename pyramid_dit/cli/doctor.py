"""`pyramid-flow doctor`: are this machine and a model fit to make videos?"""

from __future__ import annotations

import os
import platform
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from .. import __version__
from .model import check_model_name, device_name, open_model, print_log
from .report import Report

if TYPE_CHECKING:
    import torch

NEEDED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub")
OPTIONAL = ("peft", "torchao", "bitsandbytes", "gradio")


def run_doctor(options: Namespace) -> list[str]:
    """Look at the machine and at the model, print a report, and return what is wrong.

    Args:
        options: What the command line says.
    """
    report = Report(options.json)
    print_log(options, is_main=options.verbose)
    _say_versions(report)
    device = _device(report, options)
    if device is not None:
        from transformers.utils.logging import disable_progress_bar

        from .model_checks import check_model

        if not options.verbose:
            disable_progress_bar()
        folder = None
        with report.trying("the model"):
            check_model_name(options.model)
            folder = open_model(options)
        if folder is not None:
            with report.trying("the model"):
                check_model(report, options, folder, device)
    report.end()
    return report.problems


def _say_versions(report: Report) -> None:
    report.say("pyramid-flow", __version__)
    report.say("system", f"Python {platform.python_version()}, {platform.platform()}")
    libraries = []
    for name in (*NEEDED, *OPTIONAL):
        try:
            libraries.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            if name in NEEDED:
                report.wrong(f"{name} is not installed")
    report.say("libraries", ", ".join(libraries))
    with report.trying("ffmpeg, which writes the videos"):
        from imageio_ffmpeg import get_ffmpeg_version

        report.say("ffmpeg", get_ffmpeg_version())


def _device(report: Report, options: Namespace) -> torch.device | None:
    """The device that the command would take, None where there is none."""
    with report.trying("the device"):
        import torch

        from ..devices.cpu import keep_freed_memory
        from ..devices.memory import free_memory

        keep_freed_memory()
        if options.threads:
            torch.set_num_threads(options.threads)
        cores, threads = os.cpu_count(), torch.get_num_threads()
        cpu = torch.device("cpu")
        free = f"{free_memory(cpu) / 1e9:.1f} GB free"
        report.say("computer", f"{cores} cores, {threads} threads used, {free}")
        device = torch.device(device_name(options.device, None))
        if device != cpu:
            backend = torch.get_device_module(device)
            named = hasattr(backend, "get_device_name")
            title = backend.get_device_name(device) if named else device.type
            built = torch.version.cuda or torch.version.hip
            free = f"{free_memory(device) / 1e9:.1f} GB free"
            report.say("device", f"{device}, {title}, {free}, PyTorch built for {built}")
        else:
            report.say("device", "cpu")
        return device
    return None
