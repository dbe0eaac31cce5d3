"""Every option of the service, once: its name, type, default and one sentence.

Read, in this order, from command-line flags (``--cull-interval``), the environment
(``KERNELKEEP_CULL_INTERVAL``) and the defaults. Options that Jupyter users know keep their name.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["Settings", "explain"]

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


def _words(value: Any) -> Any:
    """A list option may be written with commas, the way people write environment variables."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [word.strip() for word in value.split(",") if word.strip()]
    return value


Words = Annotated[list[str], NoDecode]


class Settings(BaseSettings):
    """The options, checked. Raises `pydantic.ValidationError`; see `explain`."""

    model_config = SettingsConfigDict(
        env_prefix="KERNELKEEP_",
        cli_prog_name="kernelkeep",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        extra="ignore",
        frozen=True,
    )

    # Where it listens
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8888, ge=0, le=65535, description="TCP port; 0 picks a free one.")

    # Where its files are
    root_dir: Path = Field(Path("."), description="Directory that kernels' paths are relative to.")
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
    open_docs: bool = Field(False, description="Serve /docs and /openapi.json without the token.")
    allow_remote_access: bool | None = Field(
        None,
        description="Accept any Host header; by default only when not listening on loopback.",
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

    # Kernels
    default_kernel_name: str = Field(
        "python3", description="Kernelspec that is started when a request names none."
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
        description="Seconds before a stopping kernel is killed; at half of it comes SIGTERM.",
    )
    autorestart: bool = Field(True, description="Restart a kernel that dies.")
    restart_limit: int = Field(
        5, ge=0, description="Deaths in a row after which a kernel is left dead."
    )
    kernel_env_allow: Words = Field(
        KERNEL_ENVIRONMENT,
        description="Variables of the server's environment that kernels get; * is a wildcard.",
    )

    # What is kept
    log_bytes: int = Field(
        64 * 2**20, ge=2**16, description="Bytes of messages kept in memory per kernel."
    )
    output_log_bytes: int = Field(
        2**20, ge=2**12, description="Bytes kept on disk of what a kernel's process itself writes."
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
    websocket_backlog_bytes: int = Field(
        16 * 2**20,
        ge=2**16,
        description="Bytes of requests that wait per kernel before clients are held back.",
    )

    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        "info", description="Least severe level that is logged."
    )

    _split = field_validator("local_hostnames", "kernel_env_allow", mode="before")(_words)

    @field_validator("root_dir", "state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("root_dir")
    @classmethod
    def _directory(cls, value: Path) -> Path:
        if not value.is_dir():
            raise ValueError(f"there is no directory {value}")
        return value

    @field_validator("allow_origin_pat")
    @classmethod
    def _pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _no_open_door(self) -> Settings:
        if self.auth == "none" and not self.listens_on_loopback:
            raise ValueError(f"auth=none is refused on {self.host}: it is not a loopback address")
        if self.auth == "none" and self.token.get_secret_value():
            raise ValueError("auth=none and a token exclude each other")
        return self

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def any_host(self) -> bool:
        """Whether a request may name any host (contract of Jupyter servers: off on loopback)."""
        if self.allow_remote_access is None:
            return not self.listens_on_loopback
        return self.allow_remote_access


def explain(error: ValidationError) -> str:
    """One line per wrong option: its flag, what is wrong, without repeating a value."""
    lines = []
    for item in error.errors(include_input=False, include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        option = ".".join(str(part) for part in item["loc"]).replace("_", "-")
        lines.append(f"--{option}: {message}" if option else message)
    return "\n".join(lines)
