"""The web page of ``hf-gmar app``; Gradio is imported when the page is built."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
