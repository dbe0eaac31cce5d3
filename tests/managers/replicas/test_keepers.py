"""Keepers that dial in to several replicas: who lets them in, where they are sent, who has them.

The replicas are in this process, with a real registry; keepers are real, with fake kernels. These
are the tests of what `app.keeper.dialling` and `app.managers.processes.hosts.joining` do with
several replicas, too.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from app.managers.errors import KeeperUnavailable
from app.managers.processes.hosts.authority import Credential
from app.managers.processes.hosts.invitations import Refused
from app.managers.processes.keeper.link import KeeperRefuses
from app.managers.replicas.database import Database
from app.managers.replicas.lease import Standing
from tests.keeper.conftest import WAIT, Client
from tests.support.home import Home
from tests.support.joined import resume, speak, start_keeper
from tests.support.joined_replicas import JoinedReplica
from tests.support.processes import eventually

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    for left in home.processes():
        left.kill()
    home.remove()


@pytest.fixture
async def start(home: Home) -> AsyncIterator[Start]:
    """``start(document)``: a keeper that joins; it is killed in the end if it is there."""
    started: list[subprocess.Popen[bytes]] = []

    def start(document: bytes) -> subprocess.Popen[bytes]:
        process = start_keeper(document, env=home.environment(), stderr=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        await asyncio.to_thread(process.communicate)


@pytest.fixture
async def first(database: Database, home: Home) -> AsyncIterator[JoinedReplica]:
    async with JoinedReplica(database.url, "first", home.path / "one") as replica:
        yield replica


@pytest.fixture
async def second(
    database: Database, home: Home, first: JoinedReplica
) -> AsyncIterator[JoinedReplica]:
    async with JoinedReplica(database.url, "second", home.path / "two") as replica:
        await eventually(lambda: len(first.directory.agents) == 2, WAIT)
        yield replica


@pytest.fixture
def kernel_id() -> str:
    return str(uuid.uuid4())


async def knows(replica: JoinedReplica, kernel_id: str, owner: str) -> None:
    """Return when a replica has heard whose a kernel is."""

    def has_heard() -> bool:
        kernel = replica.directory.kernels.get(kernel_id)
        return kernel is not None and kernel.replica == owner

    await eventually(has_heard, WAIT)


async def takes(replica: JoinedReplica, kernel_id: str) -> None:
    """Return when a replica has a kernel of one that has ended."""
    replica.member.wake()
    await eventually(lambda: replica.terms.of(kernel_id), WAIT)
    await knows(replica, kernel_id, replica.name)


async def refusal(replica: JoinedReplica, keeper_id: str, secret: str, nonce: str) -> str:
    """The code with which a replica refuses somebody who shows a secret; empty if it does not."""
    try:
        await replica.keepers.join(keeper_id, secret, nonce)
    except Refused as refused:
        return refused.code
    return ""


async def test_a_secret_works_once_whichever_replica_it_is_shown(
    first: JoinedReplica, second: JoinedReplica, kernel_id: str
) -> None:
    await first.start(kernel_id)
    keeper_id = f"{kernel_id}.1"
    credential, secret = await first.keepers.invite(keeper_id, 60)
    shown = [
        refusal(replica, keeper_id, secret, f"{number}")
        for number in range(4)
        for replica in (first, second)
    ]
    codes = await asyncio.gather(*shown)
    # The one that was first may show it to both: its answer may have been lost.
    assert sorted(codes) == ["", "", *["join_secret_used"] * 6]
    assert await refusal(second, keeper_id, "another", "n") == "join_secret_unknown"
    assert await refusal(second, f"{kernel_id}.2", secret, "n") == "join_secret_unknown"
    await second.keepers.check(credential)
    # It has its certificate now.
    assert {await refusal(first, keeper_id, secret, str(n)) for n in range(4)} == {
        "join_secret_used"
    }
    late, secret = await first.keepers.invite(keeper_id, 0)
    assert late.generation == credential.generation + 1
    assert await refusal(second, keeper_id, secret, "n") == "join_secret_expired"
    with pytest.raises(Refused, match="in its place") as refused:
        await second.keepers.check(credential)
    assert refused.value.ends


async def test_only_the_owner_of_a_kernel_invites_and_forgets_its_keepers(
    first: JoinedReplica, second: JoinedReplica, kernel_id: str
) -> None:
    await first.start(kernel_id)
    keeper_id = f"{kernel_id}.1"
    credential, _ = await first.keepers.invite(keeper_id, 60)
    await first.save(kernel_id)
    second.terms.take(kernel_id, first.terms.of(kernel_id))  # as it wrongly believes
    for term in (first.terms.of(kernel_id), 0):
        second.terms.take(kernel_id, term)
        with pytest.raises(OSError, match="not this replica's any more"):
            await second.keepers.invite(keeper_id, 60)
        await second.keepers.forget(keeper_id)
    await second.keepers.check(credential)
    assert await second.keepers.generations([keeper_id, "x.1"]) == {keeper_id: credential[1]}
    await first.keepers.forget(keeper_id)
    with pytest.raises(Refused, match="nobody needs") as refused:
        await second.keepers.check(credential)
    assert refused.value.ends
    with pytest.raises(ValueError, match="the id of a keeper"):
        await first.keepers.invite("../x", 60)


async def test_whose_a_kernel_is_the_registry_tells_behind_the_end_of_a_lease(
    first: JoinedReplica,
    second: JoinedReplica,
    kernel_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await first.keepers.check_own(kernel_id)  # nobody's
    await first.start(kernel_id)
    await first.keepers.check_own(kernel_id)
    monkeypatch.setattr(type(first.member), "standing", Standing.OVER)
    await first.keepers.check_own(kernel_id)  # no other can have it
    await first.save(kernel_id)
    await first.keepers.check_own(kernel_id)
    for term in (first.terms.of(kernel_id), 0):
        second.terms.take(kernel_id, term)
        with pytest.raises(KeeperUnavailable, match="another replica has the kernel"):
            await second.keepers.check_own(kernel_id)
    assert await first.keepers.name() == await second.keepers.name()
    await asyncio.to_thread(first.keepers._database.close)
    with pytest.raises(KeeperUnavailable, match="the registry is away"):
        await first.keepers.check_own(kernel_id)


async def test_what_a_replica_has_let_in_it_lets_in_while_the_registry_is_away(
    first: JoinedReplica, kernel_id: str
) -> None:
    await first.start(kernel_id)
    keeper_id = f"{kernel_id}.1"
    credential, secret = await first.keepers.invite(keeper_id, 60)
    await first.keepers.check(credential)
    await asyncio.to_thread(first.keepers._database.close)
    await first.keepers.check(credential)
    for unknown in (Credential(keeper_id, credential.generation - 1), Credential("x.1", 1)):
        with pytest.raises(OSError, match="the registry is away"):
            await first.keepers.check(unknown)
    for asked in (
        first.keepers.join(keeper_id, secret, "n"),
        first.keepers.invite(keeper_id, 60),
        first.keepers.forget(keeper_id),
    ):
        with pytest.raises(OSError, match="the registry is away"):
            await asked
    with pytest.raises(KeeperUnavailable, match="not known"):
        await first.keepers.generations([keeper_id])
    with pytest.raises(KeeperUnavailable, match="no name yet"):
        await first.keepers.name()


async def test_what_could_not_be_forgotten_is_when_something_is_asked_next(
    first: JoinedReplica, second: JoinedReplica, kernel_id: str
) -> None:
    await first.start(kernel_id)
    keeper_id = f"{kernel_id}.1"
    await first.keepers.invite(keeper_id, 60)
    first.keepers._late.add(keeper_id)  # as a registry that was away leaves it
    assert await first.keepers.generations([keeper_id]) == {}
    assert not first.keepers._late
    # A question that waits for the thread forgets those of the moment at which it was asked.
    credential, _ = await first.keepers.invite(keeper_id, 60)
    go_on = threading.Event()
    first.keepers._thread.submit(go_on.wait)
    asked = asyncio.create_task(first.keepers.generations([keeper_id]))
    await asyncio.sleep(0)
    first.keepers._late.add(keeper_id)
    go_on.set()
    assert await asked == {keeper_id: credential.generation}


async def test_keepers_of_kernels_that_a_dead_replica_has_never_stored_are_forgotten(
    first: JoinedReplica, second: JoinedReplica, kernel_id: str, start: Start
) -> None:
    await first.start(kernel_id)
    keeper_id = f"{kernel_id}.1"
    invitation = await first.service.joining.invite(keeper_id)
    process = start(invitation.document)
    await first.service.keeper(keeper_id).connect()
    await first.die()
    async with JoinedReplica(first._url, "third", first._files.parent):
        _, said = await asyncio.to_thread(process.communicate, timeout=WAIT)
    assert b"keeper_forgotten" in said
    assert process.returncode == 3


async def test_a_keeper_that_dials_another_replica_is_sent_to_its_own(
    first: JoinedReplica, second: JoinedReplica, kernel_id: str, start: Start
) -> None:
    await first.start(kernel_id)
    keeper_id = f"{kernel_id}.1"
    document = json.loads((await first.service.joining.invite(keeper_id)).document)
    assert document["addresses"] == [first.address, second.address]
    document["addresses"].reverse()
    process = start(json.dumps(document).encode())
    keeper = first.service.keeper(keeper_id)
    await keeper.connect()
    assert keeper.pid == process.pid
    assert not second.service.joining.has_come(keeper_id)
    # With its certificate, and a kernel that is stored, it is the same.
    await first.save(kernel_id)
    await knows(second, kernel_id, "first")
    link = keeper._connection.link
    assert link is not None
    link.abort()
    keeper.connect_soon()
    await eventually(lambda: keeper._connection.open_link not in (None, link), WAIT)


async def test_a_keeper_is_sent_to_no_address_that_replicas_have_in_common(
    first: JoinedReplica, second: JoinedReplica, kernel_id: str
) -> None:
    await first.start(kernel_id)
    keeper_id = f"{kernel_id}.1"
    credential, _ = await first.keepers.invite(keeper_id, 60)
    await second.keepers.check(credential)
    assert second.keepers.having(keeper_id) == [first.address]
    both = "balancer.invalid:8890"
    second.directory.agents = {
        "first": [first.address, both],
        "second": [second.address, both],
    }
    assert second.keepers.having(keeper_id) == [first.address]
    assert both in second.keepers.addresses
    assert first.keepers.having(keeper_id) == ()
    second.directory.agents = {}
    assert [*second.keepers.having(keeper_id)] == []
    assert second.keepers.having("nobodys.1") == ()


async def test_a_keeper_is_told_the_addresses_of_replicas_that_come_later(
    first: JoinedReplica, kernel_id: str, start: Start, home: Home
) -> None:
    await first.start(kernel_id)
    keeper_id = f"{kernel_id}.1"
    process = start((await first.service.joining.invite(keeper_id)).document)
    keeper = first.service.keeper(keeper_id)
    await keeper.connect()
    await first.save(kernel_id)
    async with JoinedReplica(first._url, "second", home.path / "two") as second:
        await eventually(lambda: second.address in first.service.joining._known, WAIT)
        await keeper.kept()  # the keeper has read what came before
        await first.die()
        await takes(second, kernel_id)
        keeper = second.service.keeper(keeper_id)
        await keeper.connect()
        assert keeper.pid == process.pid


async def test_a_kernel_goes_on_with_another_replica_and_nothing_is_lost_or_repeated(
    first: JoinedReplica, second: JoinedReplica, kernel_id: str, start: Start, home: Home
) -> None:
    await first.start(kernel_id)
    keeper_id = f"{kernel_id}.1"
    process = start((await first.service.joining.invite(keeper_id)).document)
    keeper = first.service.keeper(keeper_id)
    traffic = await speak(keeper, home, kernel_id)
    await first.save(kernel_id)
    client = Client(traffic)
    await client.ran("append done once")
    client.run("flood 400 20000")
    await eventually(lambda: client.text("") >= 50, WAIT)
    record = (await keeper.kept())[kernel_id]
    info, epoch = traffic._line.info, traffic._line.epoch
    assert info is not None
    said = words(client)
    await first.die()
    await takes(second, kernel_id)
    again = second.service.keeper(keeper_id)
    assert await again.adopt(kernel_id, record.pid, record.start_time, Path(record.output))
    assert again.pid == process.pid
    # The mirror of the new owner begins empty.
    resumed = await resume(again, second.service.directory / "mirrors", kernel_id, info)
    assert resumed._line.epoch == epoch
    client = Client(resumed, client.reader.position)
    await client.ran("append done twice")
    assert (home.root_dir / "done").read_text() == "once\ntwice\n"
    assert 50 <= len(said) < 400
    assert said + words(client) == [str(number) for number in range(1, 401)]
    assert client.gaps == []


def words(client: Client) -> list[str]:
    """The first word of each output that a client has got."""
    return [
        json.loads(bytes(entry.message.part(3)))["text"].split()[0]
        for entry in client.look()
        if entry.message.msg_type == "stream"
    ]


async def test_a_replica_that_wakes_up_is_refused_by_the_keeper(
    first: JoinedReplica,
    second: JoinedReplica,
    kernel_id: str,
    start: Start,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The registry would refuse it, too: here it lets the keeper in once more."""
    await first.start(kernel_id)
    keeper_id = f"{kernel_id}.1"
    start((await first.service.joining.invite(keeper_id)).document)
    keeper = first.service.keeper(keeper_id)
    fenced: list[str] = []
    keeper.on_fenced = fenced.append
    await speak(keeper, home, kernel_id)
    term = first.terms.of(kernel_id)
    second.terms.take(kernel_id, term + 1)
    monkeypatch.setattr(first.keepers, "having", lambda _: [second.address])
    monkeypatch.setattr(second.keepers, "having", lambda _: [])
    link = keeper._connection.link
    assert link is not None
    link.abort()
    other = second.service.keeper(keeper_id)
    await other.connect()
    assert (await other.kept())[kernel_id].exit_code is None
    await other.settle(kernel_id)
    monkeypatch.setattr(first.keepers, "having", lambda _: [])
    monkeypatch.setattr(second.keepers, "having", lambda _: [first.address])
    link = other._connection.link
    assert link is not None
    link.abort()
    await eventually(lambda: keeper.is_connected, WAIT)
    with pytest.raises(KeeperRefuses, match="another replica has kernel"):
        await keeper.settle(kernel_id)
    await eventually(lambda: kernel_id in fenced, WAIT)
    with pytest.raises(KeeperRefuses, match="another replica has kernel"):
        await keeper.end(kernel_id)
