"""Starts deploy/replicas with Docker Compose, and has a cell go on while replicas are killed.

Three replicas, the keeper in a container beside them, nginx and PostgreSQL run as the file says. A
cell is begun through nginx; then the container of the replica that has its kernel is killed, and
then each replica is stopped and started, one after the other. It needs root, dockerd and
docker-compose, and touches no other dockerd: it runs one of its own, in namespaces of its own.
`scripts/image --compose` makes the images and calls this; by hand, with an archive of `docker save`
that has kernelkeep, nginx:1.28 and postgres:17:

    python3 scripts/compose_drill.py ARCHIVE
"""

import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
TOKEN = secrets.token_hex(16)
REPLICAS = ("one", "two", "three")
UP_SECONDS = 240
REQUEST_SECONDS = 60
SHOWN_LINES = 40
LINES = 200
CELL = f"import time\nfor number in range({LINES}):\n    print(number)\n    time.sleep(0.1)\n"

# Without hierarchies of control groups that a small machine does not let containers use.
MOUNTS = """
for hierarchy in unified memory; do
    ! mountpoint -q /sys/fs/cgroup/$hierarchy || umount /sys/fs/cgroup/$hierarchy
done
for directory in docker containerd; do
    mkdir -p /run/$directory && mount -t tmpfs tmpfs /run/$directory
done
ip link set lo up
"""


def main() -> None:
    """Exit with 0 iff all of it held."""
    if os.environ.get("KERNELKEEP_DRILL") != "inside":
        enter = ["unshare", "--mount", "--net", "--propagation", "private", sys.executable]
        os.environ["KERNELKEEP_DRILL"] = "inside"
        os.execvp(enter[0], [*enter, *sys.argv])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    run("sh", "-euc", MOUNTS)
    directory = Path(tempfile.mkdtemp(prefix="kernelkeep-compose.", dir="/var/tmp"))
    try:
        with Docker(directory) as docker:
            docker.start()
            drill(docker, Path(sys.argv[1]))
    except Exception as error:
        sys.exit(f"compose: {type(error).__name__}: {error}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Docker:
    """A dockerd of its own, and the project of deploy/replicas."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._groups = f"/kernelkeep-{os.getpid()}"
        self._daemon: subprocess.Popen[bytes] | None = None
        # A clone as far as Compose looks at it, with certificates beside the file.
        self._project = directory / "clone/deploy/replicas"
        os.environ.update(
            DOCKER_HOST=f"unix://{directory}/socket",
            COMPOSE_PROJECT_NAME="replicas",
            KERNELKEEP_TOKEN=TOKEN,
            POSTGRES_PASSWORD=secrets.token_hex(16),
        )

    def __enter__(self) -> "Docker":
        return self

    def start(self) -> None:
        """Returns when it answers."""
        where = self._directory
        places = [f"--{name}={where / name}" for name in ("data-root", "exec-root", "pidfile")]
        with open(where / "log", "wb") as log:
            self._daemon = subprocess.Popen(
                [
                    *("dockerd", f"--host=unix://{where}/socket", *places),
                    *(f"--cgroup-parent={self._groups}", "--storage-driver=overlay2"),
                    "--oom-score-adjust=0",
                ],
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers, "an answer of dockerd")

    def _answers(self) -> bool:
        assert self._daemon is not None
        ended = self._daemon.poll()
        expect(ended is None, f"dockerd has ended, with exit code {ended}")
        return subprocess.run(["docker", "version"], capture_output=True).returncode == 0

    def up(self) -> None:
        """Start everything, which returns when Compose has seen that all of it is healthy."""
        shutil.copytree(REPOSITORY / "deploy", self._project.parent)
        file = self._project / "compose.yaml"
        lines = file.read_text().splitlines(keepends=True)
        # Compose 1 knows the project's name by its environment alone.
        file.write_text("".join(line for line in lines if not line.startswith("name:")))
        certificates = self._project / "certificates"
        certificates.mkdir()
        run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", certificates / "tls.key", "-out", certificates / "tls.crt"),
        )
        self.context = ssl.create_default_context(cafile=str(certificates / "tls.crt"))
        self.compose("up", "--detach", "--no-build", seconds=UP_SECONDS)

    def compose(self, *arguments: str, seconds: float = 60) -> str:
        """Run Compose on the project; returns what it has printed."""
        return run(
            "docker-compose", "-f", self._project / "compose.yaml", *arguments, seconds=seconds
        )

    def address(self, service: str) -> str:
        """Where a service's container is in its network."""
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return run("docker", "inspect", "--format", form, f"replicas_{service}_1")

    def request(self, method: str, url: str, body: Any = None) -> Any:
        """The decoded answer. Raises `OSError`, and `AssertionError` for 4xx and 5xx."""
        headers = {"Authorization": f"token {TOKEN}", "Host": "localhost"}
        headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(url, data, headers, method=method)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.context)
        )
        try:
            with opener.open(asked, timeout=REQUEST_SECONDS) as response:
                return json.load(response) if response.status != 204 else None
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace")
            raise AssertionError(f"{method} {url}: {error.code} {told}") from None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and (log := self._directory / "log").exists():
            lines = log.read_text(errors="replace").splitlines()
            print("compose: the end of dockerd's log:", *lines[-SHOWN_LINES:], sep="\n")
        if kind is not None and self._project.exists():
            for words in (["ps"], ["logs", "--no-color", f"--tail={SHOWN_LINES}"]):
                subprocess.run(["docker-compose", "-f", self._project / "compose.yaml", *words])
        try:
            if self._project.exists():
                self.compose("down", "--volumes", "--timeout=5")
        finally:
            if self._daemon is not None:
                self._daemon.terminate()
                self._daemon.wait(60)
        for top in Path("/sys/fs/cgroup").glob(f"*{self._groups}"):
            for group in sorted((each for each in top.rglob("*") if each.is_dir()), reverse=True):
                group.rmdir()
            top.rmdir()


def drill(docker: Docker, archive: Path) -> None:
    """All that is tried, in order."""
    run("docker", "load", "--input", archive, seconds=300)
    began = time.monotonic()
    docker.up()
    print(f"compose: everything is up after {time.monotonic() - began:.1f} s")
    service = "https://localhost"
    status = docker.request("GET", f"{service}/api/status")
    expect(len(status["replicas"]) == 3, f"three replicas: {status}")
    kernel_id = docker.request("POST", f"{service}/api/kernels", {})["id"]
    kernel = f"{service}/api/kernels/{kernel_id}"
    begun = docker.request("POST", f"{kernel}/executions", {"code": CELL, "timeout": 600})
    cell = f"{kernel}/executions/{begun['id']}"
    wait_for(lambda: docker.request("GET", cell)["outputs"], "the cell's first output")

    first = owner(docker)
    began = time.monotonic()
    run("docker", "kill", f"replicas_{first}_1")
    docker.request("GET", cell)
    print(f"compose: the cell is known {time.monotonic() - began:.1f} s after {first} was killed")
    second = owner(docker)
    expect(second != first, f"another has the kernel: {first}, {second}")
    docker.compose("up", "--detach", "--no-build", seconds=UP_SECONDS)
    for name in REPLICAS:
        # As an upgrade goes through them.
        docker.compose("stop", name)
        docker.request("GET", cell)
        docker.compose("up", "--detach", "--no-build", seconds=UP_SECONDS)
    wait_for(lambda: docker.request("GET", cell)["ended"], "the cell's end")
    ended = docker.request("GET", cell)
    text = "".join(each["text"] for each in ended["outputs"])
    expect(ended["state"] == "ok", f"the cell ends well: {ended}")
    expect(text.split() == [str(number) for number in range(LINES)], f"it is complete: {text}")
    docker.request("DELETE", kernel)
    print("compose: the cell went on while a replica was killed, and each was replaced")


def owner(docker: Docker) -> str:
    """The replica that has the one kernel."""
    found: list[str] = []

    def is_told() -> bool:
        found.clear()
        for name in REPLICAS:
            try:
                status = docker.request("GET", f"http://{docker.address(name)}:8888/api/status")
            except (OSError, AssertionError):  # it was killed, or comes up and says 503
                continue
            if any(each["asked"] and each["kernels"] for each in status["replicas"]):
                found.append(name)
        return len(found) == 1

    wait_for(is_told, "one replica that has the kernel")
    return found[0]


def wait_for(reached: Callable[[], Any], what: str = "an answer") -> None:
    """Look every 0.2 s, for `UP_SECONDS`."""
    until = time.monotonic() + UP_SECONDS
    while not reached():
        expect(time.monotonic() < until, f"{what} within {UP_SECONDS} s")
        time.sleep(0.2)


def run(*command: object, seconds: float = 60) -> str:
    """Run a command; returns what it has printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    expect(done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def expect(held: bool, claim: str) -> None:
    """Raise AssertionError with the claim unless it held."""
    if not held:
        raise AssertionError(claim)


if __name__ == "__main__":
    main()
