"""Has a request for a kernel of another replica answered by that replica.

This comes before everything else that looks at a request. So what the other replica gets is the
request as the client has sent it, and that replica checks the caller's credentials, origin and
rights as if the client had come to it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

from ..managers.errors import KernelkeepError
from ..managers.handover.store import StoreAway
from .errors import response_to
from .relay import RELAYED, Broken

if TYPE_CHECKING:
    from ..managers.replicas.group import Group
    from .relay_links import Links

__all__ = ["ForwardingMiddleware", "kernel_of", "named_kernel", "named_session"]

_UUID: Final = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_KERNEL: Final = re.compile(
    rf"/api/(?:kernels|metrics/v1/kernel_usage/get_usage)/({_UUID})(?:/.*)?", re.DOTALL
).fullmatch
_ID: Final = re.compile(_UUID).fullmatch
_SESSION: Final = re.compile(rf"/api/sessions/({_UUID})").fullmatch


def named_kernel(path: str) -> str | None:
    """The id of the kernel that a path is about, without the proxy's prefix."""
    found = _KERNEL(path)
    return None if found is None else found[1].lower()


def named_session(method: str, path: str) -> str | None:
    """The id of the session that a request changes, and with the session its kernel."""
    found = _SESSION(path) if method in ("PATCH", "DELETE") else None
    return None if found is None else found[1].lower()


def asked_kernel(query: bytes) -> str | None:
    """The id of the kernel that a request asks to resolve a path; None if it asks none."""
    (name, *_) = parse_qs(query.decode("latin-1")).get("kernel", [""])
    return name.lower() if _ID(name) else None


def kernel_of(scope: Mapping[str, Any], prefix: str, group: Group) -> str | None:
    """The id of the kernel that a request is for; None if the request is for any replica.

    The path may begin with the proxy's ``prefix``, or not: this comes before `PathMiddleware`.
    """
    path: str = scope["path"]
    if prefix and path.startswith(f"{prefix}/"):
        path = path.removeprefix(prefix)
    if path == "/api/resolvePath":
        return asked_kernel(scope["query_string"])
    session_id = named_session(scope.get("method", ""), path)
    return named_kernel(path) if session_id is None else group.kernel_of_session(session_id)


class ForwardingMiddleware:
    """Sends requests on, where the state of the application has a ``group`` of replicas."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        group: Group | None = scope.get("state", {}).get("group")
        if group is None or scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        kernel_id = kernel_of(scope, self._prefix, group)
        if kernel_id is None:
            await self._app(scope, receive, send)
            return
        try:
            is_done = await self._forward(group, kernel_id, scope, receive, send)
        except KernelkeepError as error:
            await response_to(error)(scope, receive, send)
            return
        if not is_done:
            await self._app(scope, receive, send)

    async def _forward(
        self, group: Group, kernel_id: str, scope: Scope, receive: Receive, send: Send
    ) -> bool:
        """Have the replica that has the kernel answer; False if this replica is to answer.

        While the kernel's replica is gone, or another one is taking the kernel, the request waits
        for at most ``group.patience`` seconds. Raises `ReplicaUnreachable` after that; or at once,
        if there is no replica of the kernel's host, or if this replica has not reached the kernel's
        for as long.
        """
        from ..managers.replicas.errors import ReplicaUnreachable

        links: Links = scope["state"]["links"]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + group.patience
        while True:
            # The race: this process may have been stopped for longer than its lease, and another
            # replica may have taken the kernel. So it is not enough that the kernel is here; the
            # lease is checked, too (`Group.is_own`). Each turn of the loop looks everything up anew
            # behind its awaits.
            if group.is_here(kernel_id) and await group.is_own(kernel_id):
                return False
            try:
                found = await group.find(kernel_id)
            except StoreAway:
                raise ReplicaUnreachable from None
            if found is None:
                return False  # no replica has the kernel: this one answers with 404
            way = None if found.replica is None else group.way_to(found.replica)
            # A request that another replica has sent is not sent on: no request goes in circles.
            if found.replica != group.id and way is not None and RELAYED not in scope:
                # `run` returns False if that replica does not have the kernel any more, or is just
                # adopting it. Then nothing of the request has been received from the client, and it
                # can be sent again; so it can after a failure that has not `begun`.
                try:
                    if await links.run(way, scope, receive, send):
                        return True
                except Broken as broken:
                    if broken.begun:
                        raise ReplicaUnreachable(begun=True) from None
                    if links.is_lost(way.replica, group.patience):
                        raise ReplicaUnreachable from None
            elif not found.is_reachable:
                # No replica can reach the kernel's host. Any of them can give the kernel up
                # (DELETE); nothing else can be done with it.
                path: str = scope["path"]
                if scope.get("method") == "DELETE" and path.lower().endswith(kernel_id):
                    return False
                raise ReplicaUnreachable
            if loop.time() >= deadline:
                raise ReplicaUnreachable
            await group.change()
