"""`from_single_file` of diffusers' models: one file of weights, without the folder around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .checkpoint_file import load_strictly, part_of, read_state_dict

Config: TypeAlias = Mapping[str, Any] | str | PathLike[str]


class Shapes(dict[str, tuple[int, ...]]):
    """Shapes of weights by name."""

    @classmethod
    def of(cls, state_dict: Mapping[str, Tensor]) -> Shapes:
        """Those of a state dict."""
        return cls({name: tuple(value.shape) for name, value in state_dict.items()})

    def number(self, stem: str) -> int:
        """How many modules there are in the list called `stem`."""
        names = [n.removeprefix(f"{stem}.") for n in self if n.startswith(f"{stem}.")]
        return len({name.partition(".")[0] for name in names})

    def has(self, stem: str) -> bool:
        """Whether there is a module called `stem`."""
        return any(name.startswith(f"{stem}.") for name in self)


class FromSingleFile:
    """A model of diffusers whose sizes can be read off the shapes of its weights."""

    _single_file_prefixes: Sequence[str] = ()
    """What names may start with in a file that holds more than this model."""

    @classmethod
    def _config_of_shapes(cls, shapes: Shapes) -> dict[str, Any]:
        """Entries of the config that the shapes tell; KeyError where they are of another model."""
        raise NotImplementedError

    @classmethod
    def from_single_file(
        cls: Any,
        pretrained_model_link_or_path_or_dict: str | PathLike[str] | Mapping[str, Tensor],
        *,
        config: Config | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """Load the model from one file of weights, every key matching.

        Args:
            pretrained_model_link_or_path_or_dict: `.safetensors`, or a file of `torch.save`, of
                which no code is run; or the weights themselves. A file may hold other models too,
                and prefixes such as `dit.` or `model.diffusion_model.` are taken off.
            config: Its config, as a dictionary, a JSON file or the folder of a `config.json`. By
                default the `config.json` beside the file if that is one of this class, else what
                the shapes tell, and for the rest that of the released models.
            torch_dtype: What to turn the weights into; by default they stay as they are stored.
            dtype: The same, as diffusers calls it of late.

        Returns:
            The model, for inference.

        Raises:
            FileNotFoundError: There is no such file; it has to be downloaded first.
            ValueError: The file is damaged, its weights do not fit, they have fewer than 16 bits
                and no dtype is given, or their config cannot be told.
        """
        source = pretrained_model_link_or_path_or_dict
        if None not in (torch_dtype, dtype) and torch_dtype != dtype:
            raise ValueError(f"torch_dtype is {torch_dtype} and dtype {dtype}: give one of them")
        dtype = torch_dtype if dtype is None else dtype
        if isinstance(source, Mapping):
            name, state = "the state dict", dict(source)
        else:
            name, state = str(source), read_state_dict(source)
            beside = Path(source).with_name("config.json")
            if config is None and beside.is_file():
                found = cls.load_config(beside)
                config = found if found.get("_class_name") == cls.__name__ else None
        state = part_of(state, *cls._single_file_prefixes) or state
        narrow = sorted({str(value.dtype) for value in state.values() if value.itemsize < 2})
        if narrow and dtype is None:
            raise ValueError(f"{name} is stored as {', '.join(narrow)}: say which dtype to use")
        entries = cls._entries(config, state, name)
        try:
            with torch.device("meta"):
                model = cls.from_config(entries)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} needs a config of its own, pass config=: {error}") from error
        load_strictly(model, state, source=name, assign=True)
        return (model if dtype is None else model.to(dtype)).eval()

    @classmethod
    def _entries(
        cls: Any, config: Config | None, state: Mapping[str, Tensor], name: str
    ) -> dict[str, Any]:
        if isinstance(config, Mapping):
            return dict(config)
        if config is not None:
            return cls.load_config(config, local_files_only=True)
        try:
            return cls._config_of_shapes(Shapes.of(state))
        except KeyError as error:
            raise ValueError(f"{name} is no {cls.__name__}: there is no {error}") from error
