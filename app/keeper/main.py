"""The keeper of the state directory that is its first argument. Servers start it.

With ``--stay`` behind that, somebody else has started it: it goes on when there is neither a kernel
nor a server, so that no server starts another one, which would end with that server's container.

It says on its stdout what becomes of its start: ``ready``, ``taken`` when there is a keeper
already, or one line why it cannot be. Its stderr is its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from .processes import adopt_orphans
from .protocol import TooOpen, keeper_dir, open_dir, socket_address
from .service import Service

try:
    from uvloop import new_event_loop
except ImportError:  # it is not everywhere
    from asyncio import new_event_loop  # type: ignore[assignment]

__all__ = ["become_keeper", "handle_signals", "log_on_stderr", "main", "run"]


T = TypeVar("T")


def main() -> None:
    """Keep kernels until there is neither a kernel nor a server, or until somebody ends this."""
    log_on_stderr()
    try:
        directory, listener = become_keeper(Path(sys.argv[1]))
    except BlockingIOError:
        _say("taken")
    except (OSError, TooOpen) as error:
        _say(str(error))
    else:
        run(_keep(listener, directory, stays=sys.argv[2:] == ["--stay"]))


def log_on_stderr() -> None:
    """Have the keeper's own log on its stderr."""
    form = "%(asctime)s %(process)d %(levelname)s %(message)s"
    logging.basicConfig(format=form, level=logging.INFO)


def run(what: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own, and return its result."""
    loop = new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(what)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def become_keeper(state_dir: Path) -> tuple[int, socket.socket]:
    """Become the keeper of a state directory.

    Returns a descriptor of the keeper's directory, and the socket on which servers come. Raises
    `BlockingIOError` if there is another keeper, and `TooOpen` or `OSError`.
    """
    # The lock first: what lies in the directory, the socket and the notes, is this keeper's alone
    # to change while it has the lock.
    directory = open_dir(state_dir)
    _take_lock(directory)
    adopt_orphans()
    return directory, _listen(directory, keeper_dir(state_dir))


def handle_signals(service: Service, on_stop: Callable[[], None]) -> None:
    """Call ``on_stop`` at SIGTERM and SIGINT, and have children reaped when they end."""
    loop = asyncio.get_running_loop()
    # Handlers rather than SIG_IGN, for kernels inherit which signals are ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    # uvloop reserves SIGCHLD for itself, although it starts no processes here. The handler runs
    # between any two steps of the main thread, so it only plans what is done.
    # A child may end when the loop is closed; the main thread alone closes it, and not in between.
    signal.signal(
        signal.SIGCHLD,
        lambda *_: None if loop.is_closed() else loop.call_soon_threadsafe(service.reap),
    )
    signal.siginterrupt(signal.SIGCHLD, False)


def _take_lock(directory: int) -> None:
    """Be the only keeper in this directory. Raises `BlockingIOError` if there is another."""
    # Held until this process ends, and by no other: a kernel does not inherit it.
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def _keep(listener: socket.socket, directory: int, *, stays: bool) -> None:
    service = Service(listener, directory, stays=stays)
    handle_signals(service, service.end)
    _say("ready")
    try:
        await service.ended
    finally:
        # The socket is removed while this keeper has the lock: later it may be the next keeper's.
        with contextlib.suppress(FileNotFoundError):
            os.unlink("socket", dir_fd=directory)
        service.close()
        # These are removed while this keeper has the lock, too: without it, a server that starts
        # would take them for left by a dead keeper, and remove them at the same time.
        if service.leftovers:
            import shutil  # which takes as long as a tenth of the start

            for left in service.leftovers:
                shutil.rmtree(left, ignore_errors=True)


def _listen(directory: int, path: Path) -> socket.socket:
    """The keeper's socket (0600). One that is there was left by a keeper that was killed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink("socket", dir_fd=directory)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket_address(directory, path) as address:
        # The socket must not be open to others for a moment, as it would be before a chmod(2). No
        # other thread is there that could make a file meanwhile.
        umask = os.umask(0o177)
        listener.bind(address)
        os.umask(umask)  # which kernels get
    listener.listen(128)
    listener.setblocking(False)
    return listener


def _say(text: str) -> None:
    """Write one line to stdout, a pipe to the server that waits, and close the pipe."""
    with contextlib.suppress(OSError):  # it may be gone
        os.write(1, f"{text}\n".encode())
    # Descriptor 1 is not left free: the next file to be opened would get that number, and with it
    # whatever is printed.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.close(nothing)
