"""hf_gmar: why a Vision Transformer said what it said.

GMAR for the Vision Transformers of Hugging Face, behind Captum's interface::

    from hf_gmar import GMAR

    attribution = GMAR(model).attribute(pixel_values, target=281)
"""

import lazy_loader as lazy

from hf_gmar._utils.after_import import import_after

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

# ``transformers.pipeline`` knows the task after ``import hf_gmar``, which itself loads no PyTorch.
import_after("transformers.pipelines", "hf_gmar.pipeline")
