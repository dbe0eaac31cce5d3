"""The ``kernelkeep`` command: it reads the options, listens, and serves until it is stopped."""

from __future__ import annotations

import gc
import socket
import sys
from typing import NoReturn, get_origin

from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsError

from .keeper.protocol import TooOpen, check_private
from .managers.processes.run_files import UnusableDirectory, check_directories
from .settings import Settings, explain, refuse
from .tokens import make_token

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the service. Exits with 0 after a clean stop, with 2 if it cannot start as asked."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["kernels"]:
        from .kernels_cli import kernels_command

        kernels_command(arguments[1:])
    if arguments[:1] == ["tokens"]:
        from .tokens_cli import tokens_command

        tokens_command(arguments[1:])
    if arguments[:1] == ["audit"]:
        from .audit_cli import audit_command

        audit_command(arguments[1:])
    if arguments[:1] == ["migrate"]:
        from .migrate_cli import migrate_command

        migrate_command(arguments[1:])
    if twice := _given_twice(arguments):
        refuse(f"{twice}: given twice")
    try:
        settings = Settings(_cli_parse_args=arguments)
    except (ValidationError, SettingsError) as error:
        refuse(explain(error))
    generated = settings.wants_token
    _prepare_state_dir(settings)
    if generated:
        settings = settings.model_copy(update={"token": SecretStr(make_token(settings))})
    listener = _listen(settings)
    # This import takes a second; --help and a refusal do without it. None of the objects that it
    # makes is garbage. The collector would look at all of them again and again, which takes a fifth
    # of the time.
    gc.disable()
    from .serving import CannotStart, serve

    gc.freeze()
    gc.enable()
    try:
        serve(settings, listener, generated_token=generated)
    except CannotStart as error:
        refuse(str(error))


def _given_twice(arguments: list[str]) -> str:
    """The first flag that is given twice, or both on and off; empty if none is.

    The flag of a list may be given several times.
    """
    seen = set()
    for word in arguments:
        flag = word.partition("=")[0]
        name = flag.removeprefix("--").replace("-", "_")
        option = name if name in Settings.model_fields else name.removeprefix("no_")
        field = Settings.model_fields.get(option) if flag.startswith("--") else None
        if field is None or get_origin(field.annotation) is list:
            continue
        if option in seen:
            return flag
        seen.add(option)
    return ""


def _prepare_state_dir(settings: Settings) -> None:
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_directories(settings)
        check_private(settings.state_dir)
        probe = settings.state_dir / ".writable"
        probe.touch(mode=0o600)
        probe.unlink()
    except (TooOpen, UnusableDirectory) as error:
        refuse(f"--state-dir: {error}")
    except OSError as error:
        path = error.filename or settings.state_dir
        refuse(f"--state-dir: {path} cannot be used: {error.strerror}")


def _listen(settings: Settings) -> socket.socket:
    """The listening socket. It is made first, so that a port in use stops the start at once."""
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        # The next server can listen while connections of the last one linger. Two servers at once
        # cannot: on Linux the option does not allow that for sockets that listen.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        refuse(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}")
    except ValueError:  # the name cannot be asked for: a NUL, or too much between two dots
        refuse("--host: is not the name or address of a host")
    listener.setblocking(False)
    return listener
