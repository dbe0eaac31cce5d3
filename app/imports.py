"""Imports that would cost every start of the server seconds, made so that they do not."""

from __future__ import annotations

import sys

__all__ = ["import_jsonschema"]


def import_jsonschema() -> None:
    """Import `jsonschema`, but for what would make that take seconds; call it before its users.

    When it is imported it looks for a package that compiles a grammar, and needs that only for the
    format "iri". What is None in `sys.modules` is not found by an import [Python reference, "The
    module cache"].
    """
    unwanted = "rfc3987_syntax"
    if unwanted in sys.modules:
        return
    sys.modules[unwanted] = None  # type: ignore[assignment]
    try:
        import jsonschema  # noqa: F401
    finally:
        del sys.modules[unwanted]
