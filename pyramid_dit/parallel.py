"""Documented path of `distributed.parallel`."""

from .distributed.parallel import Parallel, Serial, processes_at_work

__all__ = ["Parallel", "Serial", "processes_at_work"]
