"""Every module of `app/` has tests: by its name, or by the table in `tests.support.covered`."""

from __future__ import annotations

import re

import pytest

from tests.support.covered import ELSEWHERE, PURE, files_of, own_test
from tests.support.rooms import REPOSITORY, modules

MODULES = sorted(name for name, found in modules().items() if found.path.name != "__init__.py")


def test_every_module_has_tests() -> None:
    missing = [
        f"{module}: there is no {file.relative_to(REPOSITORY)}"
        for module in MODULES
        for file in files_of(module)
        if not file.is_file()
    ]
    assert missing == []


def test_the_table_has_exceptions_only() -> None:
    assert [module for module in ELSEWHERE if module not in MODULES] == []
    assert [module for module in ELSEWHERE if own_test(module).is_file()] == []
    assert {*MODULES} - {*ELSEWHERE} >= PURE


@pytest.mark.parametrize("module", sorted(ELSEWHERE))
def test_tests_of_another_name_tell_which_module_they_are_of(module: str) -> None:
    """They import it, or name it in their docstring."""
    package, _, name = module.rpartition(".")
    imported = rf"from {re.escape(package)} import .*\b{name}\b"
    named = re.compile(rf"from {re.escape(module)} import|{imported}|`{re.escape(module)}`")
    assert any(named.search(file.read_text()) for file in files_of(module))
