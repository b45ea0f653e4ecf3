"""Attribution methods side by side on one batch, Captum's too."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
