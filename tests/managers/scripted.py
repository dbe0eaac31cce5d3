"""A kernel whose part is played by the test: its traffic and executions, without a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from app.keeper.channels import Channels
from app.keeper.hearing import Hearing
from app.managers.executions.code import Code
from app.managers.executions.execution import Execution
from app.managers.executions.queue import Executions
from app.managers.messages.line import Line
from app.managers.messages.traffic import Traffic
from app.managers.state import KernelState, Lifecycle
from app.managers.telemetry.counters import Counters
from app.protocol.compose import make_message
from app.protocol.messages import ClientMessage, Header, Message
from app.settings import Settings
from tests.managers.local_hearer import LocalHearer


@dataclass
class Sent:
    """A message that has reached the kernel."""

    message: ClientMessage

    @property
    def id(self) -> str:
        return self.message.header.msg_id

    @property
    def header(self) -> bytes:
        return bytes(self.message.parts[0])

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(bytes(self.message.parts[3]))
        return content


class _Sockets:
    """Takes what is sent to one process."""

    stdin_connected = True

    def __init__(self) -> None:
        self.sent: list[Sent] = []

    def send(self, message: ClientMessage) -> bool:
        self.sent.append(Sent(message))
        return True

    def expect_input(self) -> None:
        pass

    def has_unread(self, channel: str) -> bool:
        return False

    def drain(self) -> bool:
        return False

    def close(self) -> None:
        pass


class _ScriptedHearer(LocalHearer):
    """Hears a kernel over sockets that are the test's, and tells what is said at once."""

    def hear_now(self, line: Line, directory: Path, sockets: _Sockets | None) -> None:
        heard = self._hearings.hear(
            line.kernel_id,
            session=line.session,
            epoch=line.epoch,
            directory=directory,
            info=None,
            anew=False,
        )
        hearing = self.hearing
        if sockets is not None:
            hearing.opened = False
            hearing._requests.take_all()
            hearing._channels = cast(Channels, sockets)
        self._lines[heard.handle] = self._by_id[line.kernel_id] = line
        line.on_heard(heard)

    @property
    def hearing(self) -> Hearing:
        (hearing,) = self._hearings._hearings.values()
        return hearing

    holds = False

    def says(self, message: Message) -> None:
        self.hearing.on_message(message)
        if not self.holds:
            self._tell()

    def _tell(self) -> None:
        """Tell what is in the log, and have all of it read now: it may take several turns."""
        self._hearings.flush()
        for line in self._lines.values():
            reading = cast(Traffic, line._owner).reading
            while reading._reading is not None:
                reading._reading.cancel()
                reading._read_on()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        self.holds = True
        yield
        self.holds = False
        self._tell()


class ScriptedKernel:
    """Make it inside a running event loop; it is ready then."""

    def __init__(self, **options: Any) -> None:
        settings = Settings(_cli_parse_args=False, **options)
        self.state = KernelState()
        self._directory = TemporaryDirectory(prefix="kk-scripted-")
        self._hearer = _ScriptedHearer(settings)
        self.traffic = Traffic(
            "kernel",
            self.state,
            Path(self._directory.name) / "kernel",
            self._hearer,
            settings,
            Counters(),
        )
        weakref.finalize(self.traffic, self._directory.cleanup)
        self.log = self.traffic.log
        self.executions = Executions(self, self.traffic, self.state, settings)
        self.interrupts = self.kills = 0
        self._requests = 0
        self.launch()
        self.be_ready()

    # Its process

    def launch(self) -> None:
        """A process is started; it is not ready yet."""
        self._sockets = _Sockets()
        self.state.generation += 1
        self._hearer.hear_now(self.traffic._line, self.log.directory, self._sockets)
        self.traffic.on_launch()

    def be_ready(self) -> None:
        self.traffic.ready()

    async def die(self, reason: str = "The kernel has died") -> None:
        """The process ends by itself, and is about to be restarted."""
        await self.traffic.close(reason)
        self.state.begin(Lifecycle.RESTARTING, reason)

    async def be_buried(self) -> None:
        await self.traffic.close("The kernel is dead")
        self.state.begin(Lifecycle.DEAD)
        self.traffic.refuse_waiting()

    def begin_restart(self) -> None:
        """Somebody has asked for a restart."""
        self.state.begin(Lifecycle.RESTARTING, "")
        self.traffic.replace_process()

    async def end_process(self) -> None:
        """A process that was asked to end has ended."""
        await self.traffic.close()

    async def interrupt(self) -> None:
        self.interrupts += 1

    async def kill(self) -> bool:
        self.kills += 1
        return True

    # What clients do

    def send(self, code: str = "", session: str = "client", msg_id: str | None = None) -> str:
        """An execution of a WebSocket client's."""
        self._requests += 1
        msg_id = msg_id or f"request-{self._requests}"
        header = {"msg_id": msg_id, "msg_type": "execute_request", "session": session}
        parts = [json.dumps(part).encode() for part in (header, {}, {}, {"code": code})]
        message = ClientMessage("shell", Header(msg_id, "execute_request", session), parts)
        self.traffic.submit(message, session)
        return msg_id

    def run(self, code: str = "1", **options: Any) -> Execution:
        """An execution asked for over HTTP."""
        return self.executions.run(Code(code, **options))

    def answer(
        self,
        value: str,
        parent: dict[str, str],
        session: str = "client",
        msg_type: str = "input_reply",
    ) -> bool:
        """An answer of a WebSocket client's; whether it is passed on."""
        header = {"msg_id": f"answer-{value}", "msg_type": msg_type, "session": session}
        parts = [json.dumps(part).encode() for part in (header, parent, {}, {"value": value})]
        steering = Header(header["msg_id"], msg_type, session)
        return self.traffic.submit(ClientMessage("stdin", steering, parts), session)

    def execution(self, execution_id: str) -> Execution:
        return self.executions.get(execution_id)

    # What the kernel has got, and says

    def hears(self, message: Message) -> None:
        """A message of the kernel's arrives."""
        self._hearer.says(message)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """What is said meanwhile is read in one turn."""
        return self._hearer.together()

    @property
    def requests(self) -> list[Sent]:
        """The execute requests that have reached this process."""
        return self.sent("execute_request")

    def sent(self, msg_type: str) -> list[Sent]:
        """The messages of one type that have reached this process."""
        return [sent for sent in self._sockets.sent if sent.message.header.msg_type == msg_type]

    @property
    def probes(self) -> list[Sent]:
        """What the server itself has asked of this process."""
        return [
            sent
            for sent in self._sockets.sent
            if sent.message.header.msg_type == "kernel_info_request"
        ]

    @property
    def probes_on_control(self) -> list[Sent]:
        return [probe for probe in self.probes if probe.message.channel == "control"]

    def answers_probe(self, probe: Sent | None = None) -> None:
        """Goes idle for one of them, the last unless another is given."""
        header = (probe or self.probes[-1]).header
        idle = {"execution_state": "idle"}
        message = make_message("iopub", "status", idle, session="kernel", parent=header)
        self.hears(message)

    @property
    def answers(self) -> list[str]:
        """What it was given as input."""
        sent = [sent for sent in self._sockets.sent if sent.message.channel == "stdin"]
        return [answer.content["value"] for answer in sent]

    def asks(self, execution: Execution | str, prompt: str) -> dict[str, str]:
        """It asks its user for a line; the header of that message."""
        return self.says(execution, "input_request", "stdin", prompt=prompt, password=False)

    def says(
        self, execution: Execution | str, msg_type: str, channel: str = "iopub", **content: Any
    ) -> dict[str, str]:
        """A message whose parent is this execution's request; returns its header."""
        execution_id = execution if isinstance(execution, str) else execution.id
        header = next(sent.header for sent in self.requests if sent.id == execution_id)
        message = make_message(channel, msg_type, content, session="kernel", parent=header)
        self.hears(message)
        said: dict[str, str] = json.loads(bytes(message.part(0)))
        return said

    def is_busy(self, execution: Execution | str) -> None:
        self.says(execution, "status", execution_state="busy")

    def is_idle(self, execution: Execution | str) -> None:
        self.says(execution, "status", execution_state="idle")

    def replies(self, execution: Execution | str, status: str = "ok", count: int = 1) -> None:
        content = {"status": status, "execution_count": count}
        self.says(execution, "execute_reply", "shell", **content)

    def finishes(self, execution: Execution | str, status: str = "ok") -> None:
        """All that a kernel says of an execution without output."""
        self.is_busy(execution)
        self.replies(execution, status)
        self.is_idle(execution)


async def turns(count: int = 5) -> None:
    """Let what is ready to run, run."""
    for _ in range(count):
        await asyncio.sleep(0)
