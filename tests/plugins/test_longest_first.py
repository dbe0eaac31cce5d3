"""The longest tests begin, each file is one worker's, and the table names files that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.longest_first import DURATIONS, scope_of
from tests.support.durations import durations, nodeid
from tests.support.rooms import REPOSITORY

TESTS = """
import pytest

@pytest.mark.parametrize("number", range(8))
def test_some(number):
    pass
"""
CONFTEST = """
from tests.plugins import longest_first

longest_first.DURATIONS.update({f"test_{name}.py": 1 for name in "adefg"})
longest_first.DURATIONS.update({"test_c.py": 9, "test_b.py": 5, "test_a.py::test_some[7]": 99})

def pytest_runtest_logreport(report):
    if report.when == "call" and hasattr(report, "node"):  # in the process that has the workers
        print("RAN", report.nodeid, report.node.gateway.id)
"""


def test_the_table_names_files_that_there_are() -> None:
    gone = {name.split("::")[0] for name in DURATIONS}
    assert [file for file in gone if not (REPOSITORY / file).is_file()] == []


def test_a_file_is_run_by_one_worker_and_the_longest_comes_first(tmp_path: Path) -> None:
    for name in "abcdefgh":
        (tmp_path / f"test_{name}.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-s", "-p", "tests.plugins.longest_first"),
            *("-p", "no:schemathesis", "-n", "2"),
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    ran = re.findall(r"RAN (\S+) (gw\d)", done.stdout)
    assert len(ran) == 64
    by_scope: dict[str, set[str]] = {}
    for test, worker in ran:
        scope = test if test == "test_a.py::test_some[7]" else test.split("::")[0]
        by_scope.setdefault(scope, set()).add(worker)
    assert all(len(workers) == 1 for workers in by_scope.values()), by_scope
    first = {test.split("::")[0] for test, _ in ran[:8]}
    # The one of which nothing is known begins beside the longest.
    assert first <= {"test_h.py", "test_a.py", "test_c.py"}
    assert {ran[0][0], ran[1][0]} & {"test_a.py::test_some[7]", "test_h.py::test_some[0]"}


def test_what_is_long_is_taken_alone() -> None:
    table = durations({"a.py::x": 20.4, "a.py::y": 6, "a.py::z": 6, "b.py::x": 3, "c.py::x": 30})
    assert table == {"c.py::x": 30, "a.py::x": 20, "a.py": 12, "b.py": 3}
    assert [*table] == ["c.py::x", "a.py::x", "a.py", "b.py"]


def test_of_a_long_file_each_function_is_taken_for_itself() -> None:
    tests = {"a.py::x[1::2]": 9, "a.py::x[2]": 8, "a.py::y": 9, "a.py::z[1]": 50, "b.py::x": 0.4}
    assert durations(tests) == {"a.py::z[1]": 50, "a.py::x": 17, "a.py::y": 9, "b.py": 0}


def test_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tests/a.py::test_b[1]", "tests/a.py::test_c", "tests/b.py"):
        monkeypatch.setitem(DURATIONS, name, 5)
    assert scope_of("tests/a.py::test_b[1]") == "tests/a.py::test_b[1]"
    assert scope_of("tests/a.py::test_c[x::y]") == "tests/a.py::test_c"
    assert scope_of("tests/a.py::test_b[2]") == "tests/a.py"
    assert scope_of("tests/b.py::TestB::test_c[x::y]") == "tests/b.py"


def test_ids_of_tests_from_those_of_junit() -> None:
    assert nodeid("tests.test_stop", "test_a[x]") == "tests/test_stop.py::test_a[x]"
    assert nodeid("tests.test_stop.TestA", "test_b") == "tests/test_stop.py::TestA::test_b"
