"""Fetches JSON over HTTP from a service that may be slow, down or lying, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from tornado.httpclient import AsyncHTTPClient, HTTPRequest

__all__ = ["Fetcher", "Unavailable"]

MAX_BYTES: Final = 2**20
"""The longest answer that is read, in bytes; a longer one raises `Unavailable`."""

MAX_HEADER_BYTES: Final = 2**16

AT_ONCE: Final = 10
"""How many requests to the service are under way at a time; others wait for their turn."""

_OK: Final = 200


class Unavailable(Exception):
    """The service cannot be asked, or what it answers makes no sense.

    The exception's text says why. It repeats nothing of the request or the answer, which may have
    secrets in them.
    """


class Fetcher:
    """An HTTP client for JSON. ``seconds`` bound each answer, the wait for a turn included.

    Redirects are not followed: they could lead a token to somebody else. Compressed answers are not
    asked for, so that `MAX_BYTES` is a bound of what is parsed. There is no cache, and no proxy.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._client: AsyncHTTPClient | None = None

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """The status of the answer, and its JSON if the status is 200. Raises `Unavailable`."""
        return await self._ask("GET", url, headers or {}, None)

    async def post(
        self, url: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Post a form, and return what `get` returns. Raises `Unavailable`."""
        headers = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        return await self._ask("POST", url, headers, urlencode(form))

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: str | None
    ) -> tuple[int, Any]:
        if self._client is None:  # made in the loop that it works in
            self._client = AsyncHTTPClient(
                force_instance=True,
                # A request that was given up gives its turn back, but goes on in tornado until its
                # own timeout. With twice as many clients it holds up no other request.
                max_clients=2 * AT_ONCE,
                max_body_size=MAX_BYTES,
                max_buffer_size=MAX_BYTES + MAX_HEADER_BYTES,
                max_header_size=MAX_HEADER_BYTES,
            )
        request = HTTPRequest(
            url,
            method,
            headers={"Accept": "application/json", **headers},
            body=body,
            user_agent="kernelkeep",
            connect_timeout=self._seconds,
            request_timeout=self._seconds,
            follow_redirects=False,
            decompress_response=False,
        )
        try:
            async with asyncio.timeout(self._seconds), self._turns:
                response = await self._client.fetch(request, raise_error=False)
        except TimeoutError:
            raise Unavailable(f"no answer within {self._seconds:g} s") from None
        except Exception as error:  # what the other side sends may make anything of the client fail
            raise Unavailable(f"no answer ({type(error).__name__})") from None
        if response.code != _OK:
            return response.code, None
        try:
            return _OK, msgspec.json.decode(response.body)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise Unavailable("an answer that is no JSON") from None

    async def close(self) -> None:
        """Close the HTTP client; requests that are under way fail."""
        if self._client is not None:
            self._client.close()
            self._client = None
