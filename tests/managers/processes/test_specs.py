"""Kernelspecs as they lie on disk: found in any case, shown, served, left out when broken.

These are the tests of `app.managers.processes.spec_files`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from app.managers.errors import KernelSpecInvalid, KernelSpecNotFound, NotFound
from app.managers.processes.specs import Specs, kernel_spec_manager
from tests.support.kernelspecs import PIXEL, Spec, write_broken_kernelspec, write_kernelspec


def provided(argv: Sequence[str] = ("k",), **stanza: Any) -> str:
    """The text of a ``kernel.json`` that asks for a provisioner."""
    return json.dumps({"argv": argv, "metadata": {"kernel_provisioner": stanza}})


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
    manager = kernel_spec_manager(
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


async def test_a_directory_that_cannot_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for place in ("locked", "open"):
        write_kernelspec(tmp_path / place, place, Spec())
    specs = specs_in(tmp_path / "locked", tmp_path / "open")
    locked, listdir = str(tmp_path / "locked" / "kernels"), os.listdir

    def refuse(place: str) -> list[str]:
        if place == locked:
            raise PermissionError(13, "Permission denied")
        return listdir(place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        assert await specs.names() == ["open"]
        assert (await specs.find("open")).argv
        with pytest.raises(KernelSpecNotFound):
            await specs.find("locked")
    assert len([line for line in caplog.messages if locked in line]) == 1
    assert await specs.names() == ["locked", "open"]


NAMES = [
    "Python [py3k]",
    "conda-env-my env-py",
    "Naïve",
    "xxx~yyy",
    "100%",
    "a?b#c&d",
    "核",
    "a'b\"c",
]
NO_NAMES = ["a\nb", "tab\there", "back\\slash", "esc\x1b[31m", "\u2028", "\u202egnp", "del\x7f"]


async def test_whatever_can_be_shown_is_a_name(tmp_path: Path) -> None:
    for name in (*NAMES, *NO_NAMES, os.fsdecode(b"\xff")):
        write_kernelspec(tmp_path, name, Spec(resources={"logo-64x64.png": PIXEL}))
    specs = specs_in(tmp_path)

    models = await specs.models()

    assert set(models) == {name.lower() for name in NAMES}
    for name in (*NAMES, *models):
        assert (await specs.model(name)).name == name
        assert (await specs.find(name)).argv
        assert (await specs.resource(name, "logo-64x64.png")).read_bytes() == PIXEL
    for name in NO_NAMES:
        with pytest.raises(KernelSpecNotFound):
            await specs.find(name)


async def test_of_two_names_that_differ_in_case_only_one_is_listed_and_found(
    tmp_path: Path,
) -> None:
    for name in ("SAME", "Same", "same"):
        write_kernelspec(tmp_path, name, Spec(fields={"display_name": name}))
    specs = specs_in(tmp_path)

    (model,) = (await specs.models()).values()
    assert (await specs.find("same")).display_name == model.spec.display_name


# Each with the words that say what is wrong with it.
BROKEN: Mapping[str, tuple[str | bytes, str]] = {
    "empty": ("", "is not JSON: Expecting value, line 1, column 1"),
    "cut off": ('{"argv": [', "is not JSON: "),
    "a list": ("[]", "must be an object, not a list"),
    "null": ("null", "must be an object, not null"),
    "a text": ('"kernel"', "must be an object, not a text"),
    "no json": ("argv = kernel", "is not JSON: "),
    "byte order mark": ("\ufeff{}", "is not JSON: Unexpected UTF-8 BOM"),
    "not utf-8": (b'{"argv": ["k"], "display_name": "\xff"}', "is not UTF-8: byte 33 "),
    "utf-16": ('{"argv": ["k"]}'.encode("utf-16"), "is not UTF-8: byte 0 "),
    "too deep": ('{"argv": ["k"], "metadata": ' + '{"a":' * 50_000, "is nested too deeply"),
    "deep": (
        '{"argv":["k"],"metadata":' + '{"a":' * 100 + "1" + "}" * 101,
        "is nested too deeply",
    ),
    "huge": ('{"argv": ["k"], "display_name": "' + "x" * 2**20 + '"}', "is larger than 1048576"),
    "huge number": ('{"argv": ["k"], "metadata": {"a": ' + "1" * 5000 + "}}", "holds a number"),
    "no argv": ('{"display_name": "x"}', "argv is missing or empty"),
    "empty argv": ('{"argv": []}', "argv is missing or empty"),
    "blank argv": ('{"argv": ["", "-f"]}', "argv[0] is empty"),
    "argv is a text": ('{"argv": "kernel -f"}', "argv must be a list of texts, not a text"),
    "argv is null": ('{"argv": null}', "argv must be a list of texts, not null"),
    "argv of numbers": ('{"argv": ["k", 2]}', "argv[1] must be a text, not a number"),
    "argv of lists": ('{"argv": [["k"]]}', "argv[0] must be a text, not a list"),
    "argv with NUL": ('{"argv": ["k", "a\\u0000b"]}', "argv[1] holds a NUL character"),
    "argv with half": ('{"argv": ["k", "\\ud800"]}', "argv[1] holds half of a surrogate pair"),
    "long argv": ('{"argv": ["k", "' + "x" * 140_000 + '"]}', "argv[1] is larger than "),
    "a number for a name": ('{"argv": ["k"], "display_name": 7}', "display_name must be a text"),
    "half a character": ('{"argv": ["k"], "display_name": "\\ud83d"}', "display_name holds half"),
    "no language": ('{"argv": ["k"], "language": null}', "language must be a text, not null"),
    "env is a list": ('{"argv": ["k"], "env": []}', "env must be an object, not a list"),
    "env is null": ('{"argv": ["k"], "env": null}', "env must be an object, not null"),
    "env of numbers": ('{"argv": ["k"], "env": {"A": 1}}', "env.'A' must be a text, not a number"),
    "env of null": ('{"argv": ["k"], "env": {"A": null}}', "env.'A' must be a text, not null"),
    "env with NUL": ('{"argv": ["k"], "env": {"A": "x\\u0000"}}', "env.'A' holds a NUL character"),
    "env with half": ('{"argv": ["k"], "env": {"A": "\\ud800"}}', "env.'A' holds half of a surr"),
    "no name": ('{"argv": ["k"], "env": {"": "x"}}', "env: '' is not a name for an environment"),
    "a name with =": ('{"argv": ["k"], "env": {"A=B": "x"}}', "env: 'A=B' is not a name for an "),
    "a name with NUL": ('{"argv": ["k"], "env": {"A\\u0000": "x"}}', "env: 'A\\x00' is not a name"),
    "a name of half": (
        '{"argv": ["k"], "env": {"\\ud800": "x"}}',
        "env: the name '\\ud800' holds half",
    ),
    "metadata is a list": ('{"argv": ["k"], "metadata": []}', "metadata must be an object, not a"),
    "metadata is null": ('{"argv": ["k"], "metadata": null}', "metadata must be an object, not n"),
    "no such interrupt mode": (
        '{"argv": ["k"], "interrupt_mode": "psychic"}',
        'interrupt_mode must be "signal" or "message"',
    ),
    "provisioner is a text": (
        '{"argv": ["k"], "metadata": {"kernel_provisioner": "local"}}',
        "metadata.kernel_provisioner must be an object, not a text",
    ),
    "provisioner is null": (
        '{"argv": ["k"], "metadata": {"kernel_provisioner": null}}',
        "metadata.kernel_provisioner must be an object, not null",
    ),
    "provisioner's name is a number": (
        provided(provisioner_name=7),
        "metadata.kernel_provisioner.provisioner_name must be a text, not a number",
    ),
    "no such provisioner": (
        provided(provisioner_name="nowhere"),
        "metadata.kernel_provisioner.provisioner_name is 'nowhere', a provisioner that is not ins",
    ),
    "provisioner's config is a list": (
        provided(provisioner_name="local-provisioner", config=[]),
        "metadata.kernel_provisioner.config must be an object, not a list",
    ),
    "preload is a text": (
        provided(provisioner_name="kernelkeep-fork", config={"preload": "pandas"}),
        "metadata.kernel_provisioner.config.preload must be a list of texts, not a text",
    ),
    "limit is a text": (
        provided(provisioner_name="kernelkeep-fork", config={"limits": {"AS": "lots"}}),
        "metadata.kernel_provisioner.config.limits cannot be set: the value of AS",
    ),
    "no such limit": (
        provided(provisioner_name="kernelkeep-fork", config={"limits": {"LUCK": 7}}),
        "metadata.kernel_provisioner.config.limits cannot be set: there is no resource limit LUCK",
    ),
    **{
        f"shutdown_wait_time is {value}": (
            f'{{"argv": ["k"], "metadata": {{"shutdown_wait_time": {value}}}}}',
            "metadata.shutdown_wait_time must be a number of seconds, more than 0 and at most 3600",
        )
        for value in ("0", "-1", "true", "null", '"5"', "NaN", "Infinity", "3601", "[]")
    },
}


@pytest.mark.parametrize(("content", "fault"), BROKEN.values(), ids=BROKEN)
async def test_a_broken_spec_is_left_out_and_whoever_asks_for_it_is_told_what_is_wrong(
    specs: Specs, tmp_path: Path, content: str | bytes, fault: str
) -> None:
    file = write_broken_kernelspec(tmp_path, "Broken", "") / "kernel.json"
    write(file, content.encode() if isinstance(content, str) else content)

    models = await specs.models()

    assert list(models) == ["good"]
    assert json.loads(msgspec.json.encode(models))["good"]["name"] == "good"
    assert await specs.names() == ["good"]
    for ask in (specs.find, specs.model):
        with pytest.raises(KernelSpecInvalid) as caught:
            await ask("broken")
        assert caught.value.message.startswith(f"Kernel spec Broken is broken: {file}: {fault}")
        assert len(caught.value.message) < 400


SOUND: Mapping[str, str] = {
    "a place that nothing fills": '{"argv": ["k", "{", "{undefined}", "%s", "{connection_file}"]}',
    "an interrupt mode in capitals": '{"argv": ["k"], "interrupt_mode": "SIGNAL"}',
    "keys of others": '{"argv": ["k"], "resource_dir": 7, "argv0": [], "codemirror_mode": {}}',
    "metadata of others": '{"argv": ["k"], "metadata": {"cull_idle_timeout": "soon", "a": NaN}}',
    "a provisioner without a name": '{"argv": ["k"], "metadata": {"kernel_provisioner": {}}}',
    "deep": '{"argv":["k"],"metadata":' + '{"a":' * 98 + "1" + "}" * 99,
    "a large number": '{"argv": ["k"], "metadata": {"a": ' + "1" * 30 + "}}",
    "a path from home": '{"argv": ["~/k"], "env": {"a-b.c(1)": "$HOME ${PATH"}}',
}


@pytest.mark.parametrize("content", SOUND.values(), ids=SOUND)
async def test_what_jupyter_can_start_is_not_refused(
    specs: Specs, tmp_path: Path, content: str
) -> None:
    write_broken_kernelspec(tmp_path, "odd", content)

    assert await specs.names() == ["good", "odd"]
    asked: list[str] = json.loads(content)["argv"]
    assert (await specs.find("odd")).argv == asked
    assert (await specs.model("odd")).spec.interrupt_mode == "signal"


async def test_only_who_executes_the_command_needs_one(tmp_path: Path) -> None:
    write_broken_kernelspec(tmp_path, "far", provided([], provisioner_name="kernelkeep-far"))
    write_broken_kernelspec(tmp_path, "near", provided([], provisioner_name="local-provisioner"))
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["kernelkeep-far"] = factory.provisioners["local-provisioner"]
    try:
        assert await specs_in(tmp_path).names() == ["far"]
    finally:
        del factory.provisioners["kernelkeep-far"]


async def test_no_value_of_a_broken_spec_is_told_to_anybody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = '{"argv": ["hunter2", "hunter2\\u0000"], "env": {"TOKEN": "hunter2"}}'
    write_broken_kernelspec(tmp_path, "broken", content)
    specs = specs_in(tmp_path)

    with pytest.raises(KernelSpecInvalid) as caught:
        await specs.find("broken")
    await specs.models()

    assert "hunter2" not in str(caught.value) + caplog.text


def write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


async def test_a_broken_spec_is_logged_once_for_each_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_broken_kernelspec(tmp_path, "broken", '{"argv": [1]}') / "kernel.json"
    specs = specs_in(tmp_path)

    async def looked_at() -> list[str]:
        caplog.clear()
        for _ in range(3):
            await specs.models()
            with contextlib.suppress(KernelSpecInvalid):
                await specs.find("broken")
        assert not any(record.exc_info for record in caplog.records)
        return [record.getMessage() for record in caplog.records]

    said = f"Kernel spec broken is broken: {file}: "
    with caplog.at_level(logging.INFO):
        assert await looked_at() == [said + "argv[0] must be a text, not a number"]
        assert await looked_at() == []
        write(file, b'{"argv": [null]}')
        assert await looked_at() == [said + "argv[0] must be a text, not null"]
        write(file, b'{"argv": ["k"]}')
        assert await looked_at() == []
        write(file, b'{"argv": [null]}')
        assert await looked_at() == [said + "argv[0] must be a text, not null"]


async def test_a_name_of_a_directory_cannot_forge_a_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_broken_kernelspec(tmp_path / "a\nb", "broken", "{")

    with caplog.at_level(logging.INFO):
        assert await specs_in(tmp_path / "a\nb").models() == {}

    (record,) = caplog.records
    assert "\n" not in record.getMessage()


async def test_a_file_beside_a_spec_whose_name_is_not_utf8_costs_only_itself(
    specs: Specs, tmp_path: Path
) -> None:
    directory = os.fsencode(tmp_path / "kernels" / "Good")
    write(Path(os.fsdecode(directory + b"/logo-\xff.png")), PIXEL)

    assert len((await specs.models())["good"].resources) == 4


@pytest.fixture
def _unlogged() -> Iterator[None]:
    """A name that is not UTF-8 in a log line is more than pytest-xdist can report."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_unlogged")
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


@pytest.mark.usefixtures("_unlogged")
async def test_only_what_is_served_is_listed(specs: Specs, tmp_path: Path) -> None:
    directory = write_kernelspec(tmp_path, "other", Spec())
    write(tmp_path / "elsewhere.png", PIXEL)
    (directory / "logo-out.png").symlink_to(tmp_path / "elsewhere.png")
    (directory / "logo-nowhere.png").symlink_to("nowhere")
    (directory / "logo-directory").mkdir()
    os.mkfifo(directory / "logo-pipe.svg")
    write(directory / "here.png", PIXEL)
    (directory / "logo-here.png").symlink_to("here.png")

    resources = (await specs.models())["other"].resources

    assert set(resources) == {"logo-here"}
    assert await specs.resource("other", "logo-here.png") == directory / "here.png"


async def test_a_spec_without_a_directory_has_no_files(
    specs: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "logo-64x64.png", PIXEL)
    spec = KernelSpec(argv=["k"], display_name="Nowhere", resource_dir="")
    monkeypatch.setattr(specs, "_find", lambda *_: spec)

    assert (await specs.model("nowhere")).resources == {}
    with pytest.raises(NotFound, match="Kernel resource not found"):
        await specs.resource("nowhere", "logo-64x64.png")


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
