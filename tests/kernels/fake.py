"""A Jupyter kernel over real ZMQ that misbehaves on demand.

A program of its own: ``python fake.py -f CONNECTION_FILE [flags]``. It needs pyzmq and nothing
else, and speaks the wire protocol with code of its own, so that a mistake in the service's
protocol code cannot be cancelled out here.

Without flags it is a faithful kernel: ``tcp`` and ``ipc``, signed messages, busy and idle around
every request on shell and control, ``iopub_welcome`` (JEP 65; like ipykernel's, only for the first
of several subscribers at a time), heartbeat, and replies to kernel_info, execute, complete,
inspect, is_complete, history, comm_info, interrupt and shutdown requests; ``comm_msg``
comes back on iopub, buffers included. SIGINT and ``interrupt_request`` end the running execution
with the error ``KeyboardInterrupt``. Control and heartbeat are answered while an execution runs;
shell requests wait for its end. After an error, execute requests that have already arrived are
answered ``aborted``, unless ``stop_on_error`` was false. The publisher never drops a message (no
high-water mark). A message that is wrongly signed or malformed is dropped with a line on stderr.

What it executes are commands, one a line, arguments split as a shell does. TEXT is the rest of the
line. Sizes are in bytes, times in seconds. An unknown command is the error ``NameError``, wrong
arguments are ``KeyError``, ``TypeError`` or ``ValueError``.

=======================  ===========================================================================
Command                  What it does
=======================  ===========================================================================
print|stderr TEXT        One ``stream`` message on stdout or stderr: TEXT and a newline
raw TEXT                 Writes TEXT and a newline to the process's real stdout (descriptor 1)
result TEXT              ``execute_result`` with ``text/plain`` TEXT
error ENAME EVALUE       ``error`` on iopub, ends the execution with status ``error``
sleep S                  Sleeps; interruptible; control, stdin and heartbeat are answered
until FILE               Sleeps until there is such a file in the working directory
append FILE TEXT         Appends TEXT and a newline to a file in the working directory
hang [S]                 Blocks the whole process, for ever or for S: no channel is answered, SIGINT
                         is ignored
flood COUNT SIZE [RATE]  COUNT ``stream`` messages, ``"1 xxx..."`` to ``"COUNT xxx..."``, each
                         padded to SIZE with its newline; RATE a second, else as fast as possible;
                         interruptible, control is answered
display COUNT SIZE       COUNT ``display_data`` messages with ``text/plain`` numbered and padded
                         like flood's
publish COUNT TYPE JSON  COUNT messages of this type on iopub, their content JSON: the rest of the
                         line as it stands, without quotes for a shell
buffers N SIZE           ``display_data`` with N binary buffers of SIZE; every byte of buffer i
                         (from 0) is i % 256
huge SIZE                One ``stream`` message with SIZE bytes of text
comm TARGET              ``comm_open``, data ``{"n": 1}``, buffers ``b"comm"`` and ``b""``
input PROMPT             ``input_request`` to the requester, then prints the answer; without
                         ``allow_stdin`` the error ``StdinNotImplementedError``
env [NAME]               Prints the variable (missing: error ``KeyError``); without NAME prints the
                         whole environment as JSON
cwd, pid                 Prints the working directory, the process id
status STATE             ``status`` with the execution state STATE and an empty parent header
background N INTERVAL    Prints ``"background 1"`` to ``"background N"``, one every INTERVAL, as
                         children of this request, beside the execution and after its idle
lag S                    What is published from now on leaves, in its order, when S is over
reply                    Sends the execute_reply now; the rest of the script, then idle, follow
no-reply                 Neither execute_reply nor idle will be sent for this request; the next
                         request is served
no-idle                  No idle will be sent for this request
only-idle                Idle, but no execute_reply, will be sent for this request
die CODE                 Exits at once with CODE; what was sent before is flushed
kill SIGNAL              Sends itself a signal (``SIGKILL``, ``STOP``, ...); nothing is flushed
garbage                  Frames that are no Jupyter message, on iopub and to the requester on shell
bad-signature            A ``stream`` message on iopub and a reply on shell, both wrongly signed
bad-utf8 [PART]          A well-signed ``stream`` message with a PART that is not UTF-8; PART is
                         ``header``, ``parent_header``, ``metadata`` or ``content`` (the default)
bad-json [PART]          The same with a PART that is UTF-8, but not JSON
nan                      ``display_data`` with ``application/json`` holding NaN and Infinity
duplicate TEXT           The same signed ``stream`` message twice
=======================  ===========================================================================

========================  ==========================================================================
Flag                      What it does
========================  ==========================================================================
--exit CODE               Exits at once with CODE, having bound nothing
--stderr TEXT             Writes TEXT and a newline to the real stderr first
--chatter TEXT            Waits for a subscriber, and publishes a ``stream`` on stderr without a
                          parent, TEXT and a newline, before it serves anything
--serve-at FILE           Serves nothing before there is such a file in the working directory; says
                          the chatter again and again
--slow-start S            Binds after S
--never-bind              Lives, but binds nothing
--never-answer            Binds, then answers nothing at all: no welcome, no heartbeat
--no-welcome              Sends no ``iopub_welcome``
--no-control-kernel-info  Leaves kernel_info requests on control alone (no reply, busy or idle)
--ignore-sigterm          SIGTERM changes nothing
--ignore-sigint           SIGINT changes nothing (``interrupt_request`` still works)
--ignore-shutdown         Shutdown requests get busy and idle, but no reply and no exit
--wrong-key               Signs with a wrong key
--no-ipc exit|hang        If the connection file says ipc: exits with code 1 and a line on stderr,
                          or lives unbound
--record FILE             Appends a line to FILE before each message that it sends but on stdin:
                          channel, type, id, and the id of its parent (or ``-``)
--children N              Forks N sleeping children in its process group; they ignore SIGINT,
                          inherit --ignore-sigterm and outlive the kernel
========================  ==========================================================================

Every process ends by SIGALRM after ``LIFETIME`` seconds, so that a broken test run leaves nothing
behind for ever.
"""

from __future__ import annotations

# Hundreds of these are started by each run of the tests, and most of what a start costs is imports:
# nothing is imported that takes long, as argparse, dataclasses, pathlib, socket and uuid do.
import functools
import hashlib
import hmac
import json
import math
import os
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from select import select
from types import SimpleNamespace
from typing import Any, NoReturn

import zmq

Json = dict[str, Any]

# A running execution: yields the seconds until it wants to go on (0: after the other channels were
# served; inf: when an input reply comes, which is then what the yield returns). An interrupt is a
# KeyboardInterrupt raised at the yield.
Script = Generator[float, str, None]

DELIMITER = b"<IDS|MSG>"
PARTS = ("header", "parent_header", "metadata", "content")
PROTOCOL_VERSION = "5.4"
LIFETIME = 900  # seconds
LINGER = 10_000  # milliseconds that unsent messages are given when the kernel exits
# Bytes that a flood sends before the other channels are served.
FLOOD_TURN = 256 * 1024


class ScriptError(Exception):
    """Ends the execution with an error; the arguments are its name and its value."""


class Request:
    """A message from a client; ``aborted`` is set when an earlier execution failed."""

    def __init__(
        self, identities: list[bytes], header: Json, content: Json, buffers: list[bytes]
    ) -> None:
        self.identities = identities
        self.header = header
        self.content = content
        self.buffers = buffers
        self.aborted = False

    @property
    def msg_type(self) -> str:
        return str(self.header.get("msg_type"))


class Wire:
    """Builds, signs, checks and takes apart the frames of messages."""

    def __init__(self, key: str, scheme: str, *, wrong_key: bool = False) -> None:
        digest = getattr(hashlib, scheme.removeprefix("hmac-"))
        self._auth = hmac.new(key.encode(), digestmod=digest) if key else None
        self._signer = hmac.new(b"wrong", digestmod=digest) if wrong_key else self._auth
        self._session = os.urandom(16).hex()
        self._count = 0

    def header(self, msg_type: str) -> Json:
        self._count += 1
        return {
            "msg_id": f"{self._session}_{os.getpid()}_{self._count}",
            "session": self._session,
            "username": "fake",
            "date": _date(time.time()),
            "msg_type": msg_type,
            "version": PROTOCOL_VERSION,
        }

    def encode(
        self,
        msg_type: str,
        content: Json,
        parent: Json,
        buffers: Iterable[bytes] = (),
        replaced: Mapping[str, bytes] | None = None,
    ) -> list[bytes]:
        """Frames from the delimiter on; ``replaced`` has other bytes, signed, for some parts."""
        parts = [_dumps(part) for part in (self.header(msg_type), parent, {}, content)]
        for name, data in (replaced or {}).items():
            parts[PARTS.index(name)] = data
        return [DELIMITER, _signature(self._signer, parts), *parts, *buffers]

    def decode(self, frames: list[bytes]) -> Request:
        """Raises ValueError for frames that are no message, or not signed with the right key."""
        start = frames.index(DELIMITER)
        signature, *parts = frames[start + 1 : start + 6]
        if len(parts) != len(PARTS):
            raise ValueError("too few frames")
        if not hmac.compare_digest(signature, _signature(self._auth, parts)):
            raise ValueError("wrong signature")
        header, content = json.loads(parts[0]), json.loads(parts[3])
        if not isinstance(header, dict) or not isinstance(content, dict):
            raise ValueError("header or content is not an object")
        return Request(frames[:start], header, content, frames[start + 6 :])


def _date(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1_000_000):06d}Z"


def _dumps(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def _signature(auth: hmac.HMAC | None, parts: Sequence[bytes]) -> bytes:
    if auth is None:
        return b""
    digest = auth.copy()
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


def _numbered(number: int, size: str) -> str:
    return f"{number} ".ljust(int(size) - 1, "x") + "\n"


class Task:
    """A script and the monotonic time at which it goes on."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.due = time.monotonic()


class FakeKernel:
    """One poll loop over sockets and scripts; nothing in it blocks unless a command wants so."""

    def __init__(self, options: SimpleNamespace, connection: Json) -> None:
        self.options = options
        key, scheme = connection["key"], connection["signature_scheme"]
        self.wire = Wire(key, scheme, wrong_key=options.wrong_key)
        self.execution_count = 0
        self.input_wanted = False
        self.lagging: list[list[bytes]] | None = None  # what is published meanwhile
        self.history: list[tuple[int, int, str]] = []
        self.comms: dict[str, str] = {}
        self._connection = connection
        self._waiting: deque[Request] = deque()
        self._foreground: Task | None = None
        self.background: list[Task] = []
        self._stopping = False
        self._record: int | None = None
        if options.record is not None:
            self._record = os.open(options.record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.shell = self._bind(zmq.ROUTER, "shell")
        self.control = self._bind(zmq.ROUTER, "control")
        self.stdin = self._bind(zmq.ROUTER, "stdin")
        self.iopub = self._bind(zmq.XPUB, "iopub")
        self._heartbeat = self._bind(zmq.REP, "hb")

    def _bind(self, socket_type: int, channel: str) -> zmq.Socket[bytes]:
        zmq_socket = self._context.socket(socket_type)
        zmq_socket.sndhwm = zmq_socket.rcvhwm = 0
        if socket_type == zmq.ROUTER:
            # A client that comes back with its old identity takes the place of its dead connection.
            zmq_socket.router_handover = True
        ip, port = self._connection["ip"], self._connection[f"{channel}_port"]
        separator = ":" if self._connection["transport"] == "tcp" else "-"
        zmq_socket.bind(f"{self._connection['transport']}://{ip}{separator}{port}")
        return zmq_socket

    # -- the loop

    def run(self, wakeup: int) -> None:
        """Serves until a shutdown request; each signal puts its number, a byte, into ``wakeup``."""
        self.publish("status", {"execution_state": "starting"}, {})
        if self.options.chatter:
            self._on_subscription(self.iopub.recv_multipart())
            self._chatter()
        while self.options.serve_at and not os.path.exists(self.options.serve_at):
            time.sleep(0.05)
            self._chatter()
        handlers: dict[zmq.Socket[bytes], Callable[[list[bytes]], object]] = {
            self.control: self._on_control,
            self.stdin: self._on_stdin,
            self.shell: self._on_shell,
            self.iopub: self._on_subscription,
            self._heartbeat: self._heartbeat.send_multipart,
        }
        poller = zmq.Poller()
        for pollable in (wakeup, *handlers):
            poller.register(pollable, zmq.POLLIN)
        while not self._stopping:
            ready = dict(poller.poll(self._until_due()))
            # Before the requests, whatever the poll said: a signal that came before a request must
            # not interrupt that request.
            if select([wakeup], [], [], 0)[0] and signal.SIGINT in os.read(wakeup, 4096):
                self.interrupt()
            for zmq_socket, handle in handlers.items():
                if zmq_socket in ready:
                    self._drain(zmq_socket, handle)
            self._run_due()
            self._serve_waiting()
        self.close()

    def _until_due(self) -> int | None:
        """Milliseconds until a script wants to go on."""
        due = min((task.due for task in self._tasks()), default=math.inf)
        return None if due == math.inf else max(0, math.ceil((due - time.monotonic()) * 1000))

    def _tasks(self) -> list[Task]:
        return [*self.background, *([self._foreground] if self._foreground else [])]

    def _run_due(self) -> None:
        for task in self._tasks():
            if task.due <= time.monotonic():
                self._step(task, functools.partial(next, task.script))

    def _step(self, task: Task, advance: Callable[[], float]) -> None:
        try:
            task.due = time.monotonic() + advance()
        except StopIteration:
            if task is self._foreground:
                self._foreground = None
            else:
                self.background.remove(task)

    def _serve_waiting(self) -> None:
        while self._waiting and self._foreground is None and not self._stopping:
            request = self._waiting.popleft()
            if request.msg_type != "execute_request":
                self._answer(self.shell, request)
            elif request.aborted:
                with self.busy(request):
                    aborted = {"status": "aborted", "execution_count": self.execution_count}
                    self.reply(self.shell, request, aborted)
            else:
                self._foreground = Task(Execution(self, request).script())
                self._run_due()

    def interrupt(self) -> None:
        """Raises KeyboardInterrupt in the running execution, if there is one."""
        if task := self._foreground:
            self._step(task, functools.partial(task.script.throw, KeyboardInterrupt()))

    def abort_waiting(self) -> None:
        """Every execute request that has arrived by now will be answered ``aborted``."""
        self._drain(self.shell, self._on_shell)
        for request in self._waiting:
            request.aborted = True

    def close(self) -> None:
        self._context.destroy(linger=LINGER)

    # -- what arrives

    def _drain(
        self, zmq_socket: zmq.Socket[bytes], handle: Callable[[list[bytes]], object]
    ) -> None:
        while zmq_socket.poll(0):
            handle(zmq_socket.recv_multipart(zmq.NOBLOCK))

    def _decode(self, frames: list[bytes]) -> Request | None:
        try:
            return self.wire.decode(frames)
        except ValueError as error:
            sys.stderr.write(f"fake kernel: message dropped: {error}\n")
            return None

    def _on_shell(self, frames: list[bytes]) -> None:
        if request := self._decode(frames):
            self._waiting.append(request)

    def _on_control(self, frames: list[bytes]) -> None:
        ignored = "kernel_info_request" if self.options.no_control_kernel_info else None
        if (request := self._decode(frames)) and request.msg_type != ignored:
            self._answer(self.control, request)

    def _on_stdin(self, frames: list[bytes]) -> None:
        request, task = self._decode(frames), self._foreground
        if request and task and self.input_wanted and request.msg_type == "input_reply":
            answer = str(request.content.get("value", ""))
            self._step(task, functools.partial(task.script.send, answer))

    def _on_subscription(self, frames: list[bytes]) -> None:
        event = frames[0]
        if event[:1] == b"\x01" and not self.options.no_welcome:
            content = {"subscription": event[1:].decode(errors="replace")}
            frames = self.wire.encode("iopub_welcome", content, {})
            self.iopub.send_multipart([event[1:], *frames] if event[1:] else frames)

    # -- what leaves

    def _chatter(self) -> None:
        self.publish("stream", {"name": "stderr", "text": f"{self.options.chatter}\n"}, {})

    @contextmanager
    def busy(self, request: Request) -> Iterator[None]:
        self.publish("status", {"execution_state": "busy"}, request.header)
        yield
        self.publish("status", {"execution_state": "idle"}, request.header)

    def publish(self, msg_type: str, content: Json, parent: Json, **more: Any) -> None:
        self.send_iopub(msg_type, self.wire.encode(msg_type, content, parent, **more))

    def send_iopub(self, topic: str, frames: list[bytes]) -> None:
        self._note("iopub", frames)
        whole = [f"kernel.fake.{topic}".encode(), *frames]
        if self.lagging is None:
            self.iopub.send_multipart(whole)
        else:
            self.lagging.append(whole)

    def reply(self, zmq_socket: zmq.Socket[bytes], request: Request, content: Json) -> None:
        msg_type = request.msg_type.replace("_request", "_reply")
        frames = self.wire.encode(msg_type, content, request.header)
        self._note("shell" if zmq_socket is self.shell else "control", frames)
        self.send(zmq_socket, request, frames)

    def send(self, zmq_socket: zmq.Socket[bytes], to: Request, frames: list[bytes]) -> None:
        zmq_socket.send_multipart([*to.identities, *frames])

    def _note(self, channel: str, frames: list[bytes]) -> None:
        """Writes down what is about to be sent, in one write: kernels may share the file."""
        if self._record is not None:
            header, parent = (json.loads(part) for part in frames[2:4])
            parent_id = parent.get("msg_id") or "-"
            line = f"{channel} {header['msg_type']} {header['msg_id']} {parent_id}\n"
            os.write(self._record, line.encode())

    # -- requests other than execute

    def _answer(self, zmq_socket: zmq.Socket[bytes], request: Request) -> None:
        handler = getattr(self, f"_do_{request.msg_type}", None)
        with self.busy(request):
            content = handler(request) if handler is not None else None
            if content is not None:
                self.reply(zmq_socket, request, {"status": "ok", **content})
            if self._stopping:
                self.publish("shutdown_reply", {"status": "ok", **request.content}, request.header)

    def _do_kernel_info_request(self, _: Request) -> Json:
        return {
            "protocol_version": PROTOCOL_VERSION,
            "implementation": "fake",
            "implementation_version": "1.0",
            "language_info": {
                "name": "fake",
                "version": "1.0",
                "mimetype": "text/x-fake",
                "file_extension": ".fake",
            },
            "banner": "A kernel that misbehaves on demand",
            "help_links": [],
            "supported_features": [],
        }

    def _do_complete_request(self, request: Request) -> Json:
        code = str(request.content.get("code", ""))
        position = request.content.get("cursor_pos")
        cursor = position if isinstance(position, int) else len(code)
        prefix = code[:cursor].rpartition("\n")[2]
        return {
            "matches": sorted(name for name in COMMANDS if name.startswith(prefix)),
            "cursor_start": cursor - len(prefix),
            "cursor_end": cursor,
            "metadata": {},
        }

    def _do_inspect_request(self, request: Request) -> Json:
        name = str(request.content.get("code", "")).strip()
        data = {"text/plain": f"{name}: a command of the fake kernel"} if name in COMMANDS else {}
        return {"found": bool(data), "data": data, "metadata": {}}

    def _do_is_complete_request(self, request: Request) -> Json:
        if str(request.content.get("code", "")).endswith("\\"):
            return {"status": "incomplete", "indent": ""}
        return {"status": "complete"}

    def _do_history_request(self, _: Request) -> Json:
        return {"history": self.history}

    def _do_comm_info_request(self, request: Request) -> Json:
        wanted = request.content.get("target_name")
        return {
            "comms": {
                comm_id: {"target_name": target}
                for comm_id, target in self.comms.items()
                if wanted in (None, target)
            }
        }

    def _do_interrupt_request(self, _: Request) -> Json:
        self.interrupt()
        return {}

    def _do_shutdown_request(self, request: Request) -> Json | None:
        if self.options.ignore_shutdown:
            return None
        self._stopping = True
        return {"restart": bool(request.content.get("restart"))}

    def _do_comm_open(self, request: Request) -> None:
        self.comms[str(request.content.get("comm_id"))] = str(request.content.get("target_name"))

    def _do_comm_msg(self, request: Request) -> None:
        self.publish("comm_msg", request.content, request.header, buffers=request.buffers)

    def _do_comm_close(self, request: Request) -> None:
        self.comms.pop(str(request.content.get("comm_id")), None)


class Execution:
    """One execute request on its way from busy to idle."""

    def __init__(self, kernel: FakeKernel, request: Request) -> None:
        self.kernel = kernel
        self.request = request
        self.replies = True
        self.idles = True
        self._outcome: Json = {"status": "ok", "user_expressions": {}, "payload": []}

    def script(self) -> Script:
        code = str(self.request.content.get("code", ""))
        self.publish("status", execution_state="busy")
        self._announce(code)
        try:
            for line in code.splitlines():
                # What is published may be large, and has quotes of its own.
                plain = line.startswith("publish ")
                yield from self._run(line.split(" ", 3) if plain else shlex.split(line))
        except KeyboardInterrupt:
            self._fail("KeyboardInterrupt", "")
        except ScriptError as error:
            self._fail(*error.args)
        except (LookupError, TypeError, ValueError) as error:
            self._fail(type(error).__name__, str(error))
        self.reply()
        if self.idles:
            self.publish("status", execution_state="idle")

    def _announce(self, code: str) -> None:
        if self.request.content.get("silent"):
            return
        kernel = self.kernel
        kernel.execution_count += 1
        kernel.history.append((1, kernel.execution_count, code))
        self.publish("execute_input", code=code, execution_count=kernel.execution_count)

    def _run(self, words: list[str]) -> Script:
        if not words:
            return
        name, *arguments = words
        if name not in COMMANDS:
            raise ScriptError("NameError", f"name {name!r} is not defined")
        command: Callable[..., Script | None] = getattr(self, COMMANDS[name])
        rest = command(*arguments)
        if rest is not None:
            yield from rest

    def _fail(self, ename: str, evalue: str) -> None:
        error = {"ename": ename, "evalue": evalue, "traceback": [f"{ename}: {evalue}"]}
        self.publish("error", **error)
        self._outcome = {"status": "error", **error}
        if self.request.content.get("stop_on_error", True):
            self.kernel.abort_waiting()

    def reply(self) -> None:
        """Sends the execute_reply, unless it was sent or is not wanted."""
        if self.replies:
            self.replies = False
            content = {**self._outcome, "execution_count": self.kernel.execution_count}
            self.kernel.reply(self.kernel.shell, self.request, content)

    def publish(self, msg_type: str, /, **content: Any) -> None:
        self.kernel.publish(msg_type, content, self.request.header)

    def encode(self, msg_type: str, /, **content: Any) -> list[bytes]:
        return self.kernel.wire.encode(msg_type, content, self.request.header)

    def stream(self, text: str, name: str = "stdout") -> None:
        self.publish("stream", name=name, text=text)

    def tampered(self, part: str, data: bytes) -> None:
        """A well-signed stream message with other bytes in the place of a part."""
        content = {"name": "stdout", "text": "tampered\n"}
        self.kernel.publish("stream", content, self.request.header, replaced={part: data})

    # -- the commands: do_NAME, a generator if it takes time

    def do_print(self, *text: str) -> None:
        self.stream(" ".join(text) + "\n")

    def do_stderr(self, *text: str) -> None:
        self.stream(" ".join(text) + "\n", "stderr")

    def do_raw(self, *text: str) -> None:
        os.write(1, " ".join(text).encode() + b"\n")

    def do_result(self, *text: str) -> None:
        data = {"text/plain": " ".join(text)}
        count = self.kernel.execution_count
        self.publish("execute_result", data=data, metadata={}, execution_count=count)

    def do_error(self, ename: str, *evalue: str) -> None:
        raise ScriptError(ename, " ".join(evalue))

    def do_sleep(self, seconds: str) -> Script:
        yield float(seconds)

    def do_until(self, file: str) -> Script:
        while not os.path.exists(file):
            yield 0.02

    def do_append(self, file: str, *text: str) -> None:
        with open(file, "a") as opened:
            opened.write(" ".join(text) + "\n")

    def do_hang(self, seconds: str = "inf") -> None:
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        # No clock can wait for ever, and the process does not live longer than this anyhow.
        time.sleep(min(float(seconds), 2 * LIFETIME))
        signal.signal(signal.SIGINT, handler)

    def do_flood(self, count: str, size: str, rate: str = "inf") -> Script:
        start, unserved = time.monotonic(), 0
        for number in range(1, int(count) + 1):
            self.stream(_numbered(number, size))
            unserved += int(size)
            early = start + number / float(rate) - time.monotonic()
            if early > 0 or unserved >= FLOOD_TURN:
                unserved = 0
                yield max(0.0, early)

    def do_display(self, count: str, size: str) -> Script:
        for number in range(1, int(count) + 1):
            self.publish("display_data", data={"text/plain": _numbered(number, size)}, metadata={})
            yield 0.0

    def do_publish(self, count: str, msg_type: str, content: str) -> Script:
        for _ in range(int(count)):
            self.publish(msg_type, **json.loads(content))
            yield 0.0

    def do_buffers(self, count: str, size: str) -> None:
        content = {"data": {"text/plain": f"{count} buffers"}, "metadata": {}}
        buffers = [bytes([number % 256]) * int(size) for number in range(int(count))]
        self.kernel.publish("display_data", content, self.request.header, buffers=buffers)

    def do_huge(self, size: str) -> None:
        self.stream("x" * int(size))

    def do_comm(self, target: str) -> None:
        comm_id = os.urandom(16).hex()
        self.kernel.comms[comm_id] = target
        content = {"comm_id": comm_id, "target_name": target, "data": {"n": 1}}
        self.kernel.publish("comm_open", content, self.request.header, buffers=[b"comm", b""])

    def do_input(self, *prompt: str) -> Script:
        if not self.request.content.get("allow_stdin"):
            raise ScriptError("StdinNotImplementedError", "this frontend takes no input requests")
        frames = self.encode("input_request", prompt=" ".join(prompt), password=False)
        self.kernel.send(self.kernel.stdin, self.request, frames)
        self.kernel.input_wanted = True
        try:
            answer = yield math.inf
        finally:
            self.kernel.input_wanted = False
        self.stream(answer + "\n")

    def do_env(self, name: str = "") -> None:
        self.stream((os.environ[name] if name else json.dumps(dict(os.environ))) + "\n")

    def do_cwd(self) -> None:
        self.stream(f"{os.getcwd()}\n")

    def do_pid(self) -> None:
        self.stream(f"{os.getpid()}\n")

    def do_status(self, state: str) -> None:
        self.kernel.publish("status", {"execution_state": state}, {})

    def do_background(self, count: str, interval: str) -> None:
        self.kernel.background.append(Task(self._background(int(count), float(interval))))

    def _background(self, count: int, interval: float) -> Script:
        for number in range(1, count + 1):
            yield interval
            self.stream(f"background {number}\n")

    def do_lag(self, seconds: str) -> None:
        self.kernel.lagging = []
        self.kernel.background.append(Task(self._lag(float(seconds))))

    def _lag(self, seconds: float) -> Script:
        yield seconds
        lagging, self.kernel.lagging = self.kernel.lagging or [], None
        for frames in lagging:
            self.kernel.iopub.send_multipart(frames)

    def do_reply(self) -> None:
        self.reply()

    def do_no_reply(self) -> None:
        self.replies = self.idles = False

    def do_no_idle(self) -> None:
        self.idles = False

    def do_only_idle(self) -> None:
        self.replies = False

    def do_die(self, code: str) -> NoReturn:
        self.kernel.close()
        os._exit(int(code))

    def do_kill(self, name: str) -> None:
        os.kill(os.getpid(), signal.Signals["SIG" + name.upper().removeprefix("SIG")])

    def do_garbage(self) -> None:
        whole = self.encode("stream", name="stdout", text="garbage\n")
        for frames in ([b""], [b"\x00\xff"], [b"no", b"delimiter"], whole[:1], whole[:4]):
            self.kernel.iopub.send_multipart(frames)
            self.kernel.send(self.kernel.shell, self.request, frames)

    def do_bad_signature(self) -> None:
        frames = self.encode("stream", name="stdout", text="wrongly signed\n")
        frames[1] = b"0" * len(frames[1])
        self.kernel.send_iopub("stream", frames)
        frames = self.encode("execute_reply", status="ok", user_expressions={})
        frames[1] = b"0" * len(frames[1])
        self.kernel.send(self.kernel.shell, self.request, frames)

    def do_bad_utf8(self, part: str = "content") -> None:
        self.tampered(part, b'{"name": "stdout", "text": "\xff\xfe"}')

    def do_bad_json(self, part: str = "content") -> None:
        self.tampered(part, b'{"name": "stdout", "text": ')

    def do_nan(self) -> None:
        numbers = {"nan": math.nan, "infinity": math.inf}
        self.publish("display_data", data={"application/json": numbers}, metadata={})

    def do_duplicate(self, *text: str) -> None:
        frames = self.encode("stream", name="stdout", text=" ".join(text) + "\n")
        self.kernel.send_iopub("stream", frames)
        self.kernel.send_iopub("stream", frames)


# The names of the commands and of their methods.
COMMANDS = {name[3:].replace("_", "-"): name for name in vars(Execution) if name[:3] == "do_"}


# The flags of the command line; one with a value has what makes it of its text.
FLAGS: Mapping[str, Callable[[str], Any] | None] = {
    "-f": str,
    "--exit": int,
    "--stderr": str,
    "--chatter": str,
    "--serve-at": str,
    "--slow-start": float,
    "--record": str,
    "--no-ipc": str,
    "--children": int,
    **dict.fromkeys(("--never-bind", "--never-answer", "--no-welcome"), None),
    **dict.fromkeys(("--no-control-kernel-info", "--wrong-key"), None),
    **dict.fromkeys(("--ignore-sigterm", "--ignore-sigint", "--ignore-shutdown"), None),
}


def _parse(arguments: Iterable[str]) -> SimpleNamespace:
    options = SimpleNamespace(**{_attribute(flag): None for flag in FLAGS})
    given = iter(arguments)
    for flag in given:
        if flag not in FLAGS:
            sys.exit(f"fake kernel: there is no flag {flag}")
        make = FLAGS[flag]
        setattr(options, _attribute(flag), True if make is None else make(next(given)))
    return options


def _attribute(flag: str) -> str:
    return "connection_file" if flag == "-f" else flag.removeprefix("--").replace("-", "_")


def _read_json(path: str) -> Json:
    with open(path) as file:
        content: Json = json.load(file)
        return content


def _live_deaf() -> NoReturn:
    while True:
        signal.pause()


def _spawn_child() -> None:
    if os.fork() == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.alarm(LIFETIME)  # alarms are not inherited
        _live_deaf()


def _catch_signals(options: SimpleNamespace) -> int:
    """A descriptor that becomes readable at each SIGINT, which then does nothing by itself."""
    wakeup, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled)
    signal.signal(signal.SIGINT, signal.SIG_IGN if options.ignore_sigint else lambda *_: None)
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(LIFETIME)
    return wakeup


def main() -> None:
    options = _parse(sys.argv[1:])
    if options.stderr is not None:
        sys.stderr.write(f"{options.stderr}\n")
    if options.exit is not None:
        sys.exit(options.exit)
    wakeup = _catch_signals(options)
    # Before the ZMQ context exists: its threads do not survive a fork.
    for _ in range(options.children or 0):
        _spawn_child()
    time.sleep(options.slow_start or 0)
    connection = _read_json(options.connection_file)
    no_ipc = options.no_ipc if connection["transport"] == "ipc" else None
    if no_ipc == "exit":
        sys.exit("fake kernel: the transport ipc is not supported")
    if options.never_bind or no_ipc == "hang":
        _live_deaf()
    kernel = FakeKernel(options, connection)
    if options.never_answer:
        _live_deaf()
    kernel.run(wakeup)


if __name__ == "__main__":
    main()
