"""The files of each owner: whose they are, and links that are put in a directory's place."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.managers.errors import InvalidRequest, IsolationUnavailable, NotAuthorized
from app.managers.files import owned, service
from app.managers.files.contents import Precondition, Save
from app.managers.files.errors import ContentsForbidden, ContentsNotFound, ContentsUnavailable
from app.managers.files.owned import CallersContents, OneOwnersContents, OwnersContents
from app.managers.files.service import ContentsService
from app.managers.files.tree import Place, Tree
from app.managers.processes.isolation.file_rights import FileRights, Within
from app.managers.processes.isolation.isolation import Isolation, OwnersFiles
from app.settings import Settings
from tests.support.identities import principal

TEXT = Save(type="file", format="text", content="mine")
ANY = Precondition()


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[OwnersContents]:
    (tmp_path / "root").mkdir()
    settings = Settings(_cli_parse_args=False, root_dir=tmp_path / "root", files_by_owner=True)
    files = OwnersContents(Isolation(settings), tmp_path / "state")
    yield files
    await files.close()


@pytest.fixture
async def sandboxed(tmp_path: Path) -> AsyncIterator[OneOwnersContents]:
    """Anna's files, by the rights that she has with ``isolation=bubblewrap``."""
    home = tmp_path / "anna"
    for directory in (home / "work", tmp_path / "ben"):
        directory.mkdir(parents=True)
    (tmp_path / "ben" / "notes.txt").write_text("Ben's")
    (home / "work" / "notes.txt").write_text("Anna's")

    class Homes(Isolation):
        def files(self, owner: str) -> OwnersFiles:
            del owner
            return OwnersFiles(home, Within((home,)))

    files = OwnersContents(Homes(Settings(_cli_parse_args=False)), tmp_path / "state")
    yield await files.of("anna")
    await files.close()


async def test_each_owner_has_a_directory(files: OwnersContents, tmp_path: Path) -> None:
    anna, ben = await files.of("anna"), await files.of("Ben")
    await anna.run(anna.contents.save, "a.txt", TEXT, ANY)
    assert (tmp_path / "root" / "anna" / "a.txt").read_text() == "mine"
    (theirs,) = [path for path in (tmp_path / "root").iterdir() if path.name.startswith("ben~")]
    assert theirs.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ContentsNotFound):
        await ben.run(ben.contents.get, "a.txt")
    assert await files.of("anna") is anna
    assert (anna.whose, ben.whose) == ({"owner": "anna"}, {"owner": "Ben"})


async def test_what_one_owner_trusts_no_other_does(files: OwnersContents) -> None:
    cell: dict[str, Any] = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1"}
    html = {"output_type": "display_data", "metadata": {}, "data": {"text/html": "<b>1</b>"}}
    cells = [{**cell, "execution_count": None, "outputs": [html]}]
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    trusted = []
    for owner in ("anna", "ben"):
        one = await files.of(owner)
        save = Save(type="notebook", format="json", content=notebook)
        await one.run(one.contents.save, "a.ipynb", save, ANY)
        if owner == "anna":
            await one.run(one.contents.trust, "a.ipynb")
        found = await one.run(one.contents.get, "a.ipynb")
        trusted.append(found.model.content["cells"][0]["metadata"]["trusted"])
    assert trusted == [True, False]


async def test_a_directory_that_was_there_before_is_nobodys(
    files: OwnersContents, tmp_path: Path
) -> None:
    (tmp_path / "root" / "physics").mkdir(mode=0o755)
    with pytest.raises(ContentsUnavailable, match="is open to other users"):
        await files.of("physics")
    (tmp_path / "root" / "ben").symlink_to(tmp_path)
    with pytest.raises(ContentsUnavailable, match="no directory of the service's user"):
        await files.of("ben")
    (tmp_path / "root" / "carl").touch()
    with pytest.raises(ContentsUnavailable):
        await files.of("carl")


async def test_who_reaches_others_names_them(files: OwnersContents) -> None:
    anna = CallersContents(files, principal("anna", ["contents:write"]))
    admin = CallersContents(files, principal("root"))
    tutor = CallersContents(files, principal("tutor", ["contents:read!owner=anna"]))
    with pytest.raises(ContentsNotFound, match="The owner has no files"):
        await admin.of("read", "anna")
    own = await anna.of("write")
    assert own is await anna.of("read", "anna") is await admin.of("write", "anna")
    assert await tutor.of("read", "anna") is own
    for caller, action, owner in (
        *((anna, "read", "ben"), (anna, "read", "nobody"), (tutor, "write", "anna")),
        *((tutor, "read", None), (tutor, "read", "ben")),
    ):
        with pytest.raises(NotAuthorized):
            await caller.of(action, owner)
    with pytest.raises(InvalidRequest, match="owner: "):
        await admin.of("read", "a/b")


async def test_files_that_are_everybodys_have_no_owner(tmp_path: Path) -> None:
    everybodys = ContentsService(tmp_path, tmp_path / "state")
    caller = CallersContents(everybodys, principal("anna", ["contents:read!owner=ben"]))
    assert await caller.of("read") is everybodys
    with pytest.raises(InvalidRequest, match="have no owners"):
        await caller.of("read", "anna")
    await everybodys.close()


async def test_an_owner_whose_account_is_another_gets_other_rights(
    files: OwnersContents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await files.of("anna")
    place = OwnersFiles(tmp_path / "root" / "anna", Within((tmp_path / "root" / "anna",)))
    monkeypatch.setattr(files._isolation, "files", lambda _: place)
    after = await files.of("anna")
    assert after is not before
    assert after.files.rights != FileRights()


async def test_a_home_that_cannot_be_had_is_told(
    files: OwnersContents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> OwnersFiles:
        raise IsolationUnavailable("every id of isolation_uids is taken")

    monkeypatch.setattr(files._isolation, "files", fail)
    with pytest.raises(ContentsUnavailable, match="every id of isolation_uids is taken"):
        await files.of("anna")


def swapped(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Put a link to Ben's files in the place of ``work`` as soon as that has been looked at."""
    find = Tree.find

    def found(self: Tree, path: str) -> Place:
        place = find(self, path)
        if not (home / "work").is_symlink():
            os.rename(home / "work", home / "aside")
            (home / "work").symlink_to(home.parent / "ben")
        return place

    monkeypatch.setattr(Tree, "find", found)


@pytest.mark.parametrize(
    "work",
    [
        lambda one: one.contents.get("work/notes.txt"),
        lambda one: one.contents.open("work/notes.txt"),
        lambda one: one.contents.get("work/notes.txt", hashed=True, content=False),
        lambda one: one.contents.save("work/planted.txt", TEXT, ANY),
        lambda one: one.contents.save("work/notes.txt", TEXT, ANY),
        lambda one: one.contents.save("work/new", Save(type="directory"), ANY),
        lambda one: one.contents.save(
            "work/up.txt", Save(type="file", format="text", content="a", chunk=1), ANY
        ),
        lambda one: one.contents.delete("work/notes.txt", ANY),
        lambda one: one.contents.rename("work/notes.txt", "stolen.txt", ANY),
        lambda one: one.contents.create_checkpoint("work/notes.txt"),
    ],
    ids=[
        *("get", "open", "hash", "save", "replace", "mkdir", "upload", "delete", "rename"),
        "checkpoint",
    ],
)
async def test_a_link_in_the_place_of_a_directory_leads_nowhere(
    sandboxed: OneOwnersContents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[OneOwnersContents], object],
) -> None:
    """With the service's own rights each of these would reach Ben's files."""
    home = tmp_path / "anna"
    swapped(monkeypatch, home)
    with pytest.raises((ContentsForbidden, ContentsNotFound)):
        await sandboxed.run(work, sandboxed)
    assert [path.name for path in (tmp_path / "ben").iterdir()] == ["notes.txt"]
    assert (tmp_path / "ben" / "notes.txt").read_text() == "Ben's"
    assert not (home / "stolen.txt").exists()


async def test_a_sandboxed_owners_files_can_all_be_worked_with(
    sandboxed: OneOwnersContents, tmp_path: Path
) -> None:
    contents, run = sandboxed.contents, sandboxed.run
    await run(contents.create, "", kind="notebook")
    await run(contents.trust, "Untitled.ipynb")
    await run(contents.create_checkpoint, "Untitled.ipynb")
    await run(contents.restore_checkpoint, "Untitled.ipynb", "checkpoint")
    for minor in range(6):
        notebook = {"nbformat": 4, "nbformat_minor": minor, "metadata": {}, "cells": []}
        save = Save(type="notebook", format="json", content=notebook)
        await run(contents.save, f"{minor}.ipynb", save, ANY)
        assert (await run(contents.get, f"{minor}.ipynb")).model.content["nbformat"] == 4
    await run(contents.copy, "work", "")
    await run(contents.rename, "work/notes.txt", "moved.txt", ANY)
    for number, text in ((1, "a"), (-1, "b")):
        chunk = Save(type="file", format="text", content=text, chunk=number)
        await run(contents.save, "large.txt", chunk, ANY)
    assert (tmp_path / "anna" / "large.txt").read_text() == "ab"
    await run(contents.delete, "moved.txt", ANY)
    shutil.rmtree(tmp_path / "anna" / "work")


async def test_an_owner_whose_files_hang_holds_up_no_other(
    files: OwnersContents, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = await files.of("anna"), await files.of("ben")
    monkeypatch.setattr(service, "WORK_SECONDS", 0.2)
    answers = threading.Event()
    try:
        for _ in range(owned.THREADS_OF_ONE + 1):  # the last one finds no thread that is free
            with pytest.raises(ContentsUnavailable, match=r"within 0\.2 s"):
                await anna.run(answers.wait)
        monkeypatch.setattr(service, "WORK_SECONDS", 60.0)
        assert await ben.run(lambda: "free") == "free"
    finally:
        answers.set()
    again = await asyncio.gather(*(anna.run(lambda: 1) for _ in range(owned.THREADS_OF_ONE + 1)))
    assert sum(again) == len(again)
    await anna.close()  # which ends nothing: `OwnersContents.close` does


async def test_a_home_that_hangs_holds_up_no_other_owner(
    files: OwnersContents, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, answers = files._isolation.files, threading.Event()

    def hang(owner: str) -> OwnersFiles:
        if owner == "anna":
            answers.wait()
        return find(owner)

    monkeypatch.setattr(files._isolation, "files", hang)
    monkeypatch.setattr(service, "WORK_SECONDS", 0.2)
    try:
        for _ in range(owned.THREADS + 1):
            with pytest.raises(ContentsUnavailable, match=r"within 0\.2 s"):
                await files.of("anna")
        monkeypatch.setattr(service, "WORK_SECONDS", 60.0)
        assert (await files.of("ben")).whose == {"owner": "ben"}
    finally:
        answers.set()
    assert (await files.of("anna")).whose == {"owner": "anna"}


async def test_the_end_drops_what_is_not_complete(files: OwnersContents, tmp_path: Path) -> None:
    anna = await files.of("anna")
    chunk = Save(type="file", format="text", content="a", chunk=1)
    await anna.run(anna.contents.save, "large.txt", chunk, ANY)
    assert len([*(tmp_path / "root" / "anna").iterdir()]) == 1
    await files.close()
    assert [*(tmp_path / "root" / "anna").iterdir()] == []
