from ..devices.memory import step_memory, unit_tokens

__all__ = ["step_memory", "unit_tokens"]
