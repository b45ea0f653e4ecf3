"""The version of the package, as its metadata has it."""

from importlib.metadata import version

__version__ = version("hf-gmar")
