"""The list of tokens that a server has in memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.managers.owners import token_list as module
from app.managers.owners import token_table
from app.managers.owners import tokens as token_file
from app.managers.owners.errors import TokenNameTaken, TokensUnavailable
from app.managers.owners.principal import Principal
from app.managers.owners.token_list import TokenList
from app.managers.owners.token_table import NewToken, TokenRecord
from app.managers.owners.tokens import FILE, TokenFile, TokenStore
from tests.support.processes import eventually

SECOND = 1.0  # within which a change must be seen


def wanted(name: str = "laptop", owner: str = "anna", **more: Any) -> NewToken:
    return NewToken(name, owner, ("kernels:read",), **more)


class Elsewhere:
    """What another process does with the file."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE

    def make(self, name: str = "laptop", **more: Any) -> tuple[TokenRecord, str]:
        with contextlib.closing(TokenStore(self.path.parent, create=True)) as store:
            return store.add(wanted(name, **more), time.time())

    def revoke(self, *ids: str) -> None:
        with contextlib.closing(TokenStore(self.path.parent)) as store:
            store.revoke(ids, time.time())

    def records(self) -> dict[str, TokenRecord]:
        with contextlib.closing(TokenStore(self.path.parent)) as store:
            return {record.id: record for record in store.records()}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Elsewhere:
    return Elsewhere(tmp_path)


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
async def tokens(tmp_path: Path, told: list[tuple[str, str]]) -> AsyncIterator[TokenList]:
    """The list, opened when there was no file yet."""
    opened = TokenList(TokenFile(tmp_path))
    await opened.open(lambda action, record: told.append((action, record.name)))
    yield opened
    await opened.close()


async def found(tokens: TokenList, token: str) -> Principal:
    principal = await tokens.identify(token)
    assert principal is not None
    return principal


async def test_those_that_there_are_are_known_at_once(
    tmp_path: Path, elsewhere: Elsewhere, told: list[tuple[str, str]]
) -> None:
    expires = time.time() + 100
    record, token = elsewhere.make(groups=("physics",), expires=expires)
    tokens = TokenList(TokenFile(tmp_path))
    await tokens.open(lambda action, record: told.append((action, record.name)))
    principal = tokens.known(token)
    assert principal is not None
    assert (principal.owner, principal.credential) == ("anna", record.id)
    assert (principal.groups, principal.expires) == (frozenset({"physics"}), expires)
    assert list(principal.scopes) == ["kernels:read"]
    assert tokens.known(token) is principal
    assert await tokens.identify(token) is principal
    await tokens.close()
    assert told == []


async def test_one_works_as_soon_as_it_is_made(
    tokens: TokenList, elsewhere: Elsewhere, told: list[tuple[str, str]]
) -> None:
    for number in range(3):
        _, token = elsewhere.make(f"{number}")
        assert tokens.known(token) is None
        assert (await found(tokens, token)).owner == "anna"
    assert told == [("token_created", f"{number}") for number in range(3)]


async def test_one_that_is_revoked_elsewhere_ends_within_a_second(
    tokens: TokenList, elsewhere: Elsewhere, told: list[tuple[str, str]]
) -> None:
    first, token = elsewhere.make("first")
    _, other = elsewhere.make("other")
    principal, stays = await found(tokens, token), await found(tokens, other)
    closed = asyncio.Event()
    principal.opened(closed.set)
    elsewhere.revoke(first.id)
    async with asyncio.timeout(SECOND):
        await closed.wait()
    assert principal.over
    assert tokens.known(token) is principal
    assert not stays.over
    assert [record.name for record in tokens.records()] == ["other"]
    assert told[-1] == ("token_revoked", "first")
    assert len(told) == 3


async def test_those_that_ended_long_ago_are_forgotten_here_too(
    tokens: TokenList, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, token = elsewhere.make("old")
    _, other = elsewhere.make("other")
    principal = await found(tokens, other)
    elsewhere.revoke(record.id)
    await eventually(lambda: record not in tokens.records())
    monkeypatch.setattr(token_table, "REMEMBERED_SECONDS", 0.0)
    _, newest = elsewhere.make("newest")
    await found(tokens, newest)
    assert tokens.known(token) is None
    assert tokens.known(other) is principal
    assert not principal.over


async def test_without_tokens_nothing_is_looked_at(
    tokens: TokenList, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    look = tokens._look

    def counted() -> object:
        looks.append(time.monotonic())
        return look()

    monkeypatch.setattr(tokens, "_look", counted)
    for token in ("", "secret", "kk_", "kk_" + "0" * 63, "kk_" + "0" * 2**20, "kk_\x00"):
        assert tokens.known(token) is None
        assert await tokens.identify(token) is None
    assert tokens._watch is None
    assert looks == []
    assert await tokens.identify("kk_" + "0" * 64) is None
    assert len(looks) == 1
    record, token = elsewhere.make()
    await found(tokens, token)
    assert tokens._watch is not None
    elsewhere.revoke(record.id)
    await eventually(lambda: tokens._watch is None)


async def test_many_who_ask_at_once_share_a_look(
    tokens: TokenList, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    look = tokens._look

    def counted() -> object:
        looks.append(time.monotonic())
        return look()

    monkeypatch.setattr(tokens, "_look", counted)
    _, token = elsewhere.make()
    asked = [tokens.identify(f"kk_{number:064x}") for number in range(200)]
    principal, *nobody = await asyncio.gather(tokens.identify(token), *asked)
    assert principal is not None
    assert nobody == [None] * 200
    assert len(looks) <= 3


async def test_one_that_expires_ends_by_itself(tokens: TokenList, elsewhere: Elsewhere) -> None:
    _, token = elsewhere.make(expires=time.time() + 0.6)
    principal = await found(tokens, token)
    closed = asyncio.Event()
    principal.opened(closed.set)
    async with asyncio.timeout(0.6 + SECOND):
        await closed.wait()
    assert tokens.known(token) is principal
    assert principal.over


@pytest.mark.parametrize("hours", [-48, 48])
async def test_a_clock_that_jumps_lengthens_no_token_s_life(
    tokens: TokenList, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    now = time.time
    _, token = elsewhere.make(expires=now() + 0.6)
    principal = await found(tokens, token)
    ended = asyncio.Event()
    principal.opened(ended.set)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + hours * 3600)
        async with asyncio.timeout(0.6 + SECOND):
            await ended.wait()
    assert principal.over  # also after the clock is right again
    assert tokens.known(token) is principal


async def test_when_it_was_used_is_written_later_and_at_the_end(
    tokens: TokenList, elsewhere: Elsewhere
) -> None:
    first, token = elsewhere.make("first")
    second, _ = elsewhere.make("second")
    before = time.time()
    await found(tokens, token)
    assert tokens.last_used(second) is None
    assert elsewhere.records()[first.id].last_used is None
    last_used = tokens.last_used(first)
    assert last_used is not None
    assert last_used >= before
    await tokens.close()
    assert elsewhere.records()[first.id].last_used == last_used
    assert elsewhere.records()[second.id].last_used is None


async def test_uses_are_written_while_it_runs(
    tokens: TokenList, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "USES_SECONDS", 0.0)
    record, token = elsewhere.make()
    await found(tokens, token)
    await eventually(lambda: elsewhere.records()[record.id].last_used is not None)


async def test_those_made_here_are_in_the_file_and_in_memory(
    tokens: TokenList, elsewhere: Elsewhere, told: list[tuple[str, str]]
) -> None:
    record, token = await tokens.create(wanted())
    principal = tokens.known(token)
    assert principal is not None
    assert elsewhere.records() == {record.id: record}
    with pytest.raises(TokenNameTaken):
        await tokens.create(wanted("LAPTOP"))
    (ended,) = await tokens.revoke([record.id])
    assert principal.over
    assert ended.revoked is not None
    assert await tokens.revoke([record.id]) == []
    assert told == []  # who has made them here tells of it


async def test_a_file_that_is_gone_or_another_is_what_counts(
    tokens: TokenList, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    _, token = elsewhere.make()
    principal = await found(tokens, token)
    kept = elsewhere.path.read_bytes()
    elsewhere.path.unlink()
    await eventually(lambda: principal.over, SECOND)
    assert tokens.known(token) is None
    _, second = elsewhere.make("second")
    await found(tokens, second)
    replacement = tmp_path / "replacement"
    replacement.touch(0o600)
    replacement.write_bytes(kept)
    os.replace(replacement, elsewhere.path)
    again = await found(tokens, token)
    assert not again.over
    assert tokens.known(second) is None


async def test_an_older_copy_over_the_file_is_noticed(
    tokens: TokenList, elsewhere: Elsewhere
) -> None:
    _, token = elsewhere.make("first")
    await found(tokens, token)
    with contextlib.closing(sqlite3.connect(":memory:")) as copy:
        with contextlib.closing(sqlite3.connect(elsewhere.path)) as file:
            file.backup(copy)
        _, second = elsewhere.make("second")
        principal = await found(tokens, second)
        with contextlib.closing(sqlite3.connect(elsewhere.path)) as file:
            copy.backup(file)
    await eventually(lambda: principal.over, SECOND)
    assert tokens.known(second) is None
    assert not (await found(tokens, token)).over


async def test_what_cannot_be_read_counts_for_a_while_and_then_no_more(
    tokens: TokenList,
    elsewhere: Elsewhere,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(module, "TRUSTED_SECONDS", 1.0)
    _, token = elsewhere.make()
    principal = await found(tokens, token)
    elsewhere.path.chmod(0o644)
    with pytest.raises(TokensUnavailable):
        await tokens.identify("kk_" + "0" * 64)
    assert tokens.known(token) is principal
    assert not principal.over
    await eventually(lambda: principal.over)
    assert tokens.known(token) is None
    with pytest.raises(TokensUnavailable):
        await tokens.identify(token)
    elsewhere.path.chmod(0o600)
    assert not (await found(tokens, token)).over
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "is open to others" in line]) == 1
    assert lines[-1] == "the list of tokens can be read again"


async def test_a_lock_of_another_process_ends_no_token(
    tokens: TokenList, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_file, "LOCK_SECONDS", 0.1)
    _, token = elsewhere.make()
    principal = await found(tokens, token)
    with contextlib.closing(sqlite3.connect(elsewhere.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TokensUnavailable):
            await tokens.create(wanted("second"))
        assert tokens.known(token) is principal
        other.execute("ROLLBACK")
    assert (await tokens.create(wanted("second")))[0].name == "second"
    assert not principal.over


async def test_a_disk_that_does_not_answer_keeps_no_token_from_expiring(
    tokens: TokenList, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.2)
    answers = threading.Event()
    _, token = elsewhere.make(expires=time.time() + 0.6)
    principal = await found(tokens, token)
    monkeypatch.setattr(tokens, "_read", lambda: answers.wait(30) and module._Seen([]))
    try:
        with pytest.raises(TokensUnavailable):
            await tokens.identify("kk_" + "0" * 64)
        with pytest.raises(TokensUnavailable):
            await tokens.create(wanted("second"))
        await eventually(lambda: principal.over, 0.6 + SECOND)
    finally:
        answers.set()


@pytest.mark.parametrize(
    ("column", "value"), [("scopes", '["kernels:dance","kernels:read"]'), ("owner", "a/b")]
)
async def test_a_token_that_is_not_understood_allows_nothing(
    tokens: TokenList, elsewhere: Elsewhere, column: str, value: str
) -> None:
    _, token = elsewhere.make()
    with contextlib.closing(sqlite3.connect(elsewhere.path)) as file, file:
        file.execute(f"UPDATE token SET {column} = ?", (value,))
    assert list((await found(tokens, token)).scopes) == []


async def test_a_change_that_takes_longer_than_its_caller_waits_is_known_here(
    tokens: TokenList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, token = await tokens.create(wanted("laptop"))
    principal = await found(tokens, token)
    begun, go = threading.Event(), threading.Event()
    revoke = TokenStore.revoke

    def slow(self: TokenStore, *arguments: Any) -> list[TokenRecord]:
        begun.set()
        assert go.wait(20)
        return revoke(self, *arguments)

    monkeypatch.setattr(TokenStore, "revoke", slow)
    changing = asyncio.create_task(tokens.revoke([record.id]))
    await asyncio.to_thread(begun.wait, 20)
    changing.cancel()
    await asyncio.wait({changing})
    assert not principal.ended
    go.set()
    await eventually(lambda: principal.ended)
    assert tokens.records() == []


async def test_tokens_count_again_when_a_disk_that_has_hung_for_long_answers(
    tokens: TokenList, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TRUSTED_SECONDS", 0.1)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    _, token = elsewhere.make()
    principal = await found(tokens, token)
    answers, key = threading.Event(), TokenFile.key

    def hang(self: TokenFile) -> object:
        assert answers.wait(20)
        return key(self)

    monkeypatch.setattr(TokenFile, "key", hang)
    await eventually(lambda: principal.over)
    answers.set()
    assert not (await found(tokens, token)).over
