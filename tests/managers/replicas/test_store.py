"""The shared registry: what is stored comes back; a write of an earlier term changes nothing."""

from __future__ import annotations

import asyncio
import os
import secrets
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from app.managers.handover.store import ExecutionRecord, KernelRecord, UnusableRegistry
from app.managers.log.places import Places
from app.managers.processes.hosts.authority import Signer, certificates, new_authority
from app.managers.replicas import member as member_module
from app.managers.replicas import membership
from app.managers.replicas.database import Database
from app.managers.replicas.directory import Directory
from app.managers.replicas.lease import Lease, Standing
from app.managers.replicas.member import Member as Living
from app.managers.replicas.membership import (
    Replica,
    Taken,
    beat,
    declare_dead,
    forget_gone,
    gone,
    join,
    leave,
    mine,
    release,
    take,
)
from app.managers.replicas.store import SharedStore
from app.managers.replicas.terms import Terms
from app.managers.state import Restarts
from app.protocol.messages import MAX_ID_BYTES
from tests.managers.handover.test_registry import record
from tests.support.processes import eventually


class Member:
    """One replica of a registry."""

    def __init__(self, database: Database, name: str, seconds: float = 60.0) -> None:
        self.database = database
        self.terms = Terms()
        self.fenced: list[tuple[str, int]] = []
        self.taken: dict[str, Taken] = {}
        self.replica = Replica(f"id-{name}", name, f"unix:host:{name}", "0", "digest")
        self.store = SharedStore(
            *(database, self.replica.id, self.terms, lambda _: "here"),
            lambda kernel_id, term: self.fenced.append((kernel_id, term)),
        )
        self.join(seconds)

    def join(self, seconds: float = 60.0) -> None:
        self.database.run(lambda one: join(one, self.replica, seconds, replaces=[]))

    def save(self, kernel: KernelRecord) -> None:
        self.terms.begin(kernel.id)
        self.store.save(kernel)

    def take(self, at_most: int = 100, keepers: tuple[str, ...] = ("here",)) -> list[KernelRecord]:
        self.database.run(lambda one: take(one, self.replica.id, keepers, at_most))
        found, _ = self.database.run(lambda one: mine(one, self.replica.id, [*self.terms]))
        for taken in found:
            self.terms.take(taken.record.id, taken.term)
            self.taken[taken.record.id] = taken
        return [taken.record for taken in found]


@pytest.fixture
def first(database: Database) -> Member:
    return Member(database, "first")


@pytest.fixture
def second(database: Database, first: Member) -> Member:
    return Member(database, "second")


def test_what_is_stored_comes_back_to_whoever_takes_it(first: Member, second: Member) -> None:
    restarts = Restarts(3, "2026-11-22T14:49:48.797413Z", "exited with code 3")
    first.save(record("b", created=9.0, pid=None, restarts=restarts))
    env = {"NUL": "\0", "PATH": os.fsdecode(b"/no/utf-8/\xff")}
    first.save(record("a", env=env))
    first.store.touch([("a", 7.5, "busy", b"{}"), ("gone", 1.0, "idle", b"{}")])
    first.store.save_executions([ExecutionRecord("a", e, n, b"x") for n, e in enumerate("pqr")], [])
    first.store.save_executions([ExecutionRecord("a", "p", 9, b"y")], [("a", "q")])
    assert second.take() == []
    first.database.run(lambda one: leave(one, first.replica.id))
    expected = record("a", env=env, last_activity=7.5, execution_state="busy")
    assert second.take() == [expected, record("b", created=9.0, pid=None, restarts=restarts)]
    for executions in (second.store.load_executions("a"), second.taken["a"].executions):
        assert executions is not None
        assert [msgspec.structs.astuple(one) for one in executions] == [
            ("a", "r", 2, b"x"),
            ("a", "p", 9, b"y"),
        ]
    assert second.store.load_executions("b") == second.taken["b"].executions == []


def test_executions_that_are_too_much_to_be_read_at_once_are_left_to_the_adoptions(
    first: Member, second: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica renews its lease by the connection that reads them, within a bound for both."""
    monkeypatch.setattr(membership, "READ_BYTES", 1000)
    sizes = {"a": 2000, "b": 500, "c": 400, "d": 0, "e": 300}
    for number, (kernel_id, size) in enumerate(sizes.items()):
        first.save(record(kernel_id, created=float(number)))
        parts = [ExecutionRecord(kernel_id, str(n), n, bytes(size // 2)) for n in range(2)]
        first.store.save_executions(parts if size else [], [])
    first.database.run(lambda one: leave(one, first.replica.id))
    assert [one.id for one in second.take()] == [*sizes]
    read = {kernel_id: taken.executions for kernel_id, taken in second.taken.items()}
    assert read["a"] is read["b"] is None
    assert read["d"] == []
    for kernel_id in ("c", "e"):
        assert read[kernel_id] == second.store.load_executions(kernel_id)
        assert len(read[kernel_id] or ()) == 2
    assert len(second.store.load_executions("a")) == 2


def test_the_longest_id_that_a_client_may_choose_is_stored(first: Member) -> None:
    longest = secrets.token_hex(MAX_ID_BYTES // 2)
    first.save(record("a"))
    first.store.save_executions([ExecutionRecord("a", longest, 1, b"x")], [])
    assert [one.id for one in first.store.load_executions("a")] == [longest]


def test_a_write_of_an_earlier_term_changes_nothing_and_is_reported(
    first: Member, second: Member
) -> None:
    first.save(record("a"))
    first.database.run(lambda one: leave(one, first.replica.id))
    second.take()
    first.join()  # it may be there again, and still believe that the kernel is its own
    first.save(record("a", reason="mine"))
    first.store.save_executions([ExecutionRecord("a", "e", 1, b"x")], [])
    first.store.touch([("a", 99.0, "busy", b"{}")])
    first.store.delete("a")
    assert first.fenced == 2 * [("a", first.terms.of("a"))]
    assert second.store.load_executions("a") == []
    second.store.save(record("a", reason="no, mine"))
    second.store.save_executions([ExecutionRecord("a", "e", 1, b"y")], [])
    assert second.fenced == []
    assert [one.data for one in second.store.load_executions("a")] == [b"y"]


def test_a_write_that_comes_late_is_of_the_term_in_which_it_was_asked_for(
    first: Member, second: Member
) -> None:
    first.save(record("a"))
    asked_for, term = first.store.at(first.terms.now()), first.terms.of("a")
    first.store.save_executions([ExecutionRecord("a", "e", 1, b"old")], [])
    for loser, winner in ((first, second), (second, first)):
        loser.database.run(lambda one, id=loser.replica.id: leave(one, id))  # type: ignore[misc]
        loser.terms.drop("a")
        loser.join()
        winner.take()
    assert first.terms.of("a") > term
    first.store.save_executions([ExecutionRecord("a", "e", 1, b"new")], [])
    asked_for.save_executions([ExecutionRecord("a", "e", 1, b"old")], [])
    asked_for.save_executions([], [("a", "e")])
    asked_for.save(record("a", reason="old"))
    asked_for.delete("a")
    assert first.fenced == 3 * [("a", term)]
    assert [one.data for one in first.store.load_executions("a")] == [b"new"]


def test_a_replica_that_was_declared_dead_brings_no_kernel_back(
    first: Member, second: Member
) -> None:
    first.save(record("a"))
    first.database.run(lambda one: leave(one, first.replica.id))
    second.take()
    second.store.delete("a")
    first.save(record("a"))
    assert first.fenced == [("a", first.terms.of("a"))]
    assert second.take() == []
    first.join()
    first.terms.drop("a")
    first.store.save(record("a"))
    assert first.fenced[1:] == [("a", 0)]


def test_executions_may_be_stored_before_their_kernel(first: Member) -> None:
    first.store.save_executions([ExecutionRecord("a", "e", 1, b"x")], [])
    first.save(record("a"))
    assert [one.id for one in first.store.load_executions("a")] == ["e"]
    assert first.fenced == []


def test_places_of_clients_are_read_by_whoever_takes_the_kernel(
    first: Member, second: Member, database: Database
) -> None:
    first.terms.begin("a")
    before, later = Places("a", "epoch", b"1"), Places("a", "epoch", b"2")
    first.store.save_places([before])  # it may be stored before the kernel is
    first.save(record("a"))
    first.store.save_places([later, Places("b", "epoch", b"not this replica's")])
    assert first.store.load_places("a") == later
    assert first.store.load_places("b") is None
    first.database.run(lambda one: leave(one, first.replica.id))
    second.take()
    assert second.taken["a"].places == later
    first.store.save_places([before])  # it wakes up
    assert first.fenced == [("a", first.terms.of("a"))]
    assert second.store.load_places("a") == later
    second.store.delete("a")
    assert second.store.load_places("a") is None
    # Places of no kernel are removed when they are a day old and a replica comes.
    second.store.save_places([later])
    aged = "UPDATE kernelkeep.places SET noted = noted - interval '2 days'"
    database.run(lambda one: one.execute(aged))
    first.join()
    assert second.store.load_places("a") is None


def test_a_replica_whose_lease_has_ended_loses_its_kernels_unless_it_renews_first(
    first: Member, second: Member
) -> None:
    first.save(record("a"))
    first.database.run(lambda one: beat(one, first.replica.id, -1.0))
    assert first.database.run(lambda one: beat(one, first.replica.id, 60.0))
    assert second.database.run(lambda one: declare_dead(one, second.replica.id)) == []
    first.database.run(lambda one: beat(one, first.replica.id, -1.0))
    assert second.database.run(lambda one: declare_dead(one, second.replica.id)) == ["first"]
    assert not first.database.run(lambda one: beat(one, first.replica.id, 60.0))
    assert [one.id for one in second.take()] == ["a"]


def test_kernels_are_spread_among_the_replicas_that_live(database: Database) -> None:
    dead, *living = [Member(database, name) for name in "abc"]
    for number in range(10):
        dead.save(record(f"k{number}"))
    database.run(lambda one: leave(one, dead.replica.id))
    taken = [len(member.take()) for member in (*living, *living, *living)]
    assert taken == [5, 3, 1, 1, 0, 0]


def test_only_kernels_whose_keepers_are_reached_are_taken(first: Member, second: Member) -> None:
    first.save(record("a"))
    first.database.run(lambda one: leave(one, first.replica.id))
    assert second.take(keepers=("elsewhere",)) == []
    assert [one.id for one in second.take()] == ["a"]


def test_a_replica_frees_some_of_its_kernels_and_has_the_others(
    first: Member, second: Member
) -> None:
    for kernel_id in ("a", "b", "c"):
        first.save(record(kernel_id))
    terms = {"a": first.terms.of("a"), "b": first.terms.of("b") - 1, "gone": 1}
    first.database.run(lambda one: release(one, first.replica.id, terms))
    first.database.run(lambda one: release(one, second.replica.id, {"c": first.terms.of("c")}))
    assert [one.id for one in second.take()] == ["a"]
    first.store.save(record("a"))
    first.store.save(record("b"))
    assert [kernel_id for kernel_id, _ in first.fenced] == ["a"]
    # Asked twice, as when an answer is lost.
    first.database.run(lambda one: release(one, first.replica.id, terms))
    assert first.take() == []


async def test_a_replica_that_ends_takes_no_kernel_and_frees_what_it_is_just_taking(
    database: Database, url: str, first: Member
) -> None:
    first.save(record("a"))
    first.save(record("b"))
    replica = Replica("id-ends", "ends", "unix:host:ends", "0", "digest")
    member = Living(url, replica, Lease(60.0), Terms(), ["here"])
    taken: list[str] = []
    member.on_taken = lambda found: taken.extend(one.record.id for one in found)
    await member.join()
    term = first.terms.of("a")
    first.database.run(lambda one: release(one, first.replica.id, {"a": term}))
    taking = asyncio.create_task(member.begin())
    await asyncio.sleep(0)  # it has asked, and the answer comes in a later turn of the loop
    member.take_no_more()
    await taking

    def owners() -> list[tuple[str, str | None, int]]:
        asked = "SELECT id, replica, term FROM kernelkeep.kernel ORDER BY id"
        return database.run(lambda one: one.execute(asked).fetchall())

    later = first.terms.of("b")
    assert owners() == [("a", None, term + 1), ("b", "id-first", later)]
    first.database.run(lambda one: release(one, first.replica.id, {"b": later}))
    await member._take()
    assert taken == []
    await member.close()
    assert owners() == [("a", None, term + 1), ("b", None, later)]


async def test_a_record_that_makes_no_sense_keeps_no_other_kernel_from_being_adopted(
    database: Database, url: str, first: Member, caplog: pytest.LogCaptureFixture
) -> None:
    """A later version may have written it."""
    for kernel_id in "abc":
        first.save(record(kernel_id))
    change = "UPDATE kernelkeep.kernel SET record = replace(record, '\"generation\":1', %s)"
    database.run(lambda one: one.execute(f"{change} WHERE id = 'b'".encode(), ('"generation":[]',)))
    replica = Replica("id-takes", "takes", "unix:host:takes", "0", "digest")
    member = Living(url, replica, Lease(60.0), Terms(), ["here"])
    await member.join()
    database.run(lambda one: leave(one, first.replica.id))
    taken: list[str] = []
    member.on_taken = lambda found: taken.extend(one.record.id for one in found)
    for _ in range(3):
        await member._take()
    assert taken == ["a", "c"]
    assert caplog.text.count("kernel b is left alone: its record makes no sense") == 1
    await member.close()


async def test_a_lease_is_renewed_while_many_kernels_are_taken(
    url: str, first: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take longer than the lease."""
    monkeypatch.setattr(member_module, "AT_ONCE", 1)
    monkeypatch.setattr(member_module, "SPREAD_SECONDS", 0.0)
    for number in range(20):
        first.save(record(f"k{number}"))
    replica = Replica("id-takes", "takes", "unix:host:takes", "0", "digest")
    member = Living(url, replica, Lease(10.0), Terms(), ["here"])
    await member.join()
    first.database.run(lambda one: leave(one, first.replica.id))
    began = member._loop.time()
    taken: list[str] = []
    member.on_taken = lambda found: taken.extend(one.record.id for one in found)
    # Each kernel takes a second.
    clock: Any = SimpleNamespace(time=lambda: began + len(taken))
    monkeypatch.setattr(member, "_loop", clock)
    await member._take()
    assert len(taken) == 20
    assert member.standing is Standing.GOOD
    await member.close()


async def test_a_kernel_that_is_freed_wakes_the_replicas(
    database: Database, url: str, first: Member
) -> None:
    first.save(record("a"))
    woken = asyncio.Event()
    directory = Directory(url, woken.set)
    await directory.begin()
    try:
        await eventually(lambda: "a" in directory.kernels, 30)
        woken.clear()
        terms = {"a": first.terms.of("a")}
        await asyncio.to_thread(database.run, lambda one: release(one, first.replica.id, terms))
        await asyncio.wait_for(woken.wait(), 30)
        assert directory.kernels["a"].replica is None
    finally:
        await directory.close()


def other(
    name: str,
    host: str = "host",
    dial: str = "",
    secret: str = "digest",
    certificates: str = "",
) -> Replica:
    return Replica("other", name, f"unix:{host}:x", "0", secret, dial, certificates)


def test_a_name_and_a_token_are_checked(database: Database, first: Member) -> None:
    same_name = other("first")
    with pytest.raises(UnusableRegistry, match="has the name first"):
        database.run(lambda one: join(one, same_name, 60.0, replaces=[]))
    with pytest.raises(UnusableRegistry, match="another token"):
        database.run(lambda one: join(one, other("second", secret="x"), 60.0, replaces=[]))
    first.save(record("a"))
    # The process before is known to have ended: its kernels are free at once.
    database.run(lambda one: join(one, same_name, 60.0, replaces=["first"]))
    assert database.run(lambda one: take(one, "other", ["here"], 9)) == (1, 0)


def test_replicas_of_several_hosts_have_to_listen_for_each_other(database: Database) -> None:
    """Also that of one name on another host: nobody knows that it has ended."""

    def refusal(*replica: str) -> str:
        with pytest.raises(UnusableRegistry) as refused:
            database.run(lambda one: join(one, other(*replica), 60.0, replaces=[replica[0]]))
        return str(refused.value)

    deaf = Member(database, "first")
    assert "started without replica_listen" in refusal("second", "elsewhere", "192.0.2.1:8889")
    assert "it takes replica_listen" in refusal("second", "elsewhere")
    database.run(lambda one: leave(one, deaf.replica.id))
    dialled = other("first", "elsewhere", "192.0.2.1:8889")
    database.run(lambda one: join(one, dialled, 60.0, replaces=["first"]))
    listening = Replica("id-2", "first", "unix:host:y", "0", "digest", "192.0.2.2:8889")
    with pytest.raises(UnusableRegistry, match="has the name first"):
        database.run(lambda one: join(one, listening, 60.0, replaces=["first"]))
    database.run(lambda one: beat(one, "other", -1.0))
    database.run(lambda one: join(one, listening, 60.0, replaces=["first"]))
    assert database.run(lambda one: gone(one, "elsewhere")) == ["other"]


def test_replicas_of_several_hosts_have_to_take_each_others_certificates(
    database: Database,
) -> None:
    ours, theirs = Signer(new_authority()), Signer(new_authority())

    def joins(host: str, certificates: str) -> bool:
        """Whether a replica may join, which leaves then."""
        replica = other("second", host, "192.0.2.2:1", certificates=certificates)
        try:
            database.run(lambda one: join(one, replica, 60.0, replaces=[]))
        except UnusableRegistry as error:
            (line,) = str(error).splitlines()
            assert line == (
                "replica first of the registry and this one do not take each other's certificates: "
                "the same authority has to vouch for both (replica_certificate)"
            )
            return False
        database.run(lambda one: leave(one, "other"))
        return True

    def of(signer: Signer, *trusted: Signer) -> str:
        return "".join([*certificates(signer.issue_replica("x")), *(one.own for one in trusted)])

    old = of(ours, ours)
    first = Replica("id-1", "first", "unix:host:y", "0", "digest", "192.0.2.1:1", old)
    database.run(lambda one: join(one, first, 60.0, replaces=[]))
    assert joins("elsewhere", of(ours, ours))
    assert not joins("elsewhere", of(theirs, theirs))
    # What takes the other one and is not taken, or is taken and does not take.
    assert not joins("elsewhere", of(theirs, ours, theirs))
    assert not joins("elsewhere", of(ours, theirs))
    assert joins("elsewhere", of(ours, ours, theirs))
    # Those of a host need none; one of the version before does not tell which it has.
    assert joins("host", of(theirs, theirs))
    assert joins("elsewhere", "")


def test_those_of_its_host_that_are_gone_are_known_to_a_replica_until_it_has_seen_to_them(
    first: Member, second: Member
) -> None:
    database = first.database
    first.database.run(lambda one: leave(one, first.replica.id))
    database.run(lambda one: beat(one, second.replica.id, -1.0))
    database.run(lambda one: declare_dead(one, "another"))
    assert {*database.run(lambda one: gone(one, "host"))} == {"id-first", "id-second"}
    assert database.run(lambda one: gone(one, "elsewhere")) == []
    second.join()  # it was only stopped: what it starts is its own
    assert database.run(lambda one: gone(one, "host")) == ["id-first"]
    database.run(lambda one: forget_gone(one, ["id-first"]))
    assert database.run(lambda one: gone(one, "host")) == []


async def test_a_replica_whose_name_another_host_has_taken_meanwhile_says_so_once(
    database: Database, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    replica = Replica("id-near", "one", "unix:near:1", "0", "digest", "192.0.2.1:1")
    member = Living(url, replica, Lease(1.0), Terms(), [])
    lost: list[None] = []
    member.on_lost = lambda: lost.append(None)
    await member.join()
    database.run(lambda one: beat(one, "id-near", -1.0))
    database.run(lambda one: join(one, other("one", "far", "192.0.2.2:1"), 60.0, replaces=[]))
    await member.begin()
    await eventually(lambda: "may not join the others again" in caplog.text, 30)
    assert member.is_away
    database.run(lambda one: leave(one, "other"))
    await eventually(lambda: not member.is_away, 30)
    assert caplog.text.count("may not join the others again") == 1
    assert len(lost) == 1
    await member.close()


def test_a_replica_that_is_not_there_takes_nothing(first: Member, database: Database) -> None:
    first.save(record("a"))
    database.run(lambda one: leave(one, first.replica.id))
    assert first.take() == []
