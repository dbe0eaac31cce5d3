"""The kernel model of Jupyter's REST API, as JSON."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from ...protocol.messages import format_timestamp
from ..messages.traffic import Traffic
from ..owners.principal import ANONYMOUS
from ..state import KernelState, Restarts

__all__ = ["KernelModel", "ModelCache"]

_encode: Final = msgspec.json.Encoder().encode


class KernelModel(msgspec.Struct, omit_defaults=True):
    """A kernel."""

    id: Annotated[str, Meta(description="The kernel's id, a UUID.")]
    name: Annotated[str, Meta(description="The name of its kernelspec, as it was asked for.")]
    last_activity: Annotated[
        str,
        Meta(
            description="When it was last used: UTC, `%Y-%m-%dT%H:%M:%S.%fZ`.",
            examples=["2026-11-22T14:49:48.797413Z"],
        ),
    ]
    execution_state: Annotated[
        str,
        Meta(
            description="`starting`, `idle`, `busy`, `restarting`, `terminating`, `dead`, "
            "`unknown` (it may run, and cannot be reached), or what else the kernel has reported.",
            examples=["idle"],
        ),
    ]
    connections: Annotated[int, Meta(description="Open channel WebSockets.")]
    generation: Annotated[
        int,
        Meta(
            description="Which of its processes this is, from 1: one more after each restart, by "
            "itself or asked for. What code has defined is lost then. 0 before the first is "
            "launched."
        ),
    ]
    # A field that has its default is left out.
    reason: Annotated[
        str | None,
        Meta(
            description="Why it is dead, has no process just now, is stopped or could not be "
            "stopped, or cannot be reached; absent when there is nothing to say."
        ),
    ] = None
    restarts: Annotated[
        Restarts | None,
        Meta(
            description="Its restarts after deaths, that it got by itself; absent when there was "
            "none."
        ),
    ] = None
    owner: Annotated[
        str | None,
        Meta(
            description="Whose it is; absent for what belongs to the server's own token, as "
            "everything does on a server that knows no other."
        ),
    ] = None


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
        """Show the kernel as this owner's from now on."""
        self._owner = owner
        self._changes = -1

    @property
    def json(self) -> bytes:
        """The model as JSON."""
        # Every module that changes something shown here has to count `KernelState.changes` up.
        traffic, state = self._traffic, self._state
        if self._changes != state.changes:
            model = KernelModel(
                self._id,
                self._name,
                format_timestamp(traffic.activity.last),
                state.word,
                len(traffic.clients),
                state.generation,
                state.told_reason or None,
                state.restarts,
                None if self._owner == ANONYMOUS else self._owner,
            )
            self._changes, self._json = state.changes, _encode(model)
        return self._json
