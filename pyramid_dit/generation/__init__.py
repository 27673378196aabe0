"""A request in, frames out."""
