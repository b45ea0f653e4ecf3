"""Data sets to evaluate on: images with their classes and, where there are any, masks."""

from hf_gmar.data.base import Example, Images, Mask
from hf_gmar.data.cover import cover
from hf_gmar.data.mosaics import Mosaic, Mosaics
from hf_gmar.data.source import open_data

__all__ = ["Example", "Images", "Mask", "Mosaic", "Mosaics", "cover", "open_data"]
