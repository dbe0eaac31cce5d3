"""Classes of other people's, named in an option."""

from __future__ import annotations

from collections import OrderedDict
from importlib import import_module
from pathlib import Path

import pytest

from app.plugins import CannotLoad, from_extra, load_class, load_object


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that modules are imported from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def refusal(name: str, base: type = dict) -> str:
    """The one line with which a name is refused."""
    with pytest.raises(CannotLoad) as caught:
        load_class("some_option", name, base)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("--some-option: ")
    return line.removeprefix("--some-option: ")


def test_a_subclass_is_found() -> None:
    assert load_class("some_option", "collections:OrderedDict", dict) is OrderedDict
    assert load_class("some_option", "builtins:dict", dict) is dict


@pytest.mark.parametrize("name", ["", "collections", "collections:", ":OrderedDict", ":"])
def test_a_name_of_another_form_is_refused(name: str) -> None:
    assert refusal(name) == f"{name!r} is not written module:Class"


def test_a_dotted_name_is_refused_as_well() -> None:
    assert "module:Class" in refusal("collections.OrderedDict")


def test_a_module_that_there_is_not_is_named() -> None:
    assert "no_such_module" in refusal("no_such_module:Class")
    assert "no_such_module" in refusal("collections.no_such_module:Class")


def test_a_class_that_there_is_not_is_named() -> None:
    assert "NoSuchClass" in refusal("collections:NoSuchClass")


@pytest.mark.parametrize("name", ["builtins:list", "json:dumps", "json:decoder", "os:name"])
def test_what_is_no_subclass_is_refused(name: str) -> None:
    assert refusal(name) == f"{name} is no dict"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("x = = 1", "invalid syntax"),
        ("raise RuntimeError('not\\ntoday')", "not today"),
        ("raise KeyError()", "KeyError"),
        ("import no_such_module", "no_such_module"),
        ("1 / 0", "division by zero"),
    ],
)
def test_a_module_that_fails_says_how_in_a_line(modules: Path, code: str, says: str) -> None:
    name = f"failing_{abs(hash(code))}"
    (modules / f"{name}.py").write_text(code)
    assert says in refusal(f"{name}:Class")


def test_the_package_is_found_by_the_name_it_has_once_installed() -> None:
    assert load_class("some_option", "kernelkeep.plugins:CannotLoad", ValueError) is CannotLoad


def test_no_other_package_is_taken_for_it() -> None:
    assert "kernelkeeper" in refusal("kernelkeeper.plugins:CannotLoad")


def test_a_module_of_ones_own_is_found(modules: Path) -> None:
    (modules / "mine_of_test_plugins.py").write_text("class Mine(dict):\n    pass\n")
    loaded = load_class("some_option", "mine_of_test_plugins:Mine", dict)
    assert loaded.__name__ == "Mine"
    assert issubclass(loaded, dict)


def test_an_object_is_made_of_a_class_with_these_methods() -> None:
    assert load_object("some_option", "collections:OrderedDict", "keys", "pop") == OrderedDict()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("collections:OrderedDict", "collections:OrderedDict has no method answer"),
        ("collections:namedtuple", "collections:namedtuple is no object"),
        ("fractions:Nothing", "has no attribute 'Nothing'"),
        ("datetime:date", "TypeError: "),
    ],
)
def test_an_object_that_cannot_be_made_or_used_is_refused(name: str, says: str) -> None:
    with pytest.raises(CannotLoad) as caught:
        load_object("some_option", name, "answer")
    assert str(caught.value).startswith("--some-option: ")
    assert says in str(caught.value)


def test_a_package_of_an_extra_that_is_not_installed_is_told() -> None:
    with pytest.raises(CannotLoad) as caught, from_extra("extra", "some_option", "none_such"):
        import_module("none_such.below")
    assert str(caught.value) == "--some-option: it takes pip install 'kernelkeep[extra]'"
    # That of another one is a fault of the installation.
    with pytest.raises(ModuleNotFoundError), from_extra("extra", "some_option", "another"):
        import_module("none_such.below")
