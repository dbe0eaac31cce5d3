"""The kernelspecs resource, and the files beside the specs."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.api.errors import error_of
from tests.support.kernelspecs import (
    PIXEL,
    Spec,
    write_broken_kernelspec,
    write_kernelspec,
)
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

SPEC_KEYS = [
    "argv",
    "env",
    "display_name",
    "language",
    "interrupt_mode",
    "metadata",
    "kernel_protocol_version",
]
RESOURCES = {"logo-64x64.png": PIXEL, "logo-svg.svg": b"<svg/>", "kernel.js": b"// js"}
BIG = bytes(range(256)) * 1024

BROKEN = {
    "broken-json": "{",
    "broken-list": "[]",
    "broken-mode": '{"argv": ["x"], "interrupt_mode": "shout"}',
    "broken-bytes": '{"argv": ["\udcff"]}',
    "broken-provisioner": '{"argv": ["x"], "metadata": {"kernel_provisioner": 7}}',
}


@pytest.fixture(scope="module", autouse=True)
def specs(server: ServerProcess) -> None:
    folder = server.home.jupyter_path
    write_kernelspec(folder, "sample", Spec(resources={**RESOURCES, "big.PNG": BIG}))
    write_kernelspec(folder, "Mixed.Case-1", Spec(interrupt_mode="message"))
    for name, text in BROKEN.items():
        directory = write_broken_kernelspec(folder, name, "")
        (directory / "kernel.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    (folder / "secret").write_text("outside of every spec")
    (folder / "kernels" / "sample" / "outward").symlink_to(folder / "secret")
    (folder / "kernels" / "sample" / "folder").mkdir()


async def test_the_list(rest: RestClient) -> None:
    response = await rest.request("GET", "/api/kernelspecs")
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert list(body) == ["default", "kernelspecs"]
    assert body["default"] == "fake"
    specs = body["kernelspecs"]
    assert {"fake", "python3", "sample", "mixed.case-1"} <= set(specs)
    for name, model in specs.items():
        assert list(model) == ["name", "spec", "resources"]
        assert model["name"] == name
        assert list(model["spec"]) == SPEC_KEYS


async def test_broken_specs_are_left_out_of_the_list(
    server: ServerProcess, rest: RestClient
) -> None:
    mark = server.mark()
    listed = (await rest.kernelspecs())["kernelspecs"]
    assert not BROKEN.keys() & set(listed)
    assert {"fake", "python3", "sample"} <= set(listed)
    await rest.kernelspecs()
    # Once, in one line, however often they are looked at.
    told = [line for line in server.output().splitlines() if " is broken: " in line]
    assert sorted(line.split("Kernel spec ")[1].split(" ")[0] for line in told) == sorted(BROKEN)
    assert "Traceback" not in server.output(mark)


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_spec_is_an_error_of_one_sentence(rest: RestClient, name: str) -> None:
    for response in (
        await rest.http.get(f"/api/kernelspecs/{name}"),
        await rest.http.post("/api/kernels", json={"name": name}),
        await rest.http.post(
            "/api/sessions", json={"path": "a", "type": "notebook", "kernel": {"name": name}}
        ),
    ):
        assert response.status_code == 500
        body = response.json()
        assert list(body) == ["message", "reason", "code", "short_message"]
        assert body["code"] == "kernelspec_invalid"
        assert body["message"].startswith(f"Kernel spec {name} is broken: ")
        assert f"/{name}/kernel.json: " in body["message"]
        assert body["short_message"] == f"Kernel spec {name} is broken"
    assert await rest.kernels() == []


async def test_a_session_that_is_to_get_a_broken_kernelspec_keeps_its_kernel(
    rest: RestClient,
) -> None:
    made = await rest.http.post(
        "/api/sessions", json={"path": "b", "type": "notebook", "kernel": {"name": "fake"}}
    )
    session = made.json()
    response = await rest.http.patch(
        f"/api/sessions/{session['id']}", json={"kernel": {"name": "broken-mode"}}
    )
    assert response.status_code == 501
    assert "interrupt_mode must be" in response.json()["message"]
    assert response.json()["short_message"] == "Error starting kernel broken-mode"
    after = await rest.http.get(f"/api/sessions/{session['id']}")
    assert after.json()["kernel"]["id"] == session["kernel"]["id"]
    await rest.http.delete(f"/api/sessions/{session['id']}")


async def test_a_name_cannot_forge_a_line_of_the_log(
    rest: RestClient, server: ServerProcess
) -> None:
    mark = server.mark()
    name = "a\n2026-01-01 00:00:00 INFO forged"
    response = await rest.http.post("/api/kernels", json={"name": name})
    error_of(response, 404, "kernelspec_not_found")
    error_of(await rest.http.get(f"/api/kernelspecs/{quote(name)}"), 404, "kernelspec_not_found")
    assert "\n2026-01-01" not in server.output(mark)


@pytest.mark.parametrize("name", ["mixed.case-1", "MIXED.Case-1", "%4dixed%2Ecase%2d1"])
async def test_one_spec_has_the_name_that_was_asked_for(rest: RestClient, name: str) -> None:
    model = await rest.kernelspec(name)
    assert model["name"] == name.replace("%4d", "M").replace("%2E", ".").replace("%2d", "-")
    assert model["spec"]["interrupt_mode"] == "message"


@pytest.mark.parametrize(
    "name", ["Python [py3k]", "conda-env-my env-py", "naïve", "xxx~yyy", "100%", "a?b#c&d=e", "核"]
)
async def test_what_is_listed_is_served_and_started_whatever_its_name(
    server: ServerProcess, rest: RestClient, name: str
) -> None:
    spec = Spec(resources={"logo-64x64.png": PIXEL})
    write_kernelspec(server.home.jupyter_path, name, spec)
    listed = (await rest.kernelspecs())["kernelspecs"][name.lower()]
    for asked in (name, name.lower()):
        response = await rest.request("GET", f"/api/kernelspecs/{quote(asked)}")
        assert response.json()["spec"] == listed["spec"]
    logo = await rest.request("GET", listed["resources"]["logo-64x64"])
    assert logo.content == PIXEL
    kernel = await rest.start_kernel(name)
    assert kernel["name"] == name
    session = await rest.http.post(
        "/api/sessions", json={"path": name, "type": "notebook", "kernel": {"name": name.lower()}}
    )
    assert session.status_code == 201
    for kernel_id in (kernel["id"], session.json()["kernel"]["id"]):
        await rest.wait_for_state(kernel_id, "idle")
    # Where else the name appears.
    await rest.restart(kernel["id"])
    metrics = (await rest.request("GET", "/metrics")).text
    label = name.lower()
    assert f'kernelkeep_kernel_starts_total{{reason="start",type="{label}"}}' in metrics
    await rest.http.delete(f"/api/sessions/{session.json()['id']}")
    await rest.delete(kernel["id"])
    assert "Invalid kernelspec" not in server.output()


@pytest.mark.parametrize("name", ["%2e%2e", "../kernels/fake", "..%2f..", "fake/../fake", "fake/."])
async def test_a_name_is_never_a_path(rest: RestClient, name: str) -> None:
    for path in (f"/api/kernelspecs/{quote(name, safe='')}", f"/kernelspecs/{quote(name)}/x.png"):
        assert (await rest.http.get(path)).status_code in (400, 404)
    response = await rest.http.post("/api/kernels", json={"name": name})
    error_of(response, 404, "kernelspec_not_found")


async def test_missing_fields_get_defaults(server: ServerProcess, rest: RestClient) -> None:
    text = '{"argv": ["x"], "display_name": "Minimal"}'
    write_broken_kernelspec(server.home.jupyter_path, "minimal", text)
    assert (await rest.kernelspec("minimal"))["spec"] == {
        "argv": ["x"],
        "env": {},
        "display_name": "Minimal",
        "language": "",
        "interrupt_mode": "signal",
        "metadata": {},
        "kernel_protocol_version": "",
    }


async def test_specs_are_found_without_a_restart_of_the_server(
    server: ServerProcess, rest: RestClient
) -> None:
    directory = write_kernelspec(server.home.jupyter_path, "newcomer", Spec())
    assert "newcomer" in (await rest.kernelspecs())["kernelspecs"]
    (directory / "kernel.json").unlink()
    assert "newcomer" not in (await rest.kernelspecs())["kernelspecs"]
    await rest.request("GET", "/api/kernelspecs/newcomer", 404)


@pytest.mark.parametrize("name", ["none-such", "a%00b", "%2e%2e"])
async def test_an_unknown_spec(rest: RestClient, name: str) -> None:
    response = await rest.http.get(f"/api/kernelspecs/{name}")
    message = error_of(response, 404, response.json()["code"])
    if name == "none-such":
        assert message == "Kernel spec none-such not found"


async def test_resources_are_listed_and_can_be_fetched(rest: RestClient) -> None:
    resources = (await rest.kernelspec("SAMPLE"))["resources"]
    assert resources == {
        "kernel.js": "/kernelspecs/SAMPLE/kernel.js",
        "logo-64x64": "/kernelspecs/SAMPLE/logo-64x64.png",
        "logo-svg": "/kernelspecs/SAMPLE/logo-svg.svg",
    }
    for url in resources.values():
        response = await rest.request("GET", url)
        assert response.content == RESOURCES[Path(url).name]


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("logo-64x64.png", "image/png"),
        ("logo-svg.svg", r"image/svg\+xml"),
        ("kernel.js", "(text|application)/javascript.*"),
        ("kernel.json", "application/json"),
    ],
)
async def test_a_resource_s_headers(rest: RestClient, name: str, content_type: str) -> None:
    response = await rest.request("GET", f"/kernelspecs/sample/{name}")
    headers = response.headers
    assert re.fullmatch(content_type, headers["Content-Type"])
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["Last-Modified"].endswith(" GMT")
    assert headers["ETag"].startswith('"')
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers.get("Cache-Control") == ("max-age=2592000" if name.endswith(".png") else None)
    known = {"If-None-Match": headers["ETag"]}
    unchanged = await rest.request("GET", f"/kernelspecs/sample/{name}", 304, headers=known)
    assert unchanged.content == b""
    head = await rest.request("HEAD", f"/kernelspecs/sample/{name}")
    assert head.content == b""
    assert head.headers["Content-Length"] == str(len(response.content))
    assert head.headers["Content-Type"] == headers["Content-Type"]


async def test_a_large_resource_arrives_whole_and_in_parts(rest: RestClient) -> None:
    path = "/kernelspecs/sample/big.PNG"
    response = await rest.request("GET", path)
    assert response.content == BIG
    assert response.headers["Cache-Control"] == "max-age=2592000"
    part = await rest.request("GET", path, 206, headers={"Range": "bytes=5-9"})
    assert part.content == BIG[5:10]


@pytest.mark.parametrize(
    "path",
    [
        "none-such",
        "folder",
        "..%2ffake%2fkernel.json",
        "%2e%2e/fake/kernel.json",
        "..%2f..%2fsecret",
        "folder%2f..%2f..%2f..%2fsecret",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "outward",
        "a%00b",
        "x" * 300,
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_nothing_outside_a_spec_s_directory_is_served(
    rest: RestClient, path: str, method: str
) -> None:
    response = await rest.http.request(method, f"/kernelspecs/sample/{path}")
    assert response.status_code in (400, 403, 404)
    assert response.headers["Content-Type"] == "application/json"
    assert "outside of every spec" not in response.text


async def test_a_resource_of_an_unknown_spec(rest: RestClient) -> None:
    response = await rest.http.get("/kernelspecs/none-such/logo-64x64.png")
    error_of(response, 404, "kernelspec_not_found")
