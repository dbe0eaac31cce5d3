"""Notebooks on disk and in the API. nbformat converts old formats, validates and keeps trust."""

from __future__ import annotations

import mimetypes
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Final

from ...imports import import_jsonschema
from .errors import InvalidContents

__all__ = ["Notebooks", "empty_notebook", "load"]

VERSION: Final = 4


def load() -> None:
    """Load the modules and tables that notebooks need, such as that of media types. Blocks."""
    # nbformat reads the schema of a version when it is first used, and remembers it.
    newest = range(_nbformat().v4.nbformat_minor + 1)
    for version in ((3, 0), *((VERSION, minor) for minor in newest)):
        for relaxed in (False, True):
            _nbformat().validator.get_validator(*version, relax_add_props=relaxed)
    mimetypes.guess_type("a.txt")


@cache
def _nbformat() -> Any:
    """nbformat, imported at the first notebook: that takes longer than the server's whole start."""
    # Two threads may call this at the same time, and both do all of it: the import system has one
    # of them wait, and filters that are added twice count once.
    import_jsonschema()
    import nbformat
    import nbformat.sign
    import nbformat.v4
    from nbformat.warnings import DuplicateCellId, MissingIDFieldWarning

    # nbformat warns of these two faults, and mends them when it reads a notebook.
    warnings.filterwarnings("ignore", category=MissingIDFieldWarning)
    warnings.filterwarnings("ignore", category=DuplicateCellId)
    return nbformat


def empty_notebook() -> Any:
    """The content of a new notebook."""
    return _nbformat().v4.new_notebook()


class Notebooks:
    """Reads and writes notebooks. Its methods block.

    A browser may run the outputs of a trusted notebook. ``data_dir`` has the signatures of trusted
    notebooks and the secret for making them; within ``signing`` the thread may use it.
    """

    def __init__(
        self,
        data_dir: Path,
        signing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._data_dir = data_dir
        self._signing = signing

    def read(self, text: str, path: str) -> tuple[Any, str | None]:
        """A notebook's content in nbformat 4, and what its schema finds wrong with it, if anything.

        Raises `InvalidContents` for a text that is no notebook at all.
        """
        notebook, complaint = _parse(text, path)
        if complaint is None:
            with self._signing():
                notary = self._notary()
                notary.mark_cells(notebook, notary.check_signature(notebook))
        return notebook, complaint

    def written(self, content: Any, path: str) -> tuple[str, str | None]:
        """The text of a notebook's file, and what its schema finds wrong with it, if anything.

        A notebook whose outputs are all trusted is signed. Raises `InvalidContents` for content
        that is no notebook at all: `read` would refuse the file.
        """
        # The marks are removed before the text is made: the signed notebook is the written one.
        found: dict[str, Any] = {}
        try:
            # Without the key nbformat takes a notebook for one of format 1, which is not in use.
            if "nbformat" not in content:
                raise ValueError("it lacks nbformat")
            notebook = _nbformat().from_dict(content)
            trusted = self._are_trusted(notebook)
            text: str = _nbformat().writes(
                notebook, version=_nbformat().NO_CONVERT, capture_validation_error=found
            )
            # nbformat writes what it cannot read, such as lines of a source that are numbers.
            _nbformat().convert(_nbformat().reader.reads(text), VERSION)
        except Exception as error:  # nbformat lets through whatever its converters raise
            raise InvalidContents(f"{path} is no notebook: {_brief(error)}") from None
        complaint = _complaint(found)
        if trusted and complaint is None:
            self.trust(text, path)
        return text, complaint

    def trust(self, text: str, path: str) -> None:
        """Sign a notebook: exactly these outputs are trusted. Raises `InvalidContents`."""
        notebook, _ = _parse(text, path)
        with self._signing():
            self._notary().sign(notebook)

    def _are_trusted(self, notebook: Any) -> bool:
        """Whether the browser has marked all cells with outputs as trusted; removes the marks."""
        try:
            with self._signing():
                return bool(self._notary().check_cells(notebook))
        except (AttributeError, KeyError, TypeError):  # the notebook is invalid: see `_complaint`
            return False

    def _notary(self) -> Any:
        # Made anew each time, as its connection to the database belongs to this thread.
        return _nbformat().sign.NotebookNotary(data_dir=str(self._data_dir))


def _parse(text: str, path: str) -> tuple[Any, str | None]:
    found: dict[str, Any] = {}
    try:
        notebook = _nbformat().reads(text, VERSION, capture_validation_error=found)
    except Exception as error:  # nbformat lets through whatever its converters raise
        raise InvalidContents(f"Unreadable notebook: {path}: {_brief(error)}") from None
    return notebook, _complaint(found)


def _complaint(found: dict[str, Any]) -> str | None:
    error = found.get("ValidationError")
    return f"Notebook validation failed: {_brief(error)}" if error is not None else None


def _brief(error: object) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
