"""Serving with uvicorn, as the ``kernelkeep`` command does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import shlex
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn, cast
from urllib.parse import quote

import uvicorn
from jupyter_client.kernelspec import KernelSpec

from .api.uvicorn_protocol import (
    Connections,
    KernelkeepHTTPProtocol,
    StrictWebSocketProtocol,
)
from .log_formats import JSONFormatter
from .logs import logging_config
from .main import REFUSALS, create_app, explain_refusal
from .managers.kernels.multikernel import MultiKernelManager
from .managers.processes.specs import every_spec, kernel_spec_manager
from .operator import OLD_FILE, SOCKET, OperatorSocket
from .settings import Settings
from .uvicorn_internals import Server

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["CannotStart", "serve"]

logger = logging.getLogger(__name__)


GRACE_SECONDS: Final = 5
"""Seconds that responses under way have when the server stops, with those that kernels take."""


KEEP_ALIVE_SECONDS: Final = 130
"""Seconds that a connection may be idle. A client with a pool of connections, as a proxy has, must
be the end that closes them: a request that crosses the service's close is lost. nginx closes idle
connections after 60 s, Go's clients after 90 s, Caddy after 120 s. If there are too many, the
service closes idle ones earlier."""

ACCEPTED_AT_ONCE: Final = 64
"""Connections that the loop accepts in one turn. More of them, in one burst, could take every file
descriptor before the first is refused."""

WAITING_TO_BE_ACCEPTED: Final = 2048
"""Connections that the operating system holds until the loop accepts them."""


class CannotStart(Exception):
    """The service cannot be started; the text says why."""


def serve(
    settings: Settings, listener: socket.socket, *, generated_token: bool = False
) -> NoReturn:
    """Serve on a listening socket until a signal stops the server; then exit with 0.

    A ``generated_token`` is printed, since nobody knows it yet. Raises `CannotStart` if there is no
    kernelspec at all, or if an option names a class or a file that cannot be used.
    """
    specs = _specs(settings)
    operated = settings.state_dir if settings.keeps and not settings.replicated else None
    if operated is not None:
        for path in (operated / SOCKET, operated / OLD_FILE):
            if path.is_dir():
                raise CannotStart(f"--state-dir: {path} is a directory")
    try:
        app = create_app(settings)
    except REFUSALS as error:
        raise CannotStart(explain_refusal(error)) from None
    bound = Connections(settings.max_connections or _most_connections())
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(KernelkeepHTTPProtocol, bound=bound)),
        backlog=ACCEPTED_AT_ONCE,
        ws=StrictWebSocketProtocol,
        ws_max_size=settings.websocket_max_message_size,
        ws_ping_interval=settings.websocket_ping_interval or None,
        ws_ping_timeout=settings.websocket_ping_timeout,
        ws_per_message_deflate=settings.websocket_compression,
        server_header=False,
        lifespan="on",
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        log_config=logging_config(settings.log_level, settings.log_format),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    # Our log formats do not show the place in the code, the thread or the process of a record, so
    # logging need not find them out [https://docs.python.org/3/howto/logging.html#optimization].
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    base = _base_url(settings, listener)
    if settings.log_format == "text":
        announcement = _banner(settings, base, specs)
    else:
        announcement = _ready_line(settings, base, with_token=generated_token)
    server = _Server(config, announcement, bound, operated)
    # When the server has ended, uvicorn raises the signal that has stopped it once more. With this
    # handler that is a clean exit.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _stop_with_the_terminal()
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    sys.exit(0 if server.started else 1)


def _specs(settings: Settings) -> list[str]:
    """The names of the kernelspecs of which kernels can be started. Raises `CannotStart`."""
    found = dict(every_spec(kernel_spec_manager(settings.allowed_kernelspecs)))
    if not found and settings.allowed_kernelspecs:
        raise CannotStart("--allowed-kernelspecs: none of these kernelspecs is installed")
    if not found:
        raise CannotStart(
            "there is no kernelspec, so no kernel could be started; "
            "for Python: pip install ipykernel"
        )
    return sorted(name for name, spec in found.items() if isinstance(spec, KernelSpec))


def _stop_with_the_terminal() -> None:
    """Have the end of the terminal stop the server as Ctrl+C does, and not kill it.

    Under nohup the signal is ignored, and stays so. There is none on Windows.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        signal.signal(hangup, lambda *_: signal.raise_signal(signal.SIGTERM))


class _Server(Server):
    """A server that prints its address once it listens, and stops the kernels before itself.

    While the kernels end it still answers: probes learn that it is not ready, and clients that it
    is stopping.
    """

    def __init__(
        self, config: uvicorn.Config, banner: str, bound: Connections, operated: Path | None
    ) -> None:
        super().__init__(config)
        self._bound = bound
        self._operated = operated  # the state directory where the operator's socket is to be
        self._operator: OperatorSocket | None = None
        self._banner = banner
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exits = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        # asyncio accepts as many connections in one turn as the backlog that it was given, so that
        # is small, and the operating system is told the large one behind asyncio's back.
        for listener in sockets or ():
            listener.listen(WAITING_TO_BE_ACCEPTED)
        if self.started and self._operated is not None:
            self._operator = OperatorSocket(self._operated, self.lifespan_state["kernels"])
            await self._operator.open()
        if self.started:
            # The objects that exist now stay for good. A frozen object is never collected, so the
            # garbage collector does not look at it again and again.
            gc.collect()
            gc.freeze()
            print(self._banner, flush=True)

    async def main_loop(self) -> None:
        # uvicorn's own loop wakes ten times a second to see whether the server is to stop, which
        # would be most of an idle server's work. This one wakes once a second, and at a signal.
        while not await self.is_to_end():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._exits.wait()
            self._look_at_connections()

    def _look_at_connections(self) -> None:
        """End the connections that take too long; one such check is cheaper than many timers."""
        now = asyncio.get_running_loop().time()
        for connection in self.connections:
            if isinstance(connection, KernelkeepHTTPProtocol):
                connection.check(now)
        for line in self._bound.lines(now):
            logger.warning(line)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # This runs in a signal handler, between any two instructions of the loop's thread: no event
        # of asyncio may be set here, nor would the loop wake for it.
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._exits.set)
        # uvicorn would skip the end of the lifespan at a second Ctrl+C, and leave kernels behind.
        self.force_exit = False

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        if self._operator is not None:
            self._operator.close()
        kernels: MultiKernelManager = self.lifespan_state["kernels"]
        # The kernels stop before uvicorn's own shutdown, which closes the listening socket and
        # every connection: meanwhile requests are still answered. `stopped` is bounded, as each
        # kernel's stop is, and they stop side by side.
        try:
            await kernels.stopped()
        finally:
            left = GRACE_SECONDS - round(loop.time() - began)
            # At least a second, for answers that are just being sent: uvicorn would wait for none
            # with 0.
            self.config.timeout_graceful_shutdown = max(1, left)
            await super().shutdown(sockets)


def _most_connections() -> int:
    """The bound on connections: half of the file descriptors that the process may have.

    Kernels and files need the other half. The bound is 0, for none, if there is no limit.
    """
    if resource is None:
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft // 2) if soft != resource.RLIM_INFINITY else 0


def _base_url(settings: Settings, listener: socket.socket) -> str:
    address: Any = listener.getsockname()
    host = settings.host.strip("[]")
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{address[1]}"


def _ready_line(settings: Settings, base: str, *, with_token: bool) -> str:
    """The line in JSON that tells that the server is ready.

    Programs collect this line as a log, so it has the token only if the server has just made it.
    """
    query = _query(settings.token.get_secret_value() if with_token else "")
    message = f"kernelkeep is ready at {base}{query}"
    record = logging.LogRecord(__package__, logging.INFO, __file__, 0, message, None, None)
    return JSONFormatter().format(record)


def _query(token: str) -> str:
    """The path of the page, with the encoded token in its query if there is one."""
    return f"/?token={quote(token, safe='')}" if token else "/"


def _banner(settings: Settings, base: str, specs: list[str]) -> str:
    """The text for a person: the server's address, its kernels and directories, and its use."""
    token = settings.token.get_secret_value()
    query = _query(token)
    command = ["jupyter", "lab", f"--gateway-url={base}"]
    if token:
        command.append(f"--GatewayClient.auth_token={token}")
    configuration = [f"Configuration: {settings.config}"] if settings.config else []
    return "\n".join(
        (
            "kernelkeep is ready:",
            f"    {base}{query}",
            f"Kernels: {', '.join(specs)}",
            f"Root directory: {settings.root_dir}",
            f"State directory: {settings.state_dir}",
            *configuration,
            "JupyterLab with these kernels:",
            f"    {shlex.join(command)}",
            f"Stop with Ctrl+C.{' Kernels go on then.' if settings.keeps else ''}",
        )
    )
