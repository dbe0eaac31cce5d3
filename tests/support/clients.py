"""Programs of others, as docs/clients.md says how to run them, against a real server.

``python -m tests.support.clients [PROGRAM ...]`` is `scripts/clients`. It installs the newest
versions, runs each program with a kernel that takes three seconds to start, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx

from tests.support.documented import PAGE, block
from tests.support.home import Home
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.node import NODE, NPM, environment
from tests.support.processes import eventually_sync, kill_all
from tests.support.server import REPOSITORY, ServerProcess

PROGRAMS: Final = REPOSITORY / "tests" / "clients" / "programs"
WHERE: Final = secrets.token_hex(8)
"""What only the kernels of `slow_spec` know."""

SECONDS: Final = 180  # that one command may take
STOP_SECONDS: Final = 20
INSTALL_SECONDS: Final = 900
PYTHON_PACKAGES: Final = ("nbconvert", "papermill", "voila", "jupyter_server", "ipykernel")
NODE_PACKAGES: Final = ("thebe", "mystmd", "playwright-core", "requirejs")
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")


def slow_spec(python: Path | str = sys.executable) -> Spec:
    """A Python kernel that takes longer to start than a gateway client waits for an answer."""
    script = f'sleep 3; exec {python} -m ipykernel_launcher -f "$1"'
    return Spec(
        argv=("/bin/sh", "-c", script, "sh", "{connection_file}"),
        env={"WHERE": WHERE},
        fields={"display_name": "Python 3", "language": "python"},
    )


def client_environment(server: ServerProcess, *tools: Path) -> dict[str, str]:
    """Of a program that knows nothing of the server but what it is told; ``tools`` are found."""
    path = os.pathsep.join([*map(str, tools), os.environ["PATH"]])
    return server.home.environment(
        {
            "JUPYTER_PATH": "",
            "KERNELKEEP": server.url,
            "NO_PROXY": "127.0.0.1",
            "PATH": path,
            "PYTHONPATH": ".",
            "TOKEN": server.token,
        }
    )


def gateway_command(start: str) -> str:
    """The documented command that begins so, where the documented variables are set."""
    return f"{block('sh', 'export JUPYTER_GATEWAY_URL')}exec {block('sh', start).strip()}"


def prepare(folder: Path) -> None:
    """Put into a folder what the programs work on, and the module of the gateway's clients."""
    shutil.copytree(PROGRAMS, folder, dirs_exist_ok=True)
    (folder / "gateway.py").write_text(block("py", '"""jupyter_server'))


def check_executed(folder: Path) -> None:
    """The notebook that was written has what the kernel printed."""
    notebook = json.loads((folder / "executed.ipynb").read_text())
    outputs = [cell["outputs"] for cell in notebook["cells"] if cell.get("outputs")]
    assert [output["text"] for output in outputs[-1]] == [[f"run in {WHERE} 42\n"]], outputs


class Installed(NamedTuple):
    """The programs, and how new they are."""

    scripts: Path  # of the virtual environment
    packages: Path  # with a folder for each of Node's
    tools: Path  # of Node's, as commands
    browser: str
    versions: Mapping[str, str]


def install(directory: Path) -> Installed:
    """The newest versions of all programs, in a directory; what is there is brought up to date.

    Raises:
        SystemExit: there is no Chromium, which must come from the system.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("clients: Chromium is missing; on Debian: apt-get install chromium")
    scripts = directory / "venv" / "bin"
    if not (scripts / "pip").exists():
        venv.create(directory / "venv", with_pip=True, clear=True)
    pip = (scripts / "python", "-m", "pip", "--disable-pip-version-check")
    wanted = [*PYTHON_PACKAGES, "ipywidgets"]
    run(directory, *pip, "install", "--quiet", "--upgrade", *wanted, seconds=INSTALL_SECONDS)
    listed = json.loads(run(directory, *pip, "list", "--format=json"))
    versions = {package["name"]: package["version"] for package in listed}
    packages = directory / "packages"
    shutil.rmtree(packages, ignore_errors=True)
    packages.mkdir()
    # They have what they need in themselves, for all that is done with them here.
    command: list[str | Path] = [NODE, NPM, "pack", "--json", "--loglevel=error", *NODE_PACKAGES]
    for packed in json.loads(run(packages, *command, env=environment(), seconds=INSTALL_SECONDS)):
        versions[packed["name"]] = packed["version"]
        shutil.unpack_archive(packages / packed["filename"], packages / packed["name"])
    tools = packages / "bin"
    tools.mkdir()
    (tools / "myst").symlink_to(packages / "mystmd" / "package" / "dist" / "myst.cjs")
    (tools / "myst").chmod(0o755)
    (tools / "npm").write_text(f'#!/bin/sh\nexec {NODE} {NPM} "$@"\n')  # MyST asks for its version
    (tools / "npm").chmod(0o755)
    versions["Chromium"] = run(directory, browser, "--version").split()[1]
    return Installed(scripts, packages, tools, browser, versions)


def run(
    folder: Path,
    *words: str | Path,
    env: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
) -> str:
    """What a command writes on stdout. Raises AssertionError when it fails."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{words} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Place(NamedTuple):
    """Where a program runs: a server, and a folder with what it works on, served at ``url``."""

    server: ServerProcess
    installed: Installed
    folder: Path
    url: str

    @property
    def environment(self) -> dict[str, str]:
        installed = self.installed
        return client_environment(self.server, installed.scripts, installed.tools, NODE.parent)

    def run(self, *words: str | Path) -> str:
        return run(self.folder, *words, env=self.environment)


def nbconvert(place: Place) -> None:
    place.run("sh", "-ec", gateway_command("jupyter nbconvert"))
    check_executed(place.folder)


def papermill(place: Place) -> None:
    (place.folder / "program.py").write_text(block("py", "import papermill"))
    exports = block("sh", "export JUPYTER_GATEWAY_URL")
    place.run("sh", "-ec", f"{exports}exec python program.py")
    check_executed(place.folder)


def voila(place: Place) -> None:
    port = free_port()
    command = f"{gateway_command('voila')} --port={port} --Voila.ip=127.0.0.1"
    with (place.folder / "voila.log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-ec", command],
            cwd=place.folder,
            env=place.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        assert eventually_sync(lambda: listens(port, process), SECONDS), "voila does not listen"
        page = httpx.get(f"http://127.0.0.1:{port}/", timeout=SECONDS, trust_env=False)
        assert page.status_code == 200, page.text
        assert f"run in {WHERE} 42" in page.text, page.text
    except (AssertionError, httpx.HTTPError) as failure:
        failure.add_note((place.folder / "voila.log").read_text())
        raise
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def thebe(place: Place) -> None:
    packages, server, page = place.installed.packages, place.server, place.folder / "page.html"
    settings = json.loads(block("json", '{\n  "requestKernel"'))
    settings["serverSettings"] |= {"baseUrl": server.url, "token": server.token}
    page.write_text(page.read_text().replace("CONFIGURATION", json.dumps(settings)))
    (place.folder / "thebe").symlink_to(packages / "thebe" / "package" / "lib")
    place.run(
        *("node", "thebe.cjs", f"{place.url}/page.html", place.installed.browser),
        packages / "playwright-core" / "package",
        packages / "requirejs" / "package" / "require.js",
        f"4 in {WHERE}",
    )


def mystmd(place: Place) -> None:
    # To a format that needs no template: those are fetched.
    command = f"{block('sh', 'JUPYTER_BASE_URL').strip()} page.md -o page.xml"
    place.run("sh", "-ec", command)
    executed = [file.read_text() for file in place.folder.glob("_build/execute/*.json")]
    assert f"run in {WHERE} 42" in "".join(executed), executed


class Program(NamedTuple):
    run: Callable[[Place], None]
    packages: Sequence[str]
    what: str


TRIED: Final = {
    "nbconvert": Program(
        nbconvert,
        ("nbconvert", "jupyter_server"),
        "`--execute` through `GatewayKernelManager`",
    ),
    "papermill": Program(
        papermill,
        ("papermill", "jupyter_server"),
        "`execute_notebook` through `GatewayKernelManager`",
    ),
    "voila": Program(
        voila,
        ("voila", "jupyter_server"),
        "A notebook as a page, through `GatewayMappingKernelManager`",
    ),
    "thebe": Program(
        thebe,
        ("thebe", "ipywidgets", "Chromium"),
        "A cell of a page; its ipywidgets slider was moved, and the kernel's answer shown",
    ),
    "mystmd": Program(mystmd, ("mystmd",), "`myst build --execute` of a page"),
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, f"it ended with {process.returncode}"
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


HEAD: Final = ("| Program | Versions | What it did |", "|---|---|---|")


class _Pages(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *_: Any) -> None:
        """Nothing is said of a page that is fetched."""


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """A web server for the files of a folder; its origin."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Pages, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def attempt(name: str, installed: Installed) -> str | None:
    """Run one program with a server of its own; what went wrong, if anything."""
    home = Home()
    try:
        folder = home.root_dir / name
        prepare(folder)
        write_kernelspec(home.jupyter_path, "python3", slow_spec(installed.scripts / "python"))
        with pages(folder) as url:
            server = ServerProcess("--allow-origin", url, home=home)
            server.start()
            try:
                TRIED[name].run(Place(server, installed, folder, url))
            except Exception:
                return f"{traceback.format_exc()}\nThe server said:\n{server.output()}"
            finally:
                server.stop()
    finally:
        kill_all(home.processes())
        home.remove()
    return None


def row(name: str, versions: Mapping[str, str]) -> str:
    """A program's row of the table."""
    program = TRIED[name]
    shown = ", ".join(f"{package} {versions[package]}" for package in program.packages)
    return f"| {name} | {shown} | {program.what} |"


def write(rows: Sequence[str]) -> None:
    """Put the table into docs/clients.md, in the place of the one that is there."""
    text = PAGE.read_text(encoding="utf-8")
    table = "".join(f"{line}\n" for line in (*HEAD, *rows))
    found = re.sub(rf"{re.escape(HEAD[0])}\n(\|.*\n)*", lambda _: table, text)
    PAGE.write_text(found, encoding="utf-8")


def main() -> None:
    description = "Runs programs of others against a real server, and prints a table of them."
    parser = argparse.ArgumentParser(prog="scripts/clients", description=description)
    parser.add_argument("programs", nargs="*", choices=[[], *TRIED], help="all if none is named")
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "build" / "clients")
    parser.add_argument("--write", action="store_true", help="put the table into docs/clients.md")
    options = parser.parse_args()
    if options.write and options.programs:
        parser.error("--write is for the table of all programs")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    directory: Path = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    installed = install(directory)
    failed = []
    for name in options.programs or TRIED:
        began = time.monotonic()
        problem = attempt(name, installed)
        print(f"{name}: {'failed' if problem else 'ok'}, {time.monotonic() - began:.0f} s")  # noqa: T201
        if problem:
            failed.append(name)
            print(problem)  # noqa: T201
    rows = [row(name, installed.versions) for name in options.programs or TRIED]
    print("\n".join(("", *HEAD, *rows)))  # noqa: T201
    if failed:
        sys.exit(f"clients: {', '.join(failed)} failed")
    if options.write:
        write(rows)


if __name__ == "__main__":
    main()
