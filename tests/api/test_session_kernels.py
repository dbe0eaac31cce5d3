"""What the kernel of a session is given: where it works, and what it knows of its session."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from tests.support.channels import Connector
from tests.support.rest import RestClient
from tests.support.server import ServerProcess
from tests.support.sessions import Sessions, sessions_of


@pytest.fixture
async def sessions(rest: RestClient, server: ServerProcess) -> AsyncIterator[Sessions]:
    (server.home.root_dir / "folder").mkdir(exist_ok=True)
    async with sessions_of(rest) as sessions:
        yield sessions


async def _says(connect: Connector, kernel_id: str, code: str) -> str:
    channels = await connect(kernel_id)
    return (await channels.execute(code)).text.rstrip("\n")


@pytest.mark.parametrize(
    ("path", "directory"),
    [
        ("folder/a.ipynb", "folder"),
        ("/folder/a.ipynb", "folder"),
        ("folder", "folder"),
        ("folder/not/there/a.ipynb", "folder"),
        ("a.ipynb", ""),
        ("a1b2c3", ""),
        ("RTC:folder/a.ipynb", ""),
    ],
)
async def test_the_kernel_works_in_the_directory_of_the_path(
    sessions: Sessions, connect: Connector, server: ServerProcess, path: str, directory: str
) -> None:
    session = await sessions.create(path)
    cwd = await _says(connect, session["kernel"]["id"], "cwd")
    assert cwd == str(server.home.root_dir / directory)


async def test_without_a_name_the_kernel_knows_the_path(
    sessions: Sessions, connect: Connector
) -> None:
    session = await sessions.create("folder/a.ipynb")
    known = await _says(connect, session["kernel"]["id"], "env JPY_SESSION_NAME")
    assert known == "folder/a.ipynb"


@pytest.mark.parametrize("name", ["a.ipynb", "", "with space ü.ipynb"])
async def test_with_a_name_the_kernel_knows_the_whole_path(
    sessions: Sessions, connect: Connector, server: ServerProcess, name: str
) -> None:
    session = await sessions.create("folder/a.ipynb", name=name)
    known = await _says(connect, session["kernel"]["id"], "env JPY_SESSION_NAME")
    assert known == os.path.join(server.home.root_dir, "folder", name)


@pytest.mark.parametrize("change", [{"path": "b"}, {"path": "b", "name": None}])
async def test_a_change_is_known_to_the_next_process(
    sessions: Sessions, connect: Connector, change: dict[str, str | None]
) -> None:
    session = await sessions.create("a")
    kernel_id = session["kernel"]["id"]
    await sessions.change(session["id"], **change)
    assert await _says(connect, kernel_id, "env JPY_SESSION_NAME") == "a"
    await sessions.rest.restart(kernel_id)
    await sessions.rest.wait_for_state(kernel_id, "idle")
    assert await _says(connect, kernel_id, "env JPY_SESSION_NAME") == "b"


@pytest.mark.parametrize("how", ["restart", "death"])
async def test_the_next_process_works_where_the_session_is_by_then(
    sessions: Sessions, connect: Connector, server: ServerProcess, how: str
) -> None:
    before, after = (server.home.root_dir / f"{name}-{how}" for name in ("before", "after"))
    before.mkdir()
    session = await sessions.create(f"{before.name}/a.ipynb")
    kernel_id = session["kernel"]["id"]
    assert await _says(connect, kernel_id, "cwd") == str(before)
    before.rename(after)
    await sessions.change(session["id"], path=f"{after.name}/a.ipynb")
    if how == "restart":
        await sessions.rest.restart(kernel_id)
    else:
        channels = await connect(kernel_id)
        await channels.execute("die 3")
    assert await _says(connect, kernel_id, "cwd") == str(after)


async def test_a_kernel_that_gets_a_session_later_knows_it_at_its_next_start(
    sessions: Sessions, connect: Connector, server: ServerProcess
) -> None:
    kernel = await sessions.rest.start_kernel("fake")
    session = await sessions.create("a", name="a")
    await sessions.change(session["id"], kernel={"id": kernel["id"]})
    await sessions.rest.restart(kernel["id"])
    await sessions.rest.wait_for_state(kernel["id"], "idle")
    known = await _says(connect, kernel["id"], "env JPY_SESSION_NAME")
    assert known == str(server.home.root_dir / "a")


async def test_a_kernel_started_for_a_change_knows_the_session(
    sessions: Sessions, connect: Connector, server: ServerProcess
) -> None:
    session = await sessions.create("a")
    changed = await sessions.change(
        session["id"], path="folder/b", name="b", kernel={"name": "fake"}
    )
    kernel_id = changed["kernel"]["id"]
    whole = server.home.root_dir / "folder" / "b"
    assert await _says(connect, kernel_id, "env JPY_SESSION_NAME") == str(whole)
    assert await _says(connect, kernel_id, "cwd") == str(whole.parent)


async def test_a_kernel_without_a_session_knows_none(
    sessions: Sessions, connect: Connector
) -> None:
    kernel = await sessions.rest.start_kernel("fake")
    channels = await connect(kernel["id"])
    exchange = await channels.execute("env JPY_SESSION_NAME")
    assert exchange.reply["ename"] == "KeyError"
