"""Notebooks on disk and in the API, by nbformat: old formats, validation and trust."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any, Final

from ...imports import import_jsonschema
from ..errors import InvalidContents

__all__ = ["Notebooks", "empty_notebook"]

VERSION: Final = 4


@cache
def _nbformat() -> Any:
    """The library, imported at the first notebook: it takes longer than all of a server's start."""
    import_jsonschema()
    import nbformat
    import nbformat.sign
    import nbformat.v4
    from nbformat.warnings import DuplicateCellId, MissingIDFieldWarning

    # It mends both when it reads a notebook.
    warnings.filterwarnings("ignore", category=MissingIDFieldWarning)
    warnings.filterwarnings("ignore", category=DuplicateCellId)
    return nbformat


def empty_notebook() -> Any:
    """The content of a new notebook."""
    return _nbformat().v4.new_notebook()


class Notebooks:
    """Reads and writes notebooks. ``data_dir`` has the secret and the signatures of those that
    are trusted: whose outputs a browser may run. Its methods block."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def read(self, text: str, path: str) -> tuple[Any, str | None]:
        """A notebook's content in the present format, and what is wrong with it, if anything.

        Raises `InvalidContents` for what is no notebook at all.
        """
        notebook, complaint = _parse(text, path)
        if complaint is None:
            notary = self._notary()
            notary.mark_cells(notebook, notary.check_signature(notebook))
        return notebook, complaint

    def written(self, content: Any, path: str) -> tuple[str, str | None]:
        """The text of a notebook's file, and what is wrong with it, if anything.

        Signs one whose outputs are all trusted. Raises `InvalidContents` for no notebook at all.
        """
        found: dict[str, Any] = {}
        try:
            notebook = _nbformat().from_dict(content)
            trusted = self._are_trusted(notebook)
            text: str = _nbformat().writes(
                notebook, version=_nbformat().NO_CONVERT, capture_validation_error=found
            )
        except Exception as error:  # nbformat lets through whatever its converters raise
            raise InvalidContents(f"{path} is no notebook: {_brief(error)}") from None
        complaint = _complaint(found)
        if trusted and complaint is None:
            self.trust(text, path)
        return text, complaint

    def trust(self, text: str, path: str) -> None:
        """From now on the outputs of this very notebook are trusted. Raises `InvalidContents`."""
        notebook, _ = _parse(text, path)
        self._notary().sign(notebook)

    def _are_trusted(self, notebook: Any) -> bool:
        """Whether a browser has said so of all outputs; what it has said is taken out of them."""
        try:
            return bool(self._notary().check_cells(notebook))
        except (AttributeError, KeyError, TypeError):  # it is not valid, as will be said
            return False

    def _notary(self) -> Any:
        # A new one each time: its connection to the database belongs to the thread it was made in.
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
