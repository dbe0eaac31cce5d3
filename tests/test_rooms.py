"""The rooms of `app/`: imports run downwards, and the documentation shows the same order."""

from __future__ import annotations

import re

from tests.support.rooms import REPOSITORY, ROOMS, imports, modules, room_of


def test_no_module_imports_from_a_room_above_its_own() -> None:
    upward = [
        f"{one.importer} imports {one.imported}"
        for one in imports(modules())
        if ROOMS.index(room_of(one.importer)) < ROOMS.index(room_of(one.imported))
    ]
    assert upward == []


def test_every_room_has_modules_and_every_package_is_a_room() -> None:
    known = modules()
    packages = {name for name, module in known.items() if module.path.name == "__init__.py"}
    assert {room_of(name) for name in known} == {*ROOMS}
    assert packages - {*ROOMS} == set()


def test_the_documentation_shows_the_rooms_in_this_order() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    table = re.findall(r"^\| `(app[\w/.]*)/?` \|", text, re.M)
    assert [row.rstrip("/").replace("/", ".") for row in table] == [*reversed(ROOMS)]
