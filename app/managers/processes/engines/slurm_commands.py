"""Slurm's commands, each a process with bounds, without a shell or this server's environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping
from typing import Final, NamedTuple

from ..hosts.errors import EngineNotInstalled, HostUnreachable, HostUnusable

__all__ = ["Answer", "Commands"]

OUTPUT_BYTES: Final = 2**25
"""How many bytes a command may write: more cannot be a list of this service's jobs."""

ERROR_BYTES: Final = 2**14

KILL_SECONDS: Final = 5.0
"""How long the end of a command that was killed is waited for."""

AT_ONCE: Final = 4
"""How many commands run at a time, as the controller has others to serve. The wait for a turn does
not count towards a command's bound; but each command ahead has a bound."""

_PASSED: Final = ("PATH", "SLURM_CONF")
"""The variables of this server's environment that the commands get."""

_AWAY: Final = re.compile(
    r"unable to contact|connect failure|connection (refused|timed out|reset)|timed out"
    r"|configuration source|zero bytes were transmitted|standby|munge|authentication",
    re.IGNORECASE,
)


class Answer(NamedTuple):
    """The result of a command: its exit status, its stdout, and its stderr in one line."""

    status: int
    output: str
    complaint: str

    @property
    def is_of_nobody(self) -> bool:
        """Whether the command complains that the controller is away, and not of its arguments."""
        return self.status != 0 and _AWAY.search(self.complaint) is not None


class Commands:
    """Runs the commands of one Slurm: that of this server's ``SLURM_CONF``, or the system's."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        found = os.environ if env is None else env
        self._env = {name: found[name] for name in _PASSED if name in found} | {"LC_ALL": "C"}
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def run(
        self,
        *command: str,
        seconds: float,
        given: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> Answer:
        """Run a command, which may take so many seconds; ``given`` is its stdin.

        Raises `HostUnreachable` if the command does not end in time or writes too much,
        `EngineNotInstalled` if it is not installed, and `HostUnusable` if it cannot be run.
        """
        async with self._turns:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.PIPE if given else asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env={**self._env, **(env or {})},
                    start_new_session=True,  # so that Ctrl-C at this server does not reach it
                )
            except FileNotFoundError:
                text = f"Kernels on Slurm take its commands, and there is no {command[0]}"
                raise EngineNotInstalled(text) from None
            except OSError as error:
                raise HostUnusable(f"{command[0]} cannot be run: {error}") from error
            # If this is cancelled, the command is killed; its turn lasts until it has ended.
            try:
                return await _conversation(process, command[0], given, seconds)
            finally:
                if process.returncode is None:
                    await _kill(process)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill a command and its process group, and wait `KILL_SECONDS` for its end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it is the leader of its session
    # The loop closes a pipe only when its end was read, and stops reading while the buffer is full.
    # So both pipes are read to their ends; a process that the command has started in another
    # session may keep them open until the time is over.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILL_SECONDS):
            await asyncio.gather(_to_its_end(process.stdout), _to_its_end(process.stderr))
            await process.wait()


async def _to_its_end(stream: asyncio.StreamReader | None) -> None:
    while stream is not None and await stream.read(2**16):
        pass


async def _conversation(
    process: asyncio.subprocess.Process, name: str, given: bytes, seconds: float
) -> Answer:
    assert process.stdout is not None
    assert process.stderr is not None
    said = bytearray()
    try:
        async with asyncio.timeout(seconds):
            if process.stdin is not None:
                # A command that has ended already reads nothing; uvloop raises an error for that.
                with contextlib.suppress(OSError, RuntimeError):
                    process.stdin.write(given)
                    process.stdin.close()
            # Both at once: a command that fills one pipe waits until it is read.
            tail = asyncio.create_task(_tail_of(process.stderr, said))
            try:
                output = await _all_of(process.stdout, name)
                await tail
            finally:
                tail.cancel()
                await asyncio.wait({tail})
            status = await process.wait()
    except TimeoutError:
        text = f"Slurm does not answer within {seconds:g} s ({name})"
        raise HostUnreachable(f"{text}: {_line(said)}" if said else text) from None
    return Answer(status, output.decode(errors="replace"), _line(said))


async def _all_of(stream: asyncio.StreamReader, name: str) -> bytes:
    output = bytearray()
    while data := await stream.read(2**16):
        output += data
        if len(output) > OUTPUT_BYTES:
            raise HostUnreachable(f"{name} says more than {OUTPUT_BYTES} bytes")
    return bytes(output)


async def _tail_of(stream: asyncio.StreamReader, said: bytearray) -> None:
    while data := await stream.read(2**12):
        said += data
        del said[:-ERROR_BYTES]


def _line(said: bytearray) -> str:
    """Complaints without the names of the commands that complain."""
    lines = said.decode(errors="replace").splitlines()
    texts = [re.sub(r"^\w+: (error|fatal): ", "", line.strip()) for line in lines]
    return "; ".join(dict.fromkeys(text for text in texts if text))
