"""No token in any line of a log, whoever writes it and in whatever form."""

from __future__ import annotations

import io
import logging
import logging.config
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from starlette.datastructures import URL
from uvicorn.config import LOGGING_CONFIG
from uvicorn.logging import AccessFormatter

from app.logs import TokenFilter, hide_tokens, logging_config
from app.protocol.subprotocols import TOKEN

SECRET = "5ec2e7-Token"
LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "app")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Loggers that hide nothing yet, and are left as they were."""
    loggers = [logging.getLogger(name) for name in (None, *LOGGERS)]
    saved = [(log.filters[:], log.handlers[:], log.level, log.propagate) for log in loggers]
    last_resort = logging.lastResort
    assert last_resort is not None
    filters = last_resort.filters[:]
    for place in (last_resort, *loggers):
        place.filters[:] = []
    yield
    last_resort.filters[:] = filters
    for log, before in zip(loggers, saved, strict=True):
        log.filters[:], log.handlers[:], log.level, log.propagate = before


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the service's own configuration writes at the level debug."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logging.config.dictConfig(logging_config("debug"))
    hide_tokens(SECRET)
    return stream


QUERIES = [
    f"token={SECRET}",
    f"a=b&token={SECRET}&c=d",
    f"Token={SECRET}",
    "token=another",
    "token=it's;an#other",
    'token="another"',
    "token=%73%65cond",
    f"token={quote('a b/c&d=e')}",
    f"token=&token={SECRET}",
    f"session_id={SECRET}",
]
each_query = pytest.mark.parametrize("query", QUERIES)
REMAINS = ("another", "it's", "other", "%73", "cond", "a%20b", SECRET)
"""What must not be left of any of those tokens."""


def check(text: str, *expected: str) -> None:
    assert not [part for part in REMAINS if part in text], text
    assert not [part for part in expected if part not in text], text
    assert "[hidden]" in text


@each_query
def test_the_access_log(written: io.StringIO, query: str) -> None:
    logging.getLogger("uvicorn.access").info(
        '%s - "%s %s HTTP/%s" %d', "127.0.0.1:9", "GET", f"/api/kernels?{query}", "1.1", 403
    )

    check(written.getvalue(), '127.0.0.1:9 - "GET /api/kernels?', 'HTTP/1.1" 403\n')


@each_query
def test_the_access_log_as_uvicorn_formats_it(query: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(AccessFormatter(LOGGING_CONFIG["formatters"]["access"]["fmt"]))
    logger = logging.getLogger("uvicorn.access")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    hide_tokens(SECRET)

    logger.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:9", "GET", f"/api?{query}", "1.1", 200)

    check(stream.getvalue(), "GET /api?", "200 OK")


@each_query
def test_the_line_of_a_websocket(written: io.StringIO, query: str) -> None:
    logging.getLogger("uvicorn.error").error(
        '%s - "WebSocket %s" [accepted]', ("127.0.0.1", 9), f"/api/kernels/1/channels?{query}"
    )

    check(written.getvalue(), '"WebSocket /api/kernels/1/channels?', '" [accepted]\n')


@pytest.mark.parametrize("scheme", ["token", "Token", "Bearer", "bearer  "])
@pytest.mark.parametrize("token", [SECRET, "another"])
def test_the_headers_that_websockets_logs(written: io.StringIO, scheme: str, token: str) -> None:
    logger = logging.getLogger("uvicorn.error")
    logger.debug("< %s: %s", "authorization", f"{scheme} {token}")
    logger.debug("< %s: %s", "user-agent", "a browser")

    check(written.getvalue(), "< authorization: ", "< user-agent: a browser")


@pytest.mark.parametrize("token", [SECRET, "another", "an%20other"])
def test_the_subprotocols_that_websockets_logs(written: io.StringIO, token: str) -> None:
    logger = logging.getLogger("uvicorn.error")
    offered = [TOKEN, f"{TOKEN}.{token}", "third.example"]
    logger.debug("< %s: %s", "sec-websocket-protocol", ", ".join(offered))
    logger.debug("scope=%s", {"subprotocols": offered})

    assert token not in written.getvalue()
    shown = f"{TOKEN}, {TOKEN}.[hidden], third.example"
    check(written.getvalue(), f"< sec-websocket-protocol: {shown}", "third.example']")


def test_a_whole_scope(written: io.StringIO) -> None:
    scope = {
        "query_string": f"token={SECRET}".encode(),
        "headers": [(b"authorization", f"token {SECRET}".encode())],
        "path": "/api",
    }

    logging.getLogger("uvicorn.asgi").warning("%s [%d] Started scope=%s", "127.0.0.1", 1, scope)

    check(written.getvalue(), "'path': '/api'", "[1]")


@pytest.mark.parametrize(
    "argument",
    [
        URL(f"http://h/api?token={SECRET}"),
        ValueError(f"/api?token={SECRET}"),
        [f"/api?token={SECRET}"],
        f"/api?token={SECRET}".encode(),
        (f"/api?token={SECRET}",),
    ],
)
def test_things_that_are_no_text(written: io.StringIO, argument: object) -> None:
    logging.getLogger("app").warning("%s: %s", "what came was", argument)

    check(written.getvalue(), "what came was: ", "/api?token=")


def test_a_thing_without_a_text_is_no_error_of_whoever_logs_it(written: io.StringIO) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    logging.getLogger("app").warning("it failed: %s (%s)", Broken(), SECRET)
    assert written.getvalue().endswith("it failed: [Broken] ([hidden])\n")


def test_a_message_without_arguments(written: io.StringIO) -> None:
    logging.getLogger("app").warning(f"called with /api?token={SECRET} and 100%")

    check(written.getvalue(), "called with /api?token=", " and 100%\n")


def test_named_arguments(written: io.StringIO) -> None:
    logging.getLogger("app").warning("called with %(url)s", {"url": f"/?token={SECRET}"})

    check(written.getvalue(), "called with /?token=")


@pytest.mark.parametrize(
    "name", ["app.managers.kernels.kernel", "app.ws.channels", "asyncio", "fastapi"]
)
def test_loggers_that_nobody_listed(written: io.StringIO, name: str) -> None:
    logging.getLogger(name).warning("called with %s", f"/?token={SECRET}")

    check(written.getvalue(), f"WARNING {name}: called with /?token=")


def test_the_text_of_an_exception(written: io.StringIO) -> None:
    try:
        raise LookupError(f"no route for /?token={SECRET}")
    except LookupError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")

    check(written.getvalue(), "Traceback", "LookupError: no route for /?token=")


def test_loggers_that_nobody_has_configured(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (None, "app"):
        logging.getLogger(name).handlers[:] = []
    hide_tokens(SECRET)

    logging.getLogger("app.cli").error("called with %s", f"/?token={SECRET}")

    check(capsys.readouterr().err, "called with /?token=")


def test_what_holds_no_token_is_left_as_it_is(written: io.StringIO) -> None:
    error = OSError(28, "No space left on device")

    logging.getLogger("app").warning("%s has %d of %.1f%%: %s", "kernel 1", 2, 3.25, error)
    logging.getLogger("app").warning("the token is 100% secret, its bearer too")

    lines = [line.partition(" app: ")[2] for line in written.getvalue().splitlines()]
    assert lines == [
        "kernel 1 has 2 of 3.2%: [Errno 28] No space left on device",
        "the token is 100% secret, its bearer too",
    ]


def test_of_a_token_of_the_list_its_prefix_stays(written: io.StringIO) -> None:
    listed = "kk_0123456789abcdef" + "a" * 48
    logging.getLogger("uvicorn.error").warning("it is %s, or %s", listed, f"'{listed}'")
    assert listed not in written.getvalue()
    assert "it is kk_01234567[hidden], or 'kk_01234567[hidden]'" in written.getvalue()


def test_every_secret_that_was_given_is_hidden(written: io.StringIO) -> None:
    hide_tokens("second")
    hide_tokens("")
    hide_tokens(SECRET)

    logging.getLogger("app").warning("first %s second second", SECRET)

    assert written.getvalue().endswith(" app: first [hidden] [hidden] [hidden]\n")


@pytest.mark.parametrize("level", ["critical", "error", "warning", "info", "debug"])
def test_the_level_is_the_one_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logging.config.dictConfig(logging_config(level))
    levels = ["debug", "info", "warning", "error", "critical"]

    for name in levels:
        logging.getLogger("app.x").log(getattr(logging, name.upper()), name)

    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == levels[
        levels.index(level) :
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the server is shut down, not hidden", "the server is shut down, not hidden"),
        ("GET /api?token=t HTTP/1.1", "GET /api?token=[hidden] HTTP/1.1"),
        ("token t", "[hidden]"),
        ("it isn't", "it isn't"),
        ("it was t, wasn't it", "it was [hidden], wasn't it"),
    ],
)
def test_a_short_token_is_hidden_where_it_is_no_part_of_a_word(
    monkeypatch: pytest.MonkeyPatch, text: str, shown: str
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logging.config.dictConfig(logging_config("debug"))
    hide_tokens("t")

    logging.getLogger("app").warning("%s", text)

    assert stream.getvalue().endswith(f": {shown}\n")


def test_arguments_in_which_nothing_is_hidden_are_left_as_they_are() -> None:
    plain = ("127.0.0.1:9", "GET", "/api/kernels", "1.1", 200, 0.5, None)
    found = logging.LogRecord("x", logging.INFO, __file__, 1, "%s" * 7, plain, None)
    assert TokenFilter(SECRET).filter(found)
    assert found.args is plain


class Telling:
    """An object whose text has the secret."""

    def __str__(self) -> str:
        return f"token={SECRET}"


@pytest.mark.parametrize(
    "given", [SECRET, f"Bearer {SECRET}", Telling(), {SECRET: f"token={SECRET}"}]
)
def test_no_argument_among_others_is_overlooked(given: object) -> None:
    found = logging.LogRecord("x", logging.INFO, __file__, 1, "%s %s", ("GET", given), None)
    TokenFilter(SECRET).filter(found)
    assert f"token={SECRET}" not in found.getMessage()
    assert "[hidden]" in found.getMessage()
