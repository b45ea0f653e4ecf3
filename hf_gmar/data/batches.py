"""Read images ahead in threads, and group those of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch

from hf_gmar._utils.validation import check_option
from hf_gmar.data.prepared_image import PreparedImage


def in_threads(
    function: Callable[[Any], Any], items: Iterable[Any], threads: int, ahead: int
) -> Iterator[Any]:
    """Map items in order; threads work ``ahead`` items before they are needed."""
    check_option("num_workers", threads, range(1025))
    if not threads:
        yield from map(function, items)
        return
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(function, item) for item in islice(source, ahead)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(function, item) for item in islice(source, 1)]


def batches(
    items: Iterable[PreparedImage | Exception], size: int
) -> Iterator[list[PreparedImage | Exception]]:
    """Group images of one size; errors stay in their places."""
    batch: list[PreparedImage | Exception] = []
    shape: torch.Size | None = None
    for item in items:
        if isinstance(item, PreparedImage):
            if batch and shape is not None and item.pixels.shape != shape:
                yield batch
                batch = []
            shape = item.pixels.shape
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch, shape = [], None
    if batch:
        yield batch
