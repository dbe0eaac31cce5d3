"""Errors that show in one of a kernel's two last messages only: the reply, or what is published."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.executions import Executions
from tests.support.running import KernelStarter

HANDLED = (
    "get_ipython().set_custom_exc((ValueError,), lambda *arguments, **options: None)\n"
    "raise ValueError('the cause')"
)
PRINTED = "get_ipython().showtraceback = lambda *arguments, **options: print('mine')\n1/0"


@pytest.mark.parametrize(
    ("code", "ename", "evalue"),
    [
        (HANDLED, "ValueError", "the cause"),
        (PRINTED, "ZeroDivisionError", "division by zero"),
        ("raise Exception(chr(0xD8FF))", "UnicodeEncodeError", "surrogates not allowed"),
        ("%nosuchmagic", "UsageError", "%nosuchmagic"),
    ],
)
async def test_an_error_of_the_reply_alone_is_an_output_and_an_event(
    start: KernelStarter, code: str, ename: str, evalue: str
) -> None:
    kernel = await start("python3")
    executions = Executions(kernel.rest, kernel.id)
    ended = await executions.run(code)
    assert ended["state"] == "error"
    (error,) = (found for found in ended["outputs"] if found["output_type"] == "error")
    assert error["ename"] == ename
    assert evalue in error["evalue"]
    (event,) = (
        event for event in await executions.all_events(ended["id"]) if event["type"] == "error"
    )
    assert {name: event[name] for name in ("ename", "evalue", "traceback")} == {
        name: error[name] for name in ("ename", "evalue", "traceback")
    }
    # Who comes back behind the error is not told again.
    rest = await executions.all_events(ended["id"], params={"after": event["seq"]})
    assert [event["type"] for event in rest] == ["ended"]


async def test_an_error_that_is_published_is_told_once(start: KernelStarter) -> None:
    kernel = await start("python3")
    executions = Executions(kernel.rest, kernel.id)
    for code in ("1/0", "0 = 1"):
        ended = await executions.run(code)
        assert [found["output_type"] for found in ended["outputs"]] == ["error"]
        events = await executions.all_events(ended["id"])
        assert [event["type"] for event in events].count("error") == 1
        resumed = await executions.all_events(
            ended["id"],
            params={"after": next(e["seq"] for e in events if e["type"] == "error")},
        )
        assert [event["type"] for event in resumed] == ["ended"]


async def test_an_interrupt_near_the_end_of_code_holds_nobody_up(start: KernelStarter) -> None:
    """ipykernel gives up one in ten such requests without a reply."""
    kernel = await start("python3")
    executions = Executions(kernel.rest, kernel.id)
    await executions.run("import time")
    for number in range(20):
        execution_id = await executions.begin("time.sleep(0.1)")
        await executions.until(execution_id, "code")
        await asyncio.sleep(0.09 + number / 1000)
        await kernel.rest.interrupt(kernel.id)
        ended = await executions.ended(execution_id)
        assert ended["state"] in ("ok", "error", "lost")
        assert ended["execution_count"] == number + 2
        assert ended["seconds"] < 4
    assert (await executions.run("1"))["state"] == "ok"
