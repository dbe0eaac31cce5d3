"""What a JupyterHub tells a service that it starts, in variables, as options."""

from __future__ import annotations

import os
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource

__all__ = ["HUB_TOKEN_VARIABLE", "HubEnvironment"]

HUB_TOKEN_VARIABLE: Final = "JUPYTERHUB_API_TOKEN"
"""The Hub gives a service its own token in it, which is the secret of its OAuth client, too."""

_switch: Final = TypeAdapter(bool)


class HubEnvironment(InitSettingsSource):
    """The source of what the Hub says, where the option ``jupyterhub_tokens`` is on.

    It counts less than all other sources. A server that is started by hand in a terminal of the
    Hub has such variables, too, which mean another service then; so they are not read without the
    option.
    """

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, {})

    def __call__(self) -> dict[str, Any]:
        """The options that the Hub's variables mean."""
        try:
            wanted = _switch.validate_python(self.current_state.get("jupyterhub_tokens", False))
        except ValidationError:
            return {}  # the option itself is refused
        return dict(_options(os.environ)) if wanted else {}


def _options(environment: Any) -> dict[str, Any]:
    # The Hub's proxy hands on requests with whatever Host the Hub has. Nothing is done for one
    # without a token, so no page of another site gains by a name that leads here.
    options: dict[str, Any] = {"allow_remote_access": True}
    names = {
        "jupyterhub_api_url": environment.get("JUPYTERHUB_API_URL", ""),
        "jupyterhub_service": environment.get("JUPYTERHUB_SERVICE_NAME", ""),
        "root_path": environment.get("JUPYTERHUB_SERVICE_PREFIX", "").rstrip("/"),
    }
    base = environment.get("JUPYTERHUB_BASE_URL", "")
    if base:
        names |= {
            "jupyterhub_url": f"{environment.get('JUPYTERHUB_HOST', '')}{base.rstrip('/')}/hub",
            "jupyterhub_client_id": environment.get("JUPYTERHUB_CLIENT_ID", ""),
            "jupyterhub_client_secret": environment.get(HUB_TOKEN_VARIABLE, ""),
        }
    options |= {name: value for name, value in names.items() if value}
    try:
        where = urlsplit(environment.get("JUPYTERHUB_SERVICE_URL", ""))
        host, port = where.hostname, where.port
    except ValueError:
        return options
    if host:
        options |= {"host": host} | ({"port": port} if port else {})
    return options
