"""Every option of the service, once: its name, type, default and one sentence, in groups.

An option has the same name in a file, in the environment and as a flag. Options that Jupyter users
know keep their name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Final, Literal

import platformdirs
from pydantic import Field, field_validator

from .access_options import Access
from .agent_options import Agents
from .engine_options import Engines
from .identity_options import Identity, JupyterHub, OpenIDConnect
from .isolation_options import Isolation
from .limit_options import OwnerLimits
from .machine import machine_memory
from .option_types import (
    AbsolutePath,
    AbsolutePathOrNone,
    Counts,
    Networks,
    OptionGroup,
    Paths,
    Words,
    spelled,
)
from .protocol.messages import UNTRACKED_MESSAGE_TYPES
from .protocol.v1 import SUBPROTOCOL
from .replica_options import Replicas

__all__ = [
    "FORK_AUTOMATICALLY",
    "FORK_NONE",
    "GROUPS",
    "KERNEL_ENVIRONMENT",
    "MAX_EXECUTION_SECONDS",
    "Access",
    "Agents",
    "Engines",
    "Identity",
    "Isolation",
    "JupyterHub",
    "OpenIDConnect",
    "OptionGroup",
    "OwnerLimits",
    "Replicas",
]

WARM_KERNEL_BYTES = 48 * 2**20
"""Bytes of memory that an idle kernel takes, as a rule of thumb."""

FORK_AUTOMATICALLY = "auto"
FORK_NONE = "none"

MAX_EXECUTION_SECONDS = 31 * 86400
"""The longest timeout of an execution, in seconds."""

KERNEL_ENVIRONMENT = [
    # Programs of any language find their files, their language and their terminal by these.
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TZDIR"),
    *("TERM", "COLORTERM", "TMPDIR", "TEMP", "TMP", "XDG_*", "DISPLAY", "WAYLAND_DISPLAY"),
    # Jupyter, Python, Conda, R and Java look for their packages there.
    *("JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"),
    *("JUPYTER_PLATFORM_DIRS", "IPYTHONDIR", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE"),
    *("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONIOENCODING", "PYTHONWARNINGS"),
    *("VIRTUAL_ENV", "CONDA_*", "MAMBA_*", "R_*", "JAVA_HOME", "LD_LIBRARY_PATH", "MPL*"),
    # Processors, accelerators and threads.
    *("CUDA_*", "NVIDIA_*", "ROCM_*", "OMP_*", "MKL_*", "OPENBLAS_*", "NUMEXPR_*"),
    # Proxies, and the certificates to trust.
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    # Programs on Windows cannot start without these.
    *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "APPDATA", "LOCALAPPDATA"),
    *("USERPROFILE", "PROGRAMDATA", "PROGRAMFILES", "PROGRAMFILES(X86)"),
]


class Listening(OptionGroup):
    """Where the service listens."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8888, ge=0, le=65535, description="TCP port; 0 picks a free one.")
    root_path: Annotated[
        str,
        spelled(r"(/[A-Za-z0-9._~-]+)+", "not a path like /kernels, with no slash behind it"),
    ] = Field(
        "",
        description="Path prefix below which a proxy shows the service; the proxy may strip it or "
        "not.",
    )
    trusted_proxies: Networks = Field(
        [],
        description="Addresses and networks (CIDR) of proxies whose X-Forwarded-For and "
        "X-Forwarded-Proto are believed.",
    )

    @field_validator("root_path")
    @classmethod
    def _prefix(cls, value: str) -> str:
        if value.split("/", 2)[1:2] in (["api"], ["docs"], ["kernelspecs"], ["metrics"], ["page"]):
            raise ValueError("cannot be told from a path of the service itself")
        return value


class Files(OptionGroup):
    """Where the service's files are."""

    root_dir: AbsolutePath = Field(
        Path("."), description="Directory that kernels' paths are relative to."
    )
    allow_contents: bool = Field(
        True, description="Serve the files below root_dir, to be read and changed."
    )
    files_by_owner: bool = Field(
        False,
        description="Give each owner a directory of the owner's own, in root_dir or, with "
        "isolation, the home: the owner's kernels work in it, and no other files are served.",
    )
    state_dir: AbsolutePath = Field(
        Path(platformdirs.user_state_dir("kernelkeep", appauthor=False)),
        description="Directory for the service's own files (0700).",
    )
    config: Path | None = Field(
        None,
        description="TOML file with options; by default kernelkeep.toml in the working directory, "
        "if there is one.",
    )

    @field_validator("root_dir")
    @classmethod
    def _directory(cls, value: Path) -> Path:
        if not os.path.isdir(value):  # Path.is_dir raises for a name that is too long
            raise ValueError(f"there is no directory {value}")
        return value


class Kernels(OptionGroup):
    """Kernels."""

    default_kernel_name: str = Field(
        "python3",
        min_length=1,
        description="Kernelspec that is started when a request names none.",
    )
    max_kernels: int = Field(
        0, ge=0, description="Kernels there may be at a time, dead ones not counted; 0 for any."
    )
    max_concurrent_starts: int = Field(
        8, ge=1, description="Kernels that start at a time; others wait for their turn."
    )
    start_queue_limit: int = Field(
        100, ge=0, description="Kernels that may wait for their turn to start."
    )
    fork_kernels: Words = Field(
        [FORK_AUTOMATICALLY],
        description="Kernelspecs of Python kernels that are forked from an interpreter which has "
        "imported ipykernel already; auto: all that can be, from the second start on; none; see "
        "docs/starting.md.",
    )
    warm_kernels: Counts = Field(
        {},
        description="How many kernels of each kernelspec are kept ready: python3=2,ir=1; see "
        "docs/starting.md.",
    )
    transport: Literal["auto", "ipc", "tcp"] = Field(
        "auto",
        description="How to reach local kernels: ipc sockets, tcp on loopback, or what works.",
    )
    kernel_info_timeout: float = Field(
        60.0, gt=0, description="Seconds that a kernel may take to become ready."
    )
    shutdown_wait_time: float = Field(
        5.0,
        gt=0,
        description="Seconds that a kernel has to end by itself when it is stopped; then comes "
        "SIGTERM, and SIGKILL 2 s later. A kernelspec's `metadata.shutdown_wait_time` comes first.",
    )
    autorestart: bool = Field(True, description="Restart a kernel that dies.")
    restart_limit: int = Field(
        5, ge=0, description="Deaths in a row after which a kernel is left dead."
    )
    allowed_kernelspecs: Words = Field(
        [], description="Names of the only kernelspecs that may be seen and started; empty: all."
    )
    kernel_argv: Words = Field([], description="Arguments added to the command of every kernel.")
    transport_encryption: Literal["disabled", "auto", "required"] = Field(
        "disabled",
        description="CurveZMQ between server and kernels: off, for kernels that declare support, "
        "or required of every kernel; if this is not set, auto over tcp and off over ipc.",
    )
    allow_external_kernels: bool = Field(
        False,
        description="List kernels of other programs, by the connection files that these leave.",
    )
    external_connection_dir: AbsolutePathOrNone = Field(
        None,
        description="Where those connection files are; by default external_kernels in Jupyter's "
        "runtime directory.",
    )
    external_networks: Networks = Field(
        [],
        description="Networks (CIDR) in which such a kernel may be, beside this machine.",
    )
    kernel_env_allow: Words = Field(
        KERNEL_ENVIRONMENT,
        description="Variables of the server's environment that kernels get; * is a wildcard.",
    )
    client_env_allow: Words = Field(
        ["KERNEL_*", "TZ", "LANG", "LC_*"],
        description="Variables that a client who may start kernels, but not execute code, may give "
        "a kernel; * is a wildcard.",
    )
    client_env_code: bool = Field(
        True,
        description="Let clients that may execute code give a kernel the variables by which "
        "loaders and interpreters run code: LD_PRELOAD, PYTHONPATH and the like.",
    )
    extra_event_schema_paths: Paths = Field(
        [], description="Files with the schemas of further events that may be posted."
    )

    @field_validator("fork_kernels")
    @classmethod
    def _which_are_forked(cls, value: list[str]) -> list[str]:
        if len(value) > 1 and {FORK_AUTOMATICALLY, FORK_NONE} & {name.lower() for name in value}:
            raise ValueError("names of kernelspecs, or auto, or none: not one beside another")
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
                raise ValueError("not the name of a kernelspec, like python3")
        words = ([FORK_AUTOMATICALLY], [FORK_NONE])
        return next((word for word in words if [name.lower() for name in value] == word), value)

    @field_validator("external_connection_dir")
    @classmethod
    def _no_file(cls, value: Path | None) -> Path | None:
        if value is not None and os.path.exists(value) and not os.path.isdir(value):
            raise ValueError(f"{value} is no directory")
        return value

    @field_validator("warm_kernels")
    @classmethod
    def _fits_the_machine(cls, value: dict[str, int]) -> dict[str, int]:
        memory = machine_memory()
        if memory and sum(value.values()) * WARM_KERNEL_BYTES > memory:
            raise ValueError(
                f"{sum(value.values())} kernels at {WARM_KERNEL_BYTES // 2**20} MiB each are more "
                f"than the {memory // 2**20} MiB of memory allow"
            )
        return value


class Clients(OptionGroup):
    """What clients may send and see."""

    allowed_message_types: Words = Field(
        [], description="The only message types taken from clients, on every channel; empty: all."
    )
    allow_tracebacks: bool = Field(True, description="Let clients see the tracebacks of errors.")
    traceback_replacement_message: str = Field(
        "The error's details are not shown here, for reasons of security.",
        min_length=1,
        description="What stands in place of a traceback that is not allowed.",
    )


class Culling(OptionGroup):
    """Culling."""

    table = "culling"

    cull_idle_timeout: float = Field(
        0.0, ge=0, description="Seconds without use after which a kernel is stopped; 0 for never."
    )
    cull_interval: float = Field(
        300.0, gt=0, description="Seconds between two checks for idle kernels."
    )
    cull_connected: bool = Field(False, description="Cull kernels with open connections too.")
    cull_busy: bool = Field(False, description="Cull kernels that run something too.")
    untracked_message_types: Words = Field(
        sorted(UNTRACKED_MESSAGE_TYPES),
        description="Types of messages that are no sign of somebody at work.",
    )


class WebSocket(OptionGroup):
    """WebSockets."""

    table = "websocket"

    websocket_max_message_size: int = Field(
        64 * 2**20, ge=2**16, description="Bytes of the largest frame taken from a client."
    )
    websocket_ping_interval: float = Field(
        30.0, ge=0, description="Seconds between pings; 0 sends none."
    )
    websocket_ping_timeout: float = Field(
        90.0, gt=0, description="Seconds without a pong after which a client is taken for gone."
    )
    websocket_compression: bool = Field(
        False, description="Offer permessage-deflate to clients; costs far more than it saves here."
    )
    kernel_ws_protocol: str | None = Field(
        None,
        description="The one WebSocket subprotocol spoken with kernels' clients; empty for the "
        "legacy framing only, unset for what the client prefers.",
    )
    kernel_websocket_connection_class: str = Field(
        "kernelkeep.ws.channels:ChannelsConnection",
        description="The class of a client's connection, as module:Class.",
    )
    limit_rate: bool = Field(
        True, description="Limit how much live output a connection is sent; see the two limits."
    )
    iopub_msg_rate_limit: float = Field(
        1000.0, description="Messages of output a second per connection; 0 or less for no limit."
    )
    iopub_data_rate_limit: float = Field(
        1_000_000.0,
        description="Bytes of stream output a second per connection; 0 or less for no limit.",
    )
    rate_limit_window: float = Field(
        3.0, gt=0, description="Seconds over which the two rates are taken."
    )

    @field_validator("kernel_ws_protocol")
    @classmethod
    def _spoken(cls, value: str | None) -> str | None:
        if value not in (None, "", SUBPROTOCOL):
            raise ValueError(f"only {SUBPROTOCOL} is spoken, and the legacy framing (empty)")
        return value


class Execution(OptionGroup):
    """Executions."""

    table = "execution"

    execution_wait_limit: float = Field(
        300.0, ge=0, description="Seconds that a request may wait for an execution to end."
    )
    execution_timeout_default: float = Field(
        0.0,
        ge=0,
        le=MAX_EXECUTION_SECONDS,
        description="Seconds that code asked for over HTTP may run if the request says nothing; 0: "
        "as many as execution_timeout_max.",
    )
    execution_timeout_max: float = Field(
        0.0,
        ge=0,
        le=MAX_EXECUTION_SECONDS,
        description="The most seconds that code asked for over HTTP may run; 0 for any number.",
    )
    execution_interrupt_grace: float = Field(
        5.0,
        ge=0,
        description="Seconds between the interrupt of an execution that has passed its timeout and "
        "the kill.",
    )
    stream_keepalive: float = Field(
        10.0, gt=0, description="Seconds of silence in an HTTP stream after which a blank is sent."
    )


class Keeper(OptionGroup):
    """What outlives the server."""

    table = "keeper"

    on_shutdown: Literal["keep", "stop"] = Field(
        "keep",
        description="What becomes of the kernels when the server ends: they are kept for the next "
        "server with this state directory, or stop too; see docs/keeping.md.",
    )
    orphan_timeout: float = Field(
        86400.0,
        gt=0,
        description="Seconds without a server after which kernels that outlived it are stopped.",
    )
    database_filepath: str = Field(
        ":memory:",
        min_length=1,
        description="SQLite file (0600) for the sessions; :memory: forgets them at the end.",
    )
    buffer_offline_messages: bool = Field(
        True, description="Send a client that returns what its session has missed."
    )
    log_bytes: int = Field(
        512 * 2**20, ge=2**16, description="Bytes of messages on disk per kernel."
    )
    log_total_bytes: int = Field(
        4 * 2**30, ge=2**16, description="Bytes of messages on disk of all kernels."
    )
    log_age: float = Field(86400.0, gt=0, description="Seconds after which messages are dropped.")

    @field_validator("database_filepath")
    @classmethod
    def _absolute_file(cls, value: str) -> str:
        return value if value == ":memory:" else os.path.abspath(os.path.expanduser(value))


class Log(OptionGroup):
    """Logs."""

    table = "log"

    audit_log: AbsolutePathOrNone = Field(
        None,
        description="File (0600) of the audit log: a JSON line for each action, with who did what "
        "to which kernel, share, session, file or token.",
    )
    audit_log_bytes: int = Field(
        100 * 2**20,
        ge=0,
        description="Bytes of that file, after which it becomes FILE.1 and a new one is begun; 0 "
        "for any, if logrotate moves it.",
    )
    audit_log_files: int = Field(
        9, ge=1, le=1000, description="Older files of the audit log that are kept."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="How a line of the log looks: for people, or a JSON object."
    )
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        "info", description="Least severe level that is logged."
    )


GROUPS: Final[tuple[type[OptionGroup], ...]] = (
    Listening,
    Files,
    Access,
    Identity,
    JupyterHub,
    OpenIDConnect,
    OwnerLimits,
    Kernels,
    Isolation,
    Clients,
    Culling,
    WebSocket,
    Execution,
    Keeper,
    Replicas,
    Engines,
    Agents,
    Log,
)
"""All groups, in the order in which the documentation has them."""
