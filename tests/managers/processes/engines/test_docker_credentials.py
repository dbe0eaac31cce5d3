"""Who an image is pulled as, by a file of Docker's."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from app.managers.processes.engines.docker_credentials import (
    Login,
    credentials_of,
    pulled_from_hub,
    registry_of,
)
from app.managers.processes.hosts.errors import ImageUnusable

ADA = base64.b64encode(b"ada:se:cret").decode()


def file(tmp_path: Path, content: Any, mode: int = 0o600) -> str:
    path = tmp_path / "config.json"
    path.touch(0o600)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("ubuntu", "docker.io"),
        ("ubuntu:22.04", "docker.io"),
        ("lab/kernels", "docker.io"),
        ("docker.io/lab/kernels:1", "docker.io"),
        ("index.docker.io/lab/kernels", "docker.io"),
        ("localhost/kernels", "localhost"),
        ("localhost:5000/kernels", "localhost:5000"),
        ("registry.example.org/lab/kernels@sha256:00", "registry.example.org"),
    ],
)
def test_the_registry_is_in_the_name(image: str, registry: str) -> None:
    assert registry_of(image) == registry


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("ubuntu", "docker.io/library/ubuntu"),
        ("lab/kernels:1", "docker.io/lab/kernels:1"),
        ("docker.io/lab/kernels", "docker.io/lab/kernels"),
        ("docker.io/ubuntu", "docker.io/library/ubuntu"),
        ("index.docker.io/lab/kernels", "docker.io/lab/kernels"),
        ("registry-1.docker.io/lab/kernels", "docker.io/lab/kernels"),
        ("docker.iot/kernels", "docker.io/docker.iot/kernels"),
    ],
)
def test_the_hub_has_one_name(image: str, name: str) -> None:
    assert pulled_from_hub(image) == name


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("registry.example.org", "registry.example.org/kernels"),
        ("https://registry.example.org/v2/", "registry.example.org/kernels"),
        ("https://index.docker.io/v1/", "kernels"),
        ("docker.io", "lab/kernels"),
    ],
)
def test_the_registrys_entry_counts(tmp_path: Path, name: str, image: str) -> None:
    others = {"other.example.org": {"auth": "!"}, "https://registry.example.org.evil/": {}}
    path = file(tmp_path, {"auths": {**others, name: {"auth": ADA}}, "HttpHeaders": {"a": "b"}})
    assert credentials_of(path, image) == Login("ada", "se:cret")
    assert credentials_of(path, "third.example.org/kernels") is None


@pytest.mark.parametrize(
    ("entry", "login"),
    [
        ({"username": "ada", "password": "x"}, Login("ada", "x")),
        ({"auth": base64.b64encode(b"00000000:").decode(), "identitytoken": "t"}, None),
        ({"identitytoken": "t"}, None),
    ],
)
def test_other_forms(tmp_path: Path, entry: Any, login: Login | None) -> None:
    path = file(tmp_path, {"auths": {"r.example.org": entry}})
    assert credentials_of(path, "r.example.org/k") == (login or Login(identitytoken="t"))


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        ({"auths": {"r.example.org": {"auth": ADA}}}, 0o640, "Others may use"),
        ({"auths": {"r.example.org": {"auth": ADA}}}, 0o604, "Others may use"),
        ({"auths": {"r.example.org": {}}, "credsStore": "secretservice"}, 0o600, "no helper"),
        ({"auths": {"r.example.org": {"auth": ADA[:-5]}}}, 0o600, "form of Docker's"),
        ({"auths": {"r.example.org": {"auth": "/w=="}}}, 0o600, "form of Docker's"),
        ({"auths": {"r.example.org": {"auth": "é"}}}, 0o600, "form of Docker's"),
        ({"auths": {"r.example.org": ADA}}, 0o600, "form of Docker's"),
        ({"auths": []}, 0o600, "form of Docker's"),
        (f'{{"auths": {{"r.example.org": {{"auth": "{ADA}"', 0o600, "form of Docker's"),
    ],
)
def test_what_is_of_no_use_is_told_without_what_is_in_it(
    tmp_path: Path, content: Any, mode: int, why: str
) -> None:
    path = file(tmp_path, content, mode)
    with pytest.raises(ImageUnusable, match=why) as raised:
        credentials_of(path, "r.example.org/k")
    error: BaseException | None = raised.value
    while error is not None and not error.__suppress_context__:
        error = error.__context__
    assert "cret" not in f"{raised.value.message}{error!r}"
    assert ADA[:8] not in f"{raised.value.message}{error!r}"


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(ImageUnusable, match="cannot be read: No such file"):
        credentials_of("/nowhere/config.json", "k")
    with pytest.raises(ImageUnusable, match="cannot be read: there is no such home"):
        credentials_of("~nobody-of-this-name/config.json", "k")
