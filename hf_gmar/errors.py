"""The error family: every error that hf_gmar raises on purpose.

Each message says what was received, what is needed and what to do. Each class is also the built-in
error that a caller would expect, so that ``except ValueError`` goes on working.
"""

from __future__ import annotations


class HfGmarError(Exception):
    """Base of all errors of hf_gmar."""


class UnsupportedModelError(HfGmarError, TypeError):
    """The model is of a family that rollout does not apply to, or that is not known."""


class ModelOutputError(HfGmarError, TypeError):
    """The model ran, but gave no class scores or no attention that gradients reach."""


class InputError(HfGmarError, ValueError):
    """The inputs have the wrong type, shape, channels or values."""


class TargetError(HfGmarError, ValueError):
    """The target is no class index of the model, or not one for each image."""


class OptionError(HfGmarError, ValueError):
    """An option of a method or of the command line has a value that does not exist."""


class ImageFileError(HfGmarError, ValueError):
    """An image file is missing, broken, of no known format or too large."""


class DataError(HfGmarError, ValueError):
    """A data set could not be found, reached or understood."""


class ModelLoadError(HfGmarError, ValueError):
    """A model could not be found, reached or read."""


class HubUnreachableError(ModelLoadError):
    """The Hub did not answer and the model is not in the local cache."""


class EvaluationError(HfGmarError, ValueError):
    """A run of an evaluation can't begin or go on: its folder, its data or its processes."""


def one_line(error: Exception) -> str:
    """Its message in one line; an error that is none of ours is named by its class."""
    kind = "" if isinstance(error, HfGmarError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


def reason_of(error: Exception) -> str:
    """The same, cut to fit into a cell of a table."""
    reason = one_line(error)
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]} ..."


_LONGEST_REASON = 400
