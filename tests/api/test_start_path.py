"""Where a kernel works: the path of the request, below the root directory and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.api.errors import error_of
from tests.support.home import Home
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.rest import RestClient
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def server(own_server: ServerProcess) -> ServerProcess:
    """Its first Python kernel is started by this module, and so not forked."""
    return own_server


@pytest.fixture(scope="module", autouse=True)
def tree(server: ServerProcess) -> None:
    """Directories, a file and links, in the root directory and beside it."""
    home: Home = server.home
    (home.root_dir / "sub" / "deep").mkdir(parents=True)
    (home.root_dir / "sub" / "notebook.ipynb").touch()
    (home.root_dir / "söb dir").mkdir()
    (home.path / "outside").mkdir()
    (home.path / "root-twin").mkdir()
    (home.root_dir / "inward").symlink_to(home.root_dir / "sub")
    (home.root_dir / "outward").symlink_to(home.path / "outside")
    (home.root_dir / "upward").symlink_to("..")
    (home.root_dir / "loop").symlink_to("loop")


async def _cwd(start: KernelStarter, **body: Any) -> Path:
    kernel = await start("fake", **body)
    return Path((await kernel.channels.execute("cwd")).text.removesuffix("\n"))


@pytest.mark.parametrize(
    ("path", "directory"),
    [
        ("", ""),
        ("/", ""),
        (".", ""),
        ("sub", "sub"),
        ("/sub/deep/", "sub/deep"),
        ("sub/../sub/./deep", "sub/deep"),
        ("söb dir", "söb dir"),
        ("sub/notebook.ipynb", "sub"),
        ("sub/notebook.ipynb/further", "sub"),
        ("sub/new/newer/newest.ipynb", "sub"),
        ("none-such", ""),
        ("/etc/passwd", ""),
        ("inward", "sub"),
        ("inward/deep", "sub/deep"),
    ],
)
async def test_a_kernel_works_at_its_path_or_at_the_nearest_parent(
    server: ServerProcess, start: KernelStarter, path: str, directory: str
) -> None:
    assert await _cwd(start, path=path) == server.home.root_dir / directory


async def test_a_kernel_without_a_path_works_in_the_root(
    server: ServerProcess, start: KernelStarter
) -> None:
    assert await _cwd(start) == server.home.root_dir


async def test_the_directory_stays_at_a_restart(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("fake", path="sub")
    await kernel.rest.restart(kernel.id)
    assert (await kernel.channels.execute("cwd")).text == f"{server.home.root_dir / 'sub'}\n"


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../../..",
        "../root-twin",
        "sub/../../outside",
        "outward",
        "outward/new/file.ipynb",
        "outward/..",
        "upward/outside",
        "loop",
        "a\0b",
        "x" * 300,
        "x/" * 2045,  # the longest that is taken, and with the root longer than any path
    ],
)
async def test_a_path_that_leads_out_of_the_root_or_nowhere_is_refused(
    rest: RestClient, path: str
) -> None:
    response = await rest.http.post("/api/kernels", json={"name": "fake", "path": path})
    assert error_of(response, 400, "invalid_path").startswith("path: ")
    assert len(response.content) < 1000
    assert await rest.kernels() == []


async def test_a_gateway_client_s_directory_is_used_if_it_is_below_the_root(
    server: ServerProcess, start: KernelStarter
) -> None:
    directory = server.home.root_dir / "sub" / "deep"
    kernel = await start("fake", env={"KERNEL_WORKING_DIR": str(directory)})
    told = (await kernel.channels.execute("cwd\nenv KERNEL_WORKING_DIR")).text
    assert told == f"{directory}\n{directory}\n"


@pytest.mark.parametrize("outside", ["/", "/none-such", "{home}/outside", "{home}/root/outward"])
async def test_a_gateway_client_s_directory_elsewhere_is_the_root(
    server: ServerProcess, start: KernelStarter, outside: str
) -> None:
    directory = outside.format(home=server.home.path)
    assert await _cwd(start, env={"KERNEL_WORKING_DIR": directory}) == server.home.root_dir


async def test_the_path_is_stronger_than_a_gateway_client_s_directory(
    server: ServerProcess, start: KernelStarter
) -> None:
    env = {"KERNEL_WORKING_DIR": str(server.home.root_dir / "sub" / "deep")}
    assert await _cwd(start, path="sub", env=env) == server.home.root_dir / "sub"


async def test_a_file_named_like_a_module_of_pythons_own_stops_a_kernel_that_is_not_forked(
    server: ServerProcess, start: KernelStarter
) -> None:
    directory = server.home.root_dir / "shadowed"
    directory.mkdir()
    (directory / "types.py").write_text("raise SystemExit('this is not the module')")
    kernel = await start("python3", path="shadowed", ready=False)
    model = await kernel.becomes("dead")
    assert "this is not the module" in model["reason"]
    metadata = {"kernel_provisioner": {"provisioner_name": "kernelkeep-fork"}}
    argv = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")
    spec = Spec(argv=argv, metadata=metadata)
    write_kernelspec(server.home.jupyter_path, "forked-python", spec)
    kernel = await start("forked-python", path="shadowed")
    assert (await kernel.channels.execute("1 + 1")).result == "2"
