"""The keeper: it answers servers of its state directory, and ends when there is nothing to keep."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Union

import msgspec
import zmq

from ..protocol import link
from ..protocol.compose import make_parts
from ..protocol.messages import ClientMessage
from .audience import Audience
from .connection_files import prepare, remove_prepared
from .group_files import find_base
from .groups import ControlGroups, state_key
from .hearing import Hearing
from .hearings import Hearings
from .kept_kernels import KeptKernels
from .kernels import KeptKernel
from .launching import AsUser, run
from .limits import limits_from
from .log_room import share_from
from .processes import Process, open_process
from .protocol import CAN, PROTOCOL, Fields, Garbled, is_own_peer, pack
from .servers import ServerLink
from .terms import Terms
from .usage import load

__all__ = ["Service"]

logger = logging.getLogger(__name__)

ALONE_SECONDS: Final = 20.0
"""How long a keeper that was just started waits for the server that did so."""

TERMINATE_SECONDS: Final = 5.0
"""Between shutdown request, SIGTERM and SIGKILL for kernels that were left behind."""

ACCEPT_SECONDS: Final = 1.0
"""How many seconds after an error, as for want of descriptors, connections are accepted again."""

SETTLE_SECONDS: Final = 0.2
"""How long a greeting waits until the last requests of the server before were read."""

Answer = Union[Fields, tuple[Fields, bytes]]


class Service:
    """One keeper. Make it inside a running event loop; ``ended`` is done when it is to exit.

    In its ``directory`` it notes its processes for the next. One that ``stays`` awaits servers.
    """

    def __init__(self, listener: socket.socket, directory: int, *, stays: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._lasts = False  # whether kernels are to outlive the service
        groups = ControlGroups(
            state_key(directory), lambda files: find_base(files, lasting=self._lasts)
        )
        self._kernels = KeptKernels(directory, self._on_exit, self._end_if_unused, groups)
        self._connections: set[ServerLink] = set()
        self._terms = Terms()
        self._servers = Audience(self._terms, lambda: self._hearings.ring_all())
        self._tasks: set[asyncio.Task[object]] = set()
        self._hearings = Hearings(
            lambda bells: self._servers.ring(bells, self._hearings.id_of),
            self._servers.on_malformed,
        )
        self._orphan_timeout = 0.0
        self._server: Process | None = None  # that with which the kernels end
        self._own: list[str] = []
        self.leftovers: list[str] = []
        """Directories that are to be removed when the keeper has ended."""
        self._stopping = False
        self._stays = stays
        self._used = False  # some server has come
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        if not stays:
            self._timer = self._loop.call_later(ALONE_SECONDS, self.end)
        self._requests: dict[str, Callable[[Fields], Answer]] = {
            "hello": self._on_hello,
            "stop": self._on_stop,
            "kept": lambda _: {"answer": self._kernels.records},
            "strays": self._on_strays,
            "launch": self._on_launch,
            "adopt": self._on_adopt,
            "hear": self._on_hear,
            "open": self._on_open,
            "stdin": lambda fields: {"answer": self._heard(fields).stdin_connected},
            "settle": self._on_settle,
            "disconnect": self._on_disconnect,
            "drop": self._on_drop,
            "renew": self._on_renew,
            "signal": self._on_signal,
            "tail": self._on_tail,
            "usage": lambda fields: {"answer": fields["used"]},
            "end": self._on_end,
            **{"run": run, "prepare": prepare, "load": lambda _: {"answer": load()}},
        }
        self._loop.add_reader(listener, self._accept)

    def end(self) -> None:
        """Exit; kernels go on."""
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        """Let go of everything but the kernels' processes."""
        self._deafen()
        for task in self._tasks:
            task.cancel()
        for server in self._connections:
            server.close()
        self._kernels.close()
        self._end_watch()
        self._servers.close()
        self._hearings.close()

    def _deafen(self) -> None:  # the next keeper takes the servers that come
        if self._listener.fileno() != -1:
            self._loop.remove_reader(self._listener)
            self._listener.close()

    # Servers come and go

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            logger.warning("a connection failed: %s", error)
            # It waits still, and this would be called again at once, without end.
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_SECONDS, self._listen_again)
            return
        if not is_own_peer(connection):
            logger.warning("a process of another user was refused")
            connection.close()
            return
        connection.setblocking(False)
        self._do_later(self._loop.connect_accepted_socket(self.new_link, connection))

    def _do_later(self, what: Coroutine[Any, Any, object]) -> None:
        task = self._loop.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _listen_again(self) -> None:
        if self._listener.fileno() != -1:
            self._loop.add_reader(self._listener, self._accept)

    def new_link(self) -> ServerLink:
        """The keeper's end of a connection to a server."""
        greeting = pack({"keeper": PROTOCOL, "pid": os.getpid(), "now": time.monotonic()})
        server = ServerLink(greeting, self._on_frame, self._on_lost)
        self._connections.add(server)
        return server

    def _on_frame(self, server: ServerLink, fields: Fields, data: bytes) -> None:
        if self._stopping:
            server.close()
        elif not fields:
            if not server.take(data, self._hearings):
                self._take(data, server)
        elif fields.get("ask") == "drain":
            self._drain(server)
        elif fields.get("ask") == "hello" and fields.get("mirrors"):
            # The race: this server has connected again while its earlier connection may still be
            # open here, with requests on their way. The earlier one is cut off, as the server sends
            # again all requests that the log does not have.
            for other in self._servers.predecessors(server, fields):
                other.cut_off()
            server.mirror()
            server.write(self._answer(fields, server))
        elif fields.get("ask") == "usage":
            self._do_later(self._sample(server, fields))
        elif fields.get("ask") == "hello" and self._servers.predecessors(server, fields):
            server.hold()
            self._do_later(self._greet_late(server, fields))
        else:
            server.write(self._answer(fields, server))

    def _on_lost(self, server: ServerLink, error: Exception | None) -> None:
        if isinstance(error, Garbled):
            logger.warning("a server that makes no sense is sent away: %s", error)
        self._connections.discard(server)
        self._leave(server)

    def _greet(self, server: ServerLink) -> None:
        self._servers.add(server)
        self._used = True
        if self._timer is not None and not self._stopping:
            self._timer.cancel()
            self._timer = None

    async def _greet_late(self, server: ServerLink, hello: Fields) -> None:
        """Answer a greeting once the connections of earlier servers were read to their ends.

        So the requests of those come before the requests of this one. The wait is bounded.
        """
        others = {other.ended for other in self._servers.predecessors(server, hello)}
        if others:
            await asyncio.wait(others, timeout=SETTLE_SECONDS)
        if not server.ended.done():
            server.write(self._answer(hello, server))
            server.go_on()

    def _leave(self, server: ServerLink) -> None:
        if server not in self._servers:
            return
        self._servers.discard(server)
        if self._servers or self._timer is not None:
            return
        if self._server is not None:  # it comes back, or its end is seen
            self._end_if_unused()
            return
        if self._kernels.any_wanted or self._hearings.any_connected:
            logger.info("no server is left; kernels are kept for %g s", self._orphan_timeout)
            self._timer = self._loop.call_later(self._orphan_timeout, self._stop_orphans)
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        """End when nobody will ask for anything any more, not even for how a kernel ended."""
        needed = self._servers or self._kernels or self._hearings.any_connected
        if self._used and not needed and not self._stays:
            self.end()

    def _drain(self, server: ServerLink) -> None:
        """Let go of all kernels: the keeper of a server of another version adopts them."""
        logger.info("replaced by a keeper of another version; kernels go on")
        self._deafen()
        server.write(pack({"answer": self._kernels.records}))
        server.close()
        server.ended.add_done_callback(lambda _: self.end())

    # Kernels that nobody wants any more

    def _on_stop(self, _fields: Fields) -> Answer:
        self.stop()
        return {"answer": None}

    def _watch(self, server: Fields) -> None:
        """End the kernels when this server's process ends. Raises `OSError` if that cannot be seen.

        Its process is watched, and not the connection: a server that loses that comes back.
        """
        self._end_watch()
        self._own = server["own"]
        self._server = open_process(server["pid"], server["start_time"])
        if self._server is None:
            self.stop()
        else:
            self._server.watch(self.stop)

    def _end_watch(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def stop(self) -> None:
        """End all kernels, and then this keeper, within some seconds."""
        self._end_watch()
        if not self._stopping:
            self._stop_orphans()

    def _stop_orphans(self) -> None:
        """Ask the kernels to shut down; those that go on get SIGTERM, then SIGKILL. Then end."""
        logger.warning("there is no server any more: kernels are stopped")
        self.leftovers = self._own
        self._stopping = True
        self._deafen()
        asked = 0
        for kernel in self._kernels:
            hearing = self._hearings.get(kernel.kernel_id)
            if hearing is not None and hearing.connected and kernel.running:
                header, parts = make_parts("shutdown_request", {"restart": False}, hearing.session)
                hearing.request(ClientMessage("control", header, parts), hearing.session)
                asked += 1
        patience = TERMINATE_SECONDS if asked else 0.0
        self._timer = self._loop.call_later(patience, self._terminate_orphans)
        self._end_if_alone()

    def _terminate_orphans(self) -> None:
        self._kernels.signal_all(signal.SIGTERM)
        self._timer = self._loop.call_later(TERMINATE_SECONDS, self._kill_orphans)

    def _kill_orphans(self) -> None:
        self._kernels.signal_all(signal.SIGKILL)
        self._timer = self._loop.call_later(TERMINATE_SECONDS, self.end)

    def reap(self) -> None:
        """Children have ended."""
        self._kernels.reap()

    def _end_if_alone(self) -> None:
        if not self._kernels.any_running:
            self.end()

    def _on_exit(self, kernel: KeptKernel) -> None:
        event = {"event": "exited", "code": kernel.exit_code, "pid": kernel.pid}
        self._servers.tell(kernel.kernel_id, event | {"oom": kernel.out_of_memory})
        if self._stopping:
            self._end_if_alone()

    # What servers ask

    def _answer(self, fields: Fields, server: ServerLink) -> bytes:
        """The frame of the answer. An error of any kind concerns only the server that has asked."""
        number = {"id": fields["id"]} if "id" in fields else {}
        try:
            if fields["ask"] == "hello":
                server.replica = str(fields.get("replica", ""))
            elif "kernel_id" in fields:
                self._servers.come(server, str(fields["kernel_id"]), fields.get("term"))
            answer = self._do(fields)
            if fields["ask"] == "hello":
                answer = self._servers.only_own(server, answer)
                self._greet(server)
            head, data = answer if isinstance(answer, tuple) else (answer, b"")
            return pack({**number, **head}, data)
        except (OSError, zmq.ZMQError) as error:
            text = {"error": str(error), "strerror": error.strerror, "errno": error.errno}
            return pack({**number, **text, "filename": getattr(error, "filename", None)})
        except ValueError as error:
            return pack({**number, "error": str(error)})
        except Exception as error:
            logger.warning("%s cannot be done", fields.get("ask"), exc_info=True)
            return pack({**number, "error": f"{type(error).__name__}: {error}"})

    def _do(self, fields: Fields) -> Answer:
        request = self._requests.get(str(fields.get("ask")))
        if request is None:
            raise ValueError("the keeper does not know what is asked")
        if time.monotonic() > fields.get("until", math.inf):
            raise ValueError("it was asked too late")
        return request(fields)

    def _on_hello(self, fields: Fields) -> Answer:
        if fields["protocol"] != PROTOCOL:
            raise ValueError(f"protocol {fields['protocol']}")
        room = self._hearings.room
        room.each, room.together = int(fields["log_bytes"]), int(fields["log_total_bytes"])
        room.age = float(fields["log_age"])
        self._kernels.output_bytes = int(fields["output_bytes"])
        self._orphan_timeout = float(fields["orphan_timeout"])
        self._lasts = "server" not in fields
        kept = self._kernels.records
        self._kernels.take_over()
        if "server" in fields:
            try:
                self._watch(fields["server"])
            except OSError as error:  # no descriptors are left: its connection tells of its end
                logger.error("the server's process cannot be watched: %s", error)
        return {"answer": {"kept": kept, "heard": self._hearings.ids, "can": [*CAN]}}

    def _on_strays(self, fields: Fields) -> Answer:
        """End the kernels of replicas that are dead, but for those that the registry knows."""
        known, ended = set(fields["known"]), 0
        for kernel in self._kernels:
            of_the_dead = self._terms.of_any(kernel.kernel_id, fields["dead"])
            if of_the_dead and kernel.kernel_id not in known:
                logger.info("kernel %s was nobody's, and is killed", kernel.kernel_id)
                self._hearings.disconnect(kernel.kernel_id)
                self._kernels.forget(kernel)
                ended += 1
        return {"answer": ended}

    def _on_launch(self, fields: Fields) -> Answer:
        kernel = self._kernels.launch(
            str(fields["kernel_id"]),
            fields["command"],
            fields["env"],
            fields["cwd"],
            output=fields["output"],
            launched_by=fields["launch"],
            limits=limits_from(fields.get("limits")),
            user=AsUser.of(fields.get("as_user")),
            arguments=fields.get("arguments"),
        )
        return {"answer": kernel.record}

    def _on_adopt(self, fields: Fields) -> Answer:
        kernel_id, pid, started = fields["kernel_id"], int(fields["pid"]), fields["start_time"]
        limits = limits_from(fields.get("limits"))
        kernel = self._kernels.adopt(kernel_id, pid, started, fields["output"], limits)
        return {"answer": None if kernel is None else kernel.record}

    # Logs and sockets

    def _on_hear(self, fields: Fields) -> Answer:
        heard = self._hearings.hear(
            str(fields["kernel_id"]),
            session=str(fields["session"]),
            epoch=str(fields["epoch"]),
            directory=Path(fields["directory"]),
            info=fields["info"],
            anew=bool(fields["anew"]),
            known=fields.get("known", (1, 0)),
            share=share_from(fields),
        )
        return {"answer": msgspec.to_builtins(heard)}

    def _heard(self, fields: Fields) -> Hearing:
        hearing = self._hearings.get(fields["kernel_id"])
        if hearing is None:
            raise ValueError(f"kernel {fields['kernel_id']} is not heard")
        return hearing

    def _on_open(self, fields: Fields) -> Answer:
        self._heard(fields).used(share_from(fields))
        return {"answer": None}

    def _on_settle(self, fields: Fields) -> Answer:
        return {"answer": self._hearings.settle(fields["kernel_id"])}

    def _on_disconnect(self, fields: Fields) -> Answer:
        self._hearings.disconnect(fields["kernel_id"])
        return {"answer": None}

    def _on_renew(self, fields: Fields) -> Answer:
        self._hearings.renew(fields["kernel_id"])
        return {"answer": None}

    def _on_drop(self, fields: Fields) -> Answer:
        self._hearings.flush()  # the server holds the newest file open, and reads the rest there
        if fields.get("prepared"):
            remove_prepared(str(fields["kernel_id"]))
        self._hearings.forget(fields["kernel_id"], fields.get("directory"))
        self._servers.forget(fields["kernel_id"])
        self._end_if_unused()
        return {"answer": None}

    def _take(self, data: bytes, server: ServerLink) -> None:
        """A request for a kernel, or a message for its log. Raises `Garbled`."""
        try:
            if data[:1] == link.REQUEST:
                handle, message, owner = link.unpack_request(data)
                hearing = self._obeying(handle, server)
                if hearing is not None:
                    hearing.request(message, owner)
                return
            said = link.unpack_said(data)
        except ValueError as error:
            raise Garbled(str(error)) from None
        hearing = self._obeying(said.handle, server)
        if hearing is not None:
            hearing.say(said.channel, said.frame, said.owner, said.flags)

    def _obeying(self, handle: int, server: ServerLink) -> Hearing | None:
        """The kernel with this handle; None if it is gone, or does not obey the server."""
        hearing = self._hearings.by_handle(handle)
        obeys = hearing is not None and self._servers.is_obeyed(server, hearing.kernel_id)
        return hearing if obeys else None

    def _on_signal(self, fields: Fields) -> Answer:
        self._kernels[fields["kernel_id"]].signal(int(fields["number"]))
        return {"answer": None}

    def _on_tail(self, fields: Fields) -> Answer:
        return {"answer": self._kernels[fields["kernel_id"]].tail()}

    async def _sample(self, server: ServerLink, fields: Fields) -> None:
        """Answer what a kernel uses. Other requests may be answered while this takes the sample."""
        kernel = self._kernels.present(str(fields.get("kernel_id")))
        used = None if kernel is None else await kernel.usage()
        server.write(self._answer({**fields, "used": used}, server))

    def _on_end(self, fields: Fields) -> Answer:
        """Kill the process ``pid`` of a kernel, or what the request ``launch`` led to; forget it.

        The process may have been launched by the keeper before this one, which does not tell the
        name of the launch. Then it is ended as well: a kernel has one process at a time.
        """
        kernel = self._kernels.present(fields["kernel_id"])
        if kernel is None:
            return {"answer": False}
        if "pid" in fields:
            is_it = kernel.pid == fields["pid"]
        else:
            is_it = kernel.launched_by in ("", fields["launch"])
        if not is_it:
            return {"answer": False}
        self._hearings.disconnect(kernel.kernel_id)
        self._kernels.forget(kernel)
        self._end_if_unused()
        return {"answer": True}
