"""Loads code from outside the service that an option names: a class, or an optional package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, TypeVar

__all__ = ["CannotLoad", "from_extra", "load_class", "load_object"]

T = TypeVar("T")

INSTALLED: Final = "kernelkeep"
"""The name of this package once it is installed."""


class CannotLoad(ValueError):
    """An option names a class or package that cannot be used; the text says which, and why."""


@contextmanager
def from_extra(extra: str, option: str, *packages: str) -> Iterator[None]:
    """Within, import modules that need ``packages``, which an ``extra`` of this package installs.

    Raises `CannotLoad`, which names ``option``, if one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in packages:
            raise
        text = f"it takes pip install '{INSTALLED}[{extra}]'"
        raise CannotLoad(f"--{option.replace('_', '-')}: {text}") from None


def load_class(option: str, name: str, base: type[T]) -> type[T]:
    """The class that ``option`` names. Raises `CannotLoad` unless it is a subclass of ``base``.

    In ``name``, ``kernelkeep`` stands for this package, even if it was imported as ``app``.
    """
    module_name, _, class_name = name.partition(":")
    package, dot, rest = module_name.partition(".")
    if package == INSTALLED:
        module_name = __package__ + dot + rest
    if not (module_name and class_name):
        raise CannotLoad(f"--{option.replace('_', '-')}: {name!r} is not written module:Class")
    try:
        found = getattr(import_module(module_name), class_name)
    except Exception as error:  # the module is not ours, and may raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        raise CannotLoad(f"--{option.replace('_', '-')}: {text}") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CannotLoad(f"--{option.replace('_', '-')}: {name} is no {base.__name__}")
    return found


def load_object(option: str, name: str, *methods: str) -> Any:
    """An object of the class that ``option`` names, which takes no arguments and has ``methods``.

    Raises `CannotLoad`.
    """
    kind, flag = load_class(option, name, object), f"--{option.replace('_', '-')}"
    try:
        made = kind()
    except Exception as error:  # the class is not ours, and may raise anything
        text = " ".join(str(error).split())
        raise CannotLoad(f"{flag}: {type(error).__name__}: {text}") from error
    for method in methods:
        if not callable(getattr(made, method, None)):
            raise CannotLoad(f"{flag}: {name} has no method {method}")
    return made
