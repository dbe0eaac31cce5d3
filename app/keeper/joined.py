"""``python -m app.keeper --join FILE|- [--directory DIR]``: a keeper that dials its service.

It is the process of a job: a container's, or a batch job's. It stays in the foreground, logs on its
stderr, and ends when there is nothing to keep any more. SIGTERM ends its kernels first. Its exit
status is 0 then, 3 if the service does not want it, and 4 if none could be reached.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from .dialling import Dialler, SentAway
from .joining import Address, Document, NotInvited, Trust, addresses_of, read_document
from .main import become_keeper, handle_signals, log_on_stderr, run
from .protocol import Fields, TooOpen, keeper_dir
from .service import Service

__all__ = ["JoinedService", "main"]

logger = logging.getLogger(__name__)

ALONE_SECONDS: Final = 3600.0
"""How long a keeper that was just started looks for its service."""

UNUSED_SECONDS: Final = 10.0
"""How long a keeper with nothing to keep dials a service that it has lost."""

DIRECTORIES: Final = ("runtime", "output", "logs")

REFUSED: Final = 3
ALONE: Final = 4


class JoinedService(Service):
    """A keeper that dials its service. ``trust`` gets each certificate that the service sends."""

    def __init__(self, listener: socket.socket, directory: int, trust: Trust) -> None:
        super().__init__(listener, directory)
        assert self._timer is not None
        self._timer.cancel()
        self._timer = self._loop.call_later(ALONE_SECONDS, self.end)
        self._requests["host"] = _on_host
        self._requests["credential"] = lambda fields: trust.keep(str(fields["pem"]))
        self._requests["addresses"] = self._on_addresses
        self.on_addresses: Callable[[Sequence[Address]], None] = lambda _: None
        """Called with the addresses of the service, as a server tells them."""

    def _on_addresses(self, fields: Fields) -> None:
        try:
            self.on_addresses(addresses_of(fields["addresses"]))
        except NotInvited as error:
            raise ValueError(str(error)) from None

    def _end_if_unused(self) -> None:
        """As `Service._end_if_unused`, but later: a connection that breaks may be made anew."""
        if self._servers or self._ending.began:
            super()._end_if_unused()
        else:
            self._loop.call_later(UNUSED_SECONDS, super()._end_if_unused)


def _on_host(_fields: Fields) -> Fields:
    """Tell what this job has: kernels get its environment, and may use its interpreter.

    ``can`` has the requests that an earlier keeper would not know.
    """
    env = dict(os.environ)
    home = env.get("HOME") or os.path.expanduser("~")
    return {"home": home, "python": sys.executable, "env": env, "can": ["addresses"]}


def main() -> int:
    """Keep kernels until there is none any more; returns the exit status."""
    log_on_stderr()
    parser = argparse.ArgumentParser("kernelkeep-keeper", description="Keep kernels of a service")
    parser.add_argument(
        "--join", required=True, metavar="FILE", help="the join document; - is stdin"
    )
    parser.add_argument("--directory", help="for the keeper's files; a new one, if it is not given")
    options = parser.parse_args()
    made = ""
    try:
        document = read_document(options.join)
        if not options.directory:
            made = tempfile.mkdtemp(prefix="keeper-")  # 0700, and its name is short
        state = Path(options.directory or made).absolute()
        for path in (state, *(state / name for name in DIRECTORIES)):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chdir(state)  # paths in what the keeper is asked are relative to this
        directory, listener = become_keeper(state)
    except NotInvited as error:
        logger.error("the join document cannot be used: %s", error)
        return REFUSED
    except BlockingIOError:
        logger.error("another keeper has this directory")
        return REFUSED
    except (OSError, TooOpen) as error:
        logger.error("%s", error)
        return REFUSED
    try:
        return run(_keep(listener, directory, document, state))
    finally:
        if made:
            shutil.rmtree(made, ignore_errors=True)


async def _keep(listener: socket.socket, directory: int, document: Document, state: Path) -> int:
    trust = Trust(document, keeper_dir(state))
    service = JoinedService(listener, directory, trust)
    handle_signals(service, service.stop)
    dialler = Dialler(document.addresses, trust, service.new_link)
    service.on_addresses = dialler.know
    dialling = asyncio.get_running_loop().create_task(dialler.run(), name="dialling")
    status = 0
    try:
        # Both may be done: then the exit status tells of the refusal.
        await asyncio.wait({dialling, service.ended}, return_when=asyncio.FIRST_COMPLETED)
        if dialling.done():
            status = _sent_away(dialling)
            service.stop()
            await service.ended
        elif not trust.has_joined:
            logger.error("no service could be reached within %g s", ALONE_SECONDS)
            status = ALONE
    finally:
        # The dialler is awaited: when cancelled, it cuts off the connection that it has or makes.
        dialling.cancel()
        with contextlib.suppress(FileNotFoundError):
            os.unlink("socket", dir_fd=directory)
        service.close()
        await asyncio.wait({dialling})
    return status


def _sent_away(dialling: asyncio.Task[None]) -> int:
    try:
        dialling.result()
    except SentAway as error:
        logger.error("the service does not want this keeper: %s", error)
    except Exception:  # nobody would ever find the kernels: without a service they end
        logger.exception("this keeper cannot dial its service")
    return REFUSED
