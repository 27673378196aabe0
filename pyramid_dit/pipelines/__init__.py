"""The two public faces: the official repository's and that of diffusers."""
