"""Files of tensors that others wrote: safetensors, or PyTorch's with nothing but tensors in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from video_vae.checkpoint_file import read_pickled

from .skipped import SampleError


def tensor_shape(path: Path, name: str) -> tuple[int, ...]:
    """Shape of the tensor in a file, of which little more than the header is read.

    Arguments and errors as for `read_tensor`.
    """
    if path.suffix == ".safetensors":
        with _Opened(path), safe_open(path, "pt") as file:
            return tuple(file.get_slice(_only(path, list(file.keys()), name)).get_shape())
    return tuple(_tensor(path, _load(path, "meta"), name).shape)


def read_tensor(path: Path, name: str, most: int | None = None) -> Tensor:
    """The tensor in a file, on the CPU; it is the only one there, or the one of a name.

    Args:
        path: The file.
        name: Of the tensor, where there are several.
        most: So many at the beginning of the third axis from the end are enough.

    Raises:
        SampleError: The file is not there, holds something else or is damaged, or the tensor has
            less than three axes.
    """
    if path.suffix == ".safetensors":
        with _Opened(path), safe_open(path, "pt") as file:
            part = file.get_slice(_only(path, list(file.keys()), name))
            before = _axes_before(path, part.get_shape())
            return part[(slice(None),) * before + (slice(most),)]
    stored = _tensor(path, _load(path, "cpu"), name)
    before = _axes_before(path, stored.shape)
    return stored[(slice(None),) * before + (slice(most),)].clone()


def read_tensors(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of some names in a file, on the CPU.

    Raises:
        SampleError: The file is not there, lacks one, holds something else or is damaged.
    """
    content: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        with _Opened(path), safe_open(path, "pt") as file:
            content = {key: file.get_tensor(key) for key in file.keys() if key in names}  # noqa: SIM118
    else:
        content = _load(path, "cpu")
    found = {}
    for name in names:
        if not isinstance(content, dict) or not isinstance(content.get(name), Tensor):
            raise SampleError("missing key", f"{path} has no tensor {name!r}")
        found[name] = content[name].clone()
    return found


class _Opened:
    """Turns what safetensors says of a file into a SampleError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        if not self._path.is_file():
            raise SampleError("missing file", f"there is no file {self._path}")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SafetensorError | OSError):
            reason = str(error).strip().split("\n")[0]
            raise SampleError("unreadable file", f"cannot read {self._path}: {reason}") from error


def _load(path: Path, device: str) -> Any:
    if not path.is_file():
        raise SampleError("missing file", f"there is no file {path}")
    try:
        return read_pickled(path, device, mapped=True)
    except (OSError, ValueError) as error:
        raise SampleError("unreadable file", f"cannot read {path}: {error}") from error


def _tensor(path: Path, content: Any, name: str) -> Tensor:
    if isinstance(content, dict):
        content = content.get(_only(path, list(content), name))
    if not isinstance(content, Tensor):
        raise SampleError("missing key", f"{path} holds no tensor, but a {type(content).__name__}")
    return content


def _only(path: Path, keys: list[Any], name: str) -> Any:
    if len(keys) == 1:
        return keys[0]
    if name not in keys:
        raise SampleError("missing key", f"{path} has no tensor {name!r}")
    return name


def _axes_before(path: Path, shape: Sequence[int]) -> int:
    """The number of axes before the third from the end."""
    if len(shape) < 3:
        raise SampleError("wrong shape", f"{path} has shape {list(shape)}")
    return len(shape) - 3
