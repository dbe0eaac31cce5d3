"""The options as they were given: on the command line, in the environment, in a file.

A flag (``--cull-interval``) counts more than the environment (``KERNELKEEP_CULL_INTERVAL``), and
that more than the file (``cull_interval``); what none of them says has its default.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from .config_file import CONFIG_FILE, ConfigFile, UnusableConfigFile
from .hub_environment import HubEnvironment
from .machine import network_file_system
from .options import (
    FORK_AUTOMATICALLY,
    FORK_NONE,
    Access,
    Agents,
    Clients,
    Culling,
    Engines,
    Execution,
    Files,
    Identity,
    Isolation,
    JupyterHub,
    Keeper,
    Kernels,
    Listening,
    Log,
    OpenIDConnect,
    OwnerLimits,
    Replicas,
    WebSocket,
)

__all__ = ["Settings", "explain", "refuse"]

RUNS_HERE = os.name == "posix"
"""Whether the service runs on this platform: it needs process groups, unix sockets, file locks."""

_ANY_ORIGINS = ("https://elsewhere.invalid", "http://elsewhere.invalid:1", "null")
"""Origins that no page has. A pattern that fits one of them fits the pages of anybody, which its
author has hardly meant."""


# The docstring is what --help says first.
# pydantic takes the fields of the last base first.
class Settings(
    Log,
    Replicas,
    Agents,
    Engines,
    Keeper,
    Execution,
    WebSocket,
    Culling,
    Clients,
    Isolation,
    Kernels,
    OwnerLimits,
    OpenIDConnect,
    JupyterHub,
    Identity,
    Access,
    Files,
    Listening,
    BaseSettings,
):
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
        hide_input_in_errors=True,
        extra="ignore",
        frozen=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources in the order in which they count; flags come before them all."""
        given = (init_settings, env_settings, dotenv_settings, file_secret_settings)
        return (*given, ConfigFile(settings_cls), HubEnvironment(settings_cls))

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
        if not RUNS_HERE:
            raise ValueError("this takes Linux or macOS")
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

    @model_validator(mode="after")
    def _who_is_who(self) -> Settings:
        asks = [self.jupyterhub_tokens, bool(self.oidc_issuer)]
        if self.auth == "none" and any(asks):
            raise ValueError("auth=none lets everybody in, whoever a service says it is")
        if self.jupyterhub_tokens and not self.jupyterhub_api_url:
            raise ValueError(
                "jupyterhub_api_url: it takes one with jupyterhub_tokens, for there is no "
                "JUPYTERHUB_API_URL"
            )
        if self.jupyterhub_client_secret.get_secret_value() and not self.jupyterhub_url:
            raise ValueError("jupyterhub_url: it takes one with jupyterhub_client_secret")
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError(
                "oidc_audience: it takes one with oidc_issuer, or tokens for others would do"
            )
        return self

    @model_validator(mode="after")
    def _owners_apart(self) -> Settings:
        if self.isolation == "none":
            return self
        directory = self.isolation_dir
        if directory is None:
            raise ValueError("isolation_dir: it takes a directory for the homes with isolation")
        for option, is_on, why in (
            ("warm_kernels", self.warm_kernels, "a warm kernel has no owner yet"),
            ("fork_kernels", self.forked_by_name, "forked kernels see what their fork server sees"),
            ("allow_external_kernels", self.allow_external_kernels, "others have started those"),
        ):
            if is_on:
                raise ValueError(f"{option}: not with isolation={self.isolation}: {why}")
        if _overlap(directory, self.state_dir):
            raise ValueError("isolation_dir: neither may be in the other, it and state_dir")
        serves_root = self.allow_contents and not self.files_by_owner
        if serves_root and _overlap(directory, self.root_dir):
            raise ValueError(
                "isolation_dir: neither may be in the other, it and root_dir, whose files the "
                "service serves with its own rights (unless allow_contents=false or "
                "files_by_owner)"
            )
        if (
            self.isolation == "bubblewrap"
            and self.transport == "tcp"
            and not self.isolation_network
        ):
            raise ValueError(
                "transport: a kernel with a network of its own cannot be reached over tcp: see "
                "isolation_network"
            )
        if self.isolation == "user" and not (self.isolation_uids or self.isolation_accounts):
            raise ValueError("isolation_uids: isolation=user takes them, or isolation_accounts")
        return self

    @model_validator(mode="after")
    def _replicated(self) -> Settings:
        if not self.replicated and self.replica_listen:
            raise ValueError("replica_listen: not without registry_url")
        for option, value in (
            ("replica_address", self.replica_address),
            ("replica_certificate", self.replica_certificate),
        ):
            if value and not self.replica_listen:
                raise ValueError(f"{option}: not without replica_listen")
        if not self.replicated:
            return self
        if not self.keeps:
            why = f": {self.why_not_kept}" if self.why_not_kept else ""
            raise ValueError(f"registry_url: other replicas take kernels over that are kept{why}")
        if self.wants_token:
            raise ValueError("token: replicas need one that all of them have")
        if self.allow_external_kernels:
            raise ValueError(
                "allow_external_kernels: not with registry_url: every replica of the host would "
                "find the same kernels, and none could take them over"
            )
        if self.database_filepath != ":memory:":
            raise ValueError(
                "database_filepath: not with registry_url, where the sessions are of all replicas"
            )
        return self

    @property
    def replicated(self) -> bool:
        """Whether this server shares its registry with other replicas."""
        return bool(self.registry_url.get_secret_value())

    @property
    def wants_token(self) -> bool:
        """Whether the server has to make a token, as nobody could use it otherwise.

        With an identity provider no token is made: it could do everything, and it would be in the
        log of whatever has started the server.
        """
        asks_others = self.jupyterhub_tokens or self.oidc_issuer
        return self.auth == "token" and not self.token.get_secret_value() and not asks_others

    @property
    def _opened_to_web_pages_by(self) -> str:
        """The option that lets any web page send requests; empty if none does."""
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
        """The kernelspecs that the option names to be forked."""
        if self.fork_kernels in ([FORK_AUTOMATICALLY], [FORK_NONE]):
            return []
        return self.fork_kernels

    @property
    def only_ipc(self) -> bool:
        """Whether kernels have networks of their own, in which nobody reaches them over TCP."""
        return self.isolation == "bubblewrap" and not self.isolation_network

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def config_files(self) -> set[Path]:
        """The configuration files of this server and of the next one, by each of their names.

        If a name is a link, the path to which it leads is there as well.
        """
        names = {Path(CONFIG_FILE), self.config or Path(CONFIG_FILE)}
        try:
            files = [name.expanduser().absolute() for name in names]
        except FileNotFoundError:  # the working directory is gone, and nothing can be put into it
            return set()
        places = {file.parent.resolve() / file.name for file in files}
        return places | {file.resolve() for file in files}

    @cached_property
    def keeps(self) -> bool:
        """Whether kernels outlive the server: as `on_shutdown` says, or by `why_not_kept`."""
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
        """The path of the file of the sessions: if kernels outlive the server, sessions do, too."""
        if self.keeps and self.database_filepath == ":memory:":
            return str(self.state_dir / "sessions.sqlite")
        return self.database_filepath

    @property
    def any_host(self) -> bool:
        """Whether a request may name any host (contract of Jupyter servers: off on loopback)."""
        if self.allow_remote_access is None:
            return not self.listens_on_loopback
        return self.allow_remote_access


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def explain(error: ValidationError | SettingsError) -> str:
    """One line per wrong option: its flag, what is wrong, without repeating a value."""
    if isinstance(error, UnusableConfigFile):
        return str(error)
    if isinstance(error, SettingsError):
        return _explain_flags(str(error).removeprefix("error parsing CLI: "))
    lines = []
    for item in error.errors(include_input=False, include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        option = ".".join(str(part) for part in item["loc"]).replace("_", "-")
        lines.append(f"--{option}: {message}" if option else message)
    return "\n".join(lines)


def refuse(message: str) -> NoReturn:
    """Print why the service does not start, and exit with 2."""
    for line in message.splitlines():
        print(f"kernelkeep: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def _explain_flags(problem: str) -> str:
    """The error of argparse, in one line; the value of an unknown flag may be a secret, and is left
    out."""
    _, unknown, arguments = problem.partition("unrecognized arguments: ")
    if not unknown:
        return problem.removeprefix("argument ")
    flags = [word.partition("=")[0] for word in arguments.split() if word.startswith("-")]
    return f"{', '.join(flags) or 'an argument without an option'}: not known; see --help"
