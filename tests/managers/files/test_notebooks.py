"""Notebooks as they are read and written: old formats, faults, and trust."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.managers.files.errors import InvalidContents
from app.managers.files.notebooks import Notebooks, empty_notebook, load


@pytest.fixture
def notebooks(tmp_path: Path) -> Notebooks:
    return Notebooks(tmp_path)


def with_output(*, trusted: bool) -> dict[str, Any]:
    output = {"output_type": "display_data", "data": {"text/html": "<script>"}, "metadata": {}}
    cell = {
        "cell_type": "code",
        "id": "a",
        "source": "1",
        "execution_count": 1,
        "metadata": {"trusted": trusted},
        "outputs": [output],
    }
    return {**empty_notebook(), "cells": [cell]}


def test_a_new_one_is_valid(notebooks: Notebooks) -> None:
    text, complaint = notebooks.written(empty_notebook(), "a.ipynb")
    assert complaint is None
    assert notebooks.read(text, "a.ipynb") == (json.loads(text), None)


def test_an_old_format_is_converted(notebooks: Notebooks) -> None:
    cell = {"cell_type": "code", "input": "1", "language": "python", "outputs": []}
    old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [cell]}]}
    notebook, complaint = notebooks.read(json.dumps(old), "a.ipynb")
    assert complaint is None
    assert (notebook["nbformat"], notebook["cells"][0]["source"]) == (4, "1")


@pytest.mark.parametrize("text", ["", "text", "[]", "{}", '{"nbformat": 99}'])
def test_what_is_no_notebook_is_refused(notebooks: Notebooks, text: str) -> None:
    with pytest.raises(InvalidContents, match=r"a\.ipynb"):
        notebooks.read(text, "a.ipynb")


UNREADABLE: dict[str, Any] = {
    "nothing": {},
    "no format": {"cells": [], "metadata": {}},
    "no cells": {"nbformat": 4, "nbformat_minor": 5, "metadata": {}},
    "another format": {**empty_notebook(), "nbformat": 99},
    "a text for a format": {**empty_notebook(), "nbformat": "4"},
    "an old format without worksheets": {"nbformat": 3, "nbformat_minor": 0, "metadata": {}},
    "lines that are none": {
        **empty_notebook(),
        "cells": [{"cell_type": "raw", "id": "a", "source": [1], "metadata": {}}],
    },
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_what_could_not_be_read_again_is_not_written(notebooks: Notebooks, content: Any) -> None:
    with pytest.raises(InvalidContents, match=r"a\.ipynb is no notebook: "):
        notebooks.written(content, "a.ipynb")


@pytest.mark.parametrize("cells", [[{}], [5], 5])
def test_what_cannot_be_written_at_all_is_refused(notebooks: Notebooks, cells: Any) -> None:
    with pytest.raises(InvalidContents, match=r"a\.ipynb is no notebook: "):
        notebooks.written({**empty_notebook(), "cells": cells}, "a.ipynb")


def test_a_fault_is_told_and_the_notebook_is_there_all_the_same(notebooks: Notebooks) -> None:
    cell = {"cell_type": "raw", "id": "a", "source": 5, "metadata": {}}
    faulty = {**empty_notebook(), "cells": [cell]}
    text, complaint = notebooks.written(faulty, "a.ipynb")
    assert complaint is not None
    assert complaint.startswith("Notebook validation failed: ")
    notebook, again = notebooks.read(text, "a.ipynb")
    assert notebook["cells"][0]["source"] == 5
    assert again is not None


@pytest.mark.parametrize("trusted", [True, False])
def test_outputs_are_trusted_if_they_were_when_they_were_written(
    notebooks: Notebooks, trusted: bool
) -> None:
    text, _ = notebooks.written(with_output(trusted=trusted), "a.ipynb")
    assert "trusted" not in text
    notebook, _ = notebooks.read(text, "a.ipynb")
    assert notebook["cells"][0]["metadata"].get("trusted", False) is trusted
    other, _ = notebooks.read(text.replace("<script>", "<b>"), "a.ipynb")
    assert not other["cells"][0]["metadata"].get("trusted")
    notebooks.trust(text, "a.ipynb")
    assert notebooks.read(text, "a.ipynb")[0]["cells"][0]["metadata"]["trusted"]


def test_no_file_is_read_for_a_notebook_when_all_is_loaded(
    notebooks: Notebooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread with an owner's rights may not be able to."""
    whole = Path.open

    def refuse(path: Path, *how: Any, **more: Any) -> Any:
        if path.suffix == ".json":  # the schemas; what is signed has files of its own
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *how, **more)

    load()
    monkeypatch.setattr(Path, "open", refuse)
    for minor in range(6):
        notebook = {"nbformat": 4, "nbformat_minor": minor, "metadata": {}, "cells": []}
        text, complaint = notebooks.written(notebook, "a.ipynb")
        assert complaint is None
        assert notebooks.read(text, "a.ipynb")[1] is None


def test_what_takes_the_signatures_is_done_within_the_rights_to_them(tmp_path: Path) -> None:
    within = []

    @contextmanager
    def signing() -> Iterator[None]:
        within.append("entered")
        yield

    notebooks = Notebooks(tmp_path / "none", signing)
    (tmp_path / "none").mkdir()
    text, _ = notebooks.written(with_output(trusted=True), "a.ipynb")  # looks, and signs
    assert len(within) == 2
    notebooks.read(text, "a.ipynb")
    notebooks.trust(text, "a.ipynb")
    assert len(within) == 4
