"""Runs an image as strangers do, has a cell executed over HTTP, stops it and looks for leftovers.

Read-only, as a user that /etc/passwd does not know, without capabilities, on a port given by the
environment. Then the keeper alone, as deploy/replicas has it in a container of its own.
`scripts/image` builds the image and calls this; by hand, for an image that is there:

    python3 scripts/image_drill.py [IMAGE]     (ENGINE=docker for another engine than podman)
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENGINE = os.environ.get("ENGINE", "podman")
USER = 12345
TOKEN = secrets.token_hex(16)
START_TIMEOUT = 90  # seconds
REQUEST_TIMEOUT = 60  # seconds
STOP_TIMEOUT = 15  # seconds
DATA = "/var/lib/kernelkeep"

# What a kernel sees of its container. An orphan that has ended is left to process 1.
CELL = f"""
import atexit, getpass, os, pathlib, pwd, subprocess, sys, time

def writable(folder):
    try:
        path = pathlib.Path(folder, "probe")
        path.touch()
        path.unlink()
        return True
    except OSError:
        return False

def known():
    try:
        return bool(pwd.getpwuid(os.getuid()))
    except KeyError:
        return False

def zombies():
    lines = [path.read_text() for path in pathlib.Path("/proc").glob("[0-9]*/stat")]
    return [line for line in lines if line.rpartition(")")[2].split()[0] == "Z"]

subprocess.run(["sh", "-c", "sleep 0.1 &"], check=True)
deadline = time.monotonic() + 20
time.sleep(0.3)
while zombies() and time.monotonic() < deadline:
    time.sleep(0.1)
atexit.register(pathlib.Path("{DATA}/ended").touch)
capabilities = [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")]
answer = {{
    "uid": os.getuid(),
    "known to /etc/passwd": known(),
    "user": getpass.getuser(),
    "capabilities": sum(int(word, 16) for word in capabilities),
    "writable": [f for f in ("/", "/opt", "/usr/local", "/tmp", "{DATA}") if writable(f)],
    "home": writable(pathlib.Path.home()),
    "prefix": sys.prefix,
    "process 1": pathlib.Path("/proc/1/comm").read_text().strip(),
    "zombies": zombies(),
    "options of the server": [name for name in os.environ if name.startswith("KERNELKEEP")],
    "history": get_ipython().history_manager.enabled,
}}
import json; print(json.dumps(answer))
"""

EXPECTED = {
    "uid": USER,
    "known to /etc/passwd": False,
    "user": "kernelkeep",
    "capabilities": 0,
    "writable": [DATA],
    "home": True,
    "prefix": "/opt/kernels/python",
    "process 1": "tini",
    "zombies": [],
    "options of the server": [],
    "history": True,
}


def main() -> None:
    """Exit with 0 iff all of it held."""
    image = sys.argv[1] if len(sys.argv) > 1 else "kernelkeep"
    name = f"kernelkeep-drill-{os.getpid()}"
    times: dict[str, float] = {}
    keeper = f"{name}-keeper"
    try:
        drill(image, name, times)
        drill_keeper(image, keeper)
    except Exception as error:
        sys.exit(f"image: {type(error).__name__}: {error}\n{logs(name)}\n{logs(keeper)}")
    finally:
        for each in (name, keeper):
            engine("rm", "--force", "--volumes", each, check=False)
    times["size"] = int(engine("image", "inspect", "--format", "{{.Size}}", image)) / 1e6
    print("image: read-only, as any user, without capabilities it runs a cell and stops")
    for what, figure in times.items():
        print(f"  {what}: {figure:.0f} MB" if what == "size" else f"  {what}: {figure:.2f} s")


def run_container(image: str, name: str, *, entrypoint: str = "") -> int:
    """Start the image in the background; return its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    options = ["--network", "host", "--read-only", "--user", f"{USER}:{USER}", "--cap-drop", "all"]
    options += ["--security-opt", "no-new-privileges"]
    if ENGINE == "podman":
        # As strict as Docker: no writable /tmp, no line in /etc/passwd, no timer of systemd's.
        options += ["--read-only-tmpfs=false", "--passwd=false", "--no-healthcheck"]
    environment = ["--env", f"KERNELKEEP_PORT={port}", "--env", f"KERNELKEEP_TOKEN={TOKEN}"]
    command = ["-s", "--", entrypoint] if entrypoint else []
    if entrypoint:
        options += ["--entrypoint", "tini"]
    engine("run", "--detach", "--name", name, *options, *environment, image, *command)
    return port


def drill_keeper(image: str, name: str) -> None:
    """Start a keeper without a server: read-only and as any user, too.

    A server in a container beside it would share its process ids, for which podman wants control
    groups, and those are off here: tests/deploy/test_replicas.py has both as processes.
    """
    run_container(image, name, entrypoint="keeper")
    wait_for(lambda: is_there(name, f"{DATA}/state/keeper/socket"), "the keeper's socket")


def is_there(name: str, socket_: str) -> bool:
    """Whether a container has a socket."""
    done = subprocess.run([ENGINE, "exec", name, "test", "-S", socket_], capture_output=True)
    return done.returncode == 0


def drill(image: str, name: str, times: dict[str, float]) -> None:
    """All that is tried, in order; notes in ``times`` how long it took, in seconds."""
    began = time.monotonic()
    url = f"http://127.0.0.1:{run_container(image, name)}"
    wait_for(lambda: request("GET", f"{url}/api") is not None, "an answer")
    times["docker run to the first answer"] = time.monotonic() - began
    kernel = f"{url}/api/kernels/{request('POST', f'{url}/api/kernels', {})['id']}"
    first = execute(kernel, "6 * 7")
    times["docker run to the first executed cell"] = time.monotonic() - began
    expect(first["outputs"][0]["data"]["text/plain"] == "42", f"6 * 7 is 42: {first}")
    expect(engine("exec", name, *health_command(image)) == "", "the health check passes")
    told = json.loads(execute(kernel, CELL)["outputs"][0]["text"])
    wrong = {key: told[key] for key, value in EXPECTED.items() if told[key] != value}
    expect(not wrong, f"not as expected: {wrong}")

    began = time.monotonic()
    engine("kill", "--signal", "TERM", name)
    code = engine("wait", name, timeout=STOP_TIMEOUT)
    times["SIGTERM to the end, with a kernel"] = time.monotonic() - began
    expect(code == "0", f"exit code 0 after SIGTERM: {code}")
    left = [path for path in volume(name).rglob("*") if path.is_socket() or is_connection(path)]
    expect(not left, f"no socket or connection file is left: {left}")
    expect((volume(name) / "ended").exists(), "the kernel ended by itself, was not killed")


def execute(kernel: str, code: str) -> Any:
    """Run a cell; return its execution."""
    execution = request("POST", f"{kernel}/executions?wait={REQUEST_TIMEOUT}", {"code": code})
    expect(execution["state"] == "ok", f"the cell ends well: {execution}")
    return execution


def health_command(image: str) -> list[str]:
    """The command of HEALTHCHECK."""
    found = json.loads(engine("image", "inspect", image))[0]
    check: list[str] = {**found["Config"], **found}["Healthcheck"]["Test"]
    expect(check[0] == "CMD", f"a health check without a shell: {check}")
    return check[1:]


def volume(name: str) -> Path:
    """The only directory that the container could write to, as the host sees it."""
    (mount,) = json.loads(engine("container", "inspect", name))[0]["Mounts"]
    expect(mount["Destination"] == DATA, f"the only mount: {mount}")
    return Path(mount["Source"])


def is_connection(path: Path) -> bool:
    """Whether a file tells how to reach a kernel."""
    return path.suffix == ".json" and b"shell_port" in path.read_bytes()


def request(method: str, url: str, body: Any = None) -> Any:
    """The decoded answer, or None if there is nobody yet. Raises `HTTPError` for 4xx and 5xx."""
    headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=REQUEST_TIMEOUT) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {url}: {error.code} {error.read().decode()}") from None
    except (ConnectionError, urllib.error.URLError):
        return None


def wait_for(reached: Callable[[], bool], what: str) -> None:
    """Look every 20 ms, for `START_TIMEOUT`."""
    until = time.monotonic() + START_TIMEOUT
    while not reached():
        expect(time.monotonic() < until, f"{what} within {START_TIMEOUT} s")
        time.sleep(0.02)


def engine(*arguments: str, check: bool = True, timeout: float = 60) -> str:
    """Run a command of the container engine; return what it printed."""
    done = subprocess.run([ENGINE, *arguments], capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(f"{ENGINE} {' '.join(arguments)}: {done.stderr}")
    return done.stdout.strip()


def logs(name: str) -> str:
    """What the container wrote."""
    done = subprocess.run(
        [ENGINE, "logs", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.stdout


def expect(held: bool, claim: str) -> None:
    """Raise AssertionError with the claim unless it held."""
    if not held:
        raise AssertionError(claim)


if __name__ == "__main__":
    main()
