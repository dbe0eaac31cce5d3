"""The harness around a server process, with small programs in the place of the server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.support.home import Home
from tests.support.kernelspecs import FAKE_KERNEL, FAKE_SPECS, write_kernelspecs
from tests.support.processes import eventually, eventually_sync, usage
from tests.support.server import ServerProcess

ANNOUNCE = "print(f'Listening: http://127.0.0.1:4711/?token={token}', flush=True)"
WAIT = "time.sleep(60)"
ORPHAN = "subprocess.Popen(['sleep', '60'], start_new_session=True)"


class Program(ServerProcess):
    """Runs a few lines of Python that know ``token`` and ``home``."""

    def __init__(self, *lines: str, home: Home | None = None) -> None:
        super().__init__(home=home)
        self._program = lines

    @property
    def command(self) -> list[str]:
        head = [
            "import json, os, signal, socket, subprocess, sys, time",
            f"token, home = {self.token!r}, {str(self.home.path)!r}",
        ]
        return [sys.executable, "-c", "\n".join([*head, *self._program])]


def _assert_gone(program: Program) -> None:
    assert program.home.processes() == []
    assert not program.home.path.exists()


def test_start_and_stop() -> None:
    program = Program("print('first')", ANNOUNCE, WAIT).start()
    assert program.url == "http://127.0.0.1:4711"
    assert "first" in program.output()
    program.stop()
    program.stop()
    _assert_gone(program)


def test_clean_exit_after_sigterm() -> None:
    exit_cleanly = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))"
    program = Program(exit_cleanly, ANNOUNCE, WAIT).start()
    mark = program.mark()
    program.stop()
    assert program.output(mark) == ""


def test_end_before_the_announcement() -> None:
    program = Program("sys.exit('no kernelspec')")
    with pytest.raises(AssertionError, match=r"(?s)code 1.*no kernelspec"):
        program.start()
    _assert_gone(program)


def test_no_announcement() -> None:
    program = Program("print('http://127.0.0.1:1/?token=wrong', flush=True)", WAIT)
    with pytest.raises(AssertionError, match="without telling its URL"):
        program.start(timeout=1)
    _assert_gone(program)


def test_ignored_sigterm() -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    program = Program(ignore, ANNOUNCE, WAIT).start()
    with pytest.raises(AssertionError, match="alive 1 s after SIGTERM"):
        program.stop(timeout=1)
    _assert_gone(program)


def test_exit_code() -> None:
    fail = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))"
    program = Program(fail, ANNOUNCE, WAIT).start()
    with pytest.raises(AssertionError, match="ended with code 3"):
        program.stop()


def test_orphan_in_a_session_of_its_own() -> None:
    program = Program(ORPHAN, ANNOUNCE, WAIT).start()
    with pytest.raises(AssertionError, match="left the process"):
        program.stop()
    _assert_gone(program)


@pytest.mark.parametrize(
    "left",
    [
        "socket.socket(socket.AF_UNIX).bind(home + '/state/kernel-1')",
        "json.dump({'shell_port': 1}, open(home + '/state/kernel.json', 'w'))",
    ],
)
def test_files_left(left: str) -> None:
    program = Program(left, ANNOUNCE, WAIT).start()
    with pytest.raises(AssertionError, match=r"left the file .*/state/kernel"):
        program.stop()
    _assert_gone(program)


def test_crash_leaves_what_was_started(home: Home) -> None:
    program = Program(ORPHAN, ANNOUNCE, WAIT, home=home).start()
    program.crash()
    program.stop()
    assert [process.name() for process in home.processes()] == ["sleep"]


def test_environment_is_isolated_but_finds_the_python_kernel(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_TOKEN", "the user's")
    monkeypatch.setenv("KERNELKEEP_TOKEN", "the user's")
    write_kernelspecs(home.jupyter_path)
    environment = home.environment({"EXTRA": "1"})
    assert "the user's" not in environment.values()
    assert environment["EXTRA"] == "1"
    find = (
        "from jupyter_client.kernelspec import KernelSpecManager as K\n"
        "print(*K().find_kernel_specs())\n"
        "print(K().get_kernel_spec('python3').argv[0])"
    )
    found = subprocess.run(
        [sys.executable, "-c", find], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {*FAKE_SPECS, "python3"} <= set(found)
    python = found[-1]
    assert python in (sys.executable, "python") or os.path.samefile(python, sys.executable)


def test_processes_of_a_home_include_a_dead_kernel_s_children(home: Home) -> None:
    process = subprocess.Popen(
        [sys.executable, FAKE_KERNEL, "-f", home.path / "none", "--children", "2", "--never-bind"],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    # Without a connection file the kernel fails, after it has forked its children.
    assert process.wait(20) == 1
    assert eventually_sync(lambda: len(home.processes()) == 2)


def test_processes_of_a_home_include_one_with_the_number_of_an_older_one(home: Home) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=home.root_dir) as process:
        try:
            home._others.add((process.pid, 0.0))
            assert [one.pid for one in home.processes()] == [process.pid]
        finally:
            process.kill()


def test_usage_sees_descriptors_threads_and_children() -> None:
    before = usage(os.getpid())
    with socket.socket(), subprocess.Popen(["sleep", "60"]) as child:
        assert usage(os.getpid()).descriptors > before.descriptors
        assert usage(os.getpid()).children == before.children + 1
        child.send_signal(signal.SIGKILL)


async def test_eventually() -> None:
    values = iter([0, 0, 7])
    assert await eventually(lambda: next(values)) == 7

    async def never() -> bool:
        raise AssertionError("not yet")

    with pytest.raises(AssertionError, match="not yet"):
        await eventually(never, timeout=0.2)
    with pytest.raises(AssertionError, match="still 0"):
        await eventually(lambda: 0, timeout=0.2)
