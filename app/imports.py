"""Imports that would take seconds, made in a way that does not."""

from __future__ import annotations

import sys

__all__ = ["import_jsonschema"]


def import_jsonschema() -> None:
    """Import `jsonschema` quickly; call this before importing modules that use it.

    jsonschema imports the package ``rfc3987_syntax`` if that is installed, which then compiles a
    grammar for seconds; only the format "iri" needs it. An import does not find a module that is
    None in `sys.modules` [Python reference, "The module cache"].
    """
    unwanted = "rfc3987_syntax"
    if unwanted in sys.modules:
        return
    sys.modules[unwanted] = None  # type: ignore[assignment]
    try:
        import jsonschema  # noqa: F401
    finally:
        del sys.modules[unwanted]
