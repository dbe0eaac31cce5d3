"""Requests that no honest client sends, byte by byte over a socket.

Each is refused with a 4xx, in one line of the log without control characters, and whether it needs
the token is decided on the path that is routed.

These are the tests of `app.api.dependencies` and `app.api.requests`.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import NamedTuple
from uuid import uuid4

import pytest

from tests.conftest import servers
from tests.support.processes import eventually_sync, resident_memory
from tests.support.server import ServerProcess

TIMEOUT = 30  # seconds
SPOOFER = "127.0.0.2"  # our other address on loopback, which is no trusted proxy

HOST = "Host: 127.0.0.1\r\n"
CLOSE = "Connection: close\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\n"
)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server that a proxy shows below /lab, under names of its own."""
    with servers(request.config) as make_server:
        server = make_server(
            *("--root-path", "/lab"),
            "--no-serve-page",  # then / redirects
            *("--trusted-proxies", "127.0.0.1/32,10.0.0.0/8"),
            *("--allowed-hosts", "lab.example.org,*.apps.example.org,kernelkeep"),
        )
        # All of the banner: what comes after it is the log.
        assert eventually_sync(lambda: "Ctrl+C" in server.output(), TIMEOUT)
        yield server


class Answer(NamedTuple):
    """A response; ``lines`` is what the server logged about it."""

    status: int
    headers: str
    body: str
    lines: list[str]

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])

    @property
    def location(self) -> str:
        match = re.search(r"^location: (.*)$", self.headers, re.MULTILINE | re.IGNORECASE)
        return match[1].strip() if match else ""


def ask(
    server: ServerProcess, text: str, source: str = "127.0.0.1", *, logged: bool = True
) -> Answer:
    """Sends just this, as Latin-1, and reads until the server closes the connection."""
    mark = server.mark()
    where = ("127.0.0.1", server.port)
    with socket.create_connection(where, TIMEOUT, source_address=(source, 0)) as connection:
        received = bytearray()
        try:
            connection.sendall(text.encode("latin-1"))
            while data := connection.recv(65536):
                received += data
        except ConnectionError:
            pass  # it has refused before it had everything, and need not read the rest
    head, _, body = received.decode("latin-1").partition("\r\n\r\n")
    status, _, headers = head.partition("\r\n")
    assert re.match(r"HTTP/1\.1 \d{3} ", status), f"no response but {head[:100]!r}"
    lines = eventually_sync(
        lambda: server.output(mark).splitlines(keepends=True), TIMEOUT if logged else 0
    )
    assert all(line[:-1].isprintable() and line.endswith("\n") for line in lines)
    assert server.token not in "".join(lines)
    return Answer(int(status[9:12]), headers, body, lines)


def get(target: str, more: str = "", host: str = HOST) -> str:
    return f"GET {target} HTTP/1.1\r\n{host}{CLOSE}{more}\r\n"


def post(server: ServerProcess, headers: str, body: str) -> str:
    return f"POST /api/kernels HTTP/1.1\r\n{HOST}{CLOSE}{token(server)}{headers}\r\n{body}"


def token(server: ServerProcess) -> str:
    return f"Authorization: token {server.token}\r\n"


# What is no request


@pytest.mark.parametrize(
    "text",
    [
        get("http://127.0.0.1/api"),
        get("http://elsewhere.example/livez"),
        get("HTTP://127.0.0.1/api", UPGRADE),
        get("127.0.0.1:80"),
        get("api"),
        get("/api#/../.."),
        get("/api\x01"),
        get("/api?a=\x1b[2J"),
        get("/api?a=\xff\x9b"),
        get("/api", "X-A: a\x00b\r\n"),
        get("/api", "X-A: \x1b[2J\r\n"),
        get("/api", "X A: b\r\n"),
        get("/api", "X-A: a\r\n folded\r\n"),
        get("/api").replace("\r", ""),
        get("/api").replace("HTTP/1.1", "HTTP/2.0"),
        get("/api").replace("GET", "G\x00T"),
        "CONNECT 127.0.0.1:80 HTTP/1.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET  HTTP/1.1\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=repr,
)
def test_what_is_no_request_is_refused(server: ServerProcess, text: str) -> None:
    answer = ask(server, text)
    assert (answer.status, answer.code) == (400, "bad_request")
    assert len(answer.lines) == 1


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (f"{CHUNKED}Content-Length: 5\r\n", "0\r\n\r\n"),
        (f"Content-Length: 5\r\n{CHUNKED}", "0\r\n\r\n"),
        (f"{CHUNKED}Transfer-Encoding: identity\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: xchunked, chunked, x\r\n", "0\r\n\r\n"),
        ("Content-Length: 2\r\nContent-Length: 3\r\n", "{}"),
        ("Content-Length: 2, 3\r\n", "{}"),
        ("Content-Length: -2\r\n", "{}"),
        ("Content-Length: +2\r\n", "{}"),
        ("Content-Length: 0x2\r\n", "{}"),
        (CHUNKED, "zz\r\n{}\r\n0\r\n\r\n"),
        (CHUNKED, "2\r\n{}XX0\r\n\r\n"),
        (CHUNKED, "2\r\n{}\r\n-1\r\n\r\n"),
        (CHUNKED, "ffffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
    ],
)
def test_a_body_whose_length_is_in_doubt_is_refused(
    server: ServerProcess, headers: str, body: str
) -> None:
    answer = ask(server, post(server, headers, body))
    assert (answer.status, answer.code) == (400, "bad_request")
    assert len(answer.lines) == 1  # no kernel was started


@pytest.mark.parametrize("size", [70_000, 5_000_000])
def test_a_head_without_end_is_refused(server: ServerProcess, size: int) -> None:
    for text in (
        get(f"/api?{'a' * size}"),
        get("/api", f"X-A: {'a' * size}\r\n"),
        get("/api", "X-A: a\r\n" * (size // 8)),
        f"GET /api HTTP/1.1\r\nX-A: {'a' * size}",  # it has not ended
    ):
        answer = ask(server, text)
        assert (answer.status, answer.code) == (431, "headers_too_large")
        assert len(answer.lines) == 1


def test_a_body_that_is_too_large_is_refused(server: ServerProcess) -> None:
    size = 16 * 2**20 + 1
    answer = ask(server, post(server, f"Content-Length: {size}\r\n", " " * size))
    assert answer.status == 413
    # Without the token nobody reads it at all.
    answer = ask(server, post(server, f"Content-Length: {size}\r\n", "").replace("token ", "x "))
    assert (answer.status, answer.code) == (403, "unauthorized")


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ("", 403),
        ("Authorization: token wrong\r\n", 403),
        ("X-A: a\r\n" * 200, 431),
        (f"X-A: {'a' * 20_000}\r\n", 431),
    ],
)
def test_a_websocket_is_refused_in_one_line_too(
    server: ServerProcess, more: str, status: int
) -> None:
    answer = ask(server, f"GET /api/events/subscribe HTTP/1.1\r\n{HOST}{UPGRADE}{more}\r\n")
    assert answer.status == status
    assert len(answer.lines) == 1


@pytest.mark.parametrize(
    ("method", "wrong", "right", "status", "code"),
    [
        ("GET", "Sec-WebSocket-Version: 12", "Sec-WebSocket-Version: 13", 426, "upgrade_required"),
        ("GET", "X: y", "Sec-WebSocket-Version: 13", 426, "upgrade_required"),
        ("GET", "Sec-WebSocket-Key: x", f"Sec-WebSocket-Key: {KEY}", 400, "bad_request"),
        ("GET", "X: y", f"Sec-WebSocket-Key: {KEY}", 400, "bad_request"),
        ("POST", "X: y", "X: z", 405, "method_not_allowed"),
    ],
)
def test_a_handshake_that_is_wrong_is_refused_as_any_request(
    server: ServerProcess, method: str, wrong: str, right: str, status: int, code: str
) -> None:
    upgrade = UPGRADE.replace(right, wrong)
    target = f"/api/events/subscribe?token={server.token}"
    answer = ask(server, f"{method} {target} HTTP/1.1\r\n{HOST}{upgrade}\r\n")

    assert (answer.status, answer.code) == (status, code)
    headers = answer.headers.lower()
    assert "\r\nx-content-type-options: nosniff" in headers
    assert ("\r\nsec-websocket-version: 13" in headers) == (status == 426)
    assert len(answer.lines) == 1


def test_a_plain_request_for_a_websocket_is_told_so(server: ServerProcess) -> None:
    answer = ask(server, get("/api/events/subscribe", token(server)))
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert 'Can \\"Upgrade\\" only to \\"WebSocket\\"' in answer.body

    answer = ask(server, get(f"/api/kernels/{uuid4()}/channels", token(server)))
    assert (answer.status, answer.code) == (404, "kernel_not_found")
    answer = ask(server, get("/api/events/subscribe"))
    assert (answer.status, answer.code) == (403, "unauthorized")


# The token is needed for what is routed


@pytest.mark.parametrize(
    "target",
    [
        "/api/kernels",
        "/lab/api/kernels",
        "/%61pi/kernels",
        "//api/kernels",
        "//api",
        "//livez",
        "/lab//livez",
        "/lab/lab/livez",
        "/lablivez",
        "/livez/../api/kernels",
        "/livez/%2e%2e/api/kernels",
        "/api/%6bernels",
        "/%6civez",
        "/l%61b/livez",
        "/livez%00",
        "/livez%0d%0aX-A:%20b",
        "/livez%3f/../api/kernels",
        "/livez;/../api/kernels",
        "/api/kernels%0a%1b[2J",
        "//127.0.0.1/api",
        "*",
    ],
)
def test_no_way_of_writing_a_path_gets_around_the_token(server: ServerProcess, target: str) -> None:
    answer = ask(server, get(target))
    assert (answer.status, answer.code) == (403, "unauthorized")
    assert len(answer.lines) == 1


@pytest.mark.parametrize("target", ["/livez", "/lab/livez", "/livez?a"])
def test_what_needs_no_token_needs_none_in_whatever_way_it_is_written(
    server: ServerProcess, target: str
) -> None:
    answer = ask(server, get(target), logged="?" in target)
    assert answer.status == 200
    assert len(answer.lines) == ("?" in target)  # there is no end of probes


@pytest.mark.parametrize(
    "target", ["/api%2fkernels", "/lab%2Flivez", "/livez%2f..%2fapi%2fkernels", "/%2Fa", "/a%2f"]
)
def test_an_encoded_slash_is_no_part_of_a_path(server: ServerProcess, target: str) -> None:
    for more in ("", token(server), UPGRADE):
        answer = ask(server, get(target, more))
        assert (answer.status, answer.code) == (400, "bad_request")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/api/kernelspecs/f%61ke", 200),
        ("/lab/api/kernelspecs/%66ake", 200),
        ("/api/%6bernelspecs/fake", 404),
        ("/api/%6bernels", 404),
        ("/l%61b/api/kernels", 404),
    ],
)
def test_names_may_be_encoded_and_words_may_not(
    server: ServerProcess, target: str, status: int
) -> None:
    assert ask(server, get(target, token(server))).status == status


def chunked(trailers: str, *headers: str) -> str:
    return (
        f"PATCH /api/me HTTP/1.1\r\n{HOST}{CLOSE}{CHUNKED}{''.join(headers)}\r\n"
        f'c\r\n{{"name":"t"}}\r\n0\r\n{trailers}\r\n'
    )


def test_what_comes_behind_a_body_is_no_header(server: ServerProcess) -> None:
    assert ask(server, chunked("", token(server))).status == 200
    answer = ask(server, chunked(token(server)))
    assert (answer.status, answer.code) == (403, "unauthorized")
    answer = ask(server, chunked("X-Forwarded-For: 192.0.2.66\r\nX-Request-Id: smuggled\r\n"))
    assert "smuggled" not in answer.headers
    assert "192.0.2.66" not in "".join(answer.lines)


@pytest.mark.parametrize("trailers", ["a:b\r\n" * 400_000, "X: " + "a" * 2_000_000])
def test_trailers_have_a_bound(server: ServerProcess, trailers: str) -> None:
    before = resident_memory(server.pid)
    # The last chunk comes when the application waits for it: the answer is the parser's.
    head = f"PATCH /api/me HTTP/1.1\r\n{HOST}{CLOSE}{CHUNKED}{token(server)}\r\n0\r\n"
    answer = ask(server, head + trailers)
    assert (answer.status, answer.code) == (431, "headers_too_large")
    assert resident_memory(server.pid) < before + 20 * 2**20


def test_a_long_path_makes_no_long_line(server: ServerProcess) -> None:
    answer = ask(server, get(f"/{'a' * 60_000}"))
    assert answer.status == 403
    (line,) = answer.lines
    assert len(line) < 1500


# By which name, and for whom


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (["lab.example.org"], 200),
        (["LAB.example.org:8443"], 200),
        (["a.b.apps.example.org"], 200),
        (["kernelkeep:8888"], 200),
        (["127.0.0.1"], 200),
        (["elsewhere.example"], 403),
        (["apps.example.org"], 403),
        (["xapps.example.org"], 403),
        (["lab.example.org.elsewhere.example"], 403),
        ([""], 403),
        ([], 403),
        (["127.0.0.1", "elsewhere.example"], 400),
        (["127.0.0.1", "127.0.0.1"], 400),
    ],
)
def test_only_its_own_names_are_served(
    server: ServerProcess, hosts: list[str], status: int
) -> None:
    host = "".join(f"Host: {name}\r\n" for name in hosts)
    answer = ask(server, get("/api/kernels", token(server), host))
    assert answer.status == status
    assert len(answer.lines) == 1


FORWARDED = (
    "X-Forwarded-Proto: http\r\nX-Forwarded-Proto: https\r\n"
    "X-Forwarded-For: 198.51.100.1, 198.51.100.2\r\nX-Forwarded-For: 203.0.113.9, 10.0.0.3\r\n"
    "X-Forwarded-Host: elsewhere.example\r\nX-Forwarded-Prefix: /elsewhere\r\n"
    "Forwarded: for=198.51.100.3;proto=https;host=elsewhere.example\r\n"
)


def test_a_trusted_proxy_tells_scheme_and_client_and_nothing_else(server: ServerProcess) -> None:
    answer = ask(server, get("/lab/", token(server) + FORWARDED))
    assert answer.location == "docs"
    (line,) = answer.lines
    # The last that no trusted proxy has written down: what is before it may be made up.
    assert " 203.0.113.9:0 - " in line


def test_nobody_else_is_believed(server: ServerProcess) -> None:
    answer = ask(server, get("/", token(server) + FORWARDED), source=SPOOFER)
    assert answer.location == "docs"
    (line,) = answer.lines
    assert f" {SPOOFER}:" in line


@pytest.mark.parametrize(
    "value", ["", "nonsense", "\x9b2J", "-, ,", "[::1", f"{'1' * 5000}", "javascript:alert(1)"]
)
def test_a_proxy_that_forwards_nonsense_does_no_harm(server: ServerProcess, value: str) -> None:
    forwarded = f"X-Forwarded-For: {value}\r\nX-Forwarded-Proto: {value}\r\n"
    answer = ask(server, get("/", token(server) + forwarded))
    assert answer.location == "docs"
    assert len(answer.lines) == 1


def test_the_prefix_is_in_every_address_that_is_told(server: ServerProcess) -> None:
    for prefix in ("", "/lab"):
        answer = ask(server, get(f"{prefix}/api/kernels/?a=b", token(server)))
        assert (answer.status, answer.location) == (302, "/lab/api/kernels?a=b")
        answer = ask(server, get(f"{prefix}/api/kernelspecs/fake", token(server)))
        resources = json.loads(answer.body)["resources"]
        assert resources["kernel.js"] == "/lab/kernelspecs/fake/kernel.js"
    body = '{"name": "fake"}'
    answer = ask(server, post(server, f"Content-Length: {len(body)}\r\n", body))
    assert answer.location == f"/lab/api/kernels/{json.loads(answer.body)['id']}"
