"""The keeper's own wheel, installed where nothing else is, by the oldest Python that is found."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.keeper.conftest import Client
from tests.support.home import Home
from tests.support.joined import JoinedService, speak, start_keeper
from tests.support.server import REPOSITORY

pytestmark = pytest.mark.timeout(600)

WHICH = """
import ensurepip, sys, venv
assert sys.version_info >= (3, 9) and sys.version_info.releaselevel == "final"
print("%d %d" % sys.version_info[:2])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(REPOSITORY / "scripts" / "keeper-wheel", folder)
    (wheel,) = folder.glob("kernelkeep_keeper-*.whl")
    return wheel


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def oldest_python() -> Path | str:
    """The oldest Python of this machine that the keeper is for and that makes environments."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    names = [f"python3.{minor}" for minor in range(9, 15)]
    found = []
    pythons: list[Path | str] = [*names, *versions.glob("3.*/bin/python"), sys.executable]
    for python in pythons:
        try:
            done = subprocess.run([python, "-c", WHICH], capture_output=True, text=True)
        except OSError:
            continue
        if done.returncode == 0:
            found.append(([*map(int, done.stdout.split())], str(python)))
    return min(found)[1]


def test_it_holds_the_keeper_and_nothing_of_the_service(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        text = archive.read(metadata).decode()
    assert {name.split("/")[1] for name in names if name.startswith("kernelkeep_keeper/")} == {
        *("LICENSE", "__init__.py", "__main__.py", "keeper", "protocol"),
    }
    asked = [line for line in text.splitlines() if line.startswith("Requires-Dist")]
    assert [line.split()[1].split(">")[0] for line in asked if "extra" not in line] == [
        *("msgspec", "pyzmq"),
    ]
    assert "Requires-Python: >=3.9" in text


async def test_it_keeps_a_kernel(wheel: Path, tmp_path: Path, home: Home) -> None:
    python = tmp_path / "venv/bin/python"
    await asyncio.to_thread(run, oldest_python(), "-m", "venv", tmp_path / "venv")
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-q")
    await asyncio.to_thread(run, *pip, wheel)
    command = (str(python), "-m", "kernelkeep_keeper")
    async with JoinedService(home.path / "service") as service:
        invitation = await service.joining.invite("k")
        process = start_keeper(
            invitation.document,
            env={**home.environment(), "PYTHONPATH": ""},
            command=command,
            stderr=subprocess.PIPE,
        )
        try:
            keeper = service.keeper("k")
            client = Client(await speak(keeper, home, "k"))
            assert keeper.host.python == str(python)
            await client.ran("append done once")
            if (link := keeper._connection.link) is not None:
                link.abort()
            await client.ran("append done twice")
            assert (home.root_dir / "done").read_text() == "once\ntwice\n"
            await keeper.end("k")
            keeper.drop("k")
            await keeper.retire()
        finally:
            process.terminate()
            _, said = await asyncio.to_thread(process.communicate, timeout=60)
        assert process.returncode in (0, 3), said
        assert b"Traceback" not in said
