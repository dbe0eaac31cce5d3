"""Classes of other people's, named in an option as ``module:Class``."""

from __future__ import annotations

from importlib import import_module
from typing import Final, TypeVar

__all__ = ["CannotLoad", "load_class"]

T = TypeVar("T")

INSTALLED: Final = "kernelkeep"
"""The name of this package once it is installed."""


class CannotLoad(ValueError):
    """An option names something that cannot be used; the text says which and why."""


def load_class(option: str, name: str, base: type[T]) -> type[T]:
    """The class that ``option`` names, which must be a subclass of ``base``.

    In a name, ``kernelkeep`` is this very package, also where that was imported as ``app``.

    Raises `CannotLoad`.
    """
    module_name, _, class_name = name.partition(":")
    package, dot, rest = module_name.partition(".")
    if package == INSTALLED:
        module_name = __package__ + dot + rest
    if not (module_name and class_name):
        raise CannotLoad(f"--{option.replace('_', '-')}: {name!r} is not written module:Class")
    try:
        found = getattr(import_module(module_name), class_name)
    except Exception as error:  # the module is somebody else's code
        text = " ".join(str(error).split()) or type(error).__name__
        raise CannotLoad(f"--{option.replace('_', '-')}: {text}") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CannotLoad(f"--{option.replace('_', '-')}: {name} is no {base.__name__}")
    return found
