"""The subprotocol by which a page in a browser shows its token when it opens a WebSocket.

A browser lets no script set the `Authorization` header of a WebSocket, and a token in the URL ends
up in the logs of proxies. So the token is one of the subprotocols that the client offers,
percent-encoded behind `TOKEN` and a dot. A browser gives up a WebSocket that is accepted without
one of the subprotocols that were offered, so the client offers `TOKEN` alone as well, or another
subprotocol that the server speaks [Jupyter Enhancement Proposal 121].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote

__all__ = ["TOKEN", "accepted", "token_in"]

TOKEN: Final = "v1.token.websocket.jupyter.org"

_PREFIX: Final = f"{TOKEN}."


def token_in(offered: Sequence[str]) -> str:
    """The token that is among the subprotocols which a client offers; empty if there is none."""
    for subprotocol in offered:
        if subprotocol.startswith(_PREFIX):
            return unquote(subprotocol.removeprefix(_PREFIX))
    return ""


def accepted(offered: Sequence[str], spoken: str | None = None) -> str | None:
    """The subprotocol to accept a WebSocket with, or None for none.

    ``spoken`` is the subprotocol of the framing, if that has one. The subprotocol with the token
    itself is never the answer: the token would stand in a header of the response.
    """
    if spoken is not None and spoken in offered:
        return spoken
    return TOKEN if TOKEN in offered and token_in(offered) else None
