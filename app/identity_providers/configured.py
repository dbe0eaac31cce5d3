"""The identity providers that the options name, in the order in which they are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..managers.owners.scopes import InvalidScope, Scopes
from ..plugins import CannotLoad
from ..settings import Settings

if TYPE_CHECKING:
    from .jupyterhub import JupyterHub
    from .oidc import OpenIDConnect

__all__ = ["configured_providers"]


def configured_providers(settings: Settings) -> list[JupyterHub | OpenIDConnect]:
    """The providers. Only what is needed is imported. Raises `CannotLoad`."""
    try:
        Scopes.parse(settings.identity_default_scopes)
    except InvalidScope as error:
        raise CannotLoad(f"--identity-default-scopes: {error}") from None
    providers: list[JupyterHub | OpenIDConnect] = []
    if settings.jupyterhub_tokens:
        from .jupyterhub import JupyterHub

        providers.append(JupyterHub(settings))
    if settings.oidc_issuer:
        try:
            from .oidc import OpenIDConnect
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("joserfc", "cryptography"):
                raise
            raise CannotLoad("--oidc-issuer: it takes pip install 'kernelkeep[oidc]'") from None
        providers.append(OpenIDConnect(settings))
    return providers
