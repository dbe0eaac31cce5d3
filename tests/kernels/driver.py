"""The fake kernel in a process of its own, with the real client of ``jupyter_client``."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import write_connection_file

from tests.kernels import fake
from tests.support.channels import Exchange
from tests.support.framing import Json, Message
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_KERNEL
from tests.support.processes import eventually

TIMEOUT = 20  # seconds for anything that has to happen
SILENCE = 0.5  # seconds without an answer that count as none
Transport = Literal["tcp", "ipc"]
TRANSPORTS: tuple[Transport, ...] = ("tcp", "ipc")


@dataclass
class Kernel:
    """A fake kernel's process and a client of it."""

    process: subprocess.Popen[str]
    client: AsyncKernelClient
    connection_file: str = ""
    log: list[Message] = field(default_factory=list)
    _probes: list[bytes] = field(default_factory=list)

    async def has_bound(self) -> bool:
        """Whether the last of its sockets, the heartbeat's, takes connections."""
        assert self.process.poll() is None, self.process.communicate()
        ip, port = self.client.ip, self.client.hb_port
        try:
            if self.client.transport == "tcp":
                _, writer = await asyncio.open_connection(ip, port)
            else:
                _, writer = await asyncio.open_unix_connection(f"{ip}-{port}")
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async def ready(self) -> Exchange:
        """Asks for kernel_info until both its reply and its idle come.

        A subscription takes effect later than a request does, so that the first status
        messages may be lost.
        """
        async with asyncio.timeout(TIMEOUT):
            while True:
                try:
                    probe = self.send("kernel_info_request", {}, "shell")
                    self._probes.append(probe.encode())
                    async with asyncio.timeout(1):
                        return await self.exchange(probe)
                except TimeoutError:
                    continue

    async def receive(self, channel: str, timeout: float = TIMEOUT) -> Message:
        get = getattr(self.client, f"get_{channel}_msg")
        msg: Json = await get(timeout=timeout)
        parts = {part: msg[part] for part in fake.PARTS}
        message = Message(channel, **parts, buffers=[bytes(buffer) for buffer in msg["buffers"]])
        self.log.append(message)
        return message

    async def until(self, channel: str, predicate: Callable[[Message], bool]) -> Message:
        async with asyncio.timeout(TIMEOUT):
            while not predicate(message := await self.receive(channel)):
                pass
        return message

    async def seen(self, channel: str, predicate: Callable[[Message], bool]) -> Message:
        """Like :meth:`until`, but what was received before counts, too."""
        for message in self.log:
            if message.channel == channel and predicate(message):
                return message
        return await self.until(channel, predicate)

    async def idle(self, msg_id: str) -> None:
        await self.seen("iopub", lambda m: m.parent_id == msg_id and m.state == "idle")

    async def reply(self, msg_id: str, channel: str = "shell") -> Message:
        return await self.seen(channel, lambda m: m.parent_id == msg_id)

    async def exchange(self, msg_id: str, channel: str = "shell") -> Exchange:
        """Everything that belongs to a request, up to its reply and its idle."""
        await self.idle(msg_id)
        await self.reply(msg_id, channel)
        return self.so_far(msg_id)

    def so_far(self, msg_id: str) -> Exchange:
        return Exchange(msg_id, [message for message in self.log if message.parent_id == msg_id])

    async def run(self, *lines: str, **options: Any) -> Exchange:
        return await self.exchange(self.start(*lines, **options))

    def start(self, *lines: str, allow_stdin: bool = False, **options: Any) -> str:
        return str(self.client.execute("\n".join(lines), allow_stdin=allow_stdin, **options))

    def send(self, msg_type: str, content: Json | None = None, channel: str = "control") -> str:
        message = self.client.session.msg(msg_type, content or {})
        getattr(self.client, f"{channel}_channel").send(message)
        return str(message["header"]["msg_id"])

    async def frames(self, channel: str, count: int) -> list[list[bytes]]:
        """The next messages, as they are, without what comes late (`_next`)."""
        async with asyncio.timeout(TIMEOUT):
            return [await self._next(channel) for _ in range(count)]

    async def _next(self, channel: str) -> list[bytes]:
        """The next message that is no late answer to what `ready` has asked, and no welcome.

        A welcome is sent when the kernel looks at its subscribers, and that may be after it has
        answered a request.
        """
        socket = getattr(self.client, f"{channel}_channel").socket
        late_answers = [*self._probes, b'"iopub_welcome"']
        while True:
            message: list[bytes] = await socket.recv_multipart()
            if not any(late in part for part in message for late in late_answers):
                return message

    def is_signed(self, frames: list[bytes]) -> bool:
        """Whether the message has the signature of the connection file's key."""
        start = frames.index(fake.DELIMITER)
        signature: bytes = self.client.session.sign(frames[start + 2 : start + 6])
        return signature == frames[start + 1]

    async def is_silent(self, channel: str) -> bool:
        """Whether nothing comes for a while but what is late (`_next`)."""
        try:
            await asyncio.wait_for(self._next(channel), SILENCE)
        except TimeoutError:
            return True
        return False

    async def running(self) -> None:
        """Waits until the kernel is busy with an execution."""
        await self.until("iopub", lambda m: m.msg_type == "execute_input")

    async def ended(self) -> tuple[int, str]:
        """The exit code and all that the process wrote."""
        async with asyncio.timeout(TIMEOUT):
            output, _ = await asyncio.to_thread(self.process.communicate)
        return self.process.returncode, output


def run_fake(connection_file: str, *flags: str) -> subprocess.Popen[str]:
    """Starts the program as the leader of a process group."""
    return subprocess.Popen(
        [sys.executable, str(FAKE_KERNEL), "-f", connection_file, *flags],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@asynccontextmanager
async def running_fake(
    home: Home, flags: tuple[str, ...], transport: Transport, *, ready: bool
) -> AsyncIterator[Kernel]:
    """A fake kernel with its client; whatever is left of its process group is killed.

    With ``ready`` it has bound its sockets and answered a first request, and all sockets of the
    client are connected: a ROUTER drops what it has for a peer that is not, an input_request for
    instance.
    """
    name = home.path / uuid.uuid4().hex[:8]
    ip = "127.0.0.1" if transport == "tcp" else str(name)
    ports: dict[str, Any] = free_ports() if transport == "tcp" else {}
    path, _ = write_connection_file(
        f"{name}.json", ip=ip, key=b"secret", transport=transport, **ports
    )
    process = run_fake(path, *flags)
    client = AsyncKernelClient()
    client.load_connection_file(path)
    kernel = Kernel(process, client, path)
    try:
        if ready:
            await eventually(kernel.has_bound, TIMEOUT)
        client.start_channels(hb=False)
        if ready:
            await kernel.ready()
        yield kernel
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate(timeout=TIMEOUT)


def free_ports() -> dict[str, int]:
    """Ports for the five channels that no other process will be given meanwhile.

    They lie below the range from which systems choose ports by themselves: a port of that range,
    once released, soon belongs to somebody else.
    """
    channels = ("shell", "iopub", "stdin", "control", "hb")
    with ExitStack() as stack:
        return {f"{channel}_port": _bind_free(stack) for channel in channels}


def _bind_free(stack: ExitStack) -> int:
    probe = stack.enter_context(socket.socket())
    while True:
        port = random.randrange(12_000, 32_000)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port


StartKernel = Callable[..., Awaitable[Kernel]]
