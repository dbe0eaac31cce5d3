"""What a kernel's process finds in its environment."""

from __future__ import annotations

import json

import pytest

from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess

HALF_A_MEBIBYTE = "x" * 2**19  # a body has twice that at most
# Linux executes no program with a longer entry: MAX_ARG_STRLEN, less its zero and some room.
LONGEST_ENTRY = 128 * 1024 - 16


async def _environment(kernel: RunningKernel) -> dict[str, str]:
    found: dict[str, str] = json.loads((await kernel.channels.execute("env")).text)
    return found


async def test_values_arrive_unchanged(start: KernelStarter) -> None:
    values = [
        "",
        "plain",
        "with spaces ",
        "two\nlines\r\n",
        "a=b=c",
        "=",
        "$HOME ${HOME} `id` \\ \" '",
        "ünïcödé €",
        "\x01\x7f",
        "x" * (LONGEST_ENTRY - len("KERNEL_9=")),
    ]
    env = {f"KERNEL_{number}": value for number, value in enumerate(values)}
    found = await _environment(await start("fake", env=env))
    assert {name: found[name] for name in env} == env


async def test_the_environment_stays_at_a_restart(start: KernelStarter) -> None:
    kernel = await start("fake", env={"KERNEL_VALUE": "kept"})
    await kernel.rest.restart(kernel.id)
    assert (await _environment(kernel))["KERNEL_VALUE"] == "kept"


async def test_the_kernelspec_has_the_last_word(
    server: ServerProcess, start: KernelStarter
) -> None:
    env = {"FIRST": "the spec's", "SECOND": "of ${KERNEL_USERNAME} and $NONE_SUCH"}
    write_kernelspec(server.home.jupyter_path, "with-env", Spec(env=env))
    kernel = await start("with-env", env={"FIRST": "the client's", "KERNEL_USERNAME": "ada"})
    found = await _environment(kernel)
    assert (found["FIRST"], found["SECOND"]) == ("the spec's", "of ada and $NONE_SUCH")


async def test_the_server_s_own_variables_pass_by_an_allow_list(make_server: MakeServer) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "s1", "JUPYTER_TOKEN": "s2", "KERNEL_SECRET": "s3"}
    useful = {"OMP_NUM_THREADS": "3", "LC_TIME": "C", "TZ": "UTC"}
    server = make_server(env={**secrets, **useful})
    async with kernels_of(server) as start:
        found = await _environment(await start("fake"))
    assert useful.items() <= found.items()
    assert found["PATH"]
    assert not {"s1", "s2", "s3"} & set(found.values())


async def test_the_allow_list_is_an_option(make_server: MakeServer) -> None:
    server = make_server("--kernel-env-allow", "PATH,MINE_*", env={"MINE_1": "a", "TZ": "UTC"})
    async with kernels_of(server) as start:
        found = await _environment(await start("fake"))
    assert found["MINE_1"] == "a"
    assert "TZ" not in found


@pytest.mark.parametrize(
    "name",
    ["", "=", "A=B", "A\0B", "A\nB", "A\n", "A B", "1A", "É", HALF_A_MEBIBYTE],
    ids=["empty", "=", "A=B", "NUL", "newline", "ends", "space", "digit", "letter", "512 KiB"],
)
async def test_a_name_that_is_none_is_refused(rest: RestClient, name: str) -> None:
    body = {"name": "fake", "env": {name: "value that must not come back"}}
    response = await rest.http.post("/api/kernels", json=body)
    assert error_of(response, 400, "invalid_environment").startswith("env: ")
    assert "must not come back" not in response.text
    assert len(response.content) < 1000
    assert await rest.kernels() == []


@pytest.mark.parametrize(
    "value",
    ["secret\0", HALF_A_MEBIBYTE, "x" * LONGEST_ENTRY, "é" * 2**16, "secret\ud800"],
    ids=["NUL", "512 KiB", "a byte too many", "bytes, not characters", "surrogate"],
)
async def test_a_value_that_no_process_can_be_given_is_refused(
    rest: RestClient, value: str
) -> None:
    body = json.dumps({"name": "fake", "env": {"KERNEL_VALUE": value}})
    response = await rest.http.post("/api/kernels", content=body)
    assert "KERNEL_VALUE" in error_of(response, 400, "invalid_environment")
    assert "secret" not in response.text
    assert len(response.content) < 1000
    assert await rest.kernels() == []


async def test_more_than_a_process_can_be_given_is_refused(rest: RestClient) -> None:
    env = {f"KERNEL_{number}": "x" * 100_000 for number in range(6)}
    response = await rest.http.post("/api/kernels", json={"name": "fake", "env": env})
    error_of(response, 400, "invalid_environment")
    assert await rest.kernels() == []
