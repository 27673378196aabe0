"""Approximations that trade some quality for speed; all are off by default."""

from __future__ import annotations

from dataclasses import dataclass

from ..flow.history import HistoryRule


@dataclass(frozen=True, kw_only=True)
class FastMode(HistoryRule):
    """What to approximate; `python -m benchmarks.fast_mode` measures what each saves and costs.

    What a unit sees of the history is said by the attributes of `HistoryRule`.

    Attributes:
        history_cache: Compute the tokens of text and history only at every so many steps of a
            stage and keep their keys and values in between; 1 is exact.
        guidance_interval: Share of a unit's steps, from and to, within 0 to 1, that are guided;
            the others follow the prompt alone, at half the price.

    Raises:
        ValueError: A value is outside its range.
    """

    history_cache: int = 1
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history_cache < 1:
            raise ValueError(f"history_cache must be at least 1, got {self.history_cache}")
        start, stop = self.guidance_interval
        if not 0 <= start <= stop <= 1:
            raise ValueError(
                f"guidance_interval must ascend within 0 to 1, got {self.guidance_interval}"
            )

    def guided_steps(self, total: int) -> list[bool]:
        """Whether each of the `total` steps of a unit, all stages together, is guided."""
        start, stop = self.guidance_interval
        return [start <= step / total < stop for step in range(total)]


EXACT = FastMode()
