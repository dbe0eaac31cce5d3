"""The kernel model of Jupyter's REST API, as JSON."""

from __future__ import annotations

from typing import Final

import msgspec

from ...protocol.messages import format_timestamp
from ..messages.traffic import Traffic
from ..owners.principal import ANONYMOUS
from ..state import KernelState, Restarts

__all__ = ["Model", "ModelCache"]

_encode: Final = msgspec.json.Encoder().encode


class Model(msgspec.Struct, omit_defaults=True):
    """The kernel model of Jupyter's REST API; a field that has its default is left out.

    `reason` is why the kernel is dead, or has no process just now. `restarts` tells of earlier
    deaths. `generation` is the number of the present process, from 1. `owner` is left out for what
    belongs to the one owner of a server that has no others.
    """

    id: str
    name: str
    last_activity: str
    execution_state: str
    connections: int
    generation: int
    reason: str = ""
    restarts: Restarts | None = None
    owner: str = ANONYMOUS


class ModelCache:
    """The model of one kernel, serialised once per change (`KernelState.changes`)."""

    def __init__(
        self, kernel_id: str, name: str, traffic: Traffic, state: KernelState, owner: str
    ) -> None:
        self._id = kernel_id
        self._name = name
        self._traffic = traffic
        self._state = state
        self._owner = owner
        self._changes = -1
        self._json = b""

    def own(self, owner: str) -> None:
        """Show this owner from now on."""
        self._owner = owner
        self._changes = -1

    @property
    def json(self) -> bytes:
        """The model as JSON."""
        traffic, state = self._traffic, self._state
        if self._changes != state.changes:
            model = Model(
                self._id,
                self._name,
                format_timestamp(traffic.last_activity),
                state.word,
                len(traffic.clients),
                state.generation,
                state.reason,
                state.restarts,
                self._owner,
            )
            self._changes, self._json = state.changes, _encode(model)
        return self._json
