"""What a ``kernel.json`` must hold for its kernels to be started: one check for all its readers.

A file that passes may still not launch: whether its program exists, for one, shows at the launch.
The errors name keys of the file and never repeat its values, which may be secrets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, TypeGuard

import msgspec
from jupyter_client.kernelspec import KernelSpec, NoSuchKernel
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from ..errors import KernelSpecInvalid
from .environment import MAX_ENTRY_BYTES
from .forking.provisioner import PROVISIONER, check_limit

__all__ = ["CheckedSpec", "SpecFault", "check_content", "read_content", "shutdown_seconds_of"]

FILE: Final = "kernel.json"

MAX_BYTES: Final = 2**20
"""The largest ``kernel.json`` that is read; usual ones have a few hundred bytes."""

MAX_DEPTH: Final = 100
"""How deep lists and objects may be nested."""

MAX_NAME: Final = 60
"""Characters of a key, or of a provisioner's name, that an error repeats."""

SHUTDOWN_KEY: Final = "shutdown_wait_time"

MAX_SHUTDOWN_SECONDS: Final = 3600
"""The longest shutdown time of a kernelspec; a server that stops waits as long."""

_TEXTS: Final = ("name", "mimetype", "display_name", "language", "kernel_protocol_version")

_FIELDS: Final = (*_TEXTS, "argv", "env", "interrupt_mode", "metadata")
"""The keys that jupyter_client knows; all others of a file are ignored."""

_LAUNCHES_ITSELF: Final = ("local-provisioner", PROVISIONER)
"""Provisioners that execute the kernelspec's command; others may need none."""

_encode = msgspec.json.Encoder().encode


class SpecFault(ValueError):
    """A fault in a ``kernel.json``; ``key`` names the faulty part, empty for the whole file."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"{key} {what}" if key else what)


class CheckedSpec(KernelSpec):
    """A kernelspec whose file is read only if it passes the check."""

    @classmethod
    def from_resource_dir(cls, resource_dir: str) -> CheckedSpec:
        """The spec of a directory. Raises `KernelSpecInvalid`, or `NoSuchKernel` if it is gone."""
        directory = Path(resource_dir)
        try:
            content = read_content(directory / FILE)
            check_content(content)
        except FileNotFoundError:
            raise NoSuchKernel(directory.name) from None
        except SpecFault as fault:
            raise KernelSpecInvalid(directory.name, str(directory / FILE), str(fault)) from None
        known = {name: content[name] for name in _FIELDS if name in content}
        return cls(resource_dir=resource_dir, **known)


def read_content(file: Path) -> dict[str, Any]:
    """The object that a ``kernel.json`` holds. Raises `SpecFault`, or `FileNotFoundError`."""
    try:
        with file.open("rb") as opened:
            # `read` allocates all that it is asked for, so it is not asked for MAX_BYTES each time.
            size = os.fstat(opened.fileno()).st_size
            data = opened.read(min(size, MAX_BYTES) + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SpecFault("", f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise SpecFault("", f"is larger than {MAX_BYTES} bytes")
    try:
        content = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise SpecFault("", f"is not UTF-8: byte {error.start} cannot be decoded") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise SpecFault("", f"is not JSON: {error.msg}, {where}") from None
    except RecursionError:
        raise SpecFault("", "is nested too deeply") from None
    except ValueError:  # Python refuses integers with thousands of digits
        raise SpecFault("", "holds a number that is too large") from None
    _check_depth(content)
    return _object(content, "")


def check_content(content: Mapping[str, Any]) -> None:
    """Raise `SpecFault` if no kernel could be started from this, or no client could be shown it."""
    for name in _TEXTS:
        _text(content.get(name, ""), name)
    mode = _text(content.get("interrupt_mode", "signal"), "interrupt_mode")
    if mode.lower() not in ("signal", "message"):
        raise SpecFault("interrupt_mode", 'must be "signal" or "message"')
    metadata = _object(content.get("metadata", {}), "metadata")
    provisioner = _check_provisioner(metadata)
    _check_shutdown(metadata)
    _check_argv(content.get("argv", []), needed=provisioner in _LAUNCHES_ITSELF)
    _check_env(content.get("env", {}))
    for name in ("metadata", *_TEXTS):
        try:
            _encode(content.get(name))
        except UnicodeEncodeError:
            raise SpecFault(name, "holds half of a surrogate pair") from None


def _check_depth(content: Any) -> None:
    """Raise `SpecFault` for deep nesting: the encoder of listings bears less than json's parser."""
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise SpecFault("", "is nested too deeply")


def _check_argv(argv: Any, *, needed: bool) -> None:
    if not isinstance(argv, list):
        raise SpecFault("argv", f"must be a list of texts, not {_kind(argv)}")
    if needed and not argv:
        raise SpecFault("argv", "is missing or empty: there is no command to execute")
    for place, argument in enumerate(argv):
        _check_entry(argument, f"argv[{place}]")
    if needed and not argv[0]:
        raise SpecFault("argv[0]", "is empty: there is no command to execute")


def _check_env(env: Any) -> None:
    for name, value in _object(env, "env").items():
        if not name or "=" in name or "\0" in name:
            raise SpecFault(f"env: {_shown(name)}", "is not a name for an environment variable")
        _check_entry(name, f"env: the name {_shown(name)}")
        _check_entry(value, f"env.{_shown(name)}")


def _check_provisioner(metadata: Mapping[str, Any]) -> str:
    """The name of the provisioner. Raises `SpecFault` if that is not installed."""
    key = "metadata.kernel_provisioner"
    factory = KernelProvisionerFactory.instance()
    stanza = _object(metadata.get("kernel_provisioner", {}), key)
    name = _text(
        stanza.get("provisioner_name", factory.default_provisioner_name), f"{key}.provisioner_name"
    )
    if name not in factory.provisioners and not entry_points(group=factory.GROUP_NAME, name=name):
        raise SpecFault(
            f"{key}.provisioner_name", f"is {_shown(name)}, a provisioner that is not installed"
        )
    config = _object(stanza.get("config", {}), f"{key}.config")
    if name == PROVISIONER:
        _check_fork_options(config, f"{key}.config")
    return name


def _check_shutdown(metadata: Mapping[str, Any]) -> None:
    if SHUTDOWN_KEY in metadata and not _is_shutdown_time(metadata[SHUTDOWN_KEY]):
        what = f"must be a number of seconds, more than 0 and at most {MAX_SHUTDOWN_SECONDS}"
        raise SpecFault(f"metadata.{SHUTDOWN_KEY}", what)


def shutdown_seconds_of(spec: KernelSpec) -> float | None:
    """The kernelspec's own ``shutdown_wait_time`` in seconds, if it has one."""
    value = spec.metadata.get(SHUTDOWN_KEY)
    # The kernelspec of an adopted kernel comes from the registry, and was not checked here.
    return value if _is_shutdown_time(value) else None


def _is_shutdown_time(value: Any) -> TypeGuard[float]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value <= MAX_SHUTDOWN_SECONDS


def _check_fork_options(config: Mapping[str, Any], key: str) -> None:
    preload = config.get("preload", [])
    if not isinstance(preload, list):
        raise SpecFault(f"{key}.preload", f"must be a list of texts, not {_kind(preload)}")
    for place, module in enumerate(preload):
        _text(module, f"{key}.preload[{place}]")
    for name, value in _object(config.get("limits", {}), f"{key}.limits").items():
        try:
            check_limit(name, value)
        except ValueError as error:
            raise SpecFault(f"{key}.limits", f"cannot be set: {error}") from None


def _check_entry(value: Any, key: str) -> None:
    """Raise `SpecFault` if a program cannot be given this as an argument or a variable's value."""
    text = _text(value, key)
    if "\0" in text:
        raise SpecFault(key, "holds a NUL character")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise SpecFault(key, "holds half of a surrogate pair") from None
    if size > MAX_ENTRY_BYTES:
        raise SpecFault(key, f"is larger than {MAX_ENTRY_BYTES} bytes")


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise SpecFault(key, f"must be a text, not {_kind(value)}")
    return value


def _object(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecFault(key, f"must be an object, not {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """The name of a value's type, in JSON's own words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "a text"
        case int() | float():
            return "a number"
        case list():
            return "a list"
    return "an object"


def _shown(name: str) -> str:
    return ascii(name[:MAX_NAME])
