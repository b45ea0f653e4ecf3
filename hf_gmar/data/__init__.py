"""Data sets to evaluate on: images with their classes and, where there are any, masks."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
