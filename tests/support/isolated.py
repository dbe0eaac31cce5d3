"""Servers that keep the kernels of their owners apart, and code that tries to get at another's.

They take root, or at least a user namespace in which there are ids enough; and an interpreter that
every user can execute, wherever this one is.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.identities import token
from tests.support.kernelspecs import Spec
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

__all__ = [
    "IDS",
    "USER",
    "IsolatedHome",
    "Owner",
    "SandboxServer",
    "UserServer",
    "check_files",
    "start_for",
]

USER: Final = ("kernels:write", "kernels:execute", "sessions:write", "kernelspecs:read")
"""What the tokens of owners are good for."""

IDS: Final = range(20_000, 20_100)
"""Ids for owners. A user namespace of a person's has 65,536 as a rule, so they are below that."""


@functools.cache
def as_root() -> tuple[str, ...]:
    """What makes a command root's: nothing for root, and else a user namespace, the same for all.

    A server in another namespace could not signal the kernels of the one before.

    Raises:
        AssertionError: there are no ids for one.
    """
    if os.geteuid() == 0:
        return ()
    holder = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--map-auto", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    atexit.register(holder.communicate)  # it ends with its stdin
    assert holder.stdout is not None
    if holder.stdout.readline() != "ready\n":
        raise AssertionError(
            f"other users take root, or ids of one's own: {holder.communicate()[1].strip()}; sudo "
            "apt-get install uidmap && sudo usermod --add-subuids 100000-165535 --add-subgids "
            "100000-165535 $USER"
        )
    return ("nsenter", f"--target={holder.pid}", "--user", "--setuid=0", "--setgid=0")


def as_somebody() -> list[str]:
    """What makes a command another's than root's: for root, a user namespace."""
    if os.geteuid() != 0:
        return []
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000"]


class IsolatedHome(Home):
    """A home that others may pass through, and in which every user can execute an interpreter.

    The interpreter's files are mounted there, for the server and its kernels alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path.chmod(0o711)
        self.homes = self.path / "homes"
        self._base, self._site = self._directory("base"), self._directory("site")

    def mounted(self, command: Sequence[str]) -> list[str]:
        """The command in a mount namespace of its own, with the interpreter's files.

        Nobody can write control groups there, as in a container.
        """
        mounts = [
            ("mount", "-t", "tmpfs", "-o", "ro", "none", "/sys/fs/cgroup"),
            ("mount", "--rbind", sys.base_prefix, str(self._base)),
            ("mount", "--rbind", sysconfig.get_path("purelib"), str(self._site)),
        ]
        script = " && ".join([*map(shlex.join, mounts), 'exec "$@"'])
        return [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
            *command,
        ]

    def specs(self) -> dict[str, Spec]:
        """Kernelspecs of kernels that are run by that interpreter."""
        program = Path(os.path.realpath(sys.executable)).relative_to(
            Path(sys.base_prefix).resolve()
        )
        python = str(self._base / program)
        env = {"env": {"PYTHONPATH": str(self._site)}}
        arguments = ("-m", "ipykernel_launcher", "-f", "{connection_file}")
        encrypted = {**env, "metadata": {"supported_encryption": "curve"}}
        return {
            "python3": Spec(argv=(python, *arguments), fields=encrypted),
            "unreadable": Spec(argv=(str(self.state_dir / "python"), *arguments)),
        }

    def remove(self) -> None:
        """Remove what is here, other users' files included."""
        if os.geteuid() != 0:
            subprocess.run([*as_root(), "rm", "-rf", str(self.homes)], check=False)
        super().remove()


OPEN_FILES: Final = 400
"""The limit of every owner's processes on these servers."""


class _IsolatingServer(ServerProcess):
    """A server with two owners; the token is in its environment, where nobody can look."""

    commands = None

    def __init__(self, *arguments: str, home: Home | None = None, **options: Any) -> None:
        self.isolated_home = home if isinstance(home, IsolatedHome) else IsolatedHome()
        homes = ("--isolation-dir", str(self.isolated_home.homes))
        telling = ("--identity-provider-class", "tests.support.identities:Telling")
        limits = ("--owner-limits", f"open_files={OPEN_FILES}")
        super().__init__(*homes, *telling, *limits, *arguments, home=self.isolated_home, **options)
        self._owns_home = home is None

    @property
    def credentials(self) -> Sequence[str]:
        return ()

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "KERNELKEEP_TOKEN": self.token}


class UserServer(_IsolatingServer):
    """``--isolation user``, as root."""

    @property
    def command(self) -> list[str]:
        ids = ["--isolation-uids", f"{IDS.start}-{IDS.stop - 1}"]
        command = [*super().command, "--isolation", "user", *ids]
        return [*as_root(), *self.isolated_home.mounted(command)]


class SandboxServer(_IsolatingServer):
    """``--isolation bubblewrap``, as anybody but root."""

    @property
    def command(self) -> list[str]:
        return [*as_somebody(), *super().command, "--isolation", "bubblewrap"]


ATTEMPT: Final = """
import ctypes, json, os, signal, socket, sys
from pathlib import Path

def unix(address):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)

def call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def ptrace(pid):
    call("ptrace", 16, pid, 0, 0)  # PTRACE_ATTACH

def tried(attempt):
    try:
        return repr(eval(attempt))[:100]
    except OSError as error:
        return type(error).__name__
"""
"""What attempts to get out, each an expression, are made of."""


class Owner:
    """Somebody with a Python kernel: an asynchronous context manager."""

    def __init__(self, server: ServerProcess, name: str, kernel_id: str = "") -> None:
        self.rest = RestClient(server.url, token(name, USER))
        self.kernel_id = kernel_id

    async def __aenter__(self) -> Self:
        await self.rest.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.rest.__aexit__()

    async def start(self, name: str = "python3", **asked: Any) -> str:
        """Start a kernel, and return its id when it is idle."""
        self.kernel_id = (await self.rest.start_kernel(name, **asked))["id"]
        await self.rest.wait_for_state(self.kernel_id, "idle", timeout=60)
        return self.kernel_id

    @property
    def executions(self) -> Executions:
        return Executions(self.rest, self.kernel_id)

    async def value(self, expression: str) -> Any:
        """What an expression is in the kernel, as JSON tells it."""
        return await self._told(f"import json, os, sys; print(json.dumps({expression}))")

    async def attempt(self, **attempts: str) -> dict[str, str]:
        """What came of each attempt: the name of its `OSError`, or what it was worth."""
        code = f"print(json.dumps({{name: tried(each) for name, each in {attempts!r}.items()}}))"
        found: dict[str, str] = await self._told(ATTEMPT + code)
        return found

    async def _told(self, code: str) -> Any:
        done = await self.executions.run(code)
        assert done["state"] == "ok", done
        return json.loads("".join(output["text"] for output in done["outputs"]))


async def check_files(anna: Owner, ben: Owner, server: ServerProcess) -> None:
    """Check that an owner's kernel and the files API have the same files, and no other's.

    The server has ``files_by_owner``.
    """
    scopes = (*USER, "contents:write")
    text = {"type": "file", "format": "text", "content": "for Anna"}
    await ben.executions.run("open('own.txt', 'w').write('of Ben')")
    theirs = await ben.value("os.getcwd()")
    async with RestClient(server.url, token("anna", scopes)) as files:
        await files.request("PUT", "/api/contents/work", 201, json={"type": "directory"})
        await files.request("PUT", "/api/contents/work/sent.txt", 201, json=text)
        # Whoever has made a file, the other can change it.
        code = (
            "(open('work/sent.txt', 'a').write('!'), open('work/made.txt', 'w').write('of Anna'),"
            " os.stat('work/sent.txt').st_uid == os.stat('work/made.txt').st_uid,"
            " os.chmod('work/made.txt', 0o600))"
        )
        assert (await anna.value(code))[2] is True
        assert (await files.request("GET", "/files/work/sent.txt")).text == "for Anna!"
        assert (await files.request("GET", "/files/work/made.txt")).text == "of Anna"
        await files.request("PUT", "/api/contents/work/made.txt", 200, json=text)
        assert await anna.value("open('work/made.txt').read()") == "for Anna"
        new = await files.request("POST", "/api/contents/work", 201, json={"type": "notebook"})
        path = new.json()["path"]
        await files.request("POST", f"/api/contents/{path}/trust", 201)
        await files.request("POST", f"/api/contents/{path}/checkpoints", 201)
        await anna.executions.run(SWAPPING.format(target=theirs))
        for _ in range(100):
            read = await files.http.get("/files/work/own.txt")
            written = await files.http.put("/api/contents/work/planted.txt", json=text)
            assert read.status_code in (403, 404), read.text
            assert written.status_code < 500, written.text
        await anna.executions.run("is_over.set(); swapping.join()")
        # All that came before may have met the link.
        written = await files.http.put("/api/contents/work/planted.txt", json=text)
        assert written.status_code in (200, 201), written.text
        await files.request("DELETE", "/api/contents/work/planted.txt", 204)
    assert "planted.txt" not in await ben.value("os.listdir('.')")


SWAPPING: Final = """
import os, threading
is_over = threading.Event()

def swap():
    while not is_over.is_set():
        os.rename("work", "aside")
        os.symlink({target!r}, "work")
        os.unlink("work")
        os.rename("aside", "work")

swapping = threading.Thread(target=swap)
swapping.start()
"""
"""Has a link to another directory in the place of one's own, now and then."""


def start_for(server: ServerProcess, *names: str) -> dict[str, str]:
    """Start a kernel for each of these owners; their ids, by the owners' names."""

    async def start(name: str) -> str:
        async with Owner(server, name) as owner:
            return await owner.start(env={"SECRET": name})

    async def start_all() -> list[str]:
        return await asyncio.gather(*map(start, names))

    return dict(zip(names, asyncio.run(start_all()), strict=True))
