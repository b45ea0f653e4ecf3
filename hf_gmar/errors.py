"""The errors that hf_gmar raises on purpose.

Each message says what was received, what is needed and what to do. Each class also derives from the
built-in error that a caller expects, so ``except ValueError`` works.
"""

from __future__ import annotations


class HfGmarError(Exception):
    """Base class of all errors of hf_gmar."""


class UnsupportedModelError(HfGmarError, TypeError):
    """The model's family is unknown, or attention rollout does not apply to it."""


class ModelOutputError(HfGmarError, TypeError):
    """The model ran, but returned no class scores or no attention with a gradient."""


class InputError(HfGmarError, ValueError):
    """The inputs have the wrong type, shape, channels or values."""


class TargetError(HfGmarError, ValueError):
    """The target is no class index of the model, or the number of targets does not fit."""


class OptionError(HfGmarError, ValueError):
    """An option of a function, method or command does not exist or has an invalid value."""


class ImageFileError(HfGmarError, ValueError):
    """An image file is missing, broken, too large or of an unknown format."""


class DataError(HfGmarError, ValueError):
    """A data set could not be found, reached or understood."""


class ModelLoadError(HfGmarError, ValueError):
    """A model could not be found, reached or read."""


class HubUnreachableError(ModelLoadError):
    """The Hub did not answer and the model is not in the local cache."""


class PushError(HfGmarError, ValueError):
    """Nothing could be written to a repository on the Hub."""


class ReadoutWarning(UserWarning):
    """The explained score depends on other output tokens than the readout names."""


class EvaluationError(HfGmarError, ValueError):
    """An evaluation can't start or continue because of its folder, data or processes."""


def one_line(error: Exception) -> str:
    """Return an error's message in one line, with its class unless it is a HfGmarError."""
    kind = "" if isinstance(error, HfGmarError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


def reason_of(error: Exception) -> str:
    """Return an error's message in one line, cut to fit into a table cell."""
    return shortened(one_line(error))


def shortened(reason: str) -> str:
    """Cut a reason to fit into a table cell."""
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]} ..."


_LONGEST_REASON = 400
