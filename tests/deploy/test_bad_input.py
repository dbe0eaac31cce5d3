"""Requests that make no sense, or pretend something, through real proxies."""

from __future__ import annotations

import re
import secrets
import socket
import ssl

import httpx
import pytest

from tests.support.processes import eventually_sync
from tests.support.proxies import PREFIX, Caddy, Nginx, Proxy, Traefik
from tests.support.server import ServerProcess

ANSWER_TIMEOUT = 30  # seconds

HOST = b"Host: localhost\r\n"
POST = b"POST " + PREFIX.encode() + b"/api/kernels HTTP/1.1\r\n" + HOST
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def get(target: str, *headers: str) -> bytes:
    lines = [f"GET {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


# None of them has the token, so whatever path is found in them, nothing may be given to them.
BAD = {
    "chunk size that is no number": POST + CHUNKED + b"\r\nzz\r\n{}\r\n0\r\n\r\n",
    "chunk size beyond all bounds": POST + CHUNKED + b"\r\n" + b"f" * 40 + b"\r\n{}\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    "length that is no number": POST + b"Content-Length: 2x\r\n\r\n{}",
    "two slashes before": get(f"/{PREFIX}/api/kernels"),
    "two slashes within": get(f"{PREFIX}//api/kernels"),
    "two slashes and a name": get("//evil.example/api/kernels"),
    "dots": get(f"{PREFIX}/api/../api/kernels"),
    "dots out of the prefix": get(f"{PREFIX}/../api/kernels"),
    "encoded dots": get(f"{PREFIX}/api/%2e%2e/api/kernels"),
    "encoded letters": get(f"{PREFIX}/%61pi/kernels"),
    "encoded slash": get(f"{PREFIX}/api%2fkernels"),
    "absolute form": get(f"https://localhost{PREFIX}/api/kernels"),
    "absolute form of another host": get(f"http://evil.example{PREFIX}/api/kernels"),
    "prefix twice": get(f"{PREFIX}{PREFIX}/api/kernels"),
    "outside of the prefix": get("/api/kernels"),
    "large header": get(f"{PREFIX}/api", f"X-Large: {'x' * 200_000}"),
    "another host": get(f"{PREFIX}/api").replace(b"Host: localhost", b"Host: evil.example"),
    "control characters": get(f"{PREFIX}/api/kernels/%0d%0aInjected:%20line/%1b[31m"),
}


def connected(proxy: Proxy) -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", proxy.port), ANSWER_TIMEOUT)
    if proxy.scheme == "http":
        return plain
    context = ssl.create_default_context(cafile=str(proxy.certificate.certificate))
    return context.wrap_socket(plain, server_hostname="localhost")


def exchange(proxy: Proxy, request: bytes) -> bytes:
    """All that comes back for some bytes, until the connection ends or stays silent."""
    answer = b""
    with connected(proxy) as connection:
        try:
            connection.sendall(request)
            while b"\r\n\r\n" not in answer and (received := connection.recv(65536)):
                answer += received
        except (ConnectionError, ssl.SSLError):
            pass  # refused before it was read to its end; what has come counts
    return answer


def status(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
    return int(found[1]) if found else 0


def is_refused(proxy: Proxy, answer: bytes) -> bool:
    if isinstance(proxy, Caddy | Traefik) and status(answer) in (500, 502):
        return True  # theirs, for a body that they cannot read
    if isinstance(proxy, Caddy) and answer.endswith(b"\r\n\r\n"):
        return True  # 200 with nothing, for a host that it does not know
    # A connection that is cut in the middle of too much may take the answer with it.
    return not answer or status(answer) // 100 == 4


def settled(server: ServerProcess) -> int:
    """The end of what the server has said of all requests so far.

    A line of the log is read a moment after the answer, and lines come in the order of the answers.
    """
    last = secrets.token_hex(8)
    httpx.get(f"{server.url}/{last}")
    eventually_sync(lambda: last in server.output())
    return server.mark()


def test_what_makes_no_sense_is_refused_with_4xx(
    proxies: list[Proxy], server: ServerProcess
) -> None:
    mark = settled(server)
    for proxy in proxies:
        answers = {name: exchange(proxy, request) for name, request in BAD.items()}
        wrong = {name: it[:300] for name, it in answers.items() if not is_refused(proxy, it)}
        assert not wrong, f"through {type(proxy).__name__}"
    settled(server)
    log = server.output(mark)
    assert '" 5' not in log, "an error of the service"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", log)
    assert not re.search(r"^Injected", log, re.MULTILINE)


def test_no_trailer_and_no_way_of_writing_a_path_gets_through(
    proxies: list[Proxy], server: ServerProcess
) -> None:
    """The case of each: what the proxy forwards is told, and found harmless in the service."""
    trailers = f"Authorization: token {server.token}\r\nX-Forwarded-For: 6.6.6.6\r\n".encode()
    tricks = (
        POST + CHUNKED + b"Connection: close\r\n\r\n2\r\n{}\r\n0\r\n" + trailers + b"\r\n",
        POST + CHUNKED + b"Trailer: Authorization\r\n\r\n0\r\n" + trailers + b"\r\n",
        get(f"{PREFIX}/api/%6bernels", f"X-A: token {server.token}"),
        get(f"{PREFIX}/api%2fkernels"),
        get(f"{PREFIX}/api%2Fkernels?token=wrong"),
        get(f"{PREFIX}/api", "Host: elsewhere.example"),
        get(f"{PREFIX}/api/kernels", "Origin: http://[::1"),
        get(f"{PREFIX}/api/kernels", "X_Forwarded_For: 6.6.6.6\r\nConnection: X-Forwarded-For"),
    )
    mark = settled(server)
    for proxy in proxies:
        for trick in tricks:
            answer = exchange(proxy, trick)
            assert is_refused(proxy, answer), (type(proxy).__name__, trick, answer)
    settled(server)
    log = server.output(mark)
    assert "6.6.6.6" not in log
    assert '" 5' not in log
    assert '" 2' not in log


@pytest.mark.parametrize("length", [6, 5])
def test_two_lengths_of_one_body_never_get_past_nginx(
    nginx: Nginx, server: ServerProcess, length: int
) -> None:
    smuggled = get(f"{PREFIX}/api")
    mark = settled(server)
    lengths = CHUNKED + b"Content-Length: %d\r\n\r\n0\r\n\r\n" % length
    assert status(exchange(nginx, POST + lengths + smuggled)) == 400
    settled(server)
    assert "api" not in server.output(mark)


def test_forwarding_headers_of_a_client_are_not_believed(
    proxies: list[Proxy], server: ServerProcess
) -> None:
    spoofed = (
        *("X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 7.7.7.7", "X-Real-IP: 6.6.6.6"),
        *("X-Forwarded-Proto: gopher", "X-Forwarded-Host: evil.example"),
        *("Forwarded: for=6.6.6.6;host=evil.example", "X-Forwarded-Prefix: /evil"),
    )
    mark = settled(server)
    for proxy in proxies:
        request = get(f"{PREFIX}/?token={server.token}", *spoofed)
        answer = exchange(proxy, request)
        assert status(answer) == 200, answer
        assert b"evil" not in answer
        assert b"gopher" not in answer
    settled(server)
    log = server.output(mark)
    assert log.count("127.0.0.1:0 - ") == len(proxies), log
    assert "6.6.6.6" not in log
    assert "7.7.7.7" not in log
    assert server.token not in log
