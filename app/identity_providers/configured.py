"""The identity providers that the options name, in the order of asking, and the ways to log in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..managers.owners.scopes import InvalidScope, Scopes
from ..plugins import CannotLoad, from_extra
from ..settings import Settings

if TYPE_CHECKING:
    from .jupyterhub import JupyterHub
    from .logins import LoginWay
    from .oidc import OpenIDConnect

__all__ = ["configured_logins", "configured_providers"]


def configured_providers(settings: Settings) -> list[JupyterHub | OpenIDConnect]:
    """The identity providers that the options name; only their modules are imported.

    Raises `CannotLoad`.
    """
    try:
        Scopes.parse(settings.identity_default_scopes)
    except InvalidScope as error:
        raise CannotLoad(f"--identity-default-scopes: {error}") from None
    providers: list[JupyterHub | OpenIDConnect] = []
    if settings.jupyterhub_tokens:
        from .jupyterhub import JupyterHub

        providers.append(JupyterHub(settings))
    if settings.oidc_issuer:
        with from_extra("oidc", "oidc_issuer", "joserfc", "cryptography"):
            from .oidc import OpenIDConnect
        providers.append(OpenIDConnect(settings))
    return providers


def configured_logins(settings: Settings) -> dict[str, LoginWay]:
    """The ways to log in with a browser, by the word that stands for each in addresses."""
    ways: dict[str, LoginWay] = {}
    if settings.jupyterhub_tokens and settings.jupyterhub_client_secret.get_secret_value():
        from .hub_login import HubLogin

        ways["jupyterhub"] = HubLogin(settings)
    if settings.oidc_issuer and settings.oidc_client_id:
        from .oidc_login import OpenIDLogin

        ways["oidc"] = OpenIDLogin(settings)
    return ways
