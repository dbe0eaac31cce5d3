"""The ``kernelkeep`` command: read the options, listen, say where, serve until told to stop."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import sys
from typing import Any, NoReturn

import uvicorn
from jupyter_client.kernelspec import KernelSpecManager
from pydantic import SecretStr, ValidationError

from app.logs import logging_config
from app.main import create_app
from app.settings import Settings, explain
from app.ws.uvicorn_protocol import KernelkeepWebSocketProtocol

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the service. Exits with 0 after a clean stop, with 2 when it cannot start as asked."""
    try:
        settings = Settings(_cli_parse_args=sys.argv[1:] if arguments is None else arguments)
    except ValidationError as error:
        _refuse(explain(error))
    if settings.auth == "token" and not settings.token.get_secret_value():
        settings = settings.model_copy(update={"token": SecretStr(secrets.token_hex(24))})
    _prepare_state_dir(settings)
    specs = sorted(KernelSpecManager().find_kernel_specs())
    if not specs:
        _refuse(
            "there is no kernelspec, so no kernel could be started; "
            "for Python: pip install ipykernel"
        )
    listener = _listen(settings)
    config = uvicorn.Config(
        create_app(settings),
        ws=KernelkeepWebSocketProtocol,
        ws_max_size=settings.websocket_max_message_size,
        ws_ping_interval=settings.websocket_ping_interval or None,
        ws_ping_timeout=settings.websocket_ping_timeout,
        ws_per_message_deflate=False,
        server_header=False,
        lifespan="on",
        log_config=logging_config(settings.log_level),
        timeout_graceful_shutdown=5,
    )
    server = _Server(config, _banner(settings, listener, specs))
    # uvicorn raises the signal that stopped it once more when it is done: an end like any other.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    sys.exit(0 if server.started else 1)


class _Server(uvicorn.Server):
    """A server that says where it is once it listens."""

    def __init__(self, config: uvicorn.Config, banner: str) -> None:
        super().__init__(config)
        self._banner = banner

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._banner, flush=True)


def _refuse(message: str) -> NoReturn:
    for line in message.splitlines():
        print(f"kernelkeep: {line}", file=sys.stderr)
    sys.exit(2)


def _prepare_state_dir(settings: Settings) -> None:
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = settings.state_dir / ".writable"
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        _refuse(f"--state-dir: {settings.state_dir} cannot be used: {error.strerror}")


def _listen(settings: Settings) -> socket.socket:
    """The listening socket, so that a port in use is known before anything is started."""
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        _refuse(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}")
    listener.setblocking(False)
    return listener


def _banner(settings: Settings, listener: socket.socket, specs: list[str]) -> str:
    """What a person wants to see: where it is, what it found, how to use it."""
    address: Any = listener.getsockname()
    host = settings.host.strip("[]")
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    base = f"http://{f'[{host}]' if ':' in host else host}:{address[1]}"
    token = settings.token.get_secret_value()
    query = f"/?token={token}" if token else "/"
    gateway = f"jupyter lab --gateway-url={base}"
    if token:
        gateway += f" --GatewayClient.auth_token={token}"
    return "\n".join(
        (
            "kernelkeep is ready:",
            f"    {base}{query}",
            f"Kernels: {', '.join(specs)}",
            f"Root directory: {settings.root_dir}",
            f"State directory: {settings.state_dir}",
            "JupyterLab with these kernels:",
            f"    {gateway}",
            "Stop with Ctrl+C.",
        )
    )
