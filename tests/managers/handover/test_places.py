"""The places of clients go to the next server by way of the registry, and from older versions."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from struct import pack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import SecretStr

from app.managers.executions.prompts import Prompts
from app.managers.handover.handover import RegisteredHandover
from app.managers.handover.places import RegisteredPlaces, from_journal, journal_of
from app.managers.handover.registry import Registry
from app.managers.handover.store import UnusableRegistry, open_registry
from app.managers.log.entries import Position
from app.managers.log.message_log import MessageLog
from app.managers.log.places import MAX_PLACES, Places, SessionPlace, session_key
from app.managers.messages.attachments import Attachments
from app.managers.processes.isolation.isolation import Isolation
from app.managers.processes.keeper.keepers import Keepers
from app.managers.state import KernelState
from app.settings import Settings
from tests.managers.handover.test_registry import record

END = Position(100, 1000)


class Clients(Attachments):
    """The clients of a kernel whose log has a hundred messages, and is not read."""

    def __init__(self, **options: Any) -> None:
        log = SimpleNamespace(
            end=END, next_seq=END.cursor, closed=False, epoch="epoch", wake=lambda: None
        )
        self.log = cast(MessageLog, log)
        settings = Settings(token=SecretStr("t" * 16), **options)
        super().__init__(self.log, cast(Prompts, []), KernelState(), settings)

    def come(self, session: str, cursor: int) -> None:
        """A client has come so far."""
        self.attached[session].confirm_with(lambda _: Position(cursor, 10 * cursor))

    def begin(self, registry: Registry) -> None:
        self.store = RegisteredPlaces(registry, "k", self.log, self)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    registry = Registry(tmp_path)
    await registry.save(record("k"))
    yield registry
    await registry.close()


async def stored(registry: Registry) -> list[SessionPlace]:
    await registry.flush()
    places = await registry.places("k")
    return [] if places is None else places.read()


async def under_the_next_server(registry: Registry) -> Clients:
    clients = Clients()
    clients.put_back(await stored(registry))
    return clients


async def test_each_session_goes_on_where_it_was_noted_last(registry: Registry) -> None:
    clients = Clients()
    clients.begin(registry)
    stays, leaves = clients.attach("stays"), clients.attach("leaves")
    clients.come("stays", 120)
    clients.come("leaves", 130)
    clients.detach(leaves)
    clients.note_places()
    clients.come("stays", 140)  # not noted before the server is killed
    before = [place for place in await stored(registry) if not place.left]
    clients.come("stays", 150)
    (noted,) = [place for place in await stored(registry) if not place.left]
    assert before == [noted]
    again = await under_the_next_server(registry)
    assert again.attach("stays").position == Position(140, 1400)
    assert again.attach("leaves").position == Position(130, 1300)
    assert again.attach("new").position == END
    assert stays.position == END


async def test_nothing_is_written_for_clients_that_stay_where_they_are(registry: Registry) -> None:
    clients = Clients()
    clients.begin(registry)
    clients.attach("a")
    await registry.flush()
    clients.note_places()
    assert not registry._places
    clients.come("a", 101)
    clients.note_places()
    assert [*registry._places] == ["k"]


async def test_clients_that_have_all_are_at_rest_until_there_is_more(registry: Registry) -> None:
    clients = Clients()
    clients.begin(registry)
    assert clients.at_rest
    first, second = clients.attach("first"), clients.attach("second")
    assert not clients.at_rest
    clients.come("second", 99)
    clients.note_places()
    assert not clients.at_rest  # what it lacks may arrive without a further message
    clients.come("second", 100)
    clients.note_places()
    assert clients.at_rest
    cast(Any, clients.log).next_seq = 101
    assert not clients.at_rest
    for session in ("first", "second"):
        clients.come(session, 101)
    clients.note_places()
    assert clients.at_rest
    clients.attach("third", Position(50, 500))
    assert not clients.at_rest
    for reader in (first, second, clients.attached["third"]):
        clients.detach(reader)
    assert clients.at_rest


async def test_without_places_clients_are_at_rest_whatever_they_lack(registry: Registry) -> None:
    clients = Clients(buffer_offline_messages=False)
    clients.begin(registry)
    clients.attach("a", Position(50, 500))
    assert clients.at_rest
    clients.note_places()
    assert clients.at_rest
    assert not registry._places


async def test_a_new_session_is_known_to_the_next_server_before_it_is_accepted(
    registry: Registry, tmp_path: Path
) -> None:
    clients = Clients()
    clients.begin(registry)
    await clients.known(clients.attach("a"))
    with sqlite3.connect(tmp_path / "registry.sqlite") as connection:
        rows = connection.execute("SELECT kernel_id, epoch, data FROM places").fetchall()
    connection.close()
    assert [place.session for place in Places(*rows[0]).read()] == [session_key("a")]


async def test_a_registry_that_cannot_be_written_holds_up_nobody(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = Clients()
    clients.begin(registry)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(registry._store, "save_places", fail)
        await clients.known(clients.attach("a"))
        patch.setattr(registry, "stored", None)  # nobody waits for it now
        await clients.known(clients.attach("b"))
    clients.come("a", 105)
    clients.note_places()
    # What could not be written is written later, as it is then.
    assert {place.cursor for place in await stored(registry)} == {100, 105}


async def test_a_kernel_that_is_gone_has_no_places(registry: Registry) -> None:
    clients = Clients()
    clients.begin(registry)
    clients.attach("a")
    await registry.delete("k")
    assert await stored(registry) == []
    clients.note_again()  # the stop has failed
    assert len(await stored(registry)) == 1


def test_places_that_a_killed_server_has_left_of_no_kernel_are_removed(tmp_path: Path) -> None:
    store, _ = open_registry(tmp_path)
    store.save(record("k"))
    store.save_places([Places.of(kernel_id, "epoch", []) for kernel_id in ("k", "gone")])
    store.close()
    again, _ = open_registry(tmp_path)
    assert again.load_places("k") is not None
    assert again.load_places("gone") is None
    again.close()


async def test_sessions_that_left_long_ago_or_are_too_many_are_forgotten(
    registry: Registry,
) -> None:
    now = time.time()
    clients = Clients()
    clients.begin(registry)
    clients.put_back(
        [
            SessionPlace(session_key("long ago"), 5, 50, now - 90_000),
            SessionPlace(session_key("an hour ago"), 6, 60, now - 3600),
            SessionPlace(session_key("in the future"), 7, 70, now + 3600),
        ]
    )
    assert clients.attach("long ago").position == END
    assert clients.attach("an hour ago").position == Position(6, 60)
    assert clients.attach("in the future").position == Position(7, 70)
    for number in range(MAX_PLACES + 5):
        clients.detach(clients.attach(f"{number}"))
    places = await stored(registry)
    assert len(places) == MAX_PLACES
    assert [place.session for place in places[-3:]] == [
        session_key(name) for name in ("long ago", "an hour ago", "in the future")
    ]
    left = [place.left for place in places[:-3]]
    assert left == sorted(left)
    assert now - 1 < left[0] <= time.time() + 1


async def test_where_nothing_is_kept_for_who_is_offline_no_place_is(registry: Registry) -> None:
    clients = Clients(buffer_offline_messages=False)
    clients.begin(registry)
    reader = clients.attach("a")
    await asyncio.wait_for(clients.known(reader), 5)
    clients.note_places()
    clients.detach(reader)
    clients.note_again()
    assert await stored(registry) == []
    # Nor is what a server has stored that had the option.
    clients.put_back([SessionPlace(session_key("a"), 7, 70, 0.0)])
    assert clients.attach("a").position == END


async def test_what_cannot_be_read_is_told(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(registry._store, "load_places", fail)
    with pytest.raises(UnusableRegistry, match="disk I/O error"):
        await registry.places("k")
    assert "disk I/O error" in caplog.text


def _journal(*places: tuple[bytes, int, int, float]) -> bytes:
    """A file as version 0.2 has written it."""
    slots = b"".join(pack("<16sQQd", *place) for place in places)
    return pack("<8s16s?", b"kkjourn3", b"0123456789abcdef", False).ljust(64, b"\0") + slots


def test_the_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    path = journal_of(tmp_path, "k")
    assert from_journal(path, "k") is None
    path.parent.mkdir()
    first, second = session_key("first"), session_key("second")
    path.write_bytes(_journal((second, 7, 70, 9.0), (first, 3, 30, 8.0), (bytes(16), 0, 0, 0.0)))
    found = from_journal(path, "k")
    assert found is not None
    assert found.epoch == "0123456789abcdef"
    assert found.read() == [SessionPlace(first, 3, 30, 8.0), SessionPlace(second, 7, 70, 9.0)]


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"kkjourn2" * 100, b"kkjourn3"])
def test_what_is_no_such_file_has_no_places(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "k.journal"
    path.write_bytes(content)
    assert from_journal(path, "k") is None


async def test_the_file_of_an_older_version_counts_only_until_the_registry_has_places(
    registry: Registry, tmp_path: Path
) -> None:
    path = journal_of(tmp_path, "k")
    path.parent.mkdir()
    path.write_bytes(_journal((session_key("first"), 7, 70, 9.0)))
    handover = RegisteredHandover(registry, cast(Keepers, None), tmp_path, cast(Isolation, None))
    assert await handover.furthest("k") == Position(7, 70)
    assert [place.cursor for place in await stored(registry)] == [7]
    # The file stays where it is; what the registry has is never written over with it.
    clients = Clients()
    clients.begin(registry)
    clients.attach("second")
    clients.come("second", 120)
    clients.note_places()
    newer = await stored(registry)
    assert await handover.furthest("k") == Position(120, 1200)
    assert await stored(registry) == newer
    await handover.close()
