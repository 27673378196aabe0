"""Checkpoints: folders on disk and on the hub, what they hold and what they prefer."""
