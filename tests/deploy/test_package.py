"""The wheel, installed: the same package under its own name, and no other.

It is installed beside the dependencies of the tests' environment, where no clone is on the path.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import pytest

import app
from app.managers.processes.forking.provisioner import PROVISIONER
from tests.conftest import MakeServer
from tests.support.server import REPOSITORY, ServerProcess, UvicornServer

pytestmark = pytest.mark.timeout(300)

GROUP = "jupyter_client.kernel_provisioners"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder, REPOSITORY)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, and what it depends on."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Lines of .pth files that lie there, and so the clone, are not followed.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def run(*command: object) -> str:
    """What a command prints, run where nothing can be imported from."""
    done = subprocess.run([*map(str, command)], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def servers_of(python: Path) -> dict[str, type[ServerProcess]]:
    """The ways to start what is installed."""

    class Command(ServerProcess):
        directory = Path("/")

        @property
        def command(self) -> list[str]:
            return [str(python.with_name("kernelkeep")), *super().command[3:]]

    class Module(ServerProcess):
        directory = Path("/")

        @property
        def command(self) -> list[str]:
            return [str(python), "-m", "kernelkeep", *super().command[3:]]

    class Uvicorn(UvicornServer):
        directory = Path("/")

        @property
        def command(self) -> list[str]:
            return [str(python), "-m", "uvicorn", "kernelkeep.main:app", *super().command[4:]]

    return {"command": Command, "module": Module, "uvicorn": Uvicorn}


def one_and_one(client: httpx.Client, kernel: str) -> Any:
    """The result of 1+1, over REST."""
    answer = client.post(f"{kernel}/executions", params={"wait": 60}, json={"code": "1+1"})
    (output,) = answer.raise_for_status().json()["outputs"]
    return output["data"]


def test_the_wheel_takes_no_name_but_its_own(wheel: Path) -> None:
    names = {Path(name).parts[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert names == {"kernelkeep", f"kernelkeep-{app.__version__}.dist-info"}


def test_the_wheel_has_every_file_of_the_folder(wheel: Path) -> None:
    packed = {
        name.removeprefix("kernelkeep/")
        for name in zipfile.ZipFile(wheel).namelist()
        if name.startswith("kernelkeep/")
    }
    folder = REPOSITORY / "app"
    tracked = run("git", "-C", folder, "ls-files", "--cached", "--others", "--exclude-standard")
    assert packed == {name for name in tracked.splitlines() if (folder / name).exists()}


@pytest.mark.parametrize("way", ["command", "module", "uvicorn"])
def test_what_is_installed_runs_a_kernel(
    way: str, installed: Path, make_server: MakeServer
) -> None:
    runs_a_kernel(make_server, servers_of(installed)[way])


def test_the_command_of_a_clone_runs_a_kernel(make_server: MakeServer) -> None:
    runs_a_kernel(make_server, servers_of(Path(sys.executable))["command"])


def runs_a_kernel(make_server: MakeServer, kind: type[ServerProcess]) -> None:
    """A kernel answers, and the keeper beside it is of the package named kernelkeep."""
    server = make_server(kind=kind, env={"KERNELKEEP_ON_SHUTDOWN": "keep"})
    headers = {"Authorization": f"token {server.token}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        started = client.post("/api/kernels", json={"name": "python3"}).raise_for_status()
        kernel = f"/api/kernels/{started.json()['id']}"
        assert one_and_one(client, kernel) == {"text/plain": "2"}
        names = {word for process in server.home.processes() for word in process.cmdline()}
        assert "kernelkeep.keeper" in names
        assert not {name for name in names if name.startswith("app.")}
        client.delete(kernel).raise_for_status()


def test_the_provisioner_is_found_once_installed(installed: Path) -> None:
    program = (
        "import sys; from importlib.metadata import entry_points;"
        f"(point,) = entry_points(group={GROUP!r}, name={PROVISIONER!r});"
        "print(point.load().__module__, 'app' in sys.modules)"
    )
    module, has_app = run(installed, "-c", program).split()
    assert module.startswith("kernelkeep.")
    assert has_app == "False"


def test_the_provisioner_is_found_in_a_clone() -> None:
    (point,) = entry_points(group=GROUP, name=PROVISIONER)
    assert point.load().__name__ == "ForkProvisioner"


def test_the_command_of_a_clone_has_the_clones_files() -> None:
    program = "import kernelkeep.cli, kernelkeep; print(kernelkeep.cli.__file__)"
    path = run(sys.executable, "-c", program).strip()
    assert path == str(REPOSITORY / "app/cli.py")
    command = Path(sys.executable).with_name("kernelkeep")
    assert "usage: kernelkeep" in run(command, "--help")
