from .base import Example, ImageDataset, Mask
from .image_files import find_images, open_image
from .masks import patch_coverage
from .mosaics import Mosaic, MosaicDataset
from .scenes import CLASSES, Scene, draw_scene, grey_out
from .source import open_data

__all__ = [
    "CLASSES",
    "Example",
    "ImageDataset",
    "Mask",
    "Mosaic",
    "MosaicDataset",
    "Scene",
    "draw_scene",
    "find_images",
    "grey_out",
    "open_data",
    "open_image",
    "patch_coverage",
]
