"""The pods of one service, as the API server tells them: a list, and a stream of what changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import Any, Final

import msgspec

from ..hosts.errors import HostLoginRefused, HostUnreachable
from .kubernetes_api import KubernetesApi
from .kubernetes_words import Answer, text_of

__all__ = ["PodWatch", "listed"]

STREAM_SECONDS: Final = 240
"""How long the API server is asked to keep one stream open."""

LATE_SECONDS: Final = 30.0
"""How much longer a stream may last before it is given up: then its connection is dead."""

PAUSE_SECONDS: Final = 0.5
"""The pause after each stream: if a proxy ended each stream at once, this server would spin."""

TOO_OLD: Final = 410
"""The status for a ``resourceVersion`` since which the API server does not know the changes any
more: the client has to list anew (Kubernetes API concepts, "Efficient detection of changes")."""


class _TooOld(Exception):
    """The API server does not know any more what has changed since ``resourceVersion``."""


class PodWatch:
    """The pods with a label, by their names.

    ``on_gone`` is called with the last known state of a pod that is gone.
    """

    def __init__(
        self, api: KubernetesApi, label: str, on_gone: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._api = api
        self._label = label
        self._on_gone = on_gone
        self._version = ""
        self._changed = asyncio.Event()
        self._went = asyncio.Event()  # another for each pod that goes
        self.pods: dict[str, Mapping[str, Any]] = {}

    async def changes(self, seconds: float) -> AsyncGenerator[None, None]:
        """Yield when `pods` have changed, and after so many seconds without a change.

        Raises `HostUnreachable` when the API server is away.
        """
        while True:
            # The stream begins at the version of the list: no change is missed between the two.
            await self._list()
            following = asyncio.get_running_loop().create_task(self._follow(), name="watch pods")
            try:
                while not following.done():
                    # Cleared before the `yield`: a change that comes while the caller works sets
                    # the event again, and leads to another `yield`.
                    self._changed.clear()
                    yield
                    changed = asyncio.ensure_future(self._changed.wait())
                    try:
                        await asyncio.wait(
                            {following, changed}, timeout=seconds, return_when="FIRST_COMPLETED"
                        )
                    finally:
                        changed.cancel()
                with contextlib.suppress(_TooOld):  # then all is listed again
                    await following
            finally:
                following.cancel()
                await asyncio.wait({following})

    async def until_told(self, names: Collection[str], seconds: float) -> None:
        """Return when these pods are gone from `pods`, after so many seconds at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.pods.keys().isdisjoint(names):
                    await self._went.wait()

    async def _list(self) -> None:
        """List all pods, and take them in place of those that were known."""
        answer = await self._api.ask("GET", "pods", params={"labelSelector": self._label})
        pods, self._version = listed(answer, self._api.name)
        # `on_gone` is called for pods that have gone while nothing was watched, too, with their
        # last known state: how they have ended is not known.
        before, self.pods = self.pods, pods
        for name, pod in before.items():
            if name not in self.pods:
                self._on_gone(pod)

    async def _follow(self) -> None:
        """Take in changes, by one stream after another. Raises `_TooOld` and `HostUnreachable`.

        After a stream that breaks, the next one goes on from the last version. If two streams in a
        row break without a change, this raises.
        """
        broken = 0
        while True:
            before = self._version
            try:
                async with asyncio.timeout(STREAM_SECONDS + LATE_SECONDS):
                    await self._stream()
                broken = 0
            except TimeoutError:
                pass  # a dead connection says nothing of the API server: the next request does
            except HostUnreachable:
                broken = broken + 1 if self._version == before else 0
                if broken > 1:
                    raise
            await asyncio.sleep(PAUSE_SECONDS)

    async def _stream(self) -> None:
        params = {
            "labelSelector": self._label,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(STREAM_SECONDS),
        }
        async with contextlib.aclosing(self._api.lines("pods", params)) as lines:
            async for line in lines:
                if line:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event = msgspec.json.decode(line)
            kind, found = event.get("type"), event.get("object", event)
            if kind in (None, "ERROR"):
                self._on_error(found)
            metadata = found["metadata"]
            # A bookmark has nothing else: it lets a quiet stream be resumed from a late version.
            self._version = str(metadata["resourceVersion"])
        except (msgspec.DecodeError, AttributeError, KeyError, TypeError):
            name = self._api.name
            raise HostUnreachable(f"{name} streams what is no change of a pod") from None
        if kind == "BOOKMARK" or (pod := name_in(found)) is None:
            return
        if kind == "DELETED":
            self.pods.pop(pod, None)
            self._on_gone(found)
            self._went.set()  # `until_told` checks `pods` again, and may wait for the next event
            self._went = asyncio.Event()
        else:
            self.pods[pod] = found
        self._changed.set()

    def _on_error(self, status: Mapping[str, Any]) -> None:
        """Raise `_TooOld` or `HostUnreachable` for a Status that ends a stream."""
        if status.get("code") == TOO_OLD:
            raise _TooOld
        message = text_of(status.get("message"))
        raise HostUnreachable(f"{self._api.name} does not tell what changes: {message}")


def listed(answer: Answer, name: str) -> tuple[dict[str, Mapping[str, Any]], str]:
    """The pods of a list by their names, and the list's version. Raises `HostUnusable`.

    A pod that is not in a list counts as gone. So an answer that is no list raises an error, and is
    never taken for an empty list.
    """
    if answer.status >= 400:
        raise HostLoginRefused(f"{name} does not tell its pods: {answer.message}")
    items, metadata = answer.body.get("items"), answer.body.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or not isinstance(items, list):
        raise HostUnreachable(f"{name} answers what is no list of pods")
    found = {name_in(pod): pod for pod in items}
    return {key: pod for key, pod in found.items() if key is not None}, version


def name_in(pod: object) -> str | None:
    """The name of a pod; None if the object is no pod."""
    metadata = pod.get("metadata") if isinstance(pod, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else None
