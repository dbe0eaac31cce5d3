"""The keeper: it answers servers of its state directory, and ends when there is nothing to keep."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from ..protocol import link
from .audience import Audience
from .connection_files import prepare, remove_prepared
from .ending import Ending
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
"""How long a keeper that was just started waits for the server that did so. That server connects at
once; on a machine that is overloaded this may take seconds."""

ACCEPT_SECONDS: Final = 1.0
"""How many seconds after an error, as for want of descriptors, connections are accepted again."""

SETTLE_SECONDS: Final = 0.2
"""How long a greeting waits until the last requests of the server before were read."""


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
        self._ending = Ending(self._kernels, self._hearings, self.end)
        self._orphan_timeout = 0.0
        self._server: Process | None = None  # that with which the kernels end
        self._own: list[str] = []
        self.leftovers: list[str] = []
        """Directories that are to be removed when the keeper has ended."""
        self._stays = stays
        self._used = False  # some server has come
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        if not stays:
            self._timer = self._loop.call_later(ALONE_SECONDS, self.end)
        self._requests: dict[str, Callable[[Fields], Any]] = {  # what each returns is the answer
            "hello": self._on_hello,
            "stop": lambda _: self.stop(),
            "kept": lambda _: self._kernels.records,
            "strays": self._on_strays,
            "launch": self._on_launch,
            "adopt": self._on_adopt,
            "hear": self._on_hear,
            "open": lambda fields: self._heard(fields).used(share_from(fields)),
            "stdin": lambda fields: self._heard(fields).stdin_connected,
            "settle": lambda fields: self._hearings.settle(fields["kernel_id"]),
            "disconnect": lambda fields: self._hearings.disconnect(fields["kernel_id"]),
            "drop": self._on_drop,
            "renew": lambda fields: self._hearings.renew(fields["kernel_id"]),
            "signal": lambda fields: self._kernel(fields).signal(int(fields["number"])),
            "tail": lambda fields: self._kernel(fields).tail(),
            "usage": lambda fields: fields["used"],
            "end": self._on_end,
            "run": run,
            "prepare": prepare,
            "load": lambda _: load(),
        }
        self._loop.add_reader(listener, self._accept)

    def end(self) -> None:
        """Exit; kernels go on."""
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        """Close connections, sockets, logs and watches. The kernels' processes go on."""
        self._deafen()
        for task in self._tasks:
            task.cancel()
        for server in self._connections:
            server.close()
        self._kernels.close()
        self._end_watch()
        self._servers.close()
        self._hearings.close()

    def _deafen(self) -> None:
        # The next keeper takes the servers that come. It listens at the same path, and cannot do so
        # before this process has ended and let go of the lock: until then servers are refused.
        if self._listener.fileno() != -1:
            self._loop.remove_reader(self._listener)
            self._listener.close()

    # Servers come and go

    def _accept(self) -> None:
        # One connection each time: the loop calls this again while others wait.
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            logger.warning("a connection failed: %s", error)
            # The connection still waits, so the loop would call this again at once, without end.
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
        # The loop has only weak references to tasks: without this set one could vanish at an await.
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
        if self._ending.began:
            # A stop is not taken back, so a kernel that is launched now would be killed. The end of
            # the connection tells the server that another keeper is needed.
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
            # A sample takes turns of the loop, so requests behind this one are answered before it.
            # The server knows answers by their ids, and what a sample tells decides nothing here.
            self._do_later(self._sample(server, fields))
        elif fields.get("ask") == "hello" and self._servers.predecessors(server, fields):
            # The race: the server before has ended, and requests of its may still lie in its
            # socket. Were this server answered now, it would be told ends of logs in which those
            # requests are missing, and send them again.
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
        if self._timer is not None:  # that of a keeper without servers
            self._timer.cancel()
            self._timer = None

    async def _greet_late(self, server: ServerLink, hello: Fields) -> None:
        """Answer a greeting once the connections of earlier servers were read to their ends.

        So the requests of those come before the requests of this one. The wait is bounded.
        """
        others = {other.ended for other in self._servers.predecessors(server, hello)}
        if others:
            await asyncio.wait(others, timeout=SETTLE_SECONDS)
        # If the connection was lost meanwhile, `Frames` has handed on its frames then. If a stop
        # has begun, this answer does no harm: the server's next frame ends the connection.
        if not server.ended.done():
            server.write(self._answer(hello, server))
            server.go_on()

    def _leave(self, server: ServerLink) -> None:
        if server not in self._servers:  # it was never greeted
            return
        self._servers.discard(server)
        if self._servers or self._ending.began:
            return
        if self._server is not None:  # it connects again, or the watch sees its process end
            self._end_if_unused()
            return
        if self._kernels.any_wanted or self._hearings.any_connected:
            logger.info("no server is left; kernels are kept for %g s", self._orphan_timeout)
            self._timer = self._loop.call_later(self._orphan_timeout, self._stop_orphans)
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        """End when nobody will ask for anything any more, not even for how a kernel ended."""
        # A kernel that others have started is heard, and has no process here.
        needed = self._servers or self._kernels or self._hearings.any_connected
        if self._used and not needed and not self._stays:
            self.end()

    def _drain(self, server: ServerLink) -> None:
        """Let go of all kernels: the keeper of a server of another version adopts them."""
        logger.info("replaced by a keeper of another version; kernels go on")
        self._deafen()
        # The records are made and the listener is closed in one turn, so no kernel is added behind
        # the answer. This keeper ends only when the connection has: else the answer could be lost.
        server.write(pack({"answer": self._kernels.records}))
        server.close()
        server.ended.add_done_callback(lambda _: self.end())

    # Kernels that nobody wants any more

    def _watch(self, server: Fields) -> None:
        """End the kernels when the process of this server ends.

        The process is watched, and not the connection: a server that loses its connection comes
        back. Raises `OSError` if the process cannot be watched.
        """
        self._end_watch()
        self._own = server["own"]
        # The server may have died since it sent its greeting: then there is no such process.
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
        # Called by a request, by the watch of the server's process, and by SIGTERM where a keeper
        # has joined its service: in any order, and more than once.
        self._end_watch()
        self._stop_orphans()

    def _stop_orphans(self) -> None:
        if self._ending.began:  # `stop` came before the timer of `_leave`
            return
        logger.warning("there is no server any more: kernels are stopped")
        self.leftovers = self._own
        self._deafen()
        self._ending.begin()

    def reap(self) -> None:
        """Reap the children that have ended."""
        self._kernels.reap()

    def _on_exit(self, kernel: KeptKernel) -> None:
        event = {"event": "exited", "code": kernel.exit_code, "pid": kernel.pid}
        self._servers.tell(kernel.kernel_id, event | {"oom": kernel.out_of_memory})
        self._ending.look()

    # What servers ask

    def _answer(self, fields: Fields, server: ServerLink) -> bytes:
        """The frame of the answer. An error of any kind concerns only the server that has asked."""
        number = {"id": fields["id"]} if "id" in fields else {}
        # Nothing awaits in here. So no request sees another one half done, and the bells and events
        # that a request leads to are sent before its answer.
        try:
            if fields["ask"] == "hello":
                server.replica = str(fields.get("replica", ""))
            elif "kernel_id" in fields:
                # The term is checked before anything is done: a late request of a replica that has
                # lost the kernel must change nothing.
                self._servers.come(server, str(fields["kernel_id"]), fields.get("term"))
            answer = self._do(fields)
            if fields["ask"] == "hello":
                answer = self._servers.only_own(server, answer)
                self._greet(server)  # a greeting that is refused leaves all timers as they are
            return pack({**number, "answer": answer})
        except (OSError, zmq.ZMQError) as error:
            text = {"error": str(error), "strerror": error.strerror, "errno": error.errno}
            return pack({**number, **text, "filename": getattr(error, "filename", None)})
        except ValueError as error:
            return pack({**number, "error": str(error)})
        except Exception as error:
            logger.warning("%s cannot be done", fields.get("ask"), exc_info=True)
            return pack({**number, "error": f"{type(error).__name__}: {error}"})

    def _do(self, fields: Fields) -> Any:
        request = self._requests.get(str(fields.get("ask")))
        if request is None:
            raise ValueError("the keeper does not know what is asked")
        if time.monotonic() > fields.get("until", math.inf):
            raise ValueError("it was asked too late")
        return request(fields)

    def _on_hello(self, fields: Fields) -> Fields:
        if fields["protocol"] != PROTOCOL:
            raise ValueError(f"protocol {fields['protocol']}")
        room = self._hearings.room
        room.each, room.together = int(fields["log_bytes"]), int(fields["log_total_bytes"])
        room.age = float(fields["log_age"])
        self._kernels.output_bytes = int(fields["output_bytes"])
        self._orphan_timeout = float(fields["orphan_timeout"])
        self._lasts = "server" not in fields
        # The answer leaves out the processes that are taken over now: the server asks for each of
        # those that are its own (`adopt`), and says their limits, which no note has.
        kept = self._kernels.records
        self._kernels.take_over()
        if "server" in fields:
            try:
                self._watch(fields["server"])
            except OSError as error:  # no descriptors are left: its connection tells of its end
                logger.error("the server's process cannot be watched: %s", error)
        return {"kept": kept, "heard": self._hearings.ids, "can": [*CAN]}

    def _on_strays(self, fields: Fields) -> None:
        """End the kernels of replicas that are dead, but for those that the registry knows.

        Their logs go as well: a log is opened before the process is launched, so there may be a log
        alone. Nobody else will drop what the registry does not know.
        """
        here = {*self._hearings.ids, *(kernel.kernel_id for kernel in self._kernels)}
        for kernel_id in here.difference(fields["known"]):
            if self._terms.of_any(kernel_id, fields["dead"]):
                logger.info("kernel %s was nobody's, and is killed", kernel_id)
                if (kernel := self._kernels.present(kernel_id)) is not None:
                    self._kernels.forget(kernel)
                self._hearings.forget(kernel_id)
                self._servers.forget(kernel_id)

    def _on_launch(self, fields: Fields) -> Fields:
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
        return kernel.record

    def _on_adopt(self, fields: Fields) -> Fields | None:
        kernel_id, pid, started = fields["kernel_id"], int(fields["pid"]), fields["start_time"]
        limits = limits_from(fields.get("limits"))
        kernel = self._kernels.adopt(kernel_id, pid, started, fields["output"], limits)
        return None if kernel is None else kernel.record

    # Logs and sockets

    def _on_hear(self, fields: Fields) -> Any:
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
        return msgspec.to_builtins(heard)

    def _heard(self, fields: Fields) -> Hearing:
        hearing = self._hearings.get(fields["kernel_id"])
        if hearing is None:
            raise ValueError(f"kernel {fields['kernel_id']} is not heard")
        return hearing

    def _on_drop(self, fields: Fields) -> None:
        # Clients still read the end of the log: the server holds the newest file open, and reads
        # the rest there although `forget` removes the name.
        self._hearings.flush()
        if fields.get("prepared"):
            remove_prepared(str(fields["kernel_id"]))
        self._hearings.forget(fields["kernel_id"], fields.get("directory"))
        self._servers.forget(fields["kernel_id"])
        self._end_if_unused()

    def _take(self, data: bytes, server: ServerLink) -> None:
        """Take a frame with a request for a kernel, or a message for its log. Raises `Garbled`."""
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
        # Neither is an error: while the frame was on its way, the kernel may have been removed, or
        # another replica may have taken it.
        obeys = hearing is not None and self._servers.is_obeyed(server, hearing.kernel_id)
        return hearing if obeys else None

    def _kernel(self, fields: Fields) -> KeptKernel:
        return self._kernels[fields["kernel_id"]]

    async def _sample(self, server: ServerLink, fields: Fields) -> None:
        """Answer what a kernel uses. Other requests may be answered while this takes the sample."""
        kernel = self._kernels.present(str(fields.get("kernel_id")))
        # Meanwhile the server may go: `write` then sends nothing. And the kernel may end: the
        # sample then is None, or has too few processes.
        used = None if kernel is None else await kernel.usage()
        server.write(self._answer({**fields, "used": used}, server))

    def _on_end(self, fields: Fields) -> bool:
        """Kill the process ``pid`` of a kernel, or what the request ``launch`` led to; forget it.

        The process may have been launched by the keeper before this one, which does not tell the
        name of the launch. Then it is ended as well: a kernel has one process at a time.
        """
        kernel = self._kernels.present(fields["kernel_id"])
        if kernel is None:
            return False
        if "pid" in fields:
            is_it = kernel.pid == fields["pid"]
        else:
            is_it = kernel.launched_by in ("", fields["launch"])
        if not is_it:
            return False
        # In this order: the last messages of the process are read before it is killed.
        self._hearings.disconnect(kernel.kernel_id)
        self._kernels.forget(kernel)
        self._end_if_unused()
        return True
