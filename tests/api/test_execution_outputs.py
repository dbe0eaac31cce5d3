"""The data of outputs, fetched by reference: in its own type, and inert."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from tests.api.errors import error_of
from tests.support.executions import Executions
from tests.support.kernelspecs import PIXEL

SHOW = "from IPython.display import display\ndisplay({data!r}, raw=True, display_id={id!r})\n"


def show(data: dict[str, Any], display_id: str = "x") -> str:
    return SHOW.format(data=data, id=display_id)


async def fetch(executions: Executions, execution_id: str, number: int, **query: str) -> Any:
    path = f"{executions.path}/{execution_id}/outputs/{number}"
    return await executions.rest.http.get(path, params=query)


def content_of(response: httpx.Response, media_type: str) -> bytes:
    """The content, once it is sure that no browser would run it."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == media_type
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"] == "sandbox"
    assert response.headers["Content-Disposition"].startswith("attachment; filename=")
    return response.content


async def test_an_image_is_fetched_as_its_bytes(python: Executions) -> None:
    image = base64.encodebytes(PIXEL).decode()  # with line ends, as some kernels send it
    ended = await python.run("print(1)\n" + show({"text/plain": "p", "image/png": image}))
    response = await fetch(python, ended["id"], 1)
    assert content_of(response, "image/png") == PIXEL
    assert response.headers["Content-Disposition"] == 'attachment; filename="output-1.png"'
    response = await fetch(python, ended["id"], 1, mime="text/plain")
    assert content_of(response, "text/plain; charset=utf-8") == b"p"


async def test_a_large_image_is_found_by_its_reference(python: Executions) -> None:
    data = bytes(range(256)) * 1000
    ended = await python.run(show({"image/png": base64.b64encode(data).decode()}))
    output = ended["outputs"][0]
    assert output["metadata"]["kernelkeep"]["references"]["image/png"] > len(data)
    response = await python.rest.http.get(output["data"]["image/png"])
    assert content_of(response, "image/png") == data


async def test_a_figure_of_matplotlib(python: Executions) -> None:
    code = "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2]); plt.show()"
    ended = await python.run(code)
    number = next(n for n, output in enumerate(ended["outputs"]) if "data" in output)
    response = await fetch(python, ended["id"], number, mime="image/png")
    assert content_of(response, "image/png").startswith(PIXEL[:8])


@pytest.mark.parametrize(
    ("mime", "data", "media_type", "expected"),
    [
        ("text/html", "<b>ä</b>", "text/html; charset=utf-8", "<b>ä</b>".encode()),
        ("image/svg+xml", "<svg/>", "image/svg+xml", b"<svg/>"),
        ("application/json", {"a": [1, None]}, "application/json", b'{"a":[1,null]}'),
        ("application/vnd.vega.v5+json", {"a": 1}, "application/vnd.vega.v5+json", b'{"a":1}'),
        ("application/javascript", "alert(1)", "application/javascript", b"alert(1)"),
        ("application/pdf", "JVBERg==", "application/pdf", b"%PDF"),
        ("image/gif", "not base64!", "image/gif", b"not base64!"),
        ("text/x; evil\r\nX-A: b", "x", "application/octet-stream", b"x"),
        ("nonsense", "eA==", "application/octet-stream", b"x"),
    ],
)
async def test_data_of_every_kind(
    python: Executions, mime: str, data: Any, media_type: str, expected: bytes
) -> None:
    ended = await python.run(show({mime: data}))
    for query in ({}, {"mime": mime}):
        response = await fetch(python, ended["id"], 0, **query)
        assert content_of(response, media_type) == expected
        assert "X-A" not in response.headers


async def test_a_plus_sign_need_not_be_escaped(python: Executions) -> None:
    ended = await python.run(show({"image/svg+xml": "<svg/>"}))
    path = f"{python.path}/{ended['id']}/outputs/0?mime=image/svg+xml"
    response = await python.rest.http.get(path)
    assert content_of(response, "image/svg+xml") == b"<svg/>"


async def test_an_output_that_was_updated_or_cleared(python: Executions) -> None:
    code = (
        show({"text/plain": "one"}, "x")
        + show({"text/plain": "two"}, "y")
        + "from IPython.display import update_display\n"
        + "update_display({'text/plain': 'three'}, raw=True, display_id='x')\n"
    )
    ended = await python.run(code)
    assert (await fetch(python, ended["id"], 0)).text == "three"
    assert (await fetch(python, ended["id"], 1)).text == "two"
    ended = await python.run(f"{code}from IPython.display import clear_output\nclear_output()")
    error_of(await fetch(python, ended["id"], 0), 404, "output_not_found")


async def test_a_long_stream_can_be_fetched_whole(shared: Executions) -> None:
    ended = await shared.run("stderr first\nflood 20000 1000\nstderr last")
    assert ended["cut"] is not None
    response = await fetch(shared, ended["id"], 1)
    text = content_of(response, "text/plain; charset=utf-8").decode()
    assert [int(line.split()[0]) for line in text.splitlines()] == list(range(1, 20001))
    assert len(text) == 20_000_000
    assert (await fetch(shared, ended["id"], 0, mime="")).text == "first\n"


@pytest.mark.parametrize(
    ("number", "query"),
    [("1", {}), ("9999", {}), ("0", {"mime": "image/png"}), ("2", {})],
)
async def test_an_output_that_does_not_exist(
    shared: Executions, number: str, query: dict[str, str]
) -> None:
    ended = await shared.run("print a\nerror E why")
    error_of(await fetch(shared, ended["id"], int(number), **query), 404, "output_not_found")


@pytest.mark.parametrize("number", ["-1", "x", "1.5"])
async def test_a_number_that_makes_no_sense(shared: Executions, number: str) -> None:
    ended = await shared.run("print a")
    path = f"{shared.path}/{ended['id']}/outputs/{number}"
    error_of(await shared.rest.http.get(path), 400, "invalid_request")
