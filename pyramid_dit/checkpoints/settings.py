"""What is said of a checkpoint beside its weights, wherever it is said.

What changes a video travels with the component that it belongs to: the statistics of the latents
in the VAE's config, the defaults of the generation and the length of a unit in the transformer's.
What `model_index.json` or a pipeline's own arguments say goes before them. How sampling steps is in
the scheduler's config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, TypeAlias

from ..checks import Check, Number, OneOf, OneOrMore, Whole, shown
from ..flow.latents import FrameStatistics, LatentStatistics
from ..flow.solvers import SOLVERS, TIMESTEP_SPACINGS
from .defaults import GenerationDefaults

Source: TypeAlias = tuple[Mapping[str, Any], str | PathLike[str]]
"""Entries, and what to call the place that they are from."""


@dataclass(frozen=True)
class Settings:
    """What some sources say together."""

    latent_statistics: LatentStatistics | None
    """None where nobody states them: then the transformer's architecture decides."""
    generation_defaults: GenerationDefaults
    frame_per_unit: int
    """Latent frames of an autoregressive unit."""

    @classmethod
    def of(cls, *sources: Source) -> Settings:
        """Read `sources`, of which the first that says something is right.

        Args:
            sources: Entries `latent_statistics`, `generation_defaults` (of which each is looked
                for by itself) and `frame_per_unit`; others are not looked at.

        Raises:
            ValueError: An entry cannot be understood; the message says where it is from.
        """
        statistics = [_statistics(*said) for said in _said("latent_statistics", sources)]
        units = [_unit(*said) for said in _said("frame_per_unit", sources)]
        defaults: dict[str, Any] = {}
        for entry, source in _said("generation_defaults", sources):
            defaults = _defaults(entry, source) | defaults
        return cls(
            statistics[0] if statistics else None,
            GenerationDefaults.of(defaults),
            units[0] if units else 1,
        )

    def of_vae(self) -> dict[str, Any]:
        """Entries for the VAE's config."""
        statistics = self.latent_statistics
        return {} if statistics is None else {"latent_statistics": asdict(statistics)}

    def of_transformer(self) -> dict[str, Any]:
        """Entries for the transformer's config."""
        defaults, unit = asdict(self.generation_defaults), self.frame_per_unit
        return {"generation_defaults": defaults, "frame_per_unit": unit}


STEPPING: dict[str, Check] = {
    "solver": OneOf(SOLVERS),
    "timestep_spacing": OneOf(TIMESTEP_SPACINGS),
}
"""Fields of the scheduler's config that say how sampling steps; training reads none of them."""


def stepping(entries: Mapping[str, Any], source: str | PathLike[str]) -> dict[str, str]:
    """What `entries` say of the fields in `STEPPING`.

    Raises:
        ValueError: A value is none of the allowed; the message says where it is from.
    """
    said = {name: entries[name] for name in STEPPING if entries.get(name) is not None}
    for name, value in said.items():
        try:
            STEPPING[name](name, value)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    return said


def _said(name: str, sources: tuple[Source, ...]) -> Iterator[tuple[Any, str | PathLike[str]]]:
    return ((e[name], source) for e, source in sources if e.get(name) is not None)


def _statistics(entry: Any, source: str | PathLike[str]) -> LatentStatistics:
    try:
        first, later = (FrameStatistics(**entry[k]) for k in ("first_frame", "later_frames"))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"latent_statistics in {source} must have first_frame and later_frames, each with "
            f"shift and scale, got {shown(entry)}"
        ) from error
    try:
        for frames in (first, later):
            OneOrMore(Number(-1e6, 1e6))("shift", frames.shift)
            OneOrMore(Number(0, 1e6, above=True))("scale", frames.scale)
    except (TypeError, ValueError) as error:
        raise ValueError(f"latent_statistics in {source}: {error}") from error
    return LatentStatistics(first, later)


def _unit(entry: Any, source: str | PathLike[str]) -> int:
    try:
        Whole()("frame_per_unit", entry)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
    return entry


def _defaults(entry: Any, source: str | PathLike[str]) -> dict[str, Any]:
    """What `entry` says of the defaults, without what it leaves open."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"generation_defaults in {source} must be an object, got {shown(entry)}")
    try:
        GenerationDefaults.of(entry)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
    return {name: value for name, value in entry.items() if value is not None}
