"""Figures: overlays, grids of methods, figures of attention heads, of videos and of sound."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
