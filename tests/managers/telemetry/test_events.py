"""Events: schemas, subscribers, and what an event costs when nobody listens."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jupyter_events import yaml

from app.managers.errors import EventSchemaReserved, InvalidEvent
from app.managers.telemetry.events import (
    CORE_EVENT_SCHEMA_PATHS,
    KERNEL_ACTIONS,
    KERNEL_LIFECYCLE,
    MAX_WAITING_BYTES,
    Events,
    Schema,
    Subscription,
    read_schemas,
)
from app.plugins import CannotLoad

READY = {"event": "ready", "kernel_id": "k", "kernel_name": "n", "seconds": 0.5}
SCHEMA = """
$id: urn:example:greeting
version: "2"
properties:
  text:
    type: string
required: [text]
"""


def copied(schema_id: str) -> Schema:
    """One of the server's own schemas, under an id by which clients may post."""
    own = next(text for text in map(Path.read_text, CORE_EVENT_SCHEMA_PATHS) if schema_id in text)
    schema: Schema = yaml.loads(own.replace(schema_id, f"urn:example:{schema_id[-8:-3]}"))
    return schema


POSTED_SCHEMA = copied(KERNEL_LIFECYCLE)
POSTED: str = POSTED_SCHEMA["$id"]


async def take(subscription: Subscription) -> dict[str, Any]:
    async with asyncio.timeout(5):
        event = await subscription.take()
    assert event is not None
    found: dict[str, Any] = json.loads(event)
    return found


async def accepts(schema_id: str, data: dict[str, Any]) -> bool:
    """Whether an event is as its schema says."""
    schema = copied(schema_id)
    events = Events([schema])
    async with events.subscription() as subscription:
        try:
            await events.post(schema["$id"], "1", data)
        except InvalidEvent:
            return False
        assert await take(subscription) == {**data, "schema_id": schema["$id"]}
        return True


# Listening


async def test_every_subscriber_gets_every_event_in_order() -> None:
    events = Events()
    async with events.subscription() as one, events.subscription() as other:
        for seconds in range(50):
            events.emit(KERNEL_LIFECYCLE, {**READY, "seconds": seconds})
        for subscription in (one, other):
            got = [(await take(subscription))["seconds"] for _ in range(50)]
            assert got == list(range(50))


async def test_there_is_no_replay_and_nothing_after_the_end() -> None:
    events = Events()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(events.subscription())
        events.emit(KERNEL_LIFECYCLE, READY)
        await take(first)
    async with events.subscription() as second:
        events.emit(KERNEL_LIFECYCLE, {**READY, "kernel_id": "later"})
        assert (await take(second))["kernel_id"] == "later"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await first.take()


async def test_an_event_that_its_schema_does_not_admit_is_logged_and_told_to_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = Events()
    async with events.subscription() as subscription:
        events.emit(KERNEL_LIFECYCLE, {"event": "nonsense"})
        events.emit("urn:example:unknown", {})
        events.emit(KERNEL_LIFECYCLE, READY)
        assert (await take(subscription))["event"] == "ready"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert KERNEL_LIFECYCLE in record.getMessage()


async def test_nothing_is_checked_while_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    events = Events([POSTED_SCHEMA])
    events.emit(KERNEL_LIFECYCLE, {"event": "nonsense"})
    async with events.subscription():
        pass
    events.emit(KERNEL_LIFECYCLE, {"event": "nonsense"})
    await events.post(POSTED, "1", {"event": "nonsense"})
    assert caplog.records == []


def test_the_library_is_not_even_loaded_before_somebody_listens() -> None:
    program = f"""
import asyncio, importlib.util, sys
from app.managers.telemetry.events import Events
async def main():
    events = Events()
    events.emit({KERNEL_LIFECYCLE!r}, {READY!r})
    assert "jupyter_events" not in sys.modules
    assert "jsonschema" not in sys.modules
    async with events.subscription():
        assert "jupyter_events" in sys.modules
    # What compiles a grammar, for seconds, was left out; it can be imported for all that.
    assert "rfc3987_syntax" not in sys.modules
    assert importlib.util.find_spec("rfc3987_syntax") is not None
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# A slow subscriber


async def test_what_waits_for_a_subscriber_is_bounded_and_then_it_ends() -> None:
    subscription = Subscription()
    event = "x" * (MAX_WAITING_BYTES // 4)
    for _ in range(7):
        subscription.put(event)
    assert subscription.dropped == 3
    taken = [await subscription.take() for _ in range(5)]
    assert taken == [event] * 4 + [None]
    # What comes when there is room again would leave a hole before it.
    subscription.put(event)
    assert subscription.dropped == 4
    assert await subscription.take() is None


async def test_one_event_may_be_larger_than_the_bound() -> None:
    subscription = Subscription()
    subscription.put("x" * (MAX_WAITING_BYTES + 1))
    assert subscription.dropped == 0
    assert await subscription.take() is not None


async def test_a_slow_subscriber_costs_the_others_nothing() -> None:
    events = Events()
    large = {**READY, "kernel_name": "x" * (MAX_WAITING_BYTES // 2)}
    async with events.subscription() as slow, events.subscription() as quick:
        for number in range(6):
            events.emit(KERNEL_LIFECYCLE, {**large, "seconds": number})
            assert (await take(quick))["seconds"] == number
        assert quick.dropped == 0
        assert slow.dropped > 0


# Posting


async def test_a_posted_event_reaches_subscribers() -> None:
    events = Events([POSTED_SCHEMA])
    async with events.subscription() as subscription:
        await events.post(POSTED, "1", READY, datetime.now(UTC))
        assert await take(subscription) == {**READY, "schema_id": POSTED}


async def test_data_cannot_pass_for_an_event_of_another_schema() -> None:
    events = Events([POSTED_SCHEMA])
    async with events.subscription() as subscription:
        await events.post(POSTED, "1", {**READY, "schema_id": KERNEL_ACTIONS})
        assert (await take(subscription))["schema_id"] == POSTED


@pytest.mark.parametrize(
    ("schema_id", "version", "message"),
    [
        (
            "urn:example:unknown",
            "1",
            "The requested schema, urn:example:unknown, was not found in the schema registry. "
            "Are you sure it was previously registered?",
        ),
        (POSTED, "2", f"Unregistered version: '2'≠'1' for `{POSTED}`"),
    ],
)
async def test_an_unknown_schema_or_version_is_refused(
    schema_id: str, version: str, message: str
) -> None:
    with pytest.raises(InvalidEvent) as refused:
        await Events([POSTED_SCHEMA]).post(schema_id, version, READY)
    assert refused.value.message == message


async def test_what_is_wrong_with_data_is_said_without_repeating_it() -> None:
    events = Events([POSTED_SCHEMA])
    async with events.subscription():
        for data, message in (
            (
                {**READY, "seconds": "secret"},
                "data.seconds: does not match the schema: type: number",
            ),
            (
                {name: value for name, value in READY.items() if name != "seconds"},
                "data: does not match the schema: required: ['seconds']",
            ),
        ):
            with pytest.raises(InvalidEvent) as refused:
                await events.post(POSTED, "1", data)
            assert refused.value.message == message


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_data_that_subscribers_could_not_read_is_refused(number: float) -> None:
    with pytest.raises(InvalidEvent, match="number"):
        await Events([POSTED_SCHEMA]).post(POSTED, "1", {**READY, "seconds": number})


async def test_data_that_is_nested_without_end_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"deep": deep}
    with pytest.raises(InvalidEvent, match="nested"):
        await Events([POSTED_SCHEMA]).post(POSTED, "1", deep)


@pytest.mark.parametrize("schema_id", [KERNEL_ACTIONS, KERNEL_LIFECYCLE])
async def test_the_servers_own_schemas_are_not_for_clients(schema_id: str) -> None:
    with pytest.raises(EventSchemaReserved):
        await Events().post(schema_id, "1", READY, datetime.now(UTC))


async def test_data_cannot_take_the_place_of_what_the_library_writes() -> None:
    for name in ("__timestamp__", "__schema__", "__schema_version__"):
        with pytest.raises(InvalidEvent, match="__"):
            await Events([POSTED_SCHEMA]).post(POSTED, "1", {**READY, name: "forged"})


# The schemas


@pytest.mark.parametrize(
    ("data", "accepted"),
    [
        ({"action": "start", "msg": "", "kernel_id": "k"}, True),
        ({"action": "start", "msg": "", "kernel_id": "k", "status": "success"}, True),
        ({"action": "start", "msg": "", "status": "error"}, True),
        ({"action": "start", "msg": "", "status": "success"}, False),
        ({"action": "start", "msg": ""}, False),
        ({"action": "shutdown", "msg": "", "status": "error"}, False),
        ({"action": "restart", "msg": "", "kernel_id": "k", "status": "error"}, True),
        ({"action": "interrupt", "msg": "", "kernel_id": "k", "status_code": 409}, True),
        ({"action": "interrupt", "msg": "", "kernel_id": "k", "status_code": "409"}, False),
        ({"action": "interrupt", "msg": "", "kernel_id": "k", "kernel_name": "n"}, True),
        ({"action": "interrupt", "msg": "", "kernel_id": "k", "status": "fine"}, False),
        ({"action": "pause", "msg": "", "kernel_id": "k"}, False),
        ({"msg": "", "kernel_id": "k"}, False),
        ({"action": "start", "kernel_id": "k"}, False),
    ],
)
async def test_the_schema_of_actions_is_that_of_jupyter_servers(
    data: dict[str, Any], accepted: bool
) -> None:
    assert await accepts(KERNEL_ACTIONS, data) is accepted


@pytest.mark.parametrize(
    ("event", "items"),
    [
        ("ready", {"seconds": 0.25}),
        ("dead", {"reason": "why"}),
        ("automatic_restart", {"reason": "why", "count": 1}),
        ("culled", {"idle_seconds": 3.5, "connections": 0}),
        ("shut_down_by_client", {}),
    ],
)
async def test_each_turn_of_life_has_all_that_belongs_to_it(
    event: str, items: dict[str, Any]
) -> None:
    data = {"event": event, "kernel_id": "k", "kernel_name": "n", **items}
    assert await accepts(KERNEL_LIFECYCLE, data)
    for name in data:
        without = {key: value for key, value in data.items() if key != name}
        assert not await accepts(KERNEL_LIFECYCLE, without)


def test_the_core_schemas_are_where_the_package_is() -> None:
    for path in CORE_EVENT_SCHEMA_PATHS:
        assert path.is_file()
        assert "app" in path.parts


async def test_further_schemas_can_be_given(tmp_path: Path) -> None:
    file = tmp_path / "greeting.yaml"
    file.write_text(SCHEMA)
    events = Events(read_schemas([file]))
    async with events.subscription() as subscription:
        await events.post("urn:example:greeting", "2", {"text": "hello"})
        assert (await take(subscription))["text"] == "hello"
        with pytest.raises(InvalidEvent):
            await events.post("urn:example:greeting", "2", {"text": 1})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a: [", "while parsing"),
        ("[]", "it holds no schema"),
        ("", "it holds no schema"),
        ("\x00", "unacceptable character"),
        ("version: 1\nproperties: {}", "it has no $id"),
        ("$id: urn:a:b\nproperties: {}", "'version' is a required property"),
        ("$id: urn:a:b\nversion: '1'\nproperties: {a: {type: b}}", "'b' is not valid"),
        ("$id: no uri\nversion: '1'\nproperties: {}", "'no uri' is not a 'uri"),
        (f"$id: {KERNEL_LIFECYCLE}\nversion: '1'\nproperties: {{}}", "already"),
    ],
)
def test_a_file_that_is_no_schema_is_refused_in_one_line(
    tmp_path: Path, content: str, problem: str
) -> None:
    file = tmp_path / "schema.yaml"
    file.write_text(content)
    with pytest.raises(CannotLoad) as refused:
        read_schemas([file])
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"--extra-event-schema-paths: {file}: ")
    assert problem in line


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path, problem in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(CannotLoad, match=problem):
            read_schemas([path])


def test_two_files_with_one_schema_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / "one.yaml", tmp_path / "other.yaml"]
    for file in files:
        file.write_text(SCHEMA)
    with pytest.raises(CannotLoad, match="already"):
        read_schemas(files)
