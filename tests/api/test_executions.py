"""The executions resource: running code over HTTP, looking at it, stopping it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest

from app.managers.executions.queue import MAX_WAITING
from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.executions import NDJSON, Executions, Json
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
SUMMARY = [
    "id",
    "state",
    "session",
    "generation",
    "queued",
    "started",
    "ended",
    "seconds",
    "execution_count",
    "first_seq",
    "last_seq",
    "reason",
    "timeout",
    "queue",
    "input_request",
    "steps",
]
RESULT = [*SUMMARY, "outputs", "user_expressions", "payload", "gap", "cut", "late_outputs"]


def steps(execution: Json) -> list[str]:
    return [step["step"] for step in execution["steps"]]


# Running


async def test_code_is_accepted_and_runs(shared: Executions) -> None:
    response = await shared.post("print a\nresult 42")
    assert response.status_code == 202
    accepted = response.json()
    assert list(accepted) == RESULT
    assert response.headers["Location"] == f"{shared.path}/{accepted['id']}"
    ended = await shared.ended(accepted["id"])
    assert list(ended) == RESULT
    assert (ended["state"], ended["reason"]) == ("ok", None)
    assert ended["outputs"] == [
        {"output_type": "stream", "name": "stdout", "text": "a\n"},
        {
            "output_type": "execute_result",
            "data": {"text/plain": "42"},
            "metadata": {},
            "execution_count": ended["execution_count"],
        },
    ]
    for moment in ("queued", "started", "ended"):
        assert TIMESTAMP.fullmatch(ended[moment])
    assert ended["first_seq"] < ended["last_seq"]
    assert 0 <= ended["seconds"] < 30


async def test_the_result_comes_at_once_if_it_is_waited_for(shared: Executions) -> None:
    response = await shared.post("print a\nerror E why", query={"wait": 30})
    assert response.status_code == 200
    ended = response.json()
    assert ended["state"] == "error"
    assert ended["outputs"][1] == {
        "output_type": "error",
        "ename": "E",
        "evalue": "why",
        "traceback": ["E: why"],
    }
    assert response.headers["Location"].endswith(ended["id"])


async def test_what_takes_longer_is_answered_with_the_output_so_far(
    shared: Executions,
) -> None:
    execution_id = await shared.begin("print a\nsleep 60")
    await shared.until(execution_id, "stream")
    assert (await shared.get(execution_id, wait=0.1))["state"] == "running"
    behind = await shared.post("print b", query={"wait": 0.1})
    assert (behind.status_code, behind.json()["state"]) == (202, "queued")
    running = await shared.get(execution_id)
    assert (running["state"], running["outputs"][0]["text"]) == ("running", "a\n")
    assert running["seconds"] > 0
    await shared.cancel(execution_id)


async def test_a_kernel_that_has_just_been_started_can_be_used_at_once(rest: RestClient) -> None:
    kernel = await rest.start_kernel("fake-slow")
    try:
        assert (await Executions(rest, kernel["id"]).run("print a"))["state"] == "ok"
    finally:
        await rest.delete(kernel["id"])


async def test_executions_of_websocket_clients_are_executions_too(
    kernel: RunningKernel, executions: Executions
) -> None:
    exchange = await kernel.channels.execute("print a\nerror E why")
    found = await executions.get(exchange.msg_id)
    assert (found["state"], found["session"]) == ("error", kernel.channels.session)
    assert [output["output_type"] for output in found["outputs"]] == ["stream", "error"]
    assert found["execution_count"] == exchange.reply["execution_count"]


async def test_clients_see_the_output_of_what_was_asked_for_over_http(
    kernel: RunningKernel, executions: Executions
) -> None:
    ended = await executions.run("print a")
    messages = await kernel.channels.collect_until(
        lambda m: m.parent_id == ended["id"] and m.state == "idle"
    )
    told = [m.state or m.msg_type for m in messages if m.parent_id == ended["id"]]
    assert told == ["busy", "execute_input", "stream", "idle"]


async def test_a_kernel_of_python(python: Executions) -> None:
    code = "import sys\nprint(1)\nprint(2, file=sys.stderr)\nx = 3\nx"
    ended = await python.run(code, user_expressions={"y": "x + 1", "z": "1/0"})
    assert [output.get("text") for output in ended["outputs"]] == ["1\n", "2\n", None]
    assert ended["outputs"][2]["data"] == {"text/plain": "3"}
    assert ended["user_expressions"]["y"]["data"] == {"text/plain": "4"}
    assert ended["user_expressions"]["z"]["ename"] == "ZeroDivisionError"
    silent = await python.run("x = 4", silent=True)
    assert silent["outputs"] == []
    assert (await python.run("x"))["outputs"][0]["data"] == {"text/plain": "4"}


async def test_a_failure_aborts_what_waits_behind_it(
    server: ServerProcess, shared: Executions
) -> None:
    first = await shared.begin("until failing\nerror E why")
    second, third = [await shared.begin("print never") for _ in range(2)]
    (server.home.root_dir / "failing").touch()
    for execution_id in (second, third):
        ended = await shared.ended(execution_id)
        assert (ended["state"], ended["outputs"]) == ("aborted", [])
        assert "stop_on_error" in ended["reason"]
    assert (await shared.get(first))["state"] == "error"
    assert (await shared.run("print on"))["state"] == "ok"


# Time limits and cancelling


async def test_code_that_takes_too_long_is_interrupted(shared: Executions) -> None:
    ended = await shared.run("print a\nsleep 60", timeout=1.5)
    assert (ended["state"], steps(ended)[:2]) == ("error", ["timeout", "interrupt"])
    assert ended["reason"].startswith("It ran longer than its timeout of 1.5 s")
    assert ended["outputs"][0]["text"] == "a\n"
    assert ended["outputs"][1]["ename"] == "KeyboardInterrupt"


async def test_a_kernel_that_does_not_heed_the_interrupt_is_killed_and_restarted(
    make_server: MakeServer,
) -> None:
    server = make_server("--execution-interrupt-grace", "0.5")
    async with kernels_of(server) as start:
        kernel = await start()
        executions = Executions(kernel.rest, kernel.id)
        before = await kernel.pid()
        ended = await executions.run("print a\nhang", timeout=1.5)
        assert ended["state"] == "lost"
        assert (steps(ended)[0], steps(ended)[-1]) == ("timeout", "kill")
        assert [output.get("ename") for output in ended["outputs"]] == [None, "KernelDied"]
        assert (await executions.run("pid"))["outputs"][0]["text"] != f"{before}\n"


async def test_one_that_waits_and_is_cancelled_never_runs(shared: Executions) -> None:
    running = await shared.begin("sleep 60")
    waiting = await shared.begin("print never")
    await shared.until(running, "started")
    cancelled = await shared.cancel(waiting)
    assert list(cancelled) == SUMMARY
    assert (cancelled["state"], cancelled["started"]) == ("cancelled", None)
    assert (await shared.cancel(waiting))["ended"] == cancelled["ended"]
    assert (await shared.cancel(running))["state"] in ("running", "cancelled")
    assert (await shared.ended(running))["state"] == "cancelled"
    assert (await shared.ended(waiting))["outputs"] == []


async def test_one_that_is_cancelled_as_it_begins_is_interrupted_all_the_same(
    python: Executions,
) -> None:
    for _ in range(5):
        execution_id = await python.begin("import time; time.sleep(60)")
        await python.cancel(execution_id)
        assert (await python.ended(execution_id))["state"] == "cancelled"


async def test_one_that_does_not_heed_the_cancel_is_killed_if_that_is_asked(
    kernel: RunningKernel, executions: Executions
) -> None:
    execution_id = await executions.begin("hang")
    await executions.until(execution_id, "started")
    assert (await executions.cancel(execution_id, kill_after=0.3))["state"] == "running"
    ended = await executions.ended(execution_id)
    assert (ended["state"], steps(ended)[-1]) == ("cancelled", "kill")
    assert (await executions.run("print back"))["state"] == "ok"


async def test_a_websocket_clients_execution_can_be_cancelled(
    kernel: RunningKernel, executions: Executions
) -> None:
    running = await kernel.busy("sleep 60")
    waiting = await kernel.channels.send_execute("sleep 60")
    await eventually(lambda: _known(executions, waiting))
    await executions.cancel(waiting)
    await executions.cancel(running)
    assert (await executions.ended(running))["state"] == "cancelled"
    assert (await executions.ended(waiting))["state"] == "cancelled"


async def _known(executions: Executions, execution_id: str) -> bool:
    return any(found["id"] == execution_id for found in await executions.listed())


# Input


@pytest.mark.parametrize("name", ["fake", "python3"])
async def test_input_is_answered(start: KernelStarter, name: str) -> None:
    kernel = await start(name)
    executions = Executions(kernel.rest, kernel.id)
    code = "input who?" if name == "fake" else "print(input('who?'))"
    execution_id = await executions.begin(code, allow_stdin=True)
    event = await executions.until(execution_id, "input_request", NDJSON)
    assert (event["prompt"], event["password"]) == ("who?", False)
    asking = await executions.get(execution_id)
    assert asking["input_request"] == {"id": event["id"], "prompt": "who?", "password": False}
    path = f"{executions.path}/{execution_id}/input"
    answer = {"value": "Ada", "prompt": event["id"]}
    response = await kernel.rest.request("POST", path, 204, json=answer)
    assert response.content == b""
    ended = await executions.ended(execution_id)
    assert ended["outputs"][-1]["text"].endswith("Ada\n")
    again = await kernel.rest.http.post(path, json={"value": "late"})
    error_of(again, 409, "no_input_requested")


async def test_an_answer_that_is_sent_twice_never_answers_the_next_prompt(
    start: KernelStarter,
) -> None:
    kernel = await start("python3")
    executions = Executions(kernel.rest, kernel.id)
    code = "print([input('user: '), input('password: ')])"
    execution_id = await executions.begin(code, allow_stdin=True)
    path = f"{executions.path}/{execution_id}/input"
    user = await executions.until(execution_id, "input_request", NDJSON)
    named = {"value": "ada", "prompt": user["id"]}
    other = {"value": "ada", "prompt": "of another kernel"}
    error_of(await kernel.rest.http.post(path, json=other), 409, "prompt_gone")

    async def send(answer: Any, key: str | None = None) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        return await kernel.rest.http.post(path, json=answer, headers=headers)

    assert (await send({"value": "ada"}, "first")).status_code == 204
    await eventually(lambda: _asks(executions, execution_id, "password: "))
    assert (await send({"value": "ada"}, "first")).status_code == 204  # and nothing is done
    error_of(await send({"value": "eve"}, "first"), 409, "idempotency_conflict")
    error_of(await send(named), 409, "prompt_gone")
    password = (await executions.get(execution_id))["input_request"]
    assert password["prompt"] == "password: "
    answer = {"value": "secret", "prompt": password["id"]}
    assert (await send(answer, "second")).status_code == 204
    ended = await executions.ended(execution_id)
    assert ended["outputs"][-1]["text"].endswith("['ada', 'secret']\n")
    error_of(await send(answer), 409, "prompt_gone")
    assert (await send(answer, "second")).status_code == 204


async def _asks(executions: Executions, execution_id: str, prompt: str) -> bool:
    asked = (await executions.get(execution_id))["input_request"]
    return asked is not None and asked["prompt"] == prompt


async def test_input_fails_at_once_unless_it_is_allowed(python: Executions) -> None:
    ended = await python.run("input()")
    assert ended["outputs"][0]["ename"] == "StdinNotImplementedError"


async def test_one_that_asks_for_nothing_takes_no_input(shared: Executions) -> None:
    execution_id = await shared.begin("sleep 60")
    path = f"{shared.path}/{execution_id}/input"
    error_of(await shared.rest.http.post(path, json={"value": "x"}), 409, "no_input_requested")
    await shared.cancel(execution_id)


# Looking


async def test_executions_are_listed_with_the_newest_last(executions: Executions) -> None:
    ids = [(await executions.run(f"print {number}"))["id"] for number in range(4)]
    listed = await executions.listed()
    assert [found["id"] for found in listed] == ids
    assert list(listed[0]) == SUMMARY
    assert [found["id"] for found in await executions.listed(limit=2)] == ids[2:]
    assert [found["id"] for found in await executions.listed(limit=2, before=ids[2])] == ids[:2]


async def test_a_result_can_be_fetched_any_number_of_times(shared: Executions) -> None:
    ended = await shared.run("flood 100 20")
    assert [await shared.get(ended["id"]) for _ in range(3)] == [ended] * 3


async def test_output_that_is_too_long_is_cut_in_the_middle(shared: Executions) -> None:
    ended = await shared.run("flood 1000 100")
    cut = await shared.get(ended["id"], max_bytes=1000)
    head, notice, tail = cut["outputs"]
    assert head["text"].startswith("1 xxx")
    assert tail["text"].splitlines()[-1].startswith("1000 xxx")
    assert len(head["text"]) + len(tail["text"]) == 1000
    assert cut["cut"] == {"outputs": 0, "bytes": 100 * 1000 - 1000}
    assert notice["name"] == "stderr"
    assert "99000 bytes" in notice["text"]


async def test_expressions_and_payload_are_cut_to_size_as_well(python: Executions) -> None:
    code = """
for length in (50_000, 100):
    get_ipython().payload_manager.write_payload(
        {"source": f"page {length}", "data": {"text/plain": "p" * length}}, single=False
    )
"""
    asked = {"small": "1 + 1", "large": "'e' * 50_000"}
    ended = await python.run(code, user_expressions=asked)
    assert ended["cut"] is None
    assert len(ended["payload"]) == 2
    assert sorted(ended["user_expressions"]) == ["large", "small"]
    cut = await python.get(ended["id"], max_bytes=1000)
    assert [*cut["user_expressions"]] == ["small"]
    assert [found["source"] for found in cut["payload"]] == ["page 100"]
    assert cut["cut"]["outputs"] == 0
    assert 100_000 < cut["cut"]["bytes"] < 101_000


async def test_what_has_left_the_log_is_told(make_server: MakeServer) -> None:
    server = make_server("--log-bytes", "65536")
    async with kernels_of(server) as start:
        kernel = await start()
        executions = Executions(kernel.rest, kernel.id)
        ended = await executions.run("flood 1000 1000")
        text = ended["outputs"][0]["text"]
        lines = text.count("\n")
        assert 0 < lines < 100
        # Beside the stream: the request, the status and the code, and what the server itself has
        # asked meanwhile.
        assert 0 <= ended["gap"]["messages"] - (1000 - lines + 2) <= 8
        assert ended["gap"]["bytes"] > 900_000
        await executions.run("flood 1000 1000")
        gone = await executions.get(ended["id"])
        assert gone["outputs"] == []
        assert gone["gap"]["messages"] == gone["last_seq"] - gone["first_seq"] + 1


async def test_output_of_several_files_is_read(make_server: MakeServer) -> None:
    server = make_server("--log-bytes", "4000000")
    async with kernels_of(server) as start:
        kernel = await start()
        ended = await Executions(kernel.rest, kernel.id).run("flood 2000 1000")
        numbers = [int(line.split()[0]) for line in ended["outputs"][0]["text"].splitlines()]
        assert numbers == list(range(1, 2001))
        assert ended["gap"] is None


# The end of the kernel


async def test_a_death_ends_what_runs_and_what_waits(
    server: ServerProcess, executions: Executions
) -> None:
    running = await executions.begin("print a\nuntil dying\ndie 3")
    waiting = await executions.begin("print never")
    (server.home.root_dir / "dying").touch()
    lost, aborted = [await executions.ended(one) for one in (running, waiting)]
    assert (lost["state"], aborted["state"]) == ("lost", "aborted")
    assert "exited with code 3" in lost["reason"]
    assert "exited with code 3" in aborted["reason"]
    assert lost["outputs"][0]["text"] == "a\n"
    assert lost["outputs"][1]["ename"] == "KernelDied"


async def test_a_restart_ends_what_runs_and_what_waits(
    kernel: RunningKernel, executions: Executions
) -> None:
    running, waiting = await executions.begin("sleep 60"), await executions.begin("print never")
    await executions.until(running, "started")
    await kernel.rest.restart(kernel.id)
    lost, aborted = [await executions.get(one) for one in (running, waiting)]
    # The restart interrupts it first, and it may still say so.
    assert (lost["state"] in ("lost", "error"), aborted["state"]) == (True, "aborted")
    assert aborted["reason"] == "The kernel was restarted"
    assert (await executions.run("print back"))["state"] == "ok"


async def test_a_dead_kernel_takes_no_code(rest: RestClient, start: KernelStarter) -> None:
    kernel = await start("fake-exit", ready=False)
    await kernel.becomes("dead")
    executions = Executions(rest, kernel.id)
    error_of(await executions.post("print a"), 409, "kernel_not_running")


async def test_a_failure_aborts_what_waits_in_its_queue(shared: Executions) -> None:
    failing = await shared.begin("sleep 0.5\nerror E why", queue="a")
    same = await shared.begin("print a", queue="a")
    other = await shared.begin("print a", queue="b")
    own = await shared.begin("print a")
    ends = [await shared.ended(each) for each in (failing, same, other, own)]
    assert [end["state"] for end in ends] == ["error", "aborted", "ok", "ok"]
    assert [end["queue"] for end in ends] == ["a", "a", "b", None]


async def test_code_that_is_asked_for_after_an_interrupt_runs(shared: Executions) -> None:
    interrupted = await shared.begin("sleep 60")
    await shared.until(interrupted, "started")
    before = await shared.begin("print a")
    await shared.rest.interrupt(shared.kernel_id)
    after = await shared.begin("print a")
    ends = [await shared.ended(each) for each in (interrupted, before, after)]
    assert [end["state"] for end in ends] == ["error", "aborted", "ok"]


async def test_code_may_be_cancelled_with_the_connection_that_waits_for_it(
    server: ServerProcess, shared: Executions
) -> None:
    asked = shared.post("sleep 60", query={"wait": 60}, cancel_on_disconnect=True)
    async with RestClient(server.url, server.token) as other:
        waiting = asyncio.create_task(asked)
        (running,) = await eventually(lambda: _running(Executions(other, shared.kernel_id)))
        waiting.cancel()
        ended = await Executions(other, shared.kernel_id).ended(running)
    assert ended["state"] == "cancelled"
    assert steps(ended) == ["cancel", "interrupt"]
    assert "has gone" in ended["reason"]


async def test_code_goes_on_without_the_connection_that_waits_for_it(
    server: ServerProcess, shared: Executions
) -> None:
    waiting = asyncio.create_task(shared.post("sleep 1", query={"wait": 60}))
    async with RestClient(server.url, server.token) as other:
        (running,) = await eventually(lambda: _running(Executions(other, shared.kernel_id)))
        waiting.cancel()
        assert (await Executions(other, shared.kernel_id).ended(running))["state"] == "ok"


async def _running(executions: Executions) -> list[str]:
    return [one["id"] for one in await executions.listed() if one["state"] == "running"]


async def test_how_long_code_may_run_can_be_set(make_server: MakeServer) -> None:
    options = ("--execution-timeout-default", "0.5", "--execution-timeout-max", "7")
    server = make_server(*options)
    async with kernels_of(server) as start:
        kernel = await start()
        executions = Executions(kernel.rest, kernel.id)
        ended = await executions.run("sleep 60")
        assert (ended["timeout"], steps(ended)) == (0.5, ["timeout", "interrupt"])
        response = await executions.post("print a", timeout=7.5)
        assert "at most 7 s" in error_of(response, 400, "timeout_too_long")
        assert (await executions.run("print a", timeout=7))["timeout"] == 7


# Bad requests


async def test_only_so_many_may_wait(make_server: MakeServer) -> None:
    server = make_server()
    async with kernels_of(server) as start:
        kernel = await start()
        executions = Executions(kernel.rest, kernel.id)
        running = await executions.begin("sleep 60")
        await executions.until(running, "started")
        for _ in range(MAX_WAITING):
            await executions.begin("print a")
        response = await executions.post("print a")
        error_of(response, 429, "too_many_executions")
        assert int(response.headers["Retry-After"]) > 0
        await executions.cancel(running)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "No JSON data provided"),
        (b"{", "Invalid JSON"),
        (b"[]", "body"),
        (b"{}", "code"),
        (b'{"code": 7}', "code"),
        (b'{"code": "\\ud800"}', "code"),
        (b'{"code": "", "timeout": 0}', "timeout"),
        (b'{"code": "", "timeout": -1}', "timeout"),
        (b'{"code": "", "timeout": 1e400}', "timeout"),
        (b'{"code": "", "timeout": NaN}', "timeout"),
        (b'{"code": "", "timeout": "soon"}', "timeout"),
        (b'{"code": "", "user_expressions": {"a": 1}}', "user_expressions"),
        (b'{"code": "", "allow_stdin": "perhaps"}', "allow_stdin"),
        (b'{"code": "", "time_out": 5}', "time_out: there is no such field"),
        (b'{"code": "", "queue": ""}', "queue"),
        (b'{"code": "", "queue": 7}', "queue"),
        (b'{"code": "", "queue": "\\ud800"}', "queue"),
        (b'{"code": "", "queue": "' + b"x" * 101 + b'"}', "queue"),
        (b'{"code": "", "cancel_on_disconnect": 1}', "cancel_on_disconnect"),
        (b'{"code": "", "cancel_on_disconnect": true}', "cancel_on_disconnect: this is for"),
    ],
)
async def test_a_body_that_makes_no_sense(shared: Executions, body: bytes, named: str) -> None:
    before = await shared.listed()
    response = await shared.rest.http.post(shared.path, content=body)
    assert response.status_code == 400, response.text
    assert named in response.json()["message"]
    assert await shared.listed() == before


@pytest.mark.parametrize(
    ("path", "body"),
    [("cancel", {"kill_afer": 1}), ("input", {"value": "x", "password": True})],
)
async def test_a_field_that_is_not_known_is_refused(
    shared: Executions, path: str, body: Json
) -> None:
    running = await shared.begin("sleep 60")
    response = await shared.rest.http.post(f"{shared.path}/{running}/{path}", json=body)
    assert "there is no such field" in error_of(response, 400, "invalid_request")
    assert not (await shared.get(running))["ended"]


async def test_a_body_that_is_too_large(shared: Executions) -> None:
    body = b'{"code": "' + b"x" * 100 * 2**20 + b'"}'
    try:
        response = await shared.rest.http.post(shared.path, content=body)
    except httpx.WriteError:  # it was refused before all of it was sent
        return
    error_of(response, 413, "request_too_large")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("wait=301", "wait_too_long"),
        ("wait=1e9", "wait_too_long"),
        ("wait=-1", "invalid_request"),
        ("wait=nan", "invalid_request"),
        ("wait=inf", "invalid_request"),
        ("wait=long", "invalid_request"),
        ("max_bytes=-1", "invalid_request"),
        ("max_bytes=99999999999", "invalid_request"),
    ],
)
async def test_a_query_that_makes_no_sense(shared: Executions, query: str, code: str) -> None:
    before = await shared.listed()
    response = await shared.rest.http.post(f"{shared.path}?{query}", json={"code": ""})
    error_of(response, 400, code)
    assert await shared.listed() == before


async def test_how_long_a_request_may_wait_can_be_set(make_server: MakeServer) -> None:
    server = make_server("--execution-wait-limit", "2")
    async with kernels_of(server) as start:
        kernel = await start()
        executions = Executions(kernel.rest, kernel.id)
        message = error_of(
            await executions.post("print a", query={"wait": 3}), 400, "wait_too_long"
        )
        assert "at most 2 s" in message


UNKNOWN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/outputs/0"),
        ("POST", "/cancel"),
        ("POST", "/input"),
    ],
)
async def test_an_execution_that_does_not_exist(shared: Executions, method: str, path: str) -> None:
    url = f"{shared.path}/{UNKNOWN}{path}"
    body = {"value": ""} if path == "/input" else None
    response = await shared.rest.http.request(method, url, json=body)
    message = error_of(response, 404, "execution_not_found")
    assert message == f"Execution does not exist: {UNKNOWN}"


async def test_a_kernel_that_does_not_exist(rest: RestClient) -> None:
    executions = Executions(rest, "01234567-89ab-cdef-0123-456789abcdef")
    error_of(await executions.post("print a"), 404, "kernel_not_found")
    error_of(await rest.http.get(executions.path), 404, "kernel_not_found")


@pytest.mark.parametrize("body", [b'{"kill_after": -1}', b'{"kill_after": "soon"}', b"[]", b"{"])
async def test_a_cancel_that_makes_no_sense_cancels_nothing(
    shared: Executions, body: bytes
) -> None:
    execution_id = await shared.begin("sleep 60")
    path = f"{shared.path}/{execution_id}/cancel"
    response = await shared.rest.http.post(path, content=body)
    assert response.status_code == 400
    assert (await shared.get(execution_id))["state"] in ("queued", "running")
    await shared.cancel(execution_id)


async def test_it_needs_the_token(server: ServerProcess, shared: Executions) -> None:
    async with RestClient(server.url, None) as stranger:
        for path in (shared.path, f"{shared.path}/x/events"):
            error_of(await stranger.http.get(path), 403, "unauthorized")
        response = await stranger.http.post(shared.path, json={"code": "print a"})
        error_of(response, 403, "unauthorized")


async def test_who_waits_and_goes_away_changes_nothing(executions: Executions) -> None:
    waiting = asyncio.create_task(executions.run("sleep 1\nprint a"))
    found = await eventually(executions.listed)
    waiting.cancel()
    await asyncio.wait({waiting})
    ended = await executions.ended(found[0]["id"])
    assert (ended["state"], ended["outputs"][0]["text"]) == ("ok", "a\n")
