"""The two forms of a log line, and what a line tells of the request that it belongs to."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from app.api.traces import trace_environment
from app.callers import Caller, begin_call
from app.log_formats import JSONFormatter, TextFormatter, about
from app.logs import TokenFilter
from tests.conftest import servers
from tests.support.executions import Executions
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.running import kernels_of
from tests.support.server import REPOSITORY, ServerProcess

KERNEL = "01234567-89ab-cdef-0123-456789abcdef"
HOSTILE = "a\r\n2026-01-01 INFO forged\x1b[2J\x07\x00\x7f\x85\u2028\ud800b"


def record(message: str, *args: object, **more: Any) -> logging.LogRecord:
    found = logging.LogRecord("app.x", logging.WARNING, __file__, 1, message, args, None)
    vars(found).update(more)
    return found


def failure() -> logging.LogRecord:
    found = record("it failed: %s", HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        found.exc_info = sys.exc_info()
    return found


def test_text_has_the_time_that_logging_writes_by_default() -> None:
    formatter, found = TextFormatter(), record("a")
    for moment in (0.0, 1e9 + 0.25, 1e9 + 0.9999, 1e9 + 1.0005, 1e9, 1.79e9):
        found.created, found.msecs = moment, (moment % 1) * 1000
        assert formatter.formatTime(found) == logging.Formatter().formatTime(found)
        assert formatter.formatTime(found, "%H") == logging.Formatter().formatTime(found, "%H")


def test_text_has_no_line_and_no_control_character_of_others() -> None:
    first, *rest = TextFormatter().format(failure()).split("\n")
    assert first.endswith(r" WARNING app.x: it failed: a\x0d")
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert rest[0] == r"    2026-01-01 INFO forged\x1b[2J\x07\x00\x7f\x85\u2028\ud800b"
    assert all(line.isprintable() for line in (first, *rest))


def test_json_is_one_line_of_ascii_with_everything_in_it() -> None:
    line = JSONFormatter().format(failure())
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert found.pop("exception").startswith("Traceback (most recent call last)")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found.pop("time"))
    message = f"it failed: {HOSTILE}"
    assert found == {"level": "warning", "logger": "app.x", "message": message}


@pytest.mark.parametrize(
    "subjects",
    [
        {},
        {"kernel_id": KERNEL},
        {"execution_id": "a" * 32},
        {"request_id": "r", "kernel_id": KERNEL, "execution_id": "a" * 32},
    ],
)
def test_json_names_what_it_is_about(subjects: dict[str, str]) -> None:
    entry = json.loads(JSONFormatter().format(record(f"kernel {KERNEL}", **subjects)))
    assert {name: entry[name] for name in entry if name.endswith("_id")} == subjects


def test_whoever_logs_about_a_kernel_says_which() -> None:
    silent = [
        (str(path), call.lineno)
        for path in (REPOSITORY / "app").rglob("*.py")
        if path.parent.name != "keeper"  # whose log is for people only
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).startswith("logger.")
        and re.search(r"\b(kernel|execution) '?%s", ast.unparse(call.args[0]))
    ]
    assert silent == []


def test_a_record_tells_what_it_is_about(caplog: pytest.LogCaptureFixture) -> None:
    about(logging.getLogger("app.x"), kernel_id=KERNEL).warning("kernel %s: %d", KERNEL, 1)
    (found,) = caplog.records
    assert json.loads(JSONFormatter().format(found))["kernel_id"] == KERNEL
    assert found.getMessage() == f"kernel {KERNEL}: 1"
    assert found.funcName == "test_a_record_tells_what_it_is_about"


async def test_what_a_request_is_about_is_told_unless_the_record_says_it() -> None:
    made_for = Caller("r", "127.0.0.1")
    made_for.kernel_id, made_for.execution_id = "of the request", "token=sesame"
    begin_call(made_for)
    for subjects in ({}, {"kernel_id": KERNEL}):
        found = record("a", **subjects)
        TokenFilter("sesame").filter(found)
        entry = json.loads(JSONFormatter().format(found))
        assert entry["kernel_id"] == subjects.get("kernel_id", "of the request")
        assert entry["execution_id"] == "token=[hidden]"


async def test_the_id_of_a_request_is_told_until_it_is_over() -> None:
    made_for = Caller("token=sesame", "127.0.0.1")
    begin_call(made_for)
    ids = []
    for _ in range(2):
        found = record("a")
        TokenFilter("sesame").filter(found)
        ids.append(json.loads(JSONFormatter().format(found)).get("request_id"))
        made_for.over = True
    assert ids == ["token=[hidden]", None]


# A server's log


class JSONServer(ServerProcess):
    """``--log-format json``, which shows no token that was given."""

    @property
    def announcement(self) -> str:
        return r'"message": "kernelkeep is ready at http://127\.0\.0\.1:(\d+)/"'


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server("--log-format", "json", kind=JSONServer)


async def test_every_line_of_a_server_is_an_object_that_tells_its_request(
    server: ServerProcess,
) -> None:
    async with kernels_of(server) as start:
        kernel = await start("fake")
        rest, executions = start.rest, Executions(start.rest, kernel.id)
        posted = await executions.post("print a", headers={"X-Request-Id": "from-the.client:1"})
        assert posted.headers["X-Request-Id"] == "from-the.client:1"
        execution_id = posted.json()["id"]
        await rest.http.get(f"/api/kernels/{kernel.id}?token={server.token}")
        dead = await start("fake-exit", ready=False)
        await dead.becomes("dead")

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.output().splitlines()]

    def line(**items: Any) -> dict[str, Any]:
        found = [entry for entry in lines() if items.items() <= entry.items()]
        assert found, items
        return found[0]

    await eventually(lambda: line(method="DELETE"))
    assert server.token not in server.output()
    asked = line(method="POST", path=f"/api/kernels/{kernel.id}/executions")
    assert asked["request_id"] == "from-the.client:1"
    assert (asked["kernel_id"], asked["execution_id"]) == (kernel.id, execution_id)
    assert (asked["status"], asked["logger"]) == (202, "uvicorn.access")
    # What is done for a request has its id; what becomes of the kernel later has none.
    launched = line(kernel_id=dead.id, logger="app.managers.kernels.launches", level="info")
    started = line(method="POST", kernel_id=dead.id)
    assert launched["request_id"] == started["request_id"]
    assert "request_id" not in line(kernel_id=dead.id, level="error")
    hidden = line(method="GET", path=f"/api/kernels/{kernel.id}?token=[hidden]")
    assert hidden["kernel_id"] == kernel.id


async def test_a_request_without_a_sane_id_gets_one(server: ServerProcess) -> None:
    async with RestClient(server.url, None) as stranger:
        for sent in ([], ["a b"], ["x" * 129], [""], ["a", "b"], ["a\tb"], ["é"]):
            headers = [(b"X-Request-Id", value.encode()) for value in sent]
            response = await stranger.http.get("/api/kernels", headers=headers)
            assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"])


# The trace that a request belongs to

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("sent", "handed_on"),
    [
        ([f"00-{TRACE}-{PARENT}-01"], f"00-{TRACE}-{PARENT}-01"),
        ([f"cc-{TRACE}-{PARENT}-00-what-is-new"], f"cc-{TRACE}-{PARENT}-00"),
        ([f"00-{TRACE}-{PARENT}-01-more"], None),
        ([f"ff-{TRACE}-{PARENT}-01"], None),
        ([f"00-{TRACE.upper()}-{PARENT}-01"], None),
        ([f"00-{'0' * 32}-{PARENT}-01"], None),
        ([f"00-{TRACE}-{'0' * 16}-01"], None),
        ([f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01"], None),
        (["sh -c true"], None),
    ],
)
def test_only_a_valid_trace_is_handed_on(sent: list[str], handed_on: str | None) -> None:
    assert trace_environment(sent) == ({} if handed_on is None else {"TRACEPARENT": handed_on})


async def test_a_kernel_finds_the_trace_of_the_request_that_started_it(
    server: ServerProcess,
) -> None:
    traceparent = f"00-{TRACE}-{PARENT}-01"
    async with RestClient(server.url, server.token) as rest:
        rest.http.headers["traceparent"] = traceparent
        session = {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "fake"}}
        response = await rest.request("POST", "/api/sessions", 201, json=session)
        own = {"TRACEPARENT": "the client's own"}
        kernels = {
            (await rest.start_kernel("fake"))["id"]: traceparent,
            (await rest.start_kernel("fake", env=own))["id"]: "the client's own",
            response.json()["kernel"]["id"]: traceparent,
        }
        for kernel_id, expected in kernels.items():
            ended = await Executions(rest, kernel_id).run("env TRACEPARENT")
            assert ended["outputs"][0]["text"] == f"{expected}\n"
            await rest.delete(kernel_id)
