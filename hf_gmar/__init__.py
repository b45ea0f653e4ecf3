"""hf_gmar: why a Vision Transformer said what it said.

GMAR for the Vision Transformers of Hugging Face, behind Captum's interface::

    from hf_gmar import GMAR

    heat = GMAR(model).attribute(pixel_values, target=281)
"""

import importlib
import sys
from pathlib import Path

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

# Importing the package makes its task known to ``transformers.pipeline``, which loads PyTorch. The
# command needs no pipeline, and its help has to be there at once.
if Path(sys.argv[0]).stem not in ("hf-gmar", "-m"):
    importlib.import_module("hf_gmar.pipeline")
