"""Promised path of `generation.memory_presets`: `python -m pyramid_dit.memory_presets`."""

from .generation.memory_presets import PRESETS, apply_preset, check_preset, main, table

__all__ = ["PRESETS", "apply_preset", "check_preset", "main", "table"]

if __name__ == "__main__":
    main()
