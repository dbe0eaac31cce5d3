"""The metrics, as Prometheus gets them.

These are the tests of `app.api.timing`.
"""

from __future__ import annotations

import asyncio
import re

import pytest

from app import __version__
from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.executions import NDJSON, Executions
from tests.support.metrics import Metrics, scrape
from tests.support.processes import eventually
from tests.support.rest import RestClient, RestError
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def server(own_server: ServerProcess) -> ServerProcess:
    """What it has counted is all of this module's."""
    return own_server


def requests(metrics: Metrics, method: str, handler: str, status: int) -> float:
    name = "http_request_duration_seconds_count"
    return metrics(name, method=method, handler=handler, status_code=str(status))


def kernels(metrics: Metrics, kind: str = "fake") -> dict[str, float]:
    """How many kernels of a type there are in each state."""
    found = metrics.labels("kernelkeep_kernels")
    states = [labels["state"] for labels in found if labels["type"] == kind]
    return {state: metrics("kernelkeep_kernels", type=kind, state=state) for state in states}


def notices(channels: JupyterChannels, pattern: str) -> tuple[int, int]:
    """The sums of the messages and bytes that notices to a client tell of."""
    texts = [m.content["text"] for m in channels.log if m.msg_type == "stream"]
    found = [match for text in texts if (match := re.search(pattern, text))]
    return sum(int(match[1]) for match in found), sum(int(match[2]) for match in found)


# Who may see them


async def test_they_are_in_the_text_format(rest: RestClient) -> None:
    response = await rest.request("GET", "/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert response.headers["Content-Type"].endswith("charset=utf-8")
    metrics = Metrics(response.text)
    assert len(set(metrics.names)) == len(metrics.names)
    assert metrics("process_open_fds") > 0
    assert metrics.has("python_gc_collections_total", generation="0")


async def test_they_need_the_token(server: ServerProcess) -> None:
    async with RestClient(server.url, None) as stranger:
        error_of(await stranger.http.get("/metrics"), 403, "unauthorized")


async def test_they_can_be_opened_to_everybody_and_nothing_else_with_them(
    make_server: MakeServer,
) -> None:
    server = make_server("--no-authenticate-prometheus")
    async with RestClient(server.url, None) as stranger:
        assert (await scrape(stranger)).has("jupyter_server_info", version=__version__)
        error_of(await stranger.http.get("/api/kernels"), 403, "unauthorized")
        error_of(await stranger.http.get("/metrics/more"), 403, "unauthorized")


# The server


async def test_the_server_tells_its_version_and_times(rest: RestClient) -> None:
    await rest.kernels()
    status = await rest.status()
    metrics = await scrape(rest)
    assert metrics("jupyter_server_info", version=__version__) == 1
    started = metrics("jupyter_server_started_timestamp_seconds")
    last_activity = metrics("jupyter_server_last_activity_timestamp_seconds")
    assert 0 < metrics("jupyter_server_active_duration_seconds") == last_activity - started
    assert metrics("process_start_time_seconds") <= started + 1
    # Scraping is no activity.
    assert (await rest.status())["last_activity"] == status["last_activity"]


async def test_requests_are_told_by_the_template_of_their_route(
    start: KernelStarter, server: ServerProcess
) -> None:
    rest = start.rest
    before = await scrape(rest)
    kernel = await start()
    await rest.kernel(kernel.id)
    for path in ("/api/kernels/zzz", "/no/such/path", "/no/such/other/path"):
        with pytest.raises(RestError):
            await rest.request("GET", path)
    with pytest.raises(RestError):
        await rest.request("PUT", "/api/kernels")
    async with RestClient(server.url, None) as stranger:
        await stranger.http.get("/api/kernels")
    after = await scrape(rest)

    def new(method: str, handler: str, status: int) -> float:
        return requests(after, method, handler, status) - requests(before, method, handler, status)

    assert new("POST", "/api/kernels", 201) == 1
    assert new("GET", "/api/kernels/{kernel_id}", 200) == 1
    assert new("GET", "/api/kernels/{kernel_id}", 404) == 1
    assert new("GET", "none", 404) == 2
    assert new("PUT", "/api/kernels", 405) == 1
    assert new("GET", "none", 403) == 1
    assert new("GET", "/metrics", 200) == 1
    for labels in after.labels("http_request_duration_seconds_count"):
        assert kernel.id not in labels["handler"]
        assert "zzz" not in labels["handler"]


async def test_the_durations_of_requests_are_a_histogram(rest: RestClient) -> None:
    await rest.kernels()
    metrics = await scrape(rest)
    labels = {"method": "GET", "handler": "/api/kernels", "status_code": "200"}
    name = "http_request_duration_seconds"
    buckets = [
        (float(found["le"]), metrics(f"{name}_bucket", **found))
        for found in metrics.labels(f"{name}_bucket")
        if labels.items() <= found.items()
    ]
    buckets.sort()
    counts = [count for _, count in buckets]
    assert counts == sorted(counts)
    assert buckets[-1] == (float("inf"), metrics(f"{name}_count", **labels))
    assert 0 < metrics(f"{name}_sum", **labels) < 10 * counts[-1]


async def test_what_waits_as_it_was_asked_to_is_no_slow_request(start: KernelStarter) -> None:
    kernel = await start()
    executions = Executions(kernel.rest, kernel.id)
    slow = 3.0  # seconds
    await asyncio.gather(
        executions.run(f"sleep {slow}"),
        executions.all_events(await executions.begin(f"sleep {slow / 10}")),
        executions.all_events(await executions.begin("print a"), NDJSON),
    )
    metrics = await scrape(start.rest)
    name = "http_request_duration_seconds"
    path = "/api/kernels/{kernel_id}/executions"
    for method, handler in (("POST", path), ("GET", f"{path}/{{execution_id}}/events")):
        labels = {"method": method, "handler": handler, "status_code": "200"}
        assert metrics(f"{name}_count", **labels) >= 1
        assert metrics(f"{name}_sum", **labels) < slow


async def test_how_late_the_loop_is_is_told_while_somebody_asks(rest: RestClient) -> None:
    async def measured() -> bool:
        return (await scrape(rest))("kernelkeep_event_loop_lag_seconds_count") >= 2

    await eventually(measured, timeout=30)


# Kernels


async def test_kernels_are_told_by_type_and_state(start: KernelStarter) -> None:
    kernel, other = await start(), await start("fake-message")
    msg_id = await kernel.busy("sleep 60")
    metrics = await scrape(start.rest)
    assert kernels(metrics) == {"busy": 1}
    assert kernels(metrics, "fake-message") == {"idle": 1}
    assert metrics("kernel_currently_running_total", type="fake") == 1
    await start.rest.interrupt(kernel.id)
    await kernel.channels.exchange(msg_id)
    assert kernels(await scrape(start.rest)) == {"idle": 1}
    for gone in (kernel, other):
        await start.rest.delete(gone.id)
    metrics = await scrape(start.rest)
    assert kernels(metrics) == kernels(metrics, "fake-message") == {}
    # It is told as none, and does not just vanish.
    assert metrics.has("kernel_currently_running_total", type="fake")
    assert metrics("kernel_currently_running_total", type="fake") == 0


async def test_a_dead_kernel_does_not_count_as_running(start: KernelStarter) -> None:
    kernel = await start("fake-exit", ready=False)
    await kernel.becomes("dead")
    metrics = await scrape(start.rest)
    assert metrics("kernel_currently_running_total", type="fake-exit") == 0
    assert kernels(metrics, "fake-exit") == {"dead": 1}


async def test_upper_and_lower_case_of_a_kernelspec_are_one_type(start: KernelStarter) -> None:
    await start()
    await start("FAKE")
    metrics = await scrape(start.rest)
    assert metrics("kernel_currently_running_total", type="fake") == 2
    assert not metrics.has("kernel_currently_running_total", type="FAKE")


async def test_a_state_that_only_a_kernel_knows_is_told_as_other(start: KernelStarter) -> None:
    kernel = await start()
    await kernel.channels.execute("status weird\nsleep 0")
    await kernel.channels.send_execute("status weird\nno-idle")
    await kernel.becomes("weird")
    assert kernels(await scrape(start.rest)) == {"other": 1}


async def test_starts_and_deaths_are_counted_by_reason(make_server: MakeServer) -> None:
    server = make_server("--transport", "tcp")
    async with kernels_of(server) as start:
        kernel = await start()
        await start.rest.restart(kernel.id)
        await kernel.told("idle")
        for command in ("die 3", "kill SIGKILL"):
            await kernel.channels.send_execute(command)
            await kernel.told("restarting")
            await kernel.told("idle")
        failed = await start("fake-exit", ready=False)
        await failed.becomes("dead")
        for name in ("fake-missing", "no-such-spec"):
            with pytest.raises(RestError):
                await start.rest.start_kernel(name)
        await start.rest.delete(kernel.id)
        metrics = await scrape(start.rest)

    def starts(kind: str, reason: str) -> float:
        return metrics("kernelkeep_kernel_starts_total", type=kind, reason=reason)

    def deaths(kind: str, reason: str) -> float:
        return metrics("kernelkeep_kernel_deaths_total", type=kind, reason=reason)

    assert starts("fake", "start") == 1
    assert starts("fake", "restart") == 1
    assert starts("fake", "automatic_restart") == 2
    assert deaths("fake", "exited") == 1
    assert deaths("fake", "SIGKILL") == 1
    assert starts("fake-exit", "start") == deaths("fake-exit", "start_failed") == 1
    assert starts("fake-missing", "start") == deaths("fake-missing", "start_failed") == 1
    # What clients make up is no type.
    assert "no-such-spec" not in {
        labels["type"] for labels in metrics.labels("kernelkeep_kernel_starts_total")
    }
    assert metrics("kernelkeep_kernel_start_seconds_count", type="fake") == 4
    assert 0 < metrics("kernelkeep_kernel_start_seconds_sum", type="fake") < 60
    assert not metrics.has("kernelkeep_kernel_start_seconds_count", type="fake-exit")


async def test_a_start_over_another_transport_is_counted_as_one(make_server: MakeServer) -> None:
    server = make_server()
    async with kernels_of(server) as start:
        await start("fake-no-ipc")
        metrics = await scrape(start.rest)
    name, labels = "kernelkeep_kernel_starts_total", {"type": "fake-no-ipc"}
    assert metrics(name, reason="start", **labels) == 1
    assert metrics(name, reason="fallback", **labels) == 1
    assert metrics("kernelkeep_kernel_deaths_total", reason="start_failed", **labels) == 1


async def test_culls_are_counted_by_reason(make_server: MakeServer) -> None:
    options = ("--cull-idle-timeout", "1.5", "--cull-interval", "0.1")
    server = make_server(*options, "--cull-connected", "--cull-busy")
    async with kernels_of(server) as start:
        # The kernel of a client, one that nobody is connected to, and one that is dead.
        connected = await start()
        alone = await start.rest.start_kernel("fake")
        start.started.append(alone["id"])
        await connected.channels.closed()
        await start("fake-exit", ready=False)

        async def culled() -> bool:
            metrics = await scrape(start.rest)
            name = "kernelkeep_kernel_culls_total"
            assert metrics(name, type="fake", reason="connected") == 1
            assert metrics(name, type="fake", reason="idle") == 1
            assert metrics(name, type="fake-exit", reason="dead") == 1
            return metrics("kernel_currently_running_total", type="fake") == 0

        await eventually(culled, timeout=30)


# Executions and messages


async def test_executions_are_timed_and_nothing_else_is(start: KernelStarter) -> None:
    rest = start.rest
    kernel = await start()
    before = await scrape(rest)
    await kernel.channels.execute("sleep 1")
    await kernel.channels.execute("print 1")
    await kernel.channels.request("kernel_info_request")
    after = await scrape(rest)
    name = "kernelkeep_execution_seconds"
    assert after(f"{name}_count") - before(f"{name}_count") == 2
    # Measured where it is heard of, so a little more or less than the kernel's own time.
    assert 0.5 <= after(f"{name}_sum") - before(f"{name}_sum") < 30
    short = after(f"{name}_bucket", le="0.5") - before(f"{name}_bucket", le="0.5")
    assert short <= 1


async def test_an_execution_that_a_death_ends_is_not_timed(start: KernelStarter) -> None:
    kernel = await start()
    before = await scrape(start.rest)
    await kernel.channels.execute("die 3")
    await kernel.told("restarting")
    await kernel.told("idle")
    name = "kernelkeep_execution_seconds_count"
    assert (await scrape(start.rest))(name) == before(name)


async def test_messages_and_bytes_are_counted_each_way_and_by_channel(
    start: KernelStarter,
) -> None:
    kernel = await start()
    # The server's own questions, on both channels, are answered before these.
    await kernel.channels.execute("print 0")
    await kernel.channels.request("kernel_info_request", channel="control")
    before = await scrape(start.rest)
    code = "flood 200 1000"
    await kernel.channels.execute(code)
    await kernel.channels.request("kernel_info_request", channel="control")
    after = await scrape(start.rest)

    def new(what: str, direction: str, channel: str) -> float:
        name, labels = f"kernelkeep_{what}_total", {"direction": direction, "channel": channel}
        return after(name, **labels) - before(name, **labels)

    # Busy, what is executed, 200 of output, idle; busy and idle for the other request.
    assert new("messages", "from_kernel", "iopub") == 1 + 1 + 200 + 1 + 2
    assert 200 * 1000 < new("bytes", "from_kernel", "iopub") < 200 * 3000
    assert new("messages", "from_kernel", "shell") == 1
    assert new("messages", "to_kernel", "shell") == 1
    assert len(code) < new("bytes", "to_kernel", "shell") < 2000
    assert new("messages", "from_kernel", "control") == new("messages", "to_kernel", "control") == 1
    assert new("messages", "from_kernel", "stdin") == new("messages", "to_kernel", "stdin") == 0


async def test_malformed_messages_are_counted(start: KernelStarter) -> None:
    kernel = await start()
    before = await scrape(start.rest)
    await kernel.channels.execute("bad-signature")

    async def counted() -> bool:
        name = "kernelkeep_malformed_messages_total"
        return (await scrape(start.rest))(name) - before(name) == 2

    await eventually(counted)


async def test_connections_and_log_bytes_are_told(start: KernelStarter) -> None:
    kernel = await start()
    other = await kernel.connect()
    before = await scrape(start.rest)
    assert before("kernelkeep_connections") == 2
    await kernel.channels.execute("flood 100 10000")
    after = await scrape(start.rest)
    grown = after("kernelkeep_log_bytes") - before("kernelkeep_log_bytes")
    assert grown > 100 * 10_000
    await other.close()

    async def one() -> bool:
        return (await scrape(start.rest))("kernelkeep_connections") == 1

    await eventually(one)
    await start.rest.delete(kernel.id)
    assert (await scrape(start.rest))("kernelkeep_log_bytes") == 0


async def test_output_that_is_held_back_is_counted_as_it_is_announced(
    make_server: MakeServer,
) -> None:
    server = make_server("--iopub-msg-rate-limit", "10")
    async with kernels_of(server) as start:
        kernel = await start()
        await kernel.channels.execute("flood 500 100")
        metrics = await scrape(start.rest)
        messages, size = notices(kernel.channels, r"(\d+) messages \((\d+) bytes\).*held\s+back")
        assert 400 < messages < 500
        assert metrics("kernelkeep_held_back_messages_total") == messages
        assert metrics("kernelkeep_held_back_bytes_total") == size


async def test_output_that_has_left_the_log_is_counted_as_it_is_announced(
    make_server: MakeServer,
) -> None:
    server = make_server("--log-bytes", "65536")
    async with kernels_of(server) as start:
        kernel = await start()
        leaving = await kernel.connect(session_id="returns")
        await leaving.close()
        await kernel.channels.execute("flood 500 1000")
        returned = await kernel.connect(session_id="returns")
        await returned.collect_until(lambda message: message.msg_type == "stream")
        messages, size = notices(returned, r"(\d+) messages \((\d+) bytes\)")
        assert messages > 300
        metrics = await scrape(start.rest)
        announced, bytes_announced = notices(kernel.channels, r"(\d+) messages \((\d+) bytes\).*no")
        assert metrics("kernelkeep_dropped_messages_total") == messages + announced
        assert metrics("kernelkeep_dropped_bytes_total") == size + bytes_announced
