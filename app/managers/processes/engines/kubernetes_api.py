"""Requests to one Kubernetes API server: each has a bound, and is tried again if that may help.

Of the package kr8s this module uses the credentials and the requests, and not the objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..hosts.errors import EngineNotInstalled, HostLoginRefused, HostUnreachable, HostUnusable
from .kubernetes_options import Cluster
from .kubernetes_words import Answer, text_of

if TYPE_CHECKING:
    import httpx
    from kr8s.asyncio import Api

__all__ = ["KubernetesApi"]

CALL_SECONDS: Final = 20.0
"""How long the API server may take for an answer, with all tries."""

TRY_SECONDS: Final = 8.0
"""How long the API server may take for one try."""

AGAIN: Final = frozenset((429, 500, 502, 503, 504))
"""The statuses after which a request is tried again, as their cause may pass. The second try of a
POST may find the object that the first has created."""

TRIES: Final = 3
PAUSE: Final = 0.3
LONGEST_PAUSE: Final = 5.0

ANSWER_BYTES: Final = 2**27
LINE_BYTES: Final = 2**23
"""How many bytes are read of an answer, and of one object in a stream. etcd stores objects of 1.5
MiB at most."""

REFUSED: Final = 401


class KubernetesApi:
    """One namespace of one API server."""

    def __init__(self, cluster: Cluster) -> None:
        self.name = cluster.name
        self._cluster = cluster
        self._opening = asyncio.Lock()
        self._opened: Api | None = None

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Answer:
        """The answer to a request for a path of the namespace; a status of 4xx is an answer, too.

        Raises `HostUnreachable` if there is no answer, and another `HostUnusable` if the API server
        refuses the credentials.
        """
        content = None if body is None else msgspec.json.encode(body)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                for tried in range(1, TRIES + 1):
                    answer, pause = await self._try(method, path, params, content)
                    is_passing = answer.status in AGAIN or _is_conflict(answer)
                    if not is_passing:
                        return answer
                    if tried < TRIES:
                        pause = min(pause or PAUSE * 2**tried, LONGEST_PAUSE)
                        await asyncio.sleep(pause * random.uniform(0.8, 1.2))
        except TimeoutError:
            raise HostUnreachable(f"{self.name} does not answer") from None
        text = f"{self.name} answers with status {answer.status}: {answer.message}"
        raise HostUnreachable(text)

    async def _try(
        self, method: str, path: str, params: Mapping[str, str] | None, content: bytes | None
    ) -> tuple[Answer, float]:
        """One answer, and the seconds after which it asks for another try (Retry-After), or 0."""
        async with asyncio.timeout(TRY_SECONDS), self._response(method, path, params, content) as r:
            data = await _all(r, self.name)
            pause = r.headers.get("Retry-After", "")
            seconds = float(pause) if pause.isascii() and pause.isdigit() else 0.0
            return Answer(r.status_code, self._object(r.status_code, data)), seconds

    def _object(self, status: int, data: bytes) -> dict[str, Any]:
        try:
            found = msgspec.json.decode(data)
        except msgspec.DecodeError:
            found = None
        if isinstance(found, dict):
            return found
        if status < 400:
            raise HostUnreachable(f"{self.name} answers what is no object of Kubernetes")
        return {"message": text_of(data[:200].decode("utf-8", "replace"))}

    async def lines(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """The lines of a stream, as they come. Raises `HostUnreachable`.

        After a status of failure the body, a Status object, comes as a line, too.
        """
        # The bound is for the head of the response alone: the stream itself may be silent for as
        # long as it was asked for, and its reader has a bound for that (`PodWatch`).
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(TRY_SECONDS):
                    entering = self._response("GET", path, params, None)
                    response = await stack.enter_async_context(entering)
            except TimeoutError:
                raise HostUnreachable(f"{self.name} does not answer") from None
            rest = b""
            async for chunk in response.aiter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line
                if len(rest) > LINE_BYTES:
                    raise HostUnreachable(f"{self.name} streams what is no object of Kubernetes")
            if rest:
                yield rest

    @contextlib.asynccontextmanager
    async def _response(
        self, method: str, path: str, params: Mapping[str, str] | None, content: bytes | None
    ) -> AsyncIterator[httpx.Response]:
        """A response whose body is still to come. Raises `HostUnusable`."""
        api = await self._api()
        import httpx
        import kr8s

        where: dict[str, Any] = {"namespace": self._cluster.namespace, "url": path, "stream": True}
        if method == "PATCH":  # what is not named in the body stays as it is (RFC 7386)
            where["headers"] = {"Content-Type": "application/merge-patch+json"}
        where |= {"params": params, "content": content}
        try:
            async with api.call_api(method, raise_for_status=False, **where) as response:
                if response.status_code != REFUSED:
                    yield response
                    return
            # The credentials may have been renewed: with ``raise_for_status`` kr8s reads them again
            # after a 401. The request is sent a second time, but the first was refused, and had no
            # effect.
            async with api.call_api(method, raise_for_status=True, **where) as response:
                yield response
        except kr8s.ServerError as error:
            raise HostLoginRefused(
                f"{self.name} does not let this server in: {text_of(str(error))}"
            ) from error
        except (httpx.HTTPError, kr8s.APITimeoutError, OSError) as error:
            text = text_of(str(error)) or type(error).__name__
            raise HostUnreachable(f"{self.name} cannot be reached: {text}") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # kr8s raises these for credentials and errors that have not the form that it expects.
            raise HostUnusable(f"{self.name} cannot be used: {error}") from error

    async def _api(self) -> Api:
        """The client of kr8s, with its credentials. Raises `HostUnusable`."""
        # A program of the operator's may be run for the credentials: once for all callers. Each
        # waits within its own bound; if the first gives up, the next one runs the program.
        async with self._opening:
            if self._opened is None:
                self._opened = await self._open()
            return self._opened

    async def _open(self) -> Api:
        try:
            import httpx
            import kr8s
            from kr8s.asyncio import api
        except ImportError:
            text = "Kernels in pods take kr8s: pip install 'kernelkeep[kubernetes]'"
            raise EngineNotInstalled(text) from None
        cluster = self._cluster
        try:
            return await api(
                kubeconfig=cluster.kubeconfig or None,
                context=cluster.context or None,
                namespace=cluster.namespace,
            )
        except (kr8s.ServerError, kr8s.APITimeoutError, httpx.HTTPError) as error:
            text = text_of(str(error)) or type(error).__name__
            raise HostUnreachable(f"{self.name} cannot be reached: {text}") from error
        except Exception as error:  # kubeconfigs and programs of people's may raise anything
            text = f"The credentials for {self.name} cannot be used: {error}"
            raise HostUnusable(text) from error

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None and (session := self._opened._session) is not None:
            with contextlib.suppress(Exception):
                await session.aclose()


async def _all(response: httpx.Response, name: str) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > ANSWER_BYTES:
            raise HostUnreachable(f"{name} answers more than {ANSWER_BYTES} bytes")
    return bytes(data)


def _is_conflict(answer: Answer) -> bool:
    """Whether two requests have changed the same object at once, such as a quota's count."""
    return answer.status == 409 and answer.body.get("reason") == "Conflict"
