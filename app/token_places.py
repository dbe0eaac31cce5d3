"""Where the list of tokens is: in the state directory, or in the registry that replicas share."""

from __future__ import annotations

from pathlib import Path

from .managers.owners.token_table import TokenPlace
from .managers.owners.tokens import TokenFile
from .plugins import from_extra

__all__ = ["token_place"]


def token_place(registry_url: str, state_dir: Path) -> TokenPlace:
    """The place of the list of tokens of a server with these options. Raises `CannotLoad`."""
    if not registry_url:
        return TokenFile(state_dir)
    with from_extra("postgresql", "registry_url", "psycopg"):
        from .managers.replicas.tokens import SharedTokensPlace
    return SharedTokensPlace(registry_url)
