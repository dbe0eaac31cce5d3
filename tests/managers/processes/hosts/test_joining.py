"""Keepers that dial in, and others who do: who is let in, who is sent away, and what that costs.

These are the tests of `app.managers.processes.hosts.listener`, too, and of
`app.managers.processes.hosts.joined_place`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.keeper.protocol import PROTOCOL, Fields, pack, receive
from app.managers.errors import KeeperUnavailable
from app.managers.processes.hosts import accepting, joined_place, joining, listener
from app.managers.processes.hosts.authority import Authority, Credential
from app.managers.processes.hosts.errors import (
    HostKeeperIncompatible,
    HostUnreachable,
    HostUnusable,
    KeepersNotHeard,
)
from app.managers.processes.hosts.joined_place import JoinedPlace
from app.managers.processes.hosts.joining import Joining
from app.managers.processes.keeper.remote import RemoteKeeper
from tests.support.joined import LOGS, JoinedService
from tests.support.processes import eventually
from tests.support.streams import aborted

WAIT = 30.0


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[JoinedService]:
    async with JoinedService(tmp_path / "service") as service:
        yield service


class Dialler:
    """Whoever dials in: what is said is the test's."""

    def __init__(self, service: JoinedService) -> None:
        self.service = service
        self.context = ssl.create_default_context(cadata=service.authority.trusted)
        self._writers: list[asyncio.StreamWriter] = []

    def show(self, pem: str, directory: Path) -> None:
        file = directory / "shown.pem"
        file.write_text(pem)
        self.context.load_cert_chain(file)

    def be_refused(self) -> ssl.SSLSocket:
        """Blocks; the connection's other half has not ended."""
        name = self.service.authority.server_name
        plain = socket.create_connection(("127.0.0.1", self.service.port), timeout=WAIT)
        connection = self.context.wrap_socket(plain, server_hostname=name)
        connection.sendall(pack({"join": 7}))
        assert b"refused" in connection.recv(4096)
        return connection

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.service.port,
            ssl=self.context,
            server_hostname=self.service.authority.server_name,
        )
        self._writers.append(writer)
        return reader, writer

    async def say(self, hello: Fields) -> Fields:
        """What the service answers to this."""
        reader, writer = await self.dial()
        writer.write(pack(hello))
        async with asyncio.timeout(WAIT):
            answer, _ = await receive(reader)
        return answer

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@pytest.fixture
async def dialler(service: JoinedService) -> AsyncIterator[Dialler]:
    dialler = Dialler(service)
    yield dialler
    dialler.close()


def hello_of(document: bytes, **more: Any) -> Fields:
    said = json.loads(document)
    who = {"keeper": said["keeper"], "secret": said["secret"], "nonce": "n"}
    return {"join": 1, **who, **more}


async def test_a_keeper_shows_its_secret_and_then_its_certificate(
    service: JoinedService, dialler: Dialler, tmp_path: Path
) -> None:
    invitation = await service.joining.invite("k")
    coming = asyncio.ensure_future(service.joining.arrived("k", "lab", WAIT))
    answer = await dialler.say(hello_of(invitation.document))
    first = await coming
    assert first.credential == ("k", invitation.generation)
    dialler.show(answer["credential"], tmp_path)
    coming = asyncio.ensure_future(service.joining.arrived("k", "lab", WAIT))
    answer = await dialler.say({"join": 1})
    assert answer["joined"] == 1
    assert (await coming).credential == first.credential
    # The connection before is of no use any more.
    assert first.is_gone


async def test_a_keeper_that_shows_its_secret_while_another_is_invited_does_not_take_its_place(
    service: JoinedService, dialler: Dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, goes_on = asyncio.Event(), asyncio.Event()
    book = service.joining._book
    join = book.join

    async def slow(keeper_id: str, secret: str, nonce: str) -> Credential:
        credential = await join(keeper_id, secret, nonce)
        shown.set()
        await goes_on.wait()
        return credential

    monkeypatch.setattr(book, "join", slow)
    first = await service.joining.invite("k")
    saying = asyncio.ensure_future(dialler.say(hello_of(first.document)))
    await shown.wait()
    await service.joining.invite("k")
    goes_on.set()
    answer = await saying
    assert (answer["refused"], answer["ends"]) == ("keeper_replaced", True)
    assert not service.joining.has_come("k")


@pytest.mark.parametrize(
    ("which", "code"),
    [
        ({"secret": "0" * 64}, "join_secret_unknown"),
        ({"keeper": "other"}, "join_secret_unknown"),
        ({"keeper": "nobody"}, "join_secret_unknown"),
        ({"join": 0}, "host_keeper_incompatible"),
        ({"join": 2}, "host_keeper_incompatible"),
    ],
)
async def test_who_may_not_come_is_told_why_and_leaves_a_line_in_the_log(
    service: JoinedService,
    dialler: Dialler,
    which: Fields,
    code: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    invitation = await service.joining.invite("k")
    await service.joining.invite("other")
    answer = await dialler.say(hello_of(invitation.document, **which))
    assert (answer["refused"], answer["ends"]) == (code, False)
    assert f"({code})" in caplog.text
    assert "127.0.0.1" in caplog.text
    assert json.loads(invitation.document)["secret"] not in caplog.text
    assert not service.joining.has_come("k")


async def test_a_secret_works_once(service: JoinedService, dialler: Dialler) -> None:
    invitation = await service.joining.invite("k")
    coming = asyncio.ensure_future(service.joining.arrived("k", "lab", WAIT))
    await dialler.say(hello_of(invitation.document))
    guest = await coming
    answer = await dialler.say(hello_of(invitation.document, nonce="another's"))
    assert answer["refused"] == "join_secret_used"
    assert not guest.is_gone


async def test_a_secret_expires(service: JoinedService, dialler: Dialler) -> None:
    invitation = await service.joining.invite("k", seconds=0)
    answer = await dialler.say(hello_of(invitation.document))
    assert answer["refused"] == "join_secret_expired"


async def test_a_certificate_of_another_authority_is_not_looked_at(
    service: JoinedService, dialler: Dialler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    invitation = await service.joining.invite("k")
    credential, _ = await service.joining._book.invite("x", 60)
    other = Authority(tmp_path / "other")
    dialler.show(other.issue(credential, 60), tmp_path)
    with pytest.raises((OSError, EOFError)):
        await dialler.say(hello_of(invitation.document))
    await eventually(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text, WAIT)


async def test_a_replicas_certificate_is_not_a_keepers(
    service: JoinedService, dialler: Dialler, tmp_path: Path
) -> None:
    invitation = await service.joining.invite("k")
    dialler.show(service.authority.issue_replica("one"), tmp_path)
    answer = await dialler.say(hello_of(invitation.document))
    assert (answer["refused"], answer["ends"]) == ("not_a_keeper", False)


async def test_a_keeper_of_an_earlier_generation_is_told_to_end(
    service: JoinedService, dialler: Dialler, tmp_path: Path
) -> None:
    invitation = await service.joining.invite("k")
    coming = asyncio.ensure_future(service.joining.arrived("k", "lab", WAIT))
    answer = await dialler.say(hello_of(invitation.document))
    guest = await coming
    dialler.show(answer["credential"], tmp_path)
    await service.joining.invite("k")
    assert guest.is_gone
    answer = await dialler.say({"join": 1})
    assert (answer["refused"], answer["ends"]) == ("keeper_replaced", True)
    await service.joining.forget("k")
    answer = await dialler.say({"join": 1})
    assert (answer["refused"], answer["ends"]) == ("keeper_forgotten", True)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        pack({}),
        pack({"join": "1"}),
        pack({"join": 1, "keeper": 7}),
        pack({"ask": "hello"}),
        b"\xff" * 8,
        pack({"join": 1, "nonce": "n" * 5000}),
        b"",
    ],
)
async def test_who_makes_no_sense_is_sent_away(
    service: JoinedService, dialler: Dialler, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await dialler.dial()
    writer.write(said)
    if not said:
        writer.transport.abort()
    else:
        async with asyncio.timeout(WAIT):
            await reader.read()
    await eventually(lambda: "was refused" in caplog.text, WAIT)
    assert "Traceback" not in caplog.text


async def test_who_speaks_no_tls_is_sent_away(
    service: JoinedService, caplog: pytest.LogCaptureFixture
) -> None:
    with aborted(await asyncio.open_connection("127.0.0.1", service.port)) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(WAIT):
            await reader.read()
    await eventually(lambda: "was refused" in caplog.text, WAIT)


async def test_who_says_nothing_has_its_time_and_no_more(
    service: JoinedService,
    dialler: Dialler,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(listener, "STRANGER_SECONDS", 1.0)  # in which a dialler ends its handshake
    with aborted(await asyncio.open_connection("127.0.0.1", service.port)) as (silent, _):
        reader, _ = await dialler.dial()
        async with asyncio.timeout(WAIT):
            await silent.read()
            assert await reader.read() == b""
    assert "has not shown who it is within 1 s" in caplog.text


async def test_strangers_are_bounded_and_keepers_come_in_when_they_are_gone(
    service: JoinedService,
    dialler: Dialler,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(accepting, "STRANGERS", 3)
    listening = service.joining._listener
    assert listening is not None
    with contextlib.ExitStack() as strangers:
        for _ in range(3):
            stream = await asyncio.open_connection("127.0.0.1", service.port)
            strangers.enter_context(aborted(stream))
        await eventually(lambda: len(listening._accepting.strangers) == 3, WAIT)
        with pytest.raises((OSError, EOFError)):
            await dialler.dial()
        assert "too many others" in caplog.text
    await eventually(lambda: not listening._accepting.strangers, WAIT)
    invitation = await service.joining.invite("k")
    asyncio.ensure_future(dialler.say(hello_of(invitation.document)))  # noqa: RUF006
    await service.joining.arrived("k", "lab", WAIT)


async def test_one_that_is_refused_is_a_stranger_until_its_connection_has_ended(
    service: JoinedService, dialler: Dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.joining._listener is not None
    strangers = service.joining._listener._accepting.strangers

    monkeypatch.setattr(listener, "CLOSE_SECONDS", WAIT)
    with await asyncio.to_thread(dialler.be_refused):
        assert len(strangers) == 1
    await eventually(lambda: not strangers, WAIT)
    # One that never ends its connection does not keep it for long.
    monkeypatch.setattr(listener, "CLOSE_SECONDS", 0.2)
    with await asyncio.to_thread(dialler.be_refused):
        await eventually(lambda: not strangers, WAIT)


async def test_one_that_is_refused_is_cut_off_when_the_server_ends(
    service: JoinedService, dialler: Dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.joining._listener is not None
    monkeypatch.setattr(listener, "CLOSE_SECONDS", WAIT)
    connection = await asyncio.to_thread(dialler.be_refused)
    await service.joining._listener.close()
    with socket.socket(fileno=connection.detach()) as plain:  # TLS has ended by the first half
        plain.settimeout(WAIT / 3)

        def read() -> None:
            while plain.recv(4096):
                pass

        with contextlib.suppress(ConnectionError):
            await asyncio.to_thread(read)


async def test_a_flood_of_strangers_leaves_few_lines(
    service: JoinedService,
    dialler: Dialler,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(accepting, "LOGGED_SECONDS", 3600.0)
    service.joining._listener._accepting._logged_at = -3600.0  # type: ignore[union-attr]
    for _ in range(5):
        await dialler.say({"join": 7})
    assert len(caplog.records) == 1
    monkeypatch.setattr(accepting, "LOGGED_SECONDS", 0.0)
    await dialler.say({"join": 7})
    assert "(and 4 others)" in caplog.text


async def test_nobody_waits_so_the_keeper_is_told_to_come_later(
    service: JoinedService, dialler: Dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "HOLD_SECONDS", 0.05)
    invitation = await service.joining.invite("k")
    answer = await dialler.say(hello_of(invitation.document))
    assert (answer["refused"], answer["ends"]) == ("later", False)
    monkeypatch.undo()
    asyncio.ensure_future(dialler.say(hello_of(invitation.document)))  # noqa: RUF006
    await service.joining.arrived("k", "lab", WAIT)


async def test_how_many_may_wait_is_bounded(
    service: JoinedService, dialler: Dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "MAX_HELD", 0)
    invitation = await service.joining.invite("k")
    answer = await dialler.say(hello_of(invitation.document))
    assert answer["refused"] == "later"


async def comes(service: JoinedService, dialler: Dialler) -> tuple[Any, asyncio.StreamWriter]:
    """A keeper that waits to be taken in: its join document, and its connection."""
    invitation = await service.joining.invite("k")
    _, writer = await dialler.dial()
    writer.write(pack(hello_of(invitation.document)))
    await eventually(lambda: service.joining.has_come("k"), WAIT)
    return invitation.document, writer


async def test_one_that_has_hung_up_while_it_waited_is_not_taken_in(
    service: JoinedService, dialler: Dialler
) -> None:
    document, writer = await comes(service, dialler)
    writer.transport.abort()
    await eventually(lambda: not service.joining.has_come("k"), WAIT)
    with pytest.raises(HostUnreachable, match="lab has not dialled in"):
        await service.joining.arrived("k", "lab", 0.2)
    asyncio.ensure_future(dialler.say(hello_of(document)))  # noqa: RUF006
    await service.joining.arrived("k", "lab", WAIT)


async def test_one_whose_job_has_ended_does_not_wait_to_be_taken_in_any_more(
    service: JoinedService, dialler: Dialler
) -> None:
    """Its connection may be seen to end a moment later: a job is submitted all the same."""
    _, writer = await comes(service, dialler)
    service.joining.fail("k", HostUnusable("job 17 has ended"))
    assert not service.joining.has_come("k")
    writer.transport.abort()


async def test_what_an_engine_knows_ends_the_wait(service: JoinedService) -> None:
    await service.joining.invite("k")
    waits = [asyncio.ensure_future(service.joining.arrived("k", "lab", WAIT)) for _ in range(2)]
    await asyncio.sleep(0)
    service.joining.fail("k", HostUnusable("job 17 has ended: OUT_OF_MEMORY"))
    for wait in waits:
        with pytest.raises(HostUnusable, match="job 17 has ended"):
            await wait
    depths = []
    for _ in range(2):
        with pytest.raises(HostUnusable, match="job 17 has ended") as caught:
            await service.joining.arrived("k", "lab", WAIT)
        depths.append(len(caught.traceback))
    assert depths[0] == depths[1]
    await service.joining.invite("k")
    with pytest.raises(HostUnreachable):
        await service.joining.arrived("k", "lab", 0.05)


async def test_a_server_that_does_not_listen_invites_nobody(tmp_path: Path) -> None:
    joining = Joining(tmp_path)
    assert not joining.is_on
    with pytest.raises(KeepersNotHeard, match="agent_listen"):
        await joining.invite("k")
    await joining.forget("k")
    await joining.close()


async def test_a_disk_that_fails_is_told(service: JoinedService, dialler: Dialler) -> None:
    invitation = await service.joining.invite("k")
    file = service.directory / "invitations" / "k.json"
    file.unlink()
    file.mkdir()
    with pytest.raises(HostUnusable, match="cannot be stored"):
        await service.joining.invite("k")
    with pytest.raises(HostUnusable, match="cannot be forgotten"):
        await service.joining.forget("k")
    with pytest.raises((OSError, EOFError)):
        await dialler.say(hello_of(invitation.document))


async def test_the_document_says_where_to_dial_and_whom_to_trust(service: JoinedService) -> None:
    invitation = await service.joining.invite("k", addresses=["192.0.2.1:8890"])
    said = json.loads(invitation.document)
    assert said["addresses"] == ["192.0.2.1:8890", f"127.0.0.1:{service.port}"]
    assert said["authority"] == service.authority.trusted
    assert "PRIVATE" not in invitation.document.decode()


class Pretender(Dialler):
    """A keeper that is let in, and answers as a test wants."""

    def __init__(self, service: JoinedService, document: bytes) -> None:
        super().__init__(service)
        self._document = document
        self.greeting: Fields = {"keeper": PROTOCOL, "pid": 7, "now": 1.0}
        self.answers: dict[str, Any] = {
            "host": {"home": "/", "python": "python3", "env": {}},
            "hello": {"kept": [], "heard": [], "can": []},
        }
        self.asked: list[Fields] = []
        self.joined = 0
        self._linked: asyncio.StreamWriter | None = None

    def say_now(self, frame: bytes) -> None:
        """Say something that nobody has asked for."""
        assert self._linked is not None
        self._linked.write(frame)

    async def run(self) -> None:
        """Come again and again."""
        while True:
            try:
                reader, writer = await self.dial()
                writer.write(pack(hello_of(self._document)))
                if "joined" in (await receive(reader))[0]:
                    self.joined += 1
                    self._linked = writer
                    writer.write(pack(self.greeting))
                    await self._answer(reader, writer)
            except (OSError, EOFError):
                await asyncio.sleep(0.05)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            fields, data = await receive(reader)
            if not fields:
                writer.write(pack({}, data))
                continue
            self.asked.append(fields)
            answer = self.answers.get(fields["ask"], "nonsense")
            writer.write(pack({"id": fields["id"], "answer": answer}))


async def test_a_keeper_of_an_older_protocol_is_not_used(
    service: JoinedService, dialler: Dialler
) -> None:
    invitation = await service.joining.invite("k")
    pretender = Pretender(service, invitation.document)
    pretender.greeting["keeper"] = 1
    run = asyncio.ensure_future(pretender.run())
    with pytest.raises(HostKeeperIncompatible, match="lab k speaks version 1, and this server 4"):
        await service.keeper("k").connect()
    run.cancel()
    pretender.close()


@pytest.mark.parametrize("now", [True, "1", 1e300, float("nan"), 10**400, None])
async def test_a_clock_that_cannot_be_is_refused(service: JoinedService, now: Any) -> None:
    invitation = await service.joining.invite("k")
    pretender = Pretender(service, invitation.document)
    pretender.greeting["now"] = now
    run = asyncio.ensure_future(pretender.run())
    with pytest.raises(KeeperUnavailable, match="clock"):
        await service.keeper("k").connect()
    run.cancel()
    pretender.close()


@pytest.mark.parametrize("answer", [None, 7, {"home": 1}, {"home": "/", "python": "p"}, []])
async def test_a_host_that_makes_no_sense_is_refused(service: JoinedService, answer: Any) -> None:
    invitation = await service.joining.invite("k")
    pretender = Pretender(service, invitation.document)
    pretender.answers["host"] = answer
    run = asyncio.ensure_future(pretender.run())
    with pytest.raises(KeeperUnavailable, match="does not tell what it is on"):
        await service.keeper("k").connect()
    run.cancel()
    pretender.close()


KEPT = {"kernel_id": "theirs", "pid": 7, "start_time": "x", "exit_code": None, "output": "o"}


@pytest.mark.parametrize(
    "answer",
    [
        {"kept": [KEPT], "heard": [], "can": []},
        {"kept": [], "heard": ["theirs"], "can": []},
        {"kept": 7, "heard": []},
        {"kept": [{**KEPT, "pid": "7"}], "heard": []},
        "hello",
    ],
)
async def test_a_keeper_that_claims_a_kernel_of_anothers_is_cut_off(
    service: JoinedService, answer: Any
) -> None:
    pretender = Pretender(service, (await service.joining.invite("k")).document)
    pretender.answers["hello"] = answer
    run = asyncio.ensure_future(pretender.run())
    keeper = service.keeper("k")
    keeper.may_have = lambda kernel_id: kernel_id == "ours"
    with pytest.raises(KeeperUnavailable, match="cannot be used"):
        await keeper.connect()
    assert not keeper.is_connected
    with pytest.raises(KeyError):
        keeper.exited("theirs")
    run.cancel()
    pretender.close()


@pytest.mark.parametrize(
    "frame",
    [
        pack({"event": "exited", "kernel_id": "theirs", "pid": 7, "code": 0}),
        pack({"event": "exited", "kernel_id": "ours", "pid": 7, "code": "0"}),
        pack({"event": "malformed", "kernel_id": "theirs"}),
        pack({"event": "malformed"}),
        pack({}, b"B12"),
        pack({}, b"L"),
        pack({}, b"?"),
        b"\xff" * 16,
    ],
)
async def test_a_keeper_that_tells_what_cannot_be_is_cut_off_and_nobody_else(
    service: JoinedService, frame: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    pretenders = {}
    for keeper_id in ("bad", "good"):
        invitation = await service.joining.invite(keeper_id)
        pretenders[keeper_id] = Pretender(service, invitation.document)
    runs = [asyncio.ensure_future(pretender.run()) for pretender in pretenders.values()]
    bad, good = service.keeper("bad"), service.keeper("good")
    bad.may_have = lambda kernel_id: kernel_id == "ours"
    await bad.connect()
    await good.connect()
    link = good._connection.link
    lost: list[bool] = []
    bad.on_lost.append(lambda: lost.append(True))
    pretenders["bad"].say_now(frame)
    await eventually(lambda: lost, WAIT)
    assert good._connection.link is link
    assert good.is_connected
    if frame[:1] != b"\xff":
        assert "makes no sense" in caplog.text
    for run in runs:
        run.cancel()
    for pretender in pretenders.values():
        pretender.close()


async def test_an_answer_about_another_kernel_is_no_answer(service: JoinedService) -> None:
    pretender = Pretender(service, (await service.joining.invite("k")).document)
    pretender.answers |= {"launch": KEPT, "adopt": KEPT, "usage": {"pid": "x"}, "prepare": []}
    run = asyncio.ensure_future(pretender.run())
    keeper = service.keeper("k")
    output = Path("kernel-k.log")
    for wrong in (
        lambda: keeper.launch("k", ["true"], env={}, cwd="/", output=output),
        lambda: keeper.adopt("k", 7, "x", output),
        lambda: keeper.usage("k"),
        lambda: keeper.prepare("k", {}),
    ):
        with pytest.raises(KeeperUnavailable, match="lab k makes no sense"):
            await wrong()
    assert await keeper.tail("k") == "nonsense"
    run.cancel()
    pretender.close()


async def test_a_keeper_gets_new_certificates_while_it_is_linked(
    service: JoinedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined_place, "RENEW_SECONDS", 0.05)
    invitation = await service.joining.invite("k")
    pretender = Pretender(service, invitation.document)
    pretender.answers["credential"] = None
    run = asyncio.ensure_future(pretender.run())
    await service.keeper("k").connect()

    def renewed() -> set[str]:
        return {asked["pem"] for asked in pretender.asked if asked["ask"] == "credential"}

    await eventually(lambda: len(renewed()) > 2, WAIT)
    assert all("PRIVATE KEY" in pem for pem in renewed())
    assert pretender.joined == 1
    run.cancel()
    pretender.close()


async def test_the_submission_of_an_engine_is_asked_for_when_nobody_is_there(
    service: JoinedService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    invitation = await service.joining.invite("k")
    pretender = Pretender(service, invitation.document)
    submitted: list[asyncio.Future[None]] = []

    async def submit() -> None:
        submitted.append(asyncio.ensure_future(pretender.run()))

    keeper = service.keeper("k")
    keeper._where._submit = submit  # type: ignore[attr-defined]
    await keeper.connect()
    assert len(submitted) == 1

    async def fails() -> None:
        raise HostUnusable("the quota is met")

    submitted[0].cancel()
    pretender.close()
    keeper._where._submit = fails  # type: ignore[attr-defined]
    await eventually(lambda: not keeper.is_connected, WAIT)
    with pytest.raises(HostUnusable, match="the quota is met"):
        await keeper.connect()


@pytest.mark.parametrize("can", [["addresses"], []])
async def test_a_keeper_is_told_where_to_dial_if_it_knows_that(
    service: JoinedService, can: list[str]
) -> None:
    invitation = await service.joining.invite("k")
    pretender = Pretender(service, invitation.document)
    pretender.answers["host"]["can"] = can
    run = asyncio.ensure_future(pretender.run())
    # Those that the kernelspec names come first, as in the join document.
    place = JoinedPlace(service.joining, "k", "lab k", addresses=["192.0.2.1:8890"])
    keeper = RemoteKeeper(place, orphan_timeout=3600.0, output_bytes=10_000, **LOGS)
    pretender.answers["kept"] = []
    await keeper.connect()
    assert await keeper.kept() == {}  # all that was said before has been read
    own = f"127.0.0.1:{service.port}"
    told = [each["addresses"] for each in pretender.asked if each["ask"] == "addresses"]
    assert told == ([["192.0.2.1:8890", own]] if can else [])
    run.cancel()
    pretender.close()
    service.joining.fail("k", HostUnusable("job 17 has ended"))
    await keeper.close()
    assert not service.joining._told
    assert not service.joining._open
    # Another replica may have started another job for the kernel before it comes back here.
    with pytest.raises(HostUnreachable):
        await service.joining.arrived("k", "lab", 0.05)


async def test_an_earlier_place_of_a_keeper_that_is_closed_late_takes_nothing_from_the_next(
    service: JoinedService,
) -> None:
    async def no_job() -> None:
        raise HostUnusable("the quota is met")

    earlier, later = (JoinedPlace(service.joining, "k", "lab k", submit=no_job) for _ in range(2))
    await service.joining.invite("k")
    owner: Any = None
    for place in (earlier, later):
        with pytest.raises(HostUnusable, match="the quota is met"):
            await place.find(owner, lambda _: None)
    second = await service.joining.invite("k")
    failure = HostUnusable("job 17 has ended")
    service.joining.fail("k", failure)
    await earlier.close(is_empty=True)
    assert service.joining._generations == {"k": second.generation}
    assert service.joining._failures == {"k": failure}
    await later.close(is_empty=True)
    assert not service.joining._generations
    assert not service.joining._failures
    assert not service.joining._told
