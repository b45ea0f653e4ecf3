"""Classes by name: built in, registered by a program, or entry points of installed packages."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from hf_gmar._utils.option_strings import format_spec, parse_spec
from hf_gmar.errors import OptionError, reason_of

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes of one kind by name, imported at first use.

    Another package adds a class by an entry point of the group ``hf_gmar.<kind>s``, under the entry
    point's name. :meth:`register` adds a class in this process alone.

    Args:
        kind: the noun in messages, such as ``"method"``.
        base: the required base class, as ``"module:Class"``.
        built_in: the classes of this package by name, in the same form.
        positional: number of the constructor's positional arguments, which are no options.

    Example:
        >>> from hf_gmar.methods import METHODS
        >>> list(METHODS)[:2], list(METHODS.options("gmar"))[:2]
        (['gmar', 'attention-rollout'], ['norm', 'alpha'])
        >>> METHODS.parse("gmar:norm=l2,alpha=0.5")
        ('gmar', {'norm': 'l2', 'alpha': 0.5})
    """

    def __init__(
        self, kind: str, base: str, built_in: Mapping[str, str], positional: int = 0
    ) -> None:
        self.kind = kind
        self.built_in = tuple(built_in)
        self._base = base
        self._positional = positional
        self._classes: dict[str, str | type[T]] = dict(built_in)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._classes, *self._entry_points)))

    def __contains__(self, name: object) -> bool:
        return name in self._classes or name in self._entry_points

    def __getitem__(self, name: str) -> type[T]:
        """Return the class of a name; an OptionError if it is unknown or can't be loaded."""
        entry = self._classes.get(name)
        if isinstance(entry, type):
            return entry
        if entry is not None:
            self._classes[name] = _imported(entry)
        elif name in self._entry_points:
            self._classes[name] = self._checked(name, self._loaded(name))
        else:
            raise OptionError(f"there is no {self.kind} {name!r}; there are {', '.join(self)}")
        return self[name]

    def items(self) -> Iterator[tuple[str, type[T]]]:
        """Yield all names with their classes; a class that can't be loaded gives a warning."""
        for name in self:
            try:
                yield name, self[name]
            except OptionError as error:
                warnings.warn(str(error), stacklevel=2)

    def name_of(self, kind: type) -> str | None:
        """Return the name of a class, or ``None``."""
        spelled = f"{kind.__module__}:{kind.__qualname__}"
        known = self._classes.items()
        return next((name for name, entry in known if entry is kind or entry == spelled), None)

    def register(self, name: str, kind: type[T]) -> None:
        """Register a class under a name in this process.

        Raises:
            OptionError: the name is taken or has other characters, or the class has another base.
        """
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise OptionError(
                f"the name of a {self.kind} has lower-case letters, digits, dots, dashes and "
                f"underscores alone, got {name!r}"
            )
        if name in self and self._classes.get(name) is not kind:
            raise OptionError(f"there is a {self.kind} {name!r} already; take another name")
        self._classes[name] = self._checked(name, kind)

    def options(self, name: str) -> dict[str, Any]:
        """Return the options of a class with their default values.

        The default of a required option is ``inspect.Parameter.empty``. An unknown name raises an
        OptionError.
        """
        parameters = _parameters(self[name], self._positional)
        return {parameter.name: parameter.default for parameter in parameters}

    def check(self, name: str, options: Iterable[str] = ()) -> None:
        """Raise an OptionError for an unknown name or option."""
        known = self.options(name)
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise OptionError(
                f"the {self.kind} {name!r} has no option {', '.join(unknown)}; it has "
                f"{', '.join(known) or 'none'}"
            )

    def build(self, name: str, /, *args: Any, **options: Any) -> T:
        """Return an instance of the class of a name.

        Raises:
            OptionError: an unknown name or option, a missing required option, or a value out of
                range.
        """
        self.check(name, options)
        known = self.options(name).items()
        missing = [
            option
            for option, default in known
            if default is inspect.Parameter.empty and option not in options
        ]
        if missing:
            raise OptionError(f"the {self.kind} {name!r} needs a value for {', '.join(missing)}")
        return self[name](*args, **options)

    def parse(self, spec: str | tuple[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
        """Return name and options of ``"NAME:OPTION=VALUE,..."`` or of a pair, after a check.

        Raises:
            OptionError: another form, or an unknown name or option.
        """
        if isinstance(spec, str):
            name, options = parse_spec(spec)
        elif isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[0], str):
            name, options = spec[0], dict(spec[1])
        else:
            raise OptionError(
                f"a name, or a pair of a name and its options, is needed; got {spec!r}"
            )
        self.check(name, options)
        return name, options

    label = staticmethod(format_spec)

    @functools.cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        points = {point.name: point for point in entry_points(group=f"hf_gmar.{self.kind}s")}
        for name in sorted(points.keys() & set(self.built_in)):
            warnings.warn(
                f"the {self.kind} {name!r} of {points.pop(name).value} is left out: the name is "
                "hf_gmar's own; its package has to take another one",
                stacklevel=2,
            )
        return points

    def _loaded(self, name: str) -> Any:
        point = self._entry_points[name]
        try:
            return point.load()
        except Exception as error:  # foreign code may raise anything
            package = point.dist.name if point.dist else point.value
            raise OptionError(
                f"the {self.kind} {name!r} of the package {package} can't be loaded: "
                f"{reason_of(error)}"
            ) from error

    def _checked(self, name: str, kind: Any) -> type[T]:
        base = _imported(self._base)
        if not (isinstance(kind, type) and issubclass(kind, base)):
            raise OptionError(
                f"the {self.kind} {name!r} must be a subclass of {base.__module__}."
                f"{base.__name__}, got {kind!r}"
            )
        return kind


def _imported(place: str) -> type[Any]:
    module, _, name = place.partition(":")
    kind: type[Any] = getattr(importlib.import_module(module), name)
    return kind


def _parameters(kind: type, positional: int) -> Iterator[inspect.Parameter]:
    """Yield the constructor's named parameters, then its base class's if it passes options on."""
    parameters = list(inspect.signature(kind).parameters.values())[positional:]
    yield from (item for item in parameters if item.kind is not item.VAR_KEYWORD)
    if any(item.kind is item.VAR_KEYWORD for item in parameters):
        yield from _parameters(kind.__mro__[1], positional)
