"""Models from the Hub or a folder, their labels, wrappers, and the image part that they see."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
