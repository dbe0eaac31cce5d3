"""Limits by real control groups, on a machine of the tests' own (`tests.keeper.in_uml`)."""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.server import REPOSITORY
from tests.support.uml import run_in_uml

FILE = Path(__file__).with_name("in_uml.py")
SECONDS = 400
TWICE = 1  # so many of its tests run in two places


@pytest.mark.timeout(SECONDS + 60)
def test_limits_are_enforced_by_control_groups() -> None:
    names = [
        node.name
        for node in ast.parse(FILE.read_text()).body
        if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(FILE)]
    env = {"PATH": os.environ["PATH"], "HOME": "/root", "PYTHONDONTWRITEBYTECODE": "1"}
    code, output = run_in_uml(command, seconds=SECONDS, cwd=REPOSITORY, env=env)
    assert code == 0, output
    assert re.search(rf"^{TWICE + len(names)} passed in", output, re.M), output
