"""The rooms of `app/`: imports run downwards, as documented, and nothing is too long to read."""

from __future__ import annotations

import re

from app.options import GROUPS
from tests.support.figures import cycles, options_in
from tests.support.rooms import (
    FILE_LINES,
    FUNCTION_LINES,
    REPOSITORY,
    ROOMS,
    functions,
    imports,
    modules,
    room_of,
)


def test_no_module_imports_from_a_room_above_its_own() -> None:
    upward = [
        f"{one.importer} imports {one.imported}"
        for one in imports(modules())
        if ROOMS.index(room_of(one.importer)) < ROOMS.index(room_of(one.imported))
    ]
    assert upward == []


def test_no_modules_import_each_other() -> None:
    assert cycles({*imports(modules())}) == []


def test_every_option_is_counted() -> None:
    assert options_in(modules()) == sum(len(group.model_fields) for group in GROUPS)


def test_every_room_has_modules_and_every_package_is_a_room() -> None:
    known = modules()
    packages = {name for name, module in known.items() if module.path.name == "__init__.py"}
    assert {room_of(name) for name in known} == {*ROOMS}
    assert packages - {*ROOMS} == set()


def test_the_documentation_shows_the_rooms_in_this_order() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    table = re.findall(r"^\| `(app[\w/.]*)/?` \|", text, re.M)
    assert [row.rstrip("/").replace("/", ".") for row in table] == [*reversed(ROOMS)]


def test_no_file_and_no_function_is_too_long_to_be_read_in_one_go() -> None:
    known = modules()
    lines = {name: module.source.count("\n") for name, module in known.items()}
    assert {name for name, count in lines.items() if count > FILE_LINES} == set()
    long = [
        one for module in known.values() for one in functions(module) if one[1] > FUNCTION_LINES
    ]
    assert long == []
