"""Every option of the service, once: its name, type, default and one sentence.

Read, in this order, from command-line flags (``--cull-interval``), the environment
(``KERNELKEEP_CULL_INTERVAL``) and the defaults. Options that Jupyter users know keep their name.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from app.machine import machine_memory, network_file_system
from app.protocol.messages import UNTRACKED_MESSAGE_TYPES
from app.protocol.v1 import SUBPROTOCOL

__all__ = ["Settings", "explain"]

HAS_PIDFDS = sys.platform == "linux" and hasattr(os, "pidfd_open")
"""Whether kernels can outlive the server here."""

WARM_KERNEL_BYTES = 48 * 2**20
"""What a kernel with nothing to do takes, as a rule of thumb."""

FORK_AUTOMATICALLY = "auto"
FORK_NONE = "none"

MAX_EXECUTION_SECONDS = 31 * 86400
"""The longest timeout of an execution."""

KERNEL_ENVIRONMENT = [
    # What a program of any language needs to find its files, its language and its terminal.
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TZDIR"),
    *("TERM", "COLORTERM", "TMPDIR", "TEMP", "TMP", "XDG_*", "DISPLAY", "WAYLAND_DISPLAY"),
    # Where Jupyter, Python, Conda, R and Java look for their packages.
    *("JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"),
    *("JUPYTER_PLATFORM_DIRS", "IPYTHONDIR", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE"),
    *("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONIOENCODING", "PYTHONWARNINGS"),
    *("VIRTUAL_ENV", "CONDA_*", "MAMBA_*", "R_*", "JAVA_HOME", "LD_LIBRARY_PATH", "MPL*"),
    # Processors, accelerators and threads.
    *("CUDA_*", "NVIDIA_*", "ROCM_*", "OMP_*", "MKL_*", "OPENBLAS_*", "NUMEXPR_*"),
    # The way out, and the certificates to trust on it.
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    # What Windows programs cannot start without.
    *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "APPDATA", "LOCALAPPDATA"),
    *("USERPROFILE", "PROGRAMDATA", "PROGRAMFILES", "PROGRAMFILES(X86)"),
]


_ANY_ORIGINS = ("https://elsewhere.invalid", "http://elsewhere.invalid:1", "null")
"""Origins that nobody has: a pattern which fits one of them fits more than its author knows."""


def _words(value: Any) -> Any:
    """A list option may be written with commas, the way people write environment variables."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("not a JSON list of strings") from None
    return [word.strip() for word in value.split(",") if word.strip()]


def _counts(value: Any) -> Any:
    """Names with a number each, as ``python3=2,ir=1`` or as a JSON object."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("not a JSON object") from None
    elif isinstance(value, str):
        pairs = (word.partition("=") for word in value.split(",") if word.strip())
        value = {name.strip(): number.strip() for name, _, number in pairs}
    if not isinstance(value, dict):
        raise ValueError("not names with a number each, like python3=2,ir=1")
    for name, number in value.items():
        if not name or not re.fullmatch(r"[0-9]{1,4}", str(number)):
            raise ValueError(f"{str(name)[:40]!r} needs a number, like python3=2")
    return {name: int(number) for name, number in value.items()}


Words = Annotated[list[str], NoDecode]
Counts = Annotated[dict[str, int], NoDecode]
Paths = Annotated[list[Path], NoDecode]


# The docstring is what --help says first.
class Settings(BaseSettings):
    """Starts, drives and keeps Jupyter kernels. In the environment --port is KERNELKEEP_PORT."""

    # Made from wrong options it raises `pydantic.ValidationError`, or `SettingsError` for flags
    # that there are not; see `explain`.
    model_config = SettingsConfigDict(
        env_prefix="KERNELKEEP_",
        cli_prog_name="kernelkeep",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        allow_inf_nan=False,
        extra="ignore",
        frozen=True,
    )

    # Where it listens
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8888, ge=0, le=65535, description="TCP port; 0 picks a free one.")

    root_path: str = Field(
        "", description="Path prefix below which a proxy shows it; stripped by the proxy or not."
    )
    trusted_proxies: Words = Field(
        [],
        description="Addresses and networks (CIDR) of proxies whose X-Forwarded-For and "
        "X-Forwarded-Proto are believed.",
    )

    # Where its files are
    root_dir: Path = Field(Path("."), description="Directory that kernels' paths are relative to.")
    allow_contents: bool = Field(
        True, description="Serve the files below root_dir, to be read and changed."
    )
    state_dir: Path = Field(
        Path(platformdirs.user_state_dir("kernelkeep", appauthor=False)),
        description="Directory for the service's own files (0700).",
    )

    # Who may come in
    auth: Literal["token", "none"] = Field(
        "token", description="'none' lets everybody in; only on a loopback address."
    )
    token: SecretStr = Field(
        SecretStr(""), description="The token clients send; generated and printed when empty."
    )
    open_docs: bool = Field(
        False, description="Serve /docs, /openapi.json and /api/spec.yaml without the token."
    )
    serve_metrics: bool = Field(True, description="Serve /metrics for Prometheus.")
    authenticate_prometheus: bool = Field(True, description="Ask for the token at /metrics.")
    authorizer_class: str = Field(
        "kernelkeep.managers.authorization:AllowAll",
        description="What decides who may do what, as module:Class with a method is_authorized.",
    )
    allow_remote_access: bool | None = Field(
        None,
        description="Accept any Host header; by default only when not listening on loopback.",
    )
    allowed_hosts: Words = Field(
        [],
        description="The only names, local ones apart, that a Host header may have, *.example.org "
        "among them; empty: as allow_remote_access says.",
    )
    local_hostnames: Words = Field(
        ["localhost"], description="Host names taken for local when remote access is off."
    )
    allow_origin: str = Field("", description="Origin that may call from a browser; * for any.")
    allow_origin_pat: str = Field(
        "", description="Regular expression that the whole Origin must match."
    )
    allow_credentials: bool = Field(
        False, description="Send Access-Control-Allow-Credentials: true."
    )
    open_to_web_pages: bool = Field(
        False,
        description="Start with auth=none although allow_remote_access or allow_origin lets the "
        "web pages of others run code then.",
    )
    max_connections: int = Field(
        0,
        ge=0,
        description="Connections there may be at a time; 0: half as many as the process may have "
        "file descriptors.",
    )

    # Kernels
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
        description="How many kernels are kept ready of which kernelspecs: python3=2,ir=1; see "
        "docs/starting.md.",
    )
    warm_kernel_age: float = Field(
        3600.0, gt=0, description="Seconds after which one that nobody has claimed is replaced."
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
    on_shutdown: Literal["keep", "stop"] = Field(
        "keep",
        description="What becomes of the kernels when the server ends: they are kept for the next "
        "server with this state directory, or stop too; see docs/keeping.md.",
    )
    orphan_timeout: float = Field(
        86400.0,
        gt=0,
        description="Seconds without a server after which kernels that are kept are stopped.",
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
        "or a condition of every start; unless it is said, auto over tcp and off over ipc.",
    )
    allow_external_kernels: bool = Field(
        False, description="List kernels that others have started and left a connection file of."
    )
    external_connection_dir: Path | None = Field(
        None,
        description="Where those connection files are; by default external_kernels in Jupyter's "
        "runtime directory.",
    )
    external_networks: Words = Field(
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

    # Culling
    cull_idle_timeout: float = Field(
        0.0, ge=0, description="Seconds without use after which a kernel is stopped; 0 for never."
    )
    cull_interval: float = Field(
        300.0, gt=0, description="Seconds between two looks at which kernels are idle."
    )
    cull_connected: bool = Field(False, description="Cull kernels with open connections too.")
    cull_busy: bool = Field(False, description="Cull kernels that run something too.")
    untracked_message_types: Words = Field(
        sorted(UNTRACKED_MESSAGE_TYPES),
        description="Types of messages that are no sign of somebody at work.",
    )

    # What clients may send and see
    allowed_message_types: Words = Field(
        [], description="The only message types taken from clients, on every channel; empty: all."
    )
    allow_tracebacks: bool = Field(True, description="Let clients see the tracebacks of errors.")
    traceback_replacement_message: str = Field(
        "The error's details are not shown here, for reasons of security.",
        min_length=1,
        description="What stands in place of a traceback that is not allowed.",
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

    # What is kept
    database_filepath: str = Field(
        ":memory:",
        min_length=1,
        description="SQLite file (0600) that keeps the sessions; :memory: forgets them at the end.",
    )
    buffer_offline_messages: bool = Field(
        True, description="Send a client that returns what its session has missed."
    )
    session_retention: float = Field(
        86400.0, gt=0, description="Seconds for which the place of a session that left is kept."
    )
    log_bytes: int = Field(
        512 * 2**20, ge=2**16, description="Bytes of messages kept on disk per kernel."
    )
    log_total_bytes: int = Field(
        4 * 2**30, ge=2**16, description="Bytes of messages kept on disk of all kernels."
    )
    log_age: float = Field(86400.0, gt=0, description="Seconds after which messages are dropped.")
    output_log_bytes: int = Field(
        2**20, ge=2**12, description="Bytes kept on disk of what a kernel's process itself writes."
    )

    # Executions
    executions_kept: int = Field(
        1000, ge=1, description="Executions that have ended, and are remembered, per kernel."
    )
    execution_queue_limit: int = Field(
        100, ge=1, description="Executions asked for over HTTP that may wait, per kernel."
    )
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

    # WebSockets
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
    websocket_backlog_bytes: int = Field(
        16 * 2**20,
        ge=2**16,
        description="Bytes of requests that wait per kernel before clients are held back.",
    )

    # Logs
    audit_log: Path | None = Field(
        None, description="File (0600) for one JSON line per thing done: who, what, which kernel."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="How a line of the log looks: for people, or a JSON object."
    )
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        "info", description="Least severe level that is logged."
    )

    _split = field_validator(
        "trusted_proxies",
        "external_networks",
        "allowed_hosts",
        "local_hostnames",
        "allowed_kernelspecs",
        "kernel_argv",
        "fork_kernels",
        "kernel_env_allow",
        "client_env_allow",
        "extra_event_schema_paths",
        "untracked_message_types",
        "allowed_message_types",
        mode="before",
    )(_words)

    _counted = field_validator("warm_kernels", mode="before")(_counts)

    @field_validator("root_dir", "state_dir", "external_connection_dir", "audit_log")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        try:
            return value.expanduser().resolve()
        except (OSError, RuntimeError) as error:  # nobody's home, a loop of links, a name too long
            raise ValueError(getattr(error, "strerror", None) or str(error)) from None

    @field_validator("root_dir")
    @classmethod
    def _directory(cls, value: Path) -> Path:
        if not os.path.isdir(value):  # Path.is_dir raises for a name that is too long
            raise ValueError(f"there is no directory {value}")
        return value

    @field_validator("external_connection_dir")
    @classmethod
    def _no_file(cls, value: Path | None) -> Path | None:
        if value is not None and os.path.exists(value) and not os.path.isdir(value):
            raise ValueError(f"{value} is no directory")
        return value

    @field_validator("database_filepath")
    @classmethod
    def _absolute_file(cls, value: str) -> str:
        return value if value == ":memory:" else os.path.abspath(os.path.expanduser(value))

    @field_validator("root_path")
    @classmethod
    def _prefix(cls, value: str) -> str:
        if value and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", value):
            raise ValueError("not a path like /kernels, with no slash behind it")
        if value.split("/", 2)[1:2] in (["api"], ["docs"], ["kernelspecs"], ["metrics"]):
            raise ValueError("cannot be told from a path of the service itself")
        return value

    @field_validator("trusted_proxies", "external_networks")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for network in value:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ValueError("not an IP address or network, like 10.0.0.0/8") from None
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        for name in value:
            if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:]+", name):
                raise ValueError("not a host name like lab.example.org, with no port")
        return value

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

    @field_validator("token")
    @classmethod
    def _sendable(cls, value: SecretStr) -> SecretStr:
        token = value.get_secret_value()
        if token != token.strip() or not token.isprintable():
            raise ValueError("no client can send a token with such a character in it")
        return value

    @field_validator("allow_origin")
    @classmethod
    def _origin(cls, value: str) -> str:
        parts = urlsplit(value)
        if value not in ("", "*", f"{parts.scheme}://{parts.netloc}"):
            raise ValueError("not an origin, like https://lab.example.org with nothing behind it")
        return value

    @field_validator("kernel_ws_protocol")
    @classmethod
    def _spoken(cls, value: str | None) -> str | None:
        if value not in (None, "", SUBPROTOCOL):
            raise ValueError(f"only {SUBPROTOCOL} is spoken, and the legacy framing (empty)")
        return value

    @field_validator("allow_origin_pat")
    @classmethod
    def _pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
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

    @model_validator(mode="after")
    def _room_for_the_warm(self) -> Settings:
        wanted = sum(self.warm_kernels.values())
        if self.max_kernels and wanted > self.max_kernels:
            raise ValueError(
                f"warm_kernels: {wanted} are more than could ever be used: "
                f"max_kernels is {self.max_kernels}"
            )
        return self

    @model_validator(mode="after")
    def _default_within_the_most(self) -> Settings:
        if 0 < self.execution_timeout_max < self.execution_timeout_default:
            raise ValueError(
                f"execution_timeout_default: {self.execution_timeout_default:g} s are more than "
                f"execution_timeout_max allows, which is {self.execution_timeout_max:g} s"
            )
        return self

    @model_validator(mode="after")
    def _runs_here(self) -> Settings:
        if not HAS_PIDFDS:
            raise ValueError("this takes Linux 5.3 or newer")
        return self

    @model_validator(mode="after")
    def _no_open_door(self) -> Settings:
        if self.auth == "none" and not self.listens_on_loopback:
            raise ValueError(f"auth=none is refused on {self.host}: it is not a loopback address")
        if self.auth == "none" and self.token.get_secret_value():
            raise ValueError("auth=none and a token exclude each other")
        opened_by = self._opened_to_web_pages_by
        if self.auth == "none" and opened_by and not self.open_to_web_pages:
            raise ValueError(
                f"auth=none with {opened_by} lets any web page run code; if that is meant, set "
                "open_to_web_pages"
            )
        return self

    @property
    def _opened_to_web_pages_by(self) -> str:
        """The option that lets web pages of anybody through; empty if none does."""
        if self.any_host and not self.allowed_hosts:
            return "allow_remote_access"
        if self.allow_origin == "*":
            return "allow_origin=*"
        pattern = self.allow_origin_pat
        if pattern and any(re.fullmatch(pattern, origin) for origin in _ANY_ORIGINS):
            return "an allow_origin_pat that fits any origin"
        return ""

    @property
    def forked_by_name(self) -> list[str]:
        """The kernelspecs that somebody has named to be forked."""
        if self.fork_kernels in ([FORK_AUTOMATICALLY], [FORK_NONE]):
            return []
        return self.fork_kernels

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    @cached_property
    def keeps(self) -> bool:
        """Whether kernels outlive the server: as somebody has said, or wherever that is of use."""
        if "on_shutdown" in self.model_fields_set:
            return self.on_shutdown == "keep"
        return not self.why_not_kept

    @cached_property
    def why_not_kept(self) -> str:
        """Why kernels are not kept here by default; empty if they are."""
        if os.getpid() == 1:
            return "it is process 1, with which all others of its container end"
        places = (self.state_dir, *self.state_dir.parents)
        network = network_file_system(next(filter(os.path.exists, places)))
        if network is not None:
            return f"the state directory is on a network file system ({network})"
        return ""

    @property
    def sessions_filepath(self) -> str:
        """Where sessions are kept: if kernels outlive the server, so do those."""
        if self.keeps and self.database_filepath == ":memory:":
            return str(self.state_dir / "sessions.sqlite")
        return self.database_filepath

    @property
    def any_host(self) -> bool:
        """Whether a request may name any host (contract of Jupyter servers: off on loopback)."""
        if self.allow_remote_access is None:
            return not self.listens_on_loopback
        return self.allow_remote_access


def explain(error: ValidationError | SettingsError) -> str:
    """One line per wrong option: its flag, what is wrong, without repeating a value."""
    if isinstance(error, SettingsError):
        return _explain_flags(str(error).removeprefix("error parsing CLI: "))
    lines = []
    for item in error.errors(include_input=False, include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        option = ".".join(str(part) for part in item["loc"]).replace("_", "-")
        lines.append(f"--{option}: {message}" if option else message)
    return "\n".join(lines)


def _explain_flags(problem: str) -> str:
    """What argparse says, in one line; what follows an unknown flag may be a secret."""
    _, unknown, arguments = problem.partition("unrecognized arguments: ")
    if not unknown:
        return problem.removeprefix("argument ")
    flags = [word.partition("=")[0] for word in arguments.split() if word.startswith("-")]
    return f"{', '.join(flags) or 'an argument without an option'}: not known; see --help"
