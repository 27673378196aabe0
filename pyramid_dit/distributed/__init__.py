"""Several processes at work on one video."""
