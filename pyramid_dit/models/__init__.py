"""The networks: transformers and text encoders, and what a step of theirs takes."""
