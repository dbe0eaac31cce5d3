"""Builds the wheel, installs it where nothing else is, starts the command and runs a cell.

What this shows and the tests cannot, as they run from the clone: the wheel has every file that the
service needs, and names every package. Run it with the Python of .venv-test.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
import venv
from pathlib import Path
from typing import Any

import httpx
import psutil
from websockets.sync.client import connect

ROOT = Path(__file__).resolve().parent.parent
# In the environment of the service, of the kernel and so of all that they start: tells afterwards
# what was left behind.
MARK = "SMOKE_TEST_RUN"
START_SECONDS = 30
EXECUTE_SECONDS = 60
STOP_SECONDS = 15


def is_no_kernel(process: psutil.Process) -> bool:
    """Whether it is what has the kernels, or what they are forked from."""
    try:
        command = process.cmdline()
        is_keeper = any(word.endswith(".keeper") for word in command)
        return is_keeper or "fork_server.py" in " ".join(command)
    except psutil.NoSuchProcess:
        return True


def main() -> None:
    """Exit with 0 iff all of it worked."""
    with tempfile.TemporaryDirectory(prefix="kernelkeep-smoke-") as name:
        folder = Path(name)
        command = install(build_wheel(folder), folder)
        runs_a_cell_and_stops(command, folder)
    print("smoke: the wheel installs, starts, runs a cell and stops")


def build_wheel(folder: Path) -> Path:
    """Build the wheel with the locked build backend."""
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel into an empty environment; return the path of its command."""
    # The lock's releases without their hashes: pip would ask for a hash of the wheel as well.
    lock = (ROOT / "requirements/run.txt").read_text()
    pins = [line.removesuffix("\\") for line in lock.splitlines() if "==" in line]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins))
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv/bin/python")
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
    run(*pip, "install", "-c", str(constraints), f"{wheel}[kernel]", python=python)
    return folder / "venv/bin/kernelkeep"


def run(*arguments: str, python: str = sys.executable) -> None:
    """Run a Python command, and show what it wrote only if it failed."""
    done = subprocess.run(
        [python, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        sys.exit(f"smoke: {' '.join(arguments)} exited with {done.returncode}\n{done.stdout}")


def runs_a_cell_and_stops(command: Path, folder: Path) -> None:
    """Start the service, have a kernel compute 6*7, stop the service and look for leftovers."""
    empty, state, log = folder / "empty", folder / "state", folder / "log"
    empty.mkdir()
    mark = uuid.uuid4().hex
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KERNELKEEP_", "JUPYTER_", "PYTHON"))
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            [command, "--port", "0", "--state-dir", state, "--on-shutdown", "stop"],
            cwd=empty,
            env=environment | {MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url, token = wait_for_url(server, log)
        six_times_seven(url, token, mark)
        # Zombies too; but the fork server for the next kernel is there, or about to be.
        children = [
            child
            for child in psutil.Process(server.pid).children(recursive=True)
            if not is_no_kernel(child)
        ]
        expect(not children, f"a deleted kernel's process is gone: {children}")
        server.terminate()
        expect(server.wait(STOP_SECONDS) == 0, f"exit code 0 after SIGTERM: {server.returncode}")
        left = [psutil.Process(pid).cmdline() for pid in marked(mark)]
        expect(not left, f"nothing is left running: {left}")
        expect(not list((state / "run").iterdir()), "nothing is left of the run's files")
        expect(not list(empty.iterdir()), "nothing is written to the working directory")
    except Exception as error:
        sys.exit(f"smoke: {type(error).__name__}: {error}\n{log.read_text(errors='replace')}")
    finally:
        for pid in marked(mark):
            psutil.Process(pid).kill()


def wait_for_url(server: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """Read the URL and the token from what the command prints for a person."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        if found := re.search(r"http://\S+", log.read_text()):
            url = httpx.URL(found[0])
            return f"http://{url.host}:{url.port}", url.params["token"]
        time.sleep(0.1)
    raise AssertionError(f"no URL within {START_SECONDS} s, exit code {server.returncode}")


def six_times_seven(url: str, token: str, mark: str) -> None:
    """Start a kernel, run a cell over its WebSocket in the legacy framing, delete the kernel."""
    headers = {"Authorization": f"token {token}"}
    with httpx.Client(base_url=url, headers=headers, timeout=EXECUTE_SECONDS) as client:
        expect(
            client.get("/api/kernels", headers={"Authorization": ""}).status_code in (401, 403),
            "no answer without the token",
        )
        started = client.post("/api/kernels", json={"env": {MARK: mark}})
        expect(started.status_code == 201, f"a kernel starts: {started.text}")
        kernel = f"/api/kernels/{started.json()['id']}"
        channels = f"{url.replace('http', 'ws', 1)}{kernel}/channels?session_id=smoke"
        with connect(channels, additional_headers=headers) as websocket:
            request = execute_request("6*7")
            websocket.send(json.dumps(request))
            result = None
            while result is None:
                message = json.loads(websocket.recv(EXECUTE_SECONDS))
                if message["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                    result = message["content"].get("data")
        expect(result == {"text/plain": "42"}, f"6*7 is 42: {result}")
        deleted = client.delete(kernel)
        expect(deleted.status_code == 204, f"the kernel is deleted: {deleted.text}")


def execute_request(code: str) -> dict[str, Any]:
    """Make the message that runs a cell."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "session": "smoke",
        "username": "",
        "version": "5.3",
    }
    return {
        "channel": "shell",
        "header": header,
        "parent_header": {},
        "metadata": {},
        "content": {"code": code, "silent": False},
    }


def marked(mark: str) -> list[int]:
    """Return the process ids of the service and of all that it started and is still there."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(MARK) == mark:
                found.append(process.pid)
        except psutil.Error:  # gone meanwhile, or somebody else's
            continue
    return found


def expect(held: bool, claim: str) -> None:
    """Raise AssertionError with the claim unless it held."""
    if not held:
        raise AssertionError(claim)


if __name__ == "__main__":
    main()
