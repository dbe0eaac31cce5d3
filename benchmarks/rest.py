"""A REST client over one kept connection."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

__all__ = ["Rest", "raw_get"]


class Rest:
    """Requests to a server on 127.0.0.1; ``headers`` go with each."""

    def __init__(self, port: int, headers: Mapping[str, str]) -> None:
        self._headers = dict(headers)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._connection.connect()
        assert self._connection.sock is not None
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded body of the answer (None if it has none).

        Raises `RuntimeError` for a status of 400 or more.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, **({"Content-Type": "application/json"} if data else {})}
        try:
            response, answer = self._exchange(method, path, data, headers)
        except (ConnectionError, http.client.BadStatusLine):  # it was idle for too long
            response, answer = self._exchange(method, path, data, headers)
        if response.status >= 400:
            raise RuntimeError(f"{method} {path}: {response.status} {answer[:200]!r}")
        return json.loads(answer) if answer else None

    def _exchange(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            self._connection.request(method, path, data, dict(headers))
            response = self._connection.getresponse()
            return response, response.read()
        except BaseException:  # what comes next must not meet the answer to this
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def raw_get(port: int, path: str, headers: Mapping[str, str]) -> bytes:
    """A GET request as bytes, for a client that costs nothing."""
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()
