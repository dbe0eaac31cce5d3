"""What a JupyterHub tells a service that it starts, in variables, as options."""

from __future__ import annotations

import os
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource

__all__ = ["HUB_TOKEN_VARIABLE", "HubEnvironment"]

HUB_TOKEN_VARIABLE: Final = "JUPYTERHUB_API_TOKEN"
"""The variable in which the Hub gives a service its token, which is the secret of the service's
OAuth client, too."""

_switch: Final = TypeAdapter(bool)


class HubEnvironment(InitSettingsSource):
    """The source of options that reads the Hub's variables, if ``jupyterhub_tokens`` is on.

    It counts less than all other sources. A server that is started by hand in a terminal of the Hub
    has such variables, too, but they are about another service: so they are not read without the
    option.
    """

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, {})

    def __call__(self) -> dict[str, Any]:
        """The options by name, as the Hub's variables tell them."""
        try:
            wanted = _switch.validate_python(self.current_state.get("jupyterhub_tokens", False))
        except ValidationError:
            return {}  # `Settings` itself refuses the wrong value of the option
        return dict(_options(os.environ)) if wanted else {}


def _options(environment: Any) -> dict[str, Any]:
    # The Hub's proxy forwards requests with whatever Host the Hub has, so any Host is allowed. That
    # is safe: nothing is done for a request without a token, so a page of another site gains
    # nothing by a name that leads here (DNS rebinding).
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
