"""What one visitor of the page may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a request, of its inputs and of the queue.

    Attributes:
        image_bytes: size of an image file; the browser makes larger photos smaller.
        image_pixels: width times height of an image.
        letters: length of a class name or prompt.
        prompts: number of prompts.
        seconds: working time of a request, without its time in the queue.
        waiting: requests that wait or run; further visitors are asked to come back.
        workers: requests that run at the same time.

    Example:
        >>> Limits().body_bytes > Limits().image_bytes * 4 / 3  # base64
        True
    """

    image_bytes: int = 8 * 2**20
    image_pixels: int = 16_000_000
    letters: int = 300
    prompts: int = 20
    seconds: float = 60.0
    waiting: int = 24
    workers: int = 2

    @property
    def body_bytes(self) -> int:
        """The size of a whole request, with its image as base64."""
        return self.image_bytes * 4 // 3 + 2**16
