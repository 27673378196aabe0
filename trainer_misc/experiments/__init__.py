"""Experiments, one command each, whose results are told in the documentation."""
