"""Training data: synthetic captioned clips that are drawn on the fly."""
