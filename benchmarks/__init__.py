"""Benchmarks: each module is a command, `python -m benchmarks.NAME`; none of it is installed."""
