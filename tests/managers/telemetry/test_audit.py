"""The audit log: who had which kernel do what."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app.callers import Caller, begin_call
from app.managers.errors import NoSuchKernel, NotAuthorized
from app.managers.files.errors import ContentsForbidden, ContentsNotFound, VersionMismatch
from app.managers.telemetry import audit as audit_module
from app.managers.telemetry.audit import (
    MAX_TEXT,
    MAX_WAITING,
    REFUSALS,
    REFUSALS_SECONDS,
    AuditLog,
    _Refusals,
)
from app.managers.telemetry.audit_files import AuditFiles, audit_files
from app.managers.telemetry.counters import Counters
from tests.conftest import MakeServer
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.identities import token
from tests.support.metrics import scrape
from tests.support.owners import end_share, share
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.running import kernels_of
from tests.support.server import ServerProcess

Record = dict[str, Any]


def records(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def test_what_is_done_over_http_and_websockets_is_told(
    make_server: MakeServer, home: Home
) -> None:
    path = home.path / "audit.jsonl"
    path.touch(mode=0o644)
    cull = ("--cull-idle-timeout", "1", "--cull-interval", "0.2")

    def of(kernel_id: str) -> list[Record]:
        return [found for found in records(path) if found["kernel_id"] == kernel_id]

    def done(kernel_id: str) -> list[str]:
        return [found["action"] for found in of(kernel_id)]

    server = make_server("--audit-log", str(path), *cull, home=home)
    async with kernels_of(server) as start:
        kernel = await start("fake")
        channels, rest = kernel.channels, start.rest
        executions = Executions(rest, kernel.id)
        rest.http.headers["X-Request-Id"] = "the-tester"
        posted = (await executions.run("print secret-a"))["id"]
        sent = (await channels.execute("print secret-b", user_expressions={"a": "1"})).msg_id
        sleeping = await executions.begin("sleep 60")
        await executions.until(sleeping, "started")
        await executions.cancel(sleeping)
        await rest.restart(kernel.id)
        await kernel.becomes("idle")
        await channels.execute("die 3")
        culled = (await rest.start_kernel("fake"))["id"]
        await eventually(lambda: "culled" in done(culled), timeout=30)
        refused = await rest.http.post("/api/kernels", json={"name": "fake-missing"})
        assert refused.status_code == 500
        await eventually(lambda: "died" in done(kernel.id))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # The interrupt may come twice: a kernel ignores one that comes too early.
    told = [found for found in of(kernel.id) if found["action"] != "interrupt"]
    assert "interrupt" in done(kernel.id)
    assert [found["action"] for found in told[:6]] == [
        "start",
        "execute",
        "execute",
        "execute",
        "cancel",
        "restart",
    ]
    by = {
        "user": "anonymous",
        "credential": "server",
        "client": "127.0.0.1",
        "request_id": "the-tester",
    }
    assert told[1] == {
        "time": told[1]["time"],
        "action": "execute",
        "kernel_id": kernel.id,
        "kernel_name": "fake",
        "execution_id": posted,
        "session": told[1]["session"],
        "code_sha256": sha256("print secret-a"),
        "owner": "anonymous",
        "outcome": "done",
        **by,
    }
    assert told[2]["execution_id"] == sent
    assert told[2]["session"] == channels.session
    assert told[2]["code_sha256"] == sha256("print secret-b")
    assert told[2]["user_expressions"] == 1
    assert told[2]["client"] == "127.0.0.1"
    assert told[4]["execution_id"] == sleeping
    assert by.items() <= told[5].items()
    died = next(found for found in told if found["action"] == "died")
    assert died["exit_code"] == 3
    assert "client" not in died
    failed = next(found for found in records(path) if found.get("error"))
    assert (failed["action"], failed["error"]) == ("start", "kernel_start_failed")
    assert failed["outcome"] == "failed"
    assert "secret" not in path.read_text()


async def test_what_was_not_done_is_told_as_refused_and_answers_by_their_hash(
    make_server: MakeServer, home: Home
) -> None:
    path = home.path / "audit.jsonl"
    types = "kernel_info_request,execute_request,input_reply"
    server = make_server("--audit-log", str(path), "--allowed-message-types", types, home=home)
    async with kernels_of(server) as start:
        kernel = await start("fake")
        channels = kernel.channels
        executions = Executions(start.rest, kernel.id)
        ignored = await channels.send("execute_request", {"code": "print a"}, "iopub")
        await channels.send("shutdown_request", {"restart": False}, "control")
        answers = ["secret-a"]
        assert (await channels.execute("input who", answers=answers)).text == "secret-a\n"
        asking = await executions.begin("input who", allow_stdin=True)
        await executions.until(asking, "input_request")
        answer = f"{executions.path}/{asking}/input"
        await start.rest.http.post(answer, json={"value": "secret-b"})
        await executions.ended(asking)
        late = await start.rest.http.post(answer, json={"value": "secret-c"})
        assert late.status_code == 409
        await executions.cancel(asking)  # it has ended
        await eventually(lambda: "cancel" in path.read_text())
    told = [found for found in records(path) if found["action"] in ("input", "refused")]
    assert [(found["action"], found.get("asked")) for found in told] == [
        ("refused", "execute"),
        ("refused", "shutdown"),
        ("input", None),
        ("input", None),
        ("refused", "input"),
        ("refused", "cancel"),
    ]
    assert told[0]["code_sha256"] == sha256("print a")
    assert ignored not in path.read_text()
    for found, value in zip(told[2:5], ("secret-a", "secret-b", "secret-c"), strict=True):
        assert (found["value_bytes"], found["value_sha256"]) == (len(value), sha256(value))
        assert found["user"] == "anonymous"
    assert "secret" not in path.read_text()


async def test_a_full_disk_fails_no_request_and_is_told_once(make_server: MakeServer) -> None:
    server = make_server("--audit-log", "/dev/full")
    async with kernels_of(server) as start:
        kernel = await start("fake")
        for _ in range(3):
            assert (await kernel.channels.execute("print a")).text == "a\n"

        async def lost() -> bool:
            return (await scrape(start.rest))("kernelkeep_audit_records_lost_total") >= 3

        await eventually(lost)
    server.stop()
    assert server.output().count("the audit log cannot be written") == 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit" / "log"


async def test_it_goes_on_when_it_can_be_written_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counters = Counters()
    caplog.set_level(logging.WARNING)
    audit = AuditLog(path, counters)
    audit.note("lost")
    await eventually(lambda: counters.audit_lost == 1)
    path.parent.mkdir()
    audit.note("first")
    await eventually(path.exists)
    await eventually(lambda: bool(records(path)))
    os.rename(path, path.with_suffix(".1"))  # as logrotate does
    audit.note("second")
    await audit.close()
    assert [found["action"] for found in records(path)] == ["second"]
    assert [found["action"] for found in records(path.with_suffix(".1"))] == ["first"]
    lines = [entry.getMessage() for entry in caplog.records]
    assert lines == [
        "the audit log cannot be written, what happens now is lost: No such file or directory",
        "the audit log is written again",
    ]


async def test_what_waits_is_bounded_and_written_at_the_end(path: Path) -> None:
    path.parent.mkdir()
    counters = Counters()
    audit = AuditLog(path, counters)
    begin_call(Caller("id", "192.0.2.1"))
    asked = MAX_WAITING * 3
    for number in range(asked):
        audit.note("execute", b'{"code": "print a"}', number=number)
    await audit.close()
    found = records(path)
    assert len(found) + counters.audit_lost == asked
    assert len(found) >= MAX_WAITING
    numbers = [record["number"] for record in found]
    assert numbers == sorted(numbers)
    assert found[0]["code_sha256"] == sha256("print a")
    assert found[0]["client"] == "192.0.2.1"


async def test_long_texts_are_left_out_when_too_many_wait(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    monkeypatch.setattr(audit_module, "MAX_WAITING_BYTES", 10 * MAX_TEXT)
    counters, writes = Counters(), threading.Event()
    audit = AuditLog(path, counters)
    monkeypatch.setattr(AuditFiles, "write", lambda _files, data: writes.wait() and len(data))
    for _ in range(100):
        audit.note("file_deleted", path="x" * MAX_TEXT)
    # Besides those that wait, some are being written.
    assert counters.audit_lost >= 100 - 2 * 10
    writes.set()
    await audit.close()


@pytest.mark.parametrize("content", [b"[", b"[]", b'{"code": 1}', b'{"user_expressions": 3}'])
async def test_what_is_no_request_has_no_hash(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    audit = AuditLog(path, Counters())
    audit.note("execute", content)
    await audit.close()
    (found,) = records(path)
    assert found["code_sha256"] is None


async def refused_requests(server: ServerProcess) -> None:
    """Requests that are refused for one reason each."""
    reader = token("ben", ["kernels:read"])
    async with RestClient(server.url, None) as guest, RestClient(server.url, reader) as ben:
        await guest.http.get("/api/kernels?token=wrong-secret", headers={"X-Request-Id": "guessed"})
        await guest.http.get("/api/status")
        await ben.http.get("/api/kernels", headers={"Host": "elsewhere.example"})
        headers = {"Origin": "https://elsewhere.example"}
        await guest.http.post("/api/kernels", headers=headers)
        await ben.http.post("/api/kernels", json={"name": "fake"})
        with pytest.raises(InvalidStatus):
            await connect(f"{server.ws_url}/api/kernels/{uuid4()}/channels?token={reader}")


async def test_refused_requests_are_told_with_whoever_made_them(
    make_server: MakeServer, home: Home
) -> None:
    path = home.path / "audit.jsonl"
    provider = ("--identity-provider-class", "tests.support.identities:Telling")
    server = make_server("--audit-log", str(path), *provider, home=home)
    await refused_requests(server)
    await eventually(lambda: len(records(path)) == 6)
    told = records(path)
    assert [(found["asked"].split("/api")[0], found["error"]) for found in told] == [
        ("GET ", "unauthorized"),
        ("GET ", "unauthorized"),
        ("GET ", "forbidden_host"),
        ("POST ", "forbidden_origin"),
        ("POST ", "not_authorized"),
        ("WebSocket ", "not_authorized"),
    ]
    assert {(found["action"], found["outcome"]) for found in told} == {("refused", "refused")}
    assert {found["client"] for found in told} == {"127.0.0.1"}
    assert [found["user"] for found in told] == ["", "", "", "", "ben", "ben"]
    assert [found["credential"] for found in told[4:]] == ["of ben", "of ben"]
    assert (told[0]["request_id"], told[0]["asked"]) == ("guessed", "GET /api/kernels")
    assert told[5]["asked"] == "WebSocket /api/kernels/{kernel_id}/channels"
    assert "secret" not in path.read_text()


async def test_strangers_cannot_fill_it(path: Path) -> None:
    path.parent.mkdir()
    audit = AuditLog(path, Counters())
    for _ in range(REFUSALS * 3):
        audit.refuse("GET /api/kernels", "unauthorized", known=False)
    audit.refuse("GET /api/kernels", "not_authorized", known=True)
    audit.refuse("GET /" + "x" * 2**20, "not_authorized", known=True)
    await audit.close()
    found = records(path)
    assert len(found) == REFUSALS + 3
    assert found[-1]["left_out"] == REFUSALS * 2
    assert sum(len(str(record)) for record in found) < 100_000


def test_strangers_are_counted_by_time() -> None:
    refusals = _Refusals()
    assert [refusals.next(0.0) for _ in range(REFUSALS + 5)] == [0] * REFUSALS + [None] * 5
    assert refusals.next(REFUSALS_SECONDS - 0.1) is None
    assert refusals.next(REFUSALS_SECONDS) == 6
    assert refusals.next(REFUSALS_SECONDS) == 0


async def test_the_rest_is_written_although_no_thread_of_the_loop_is_free(path: Path) -> None:
    path.parent.mkdir()
    audit, answers = AuditLog(path, Counters()), threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    hanging = loop.run_in_executor(None, answers.wait)
    try:
        audit.note("execute")
        async with asyncio.timeout(10):
            await audit.close()
        assert not hanging.done()
    finally:
        answers.set()
        await hanging
    assert [record["action"] for record in records(path)] == ["execute"]


async def test_files_and_their_number_are_bounded(path: Path) -> None:
    path.parent.mkdir()
    audit = AuditLog(path, Counters(), max_bytes=10_000, older=3)
    for number in range(1000):
        audit.note("execute", number=number)
        if number % 10 == 0:
            await eventually(lambda: not audit._waiting)
    await audit.close()
    files = [Path(file.name) for file in audit_files(path)]
    assert [file.name for file in files] == ["log.3", "log.2", "log.1", "log"]
    assert all(file.stat().st_size <= 10_000 for file in files)
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    numbers = [record["number"] for file in files for record in records(file)]
    assert numbers == list(range(numbers[0], 1000))  # none is missing in between


def test_two_servers_may_write_to_the_same_file(path: Path) -> None:
    path.parent.mkdir()
    writers = [AuditFiles(path, 5_000, 1000) for _ in range(4)]

    def write(number: int) -> None:
        writers[number % 4].write(json.dumps({"number": number}).encode() + b"\n")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(2000)))
    found = [record["number"] for file in audit_files(path) for record in records(Path(file.name))]
    assert sorted(found) == list(range(2000))


def test_files_that_are_moved_while_they_are_read_are_all_read_once(path: Path) -> None:
    path.parent.mkdir()
    writer = AuditFiles(path, 10, 9)
    for number in range(3):
        writer.write(b"%d\n" % number * 5)
    found = []
    for file in audit_files(path):
        found.append(file.read(2))
        if len(found) in (1, 3):
            writer.write(b"%d\n" % (len(found) + 2) * 5)
    assert found == [b"0\n", b"1\n", b"2\n", b"3\n", b"5\n"]


def test_files_are_found_while_one_number_has_none(path: Path) -> None:
    path.parent.mkdir()
    for name, text in (("log", "new"), ("log.2", "old"), ("log.3", "oldest")):
        path.with_name(name).write_text(text)
    assert [file.read() for file in audit_files(path)] == [b"oldest", b"old", b"new"]


def test_a_file_that_was_read_is_open_while_others_are_read(path: Path) -> None:
    path.parent.mkdir()
    for name in ("log", "log.1", "log.2"):
        path.with_name(name).write_text(name)
    # One that is gone and closed might give its inode to the next, which would pass for known.
    read = []
    for file in audit_files(path):
        read.append(file)
        assert not any(each.closed for each in read)
    assert [each.closed for each in read] == [True] * 3


def test_a_file_that_cannot_be_moved_grows_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    Path(f"{path}.1").mkdir()
    Path(f"{path}.1/file").touch()
    files = AuditFiles(path, 100, 1)
    for _ in range(10):
        assert files.write(b"x" * 50) == 50
    assert path.stat().st_size == 500
    assert len(caplog.records) == 1


def test_a_device_is_not_moved() -> None:
    files = AuditFiles(Path("/dev/null"), 1, 1)
    assert files.write(b"x" * 50) == 50


async def test_an_action_is_noted_with_its_outcome(path: Path) -> None:
    path.parent.mkdir()
    audit = AuditLog(path, Counters())

    def fail(error: BaseException) -> None:
        with pytest.raises(type(error)), audit.action("file_saved", path="a"):
            raise error

    with audit.action("file_saved", path="x" * 2**20, checkpoint_id=None) as about:
        about["session_id"] = "b"
    for error in (
        VersionMismatch("changed"),
        ValueError("a fault"),
        asyncio.CancelledError(),
        ContentsForbidden("by the system"),
        NotAuthorized("write", "contents"),  # these three are noted elsewhere, or not at all
        ContentsNotFound("a"),
        NoSuchKernel("c").hiding({"owner": "anna"}),
    ):
        fail(error)
    await audit.close()
    done, *failed = records(path)
    assert (len(done.pop("path")), done.pop("time")[:2]) == (MAX_TEXT, "20")
    assert done == {"action": "file_saved", "session_id": "b", "outcome": "done"}
    assert [(found["path"], found["outcome"], found["error"]) for found in failed] == [
        ("a", "failed", "version_mismatch"),
        ("a", "failed", "internal_error"),
        ("a", "failed", "cancelled"),
        ("a", "failed", "contents_forbidden"),
    ]


async def _changes_files(rest: RestClient) -> None:
    """Every change of files there is, and some that fail."""
    path = "/api/contents"
    text = {"type": "file", "format": "text", "content": "secret"}
    await rest.request("PUT", f"{path}/a.txt", 201, json=text)
    await rest.request("PUT", f"{path}/up.txt", 201, json={**text, "chunk": 1})
    await rest.request("PUT", f"{path}/up.txt", 201, json={**text, "chunk": -1})
    await rest.request("PUT", f"{path}/made", 201, json={"type": "directory"})
    await rest.request("POST", f"{path}/made", 201, json={"type": "notebook"})
    await rest.request("POST", f"{path}/made", 201, json={"copy_from": "a.txt"})
    await rest.request("POST", f"{path}/made/Untitled.ipynb/trust", 201)
    checkpoints = f"{path}/a.txt/checkpoints"
    number = (await rest.request("POST", checkpoints, 201)).json()["id"]
    await rest.request("POST", f"{checkpoints}/{number}", 204)
    await rest.request("DELETE", f"{checkpoints}/{number}", 204)
    await rest.request("PATCH", f"{path}/a.txt", json={"path": "b.txt"})
    stale = await rest.http.delete(f"{path}/b.txt", headers={"If-Match": '"stale"'})
    assert stale.status_code == 412
    await rest.request("DELETE", f"{path}/b.txt", 204)
    assert (await rest.http.delete(f"{path}/b.txt")).status_code == 404
    refused = await rest.http.post(f"{path}/away/x.txt/checkpoints")  # by the operating system
    assert (refused.status_code, refused.json()["code"]) == (403, "contents_forbidden")


FILES = [
    ("file_saved", "a.txt", {}),
    ("file_saved", "up.txt", {}),
    ("file_saved", "made", {}),
    ("file_created", "made/Untitled.ipynb", {}),
    ("file_copied", "made/a.txt", {"copy_from": "a.txt"}),
    ("notebook_trusted", "made/Untitled.ipynb", {}),
    ("checkpoint_created", "a.txt", {"checkpoint_id": "checkpoint"}),
    ("checkpoint_restored", "a.txt", {"checkpoint_id": "checkpoint"}),
    ("checkpoint_deleted", "a.txt", {"checkpoint_id": "checkpoint"}),
    ("file_renamed", "a.txt", {"new_path": "b.txt"}),
    ("file_deleted", "b.txt", {"error": "version_mismatch"}),
    ("file_deleted", "b.txt", {}),
]


@pytest.fixture
def telling(make_server: MakeServer, home: Home) -> ServerProcess:
    """A server of many owners with an audit log."""
    provider = ("--identity-provider-class", "tests.support.identities:Telling")
    return make_server("--audit-log", str(home.path / "audit.jsonl"), *provider, home=home)


async def test_changes_of_files_are_told_with_who_made_them(
    telling: ServerProcess, home: Home
) -> None:
    path = home.path / "audit.jsonl"
    away = home.root_dir / "away"
    away.mkdir()
    (away / "x.txt").touch()
    (away / ".ipynb_checkpoints").symlink_to(home.path)
    async with RestClient(telling.url, token("anna", ["contents:write"])) as anna:
        await _changes_files(anna)
        reader = token("ben", ["contents:read"])
        async with RestClient(telling.url, reader) as ben:
            assert (await ben.http.delete("/api/contents/up.txt")).status_code == 403
    await eventually(lambda: records(path)[-1:] and records(path)[-1]["user"] == "ben")
    *told, last = records(path)
    assert (last["asked"], last["path"]) == ("DELETE /api/contents/{path}", "up.txt")
    refused = told.pop()
    assert (refused["outcome"], refused["error"]) == ("failed", "contents_forbidden")
    assert (refused["action"], refused["path"]) == ("checkpoint_created", "away/x.txt")
    assert [(found["action"], found["path"]) for found in told] == [each[:2] for each in FILES]
    for found, (_, _, more) in zip(told, FILES, strict=True):
        assert (found["user"], found["credential"]) == ("anna", "of anna")
        assert (found["client"], bool(found["request_id"])) == ("127.0.0.1", True)
        assert found["outcome"] == ("failed" if "error" in more else "done")
        assert more.items() <= found.items()
    assert "secret" not in path.read_text()


async def test_shares_sessions_and_events_are_told_with_who_made_them(
    telling: ServerProcess, home: Home
) -> None:
    path = home.path / "audit.jsonl"
    async with RestClient(telling.url, token("anna", ["user"])) as anna:
        body = {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "fake"}}
        session = (await anna.request("POST", "/api/sessions", 201, json=body)).json()
        await anna.request("POST", "/api/sessions", 201, json=body)  # it is there already
        kernel_id, session_id = session["kernel"]["id"], session["id"]
        about = {"kernel_id": kernel_id, "owner": "anna"}
        await anna.request("PATCH", f"/api/sessions/{session_id}", json={"path": "b.ipynb"})
        await share(anna, kernel_id, name="ben", access="execute")
        await share(anna, kernel_id, group="physics", access="read")
        await share(anna, kernel_id, 400, name="anna", access="read")
        await end_share(anna, kernel_id, name="ben")
        await end_share(anna, kernel_id, 404, name="ben")
        event = {"schema_id": "urn:none", "version": "1", "data": {"a": "secret"}}
        await anna.request("POST", "/api/events", 400, json=event)
        await anna.request("DELETE", f"/api/sessions/{session_id}", 204)
    await eventually(lambda: "session_deleted" in path.read_text())
    told = [found for found in records(path) if found["action"] not in ("start", "shutdown")]
    ours = {"session_id": session_id, **about}
    expected = [
        ("session_created", {**ours, "path": "a.ipynb"}),
        ("session_changed", {**ours, "path": "b.ipynb"}),
        ("share_created", {**about, "with_name": "ben", "access": "execute"}),
        ("share_created", {**about, "with_group": "physics", "access": "read"}),
        ("share_created", {**about, "with_name": "anna", "error": "invalid_share"}),
        ("share_ended", {**about, "with_name": "ben", "outcome": "done"}),
        ("event_posted", {"schema_id": "urn:none", "version": "1", "error": "invalid_event"}),
        ("session_deleted", {**ours, "path": "b.ipynb"}),
    ]
    assert [found["action"] for found in told] == [action for action, _ in expected]
    for found, (_, more) in zip(told, expected, strict=True):
        assert (found["user"], found["credential"]) == ("anna", "of anna")
        assert more.items() <= found.items()
    assert "secret" not in path.read_text()
