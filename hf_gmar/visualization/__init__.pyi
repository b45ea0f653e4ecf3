from .grid import GridColumn, grid_figure
from .head_figures import ablation_figure, head_maps_figure, importance_figure
from .media_figures import film_strip, spectrogram_figure
from .overlay import overlay_figure, overlay_image, save_figure

__all__ = [
    "GridColumn",
    "ablation_figure",
    "film_strip",
    "grid_figure",
    "head_maps_figure",
    "importance_figure",
    "overlay_figure",
    "overlay_image",
    "save_figure",
    "spectrogram_figure",
]
