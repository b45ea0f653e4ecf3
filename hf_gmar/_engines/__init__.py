"""Engines run a model and feed its attention and gradients to layer rules."""
