"""Kernelspecs as they lie on disk: found in any case, shown, served, left out when broken."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from jupyter_client.kernelspec import KernelSpecManager

from app.managers.errors import KernelSpecNotFound, NotFound
from app.managers.specs import Specs
from tests.support.kernelspecs import PIXEL, Spec, write_broken_kernelspec, write_kernelspec

SPEC = Spec(
    argv=("kernel", "-f", "{connection_file}"),
    env={"MODE": "fast"},
    metadata={"debugger": True},
    resources={
        "logo-64x64.png": PIXEL,
        "logo-svg.svg": b"<svg/>",
        "kernel.js": b"define()",
        "kernel.css": b"",
        "private.txt": b"not shown",
    },
)


@pytest.fixture
def specs(tmp_path: Path) -> Specs:
    """The specs of a directory that holds ``Good`` and nothing else."""
    write_kernelspec(tmp_path, "Good", SPEC)
    return specs_in(tmp_path)


def specs_in(*jupyter_paths: Path) -> Specs:
    manager = KernelSpecManager(
        kernel_dirs=[str(path / "kernels") for path in jupyter_paths], ensure_native_kernel=False
    )
    return Specs(manager, "good")


async def test_a_model_shows_the_spec_and_what_front_ends_load(specs: Specs) -> None:
    models = await specs.models()

    assert list(models) == ["good"]
    assert msgspec.to_builtins(models["good"]) == {
        "name": "good",
        "spec": {
            "argv": ["kernel", "-f", "{connection_file}"],
            "env": {"MODE": "fast"},
            "display_name": "Fake (Good)",
            "language": "fake",
            "interrupt_mode": "signal",
            "metadata": {"debugger": True},
            "kernel_protocol_version": "",
        },
        "resources": {
            "kernel.css": "/kernelspecs/good/kernel.css",
            "kernel.js": "/kernelspecs/good/kernel.js",
            "logo-64x64": "/kernelspecs/good/logo-64x64.png",
            "logo-svg": "/kernelspecs/good/logo-svg.svg",
        },
    }


async def test_what_a_spec_leaves_out_has_a_default(tmp_path: Path) -> None:
    write_broken_kernelspec(tmp_path, "bare", '{"argv": ["k"], "display_name": "Bare"}')

    model = await specs_in(tmp_path).model("bare")

    assert msgspec.to_builtins(model.spec) == {
        "argv": ["k"],
        "env": {},
        "display_name": "Bare",
        "language": "",
        "interrupt_mode": "signal",
        "metadata": {},
        "kernel_protocol_version": "",
    }
    assert model.resources == {}


@pytest.mark.parametrize("name", ["good", "Good", "GOOD", "gOOD"])
async def test_case_makes_no_difference_and_is_kept_in_the_answer(specs: Specs, name: str) -> None:
    model = await specs.model(name)

    assert model.name == name
    assert model.resources["kernel.js"] == f"/kernelspecs/{name}/kernel.js"
    assert (await specs.find(name)).display_name == "Fake (Good)"
    assert (await specs.resource(name, "kernel.js")).name == "kernel.js"


async def test_python_means_python3(tmp_path: Path) -> None:
    write_kernelspec(tmp_path, "python3", SPEC)

    assert (await specs_in(tmp_path).find("python")).display_name == "Fake (python3)"


@pytest.mark.parametrize(
    "name", ["missing", "", ".", "..", "../good", "good/", "goo", "good\0", "x" * 10_000]
)
async def test_a_spec_that_there_is_not_is_not_found(specs: Specs, name: str) -> None:
    with pytest.raises(KernelSpecNotFound) as caught:
        await specs.find(name)
    assert "available: good" in caught.value.message

    with pytest.raises(KernelSpecNotFound):
        await specs.model(name)
    with pytest.raises(NotFound):
        await specs.resource(name, "kernel.js")


async def test_specs_come_and_go_while_the_server_runs(specs: Specs, tmp_path: Path) -> None:
    directory = write_kernelspec(tmp_path, "new", Spec())
    assert await specs.names() == ["good", "new"]

    remove(directory / "kernel.json")
    assert await specs.names() == ["good"]


def remove(file: Path) -> None:
    file.unlink()


async def test_the_first_directory_wins(tmp_path: Path) -> None:
    for place in ("first", "second"):
        write_kernelspec(tmp_path / place, "same", Spec(fields={"display_name": place}))

    specs = specs_in(tmp_path / "nowhere", tmp_path / "first", tmp_path / "second")

    assert (await specs.find("same")).display_name == "first"


BROKEN: Mapping[str, str | bytes] = {
    "empty": "",
    "cut off": '{"argv": [',
    "a list": "[]",
    "null": "null",
    "a text": '"kernel"',
    "no json": "argv = kernel",
    "not utf-8": b'{"argv": ["k"], "display_name": "\xff"}',
    "argv of numbers": '{"argv": [1, 2], "display_name": "x"}',
    "a number for a name": '{"argv": ["k"], "display_name": 7}',
    "env is a list": '{"argv": ["k"], "display_name": "x", "env": []}',
    "metadata is a list": '{"argv": ["k"], "display_name": "x", "metadata": []}',
    "metadata is null": '{"argv": ["k"], "display_name": "x", "metadata": null}',
    "no such interrupt mode": '{"argv": ["k"], "display_name": "x", "interrupt_mode": "psychic"}',
    "half a character": '{"argv": ["k"], "display_name": "\\ud83d"}',
    "too deep": '{"argv": ["k"], "display_name": "x", "metadata": ' + '{"a":' * 50_000,
    "deep": '{"argv":["k"],"display_name":"x","metadata":' + '{"a":' * 990 + "1" + "}" * 991,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
async def test_a_broken_spec_is_left_out_and_the_others_are_there(
    specs: Specs, tmp_path: Path, content: str | bytes
) -> None:
    file = write_broken_kernelspec(tmp_path, "broken", "") / "kernel.json"
    write(file, content.encode() if isinstance(content, str) else content)

    models = await specs.models()

    assert list(models) == ["good"]
    assert json.loads(msgspec.json.encode(models))["good"]["name"] == "good"
    assert await specs.names() == ["good"]
    with pytest.raises(KernelSpecNotFound):
        await specs.model("broken")


def write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


async def test_a_broken_spec_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_broken_kernelspec(tmp_path, "broken", '{"argv": [1], "display_name": "x"}')

    with caplog.at_level(logging.WARNING, "app.managers.specs"):
        assert await specs_in(tmp_path).models() == {}

    (record,) = caplog.records
    assert record.message.startswith("kernelspec broken is left out: ")


@pytest.fixture
def _unlogged() -> Iterator[None]:
    """A name that is not UTF-8 in a log line is more than pytest-xdist can report."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_unlogged")
@pytest.mark.filterwarnings("ignore:Invalid kernelspec directory name")
@pytest.mark.parametrize("name", [b"caf\xe9", "snow☃".encode(), b"with space", b"%41", b"a'b"])
async def test_a_directory_with_a_strange_name_spoils_nothing(
    specs: Specs, tmp_path: Path, name: bytes
) -> None:
    write_strange(os.fsencode(tmp_path) + b"/kernels/" + name)

    models = await specs.models()

    assert "good" in models
    assert set(json.loads(msgspec.json.encode(models))) == set(models)


@pytest.mark.usefixtures("_unlogged")
async def test_a_file_with_a_strange_name_spoils_nothing(specs: Specs, tmp_path: Path) -> None:
    directory = write_kernelspec(tmp_path, "other", Spec())
    write(Path(os.fsdecode(os.fsencode(directory) + b"/logo-\xff.png")), PIXEL)

    models = await specs.models()

    assert "good" in models
    assert set(json.loads(msgspec.json.encode(models))) == set(models)


def write_strange(directory: bytes) -> None:
    os.mkdir(directory)
    with open(directory + b"/kernel.json", "wb") as file:
        file.write(b'{"argv": ["k"], "display_name": "Strange"}')


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("logo-64x64.png", PIXEL),
        ("private.txt", b"not shown"),
        ("./kernel.js", b"define()"),
        ("../Good/kernel.js", b"define()"),
    ],
)
async def test_a_file_of_a_spec_is_served(specs: Specs, path: str, content: bytes) -> None:
    assert read(await specs.resource("good", path)) == content


def read(file: Path) -> bytes:
    return file.read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            ".",
            "missing",
            "kernel.js/",
            "kernel.js/x",
            "directory",
            "..",
            "/",
            "\0",
            "x" * 5000,
        ),
        *("../Other/kernel.json", "../../secret", "/etc/passwd", "//etc/passwd", "../Good2/x"),
        *("link-out", "link-out-absolute", "directory-out/secret", "loop", "\ud800"),
        *("loop/../link-out", "loop/../directory-out/secret", "out-by-loop"),
    ],
)
async def test_no_other_file_is_served(specs: Specs, tmp_path: Path, path: str) -> None:
    write_kernelspec(tmp_path, "Other", Spec())
    furnish(tmp_path)

    with pytest.raises(NotFound, match="Kernel resource not found"):
        await specs.resource("good", path)


def furnish(tmp_path: Path) -> None:
    good = tmp_path / "kernels" / "Good"
    (tmp_path / "secret").touch()
    (good.parent / "Good2").mkdir()
    (good.parent / "Good2" / "x").touch()
    (good / "directory").mkdir()
    (good / "link-out").symlink_to("../../secret")
    (good / "link-out-absolute").symlink_to(tmp_path / "secret")
    (good / "directory-out").symlink_to("../..")
    (good / "loop").symlink_to("loop")
    (good / "out-by-loop").symlink_to("loop/../link-out")
