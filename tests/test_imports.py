"""jsonschema is imported without what takes seconds, whichever release it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STAND_IN = "raise RuntimeError('this is what takes seconds')"


def run(program: str, path: Path) -> str:
    """What a program prints that has stand-ins for what jsonschema may look for."""
    for name in ("rfc3987_syntax", "lark"):
        (path / f"{name}.py").write_text(STAND_IN)
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{program}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_grammar_is_not_compiled(tmp_path: Path) -> None:
    program = """
from app.imports import import_jsonschema
import_jsonschema()
import jsonschema
jsonschema.Draft7Validator({"type": "object"}).validate({})
print(sorted({"rfc3987_syntax", "lark"} & {*sys.modules}))
"""
    assert run(program, tmp_path).strip() == "[]"


@pytest.mark.parametrize("user", ["nbformat", "jupyter_events"])
def test_the_users_of_jsonschema_do_not_compile_it_either(user: str, tmp_path: Path) -> None:
    program = f"""
from app.imports import import_jsonschema
import_jsonschema()
import {user}
print("rfc3987_syntax" in sys.modules)
"""
    assert run(program, tmp_path).strip() == "False"


def test_one_that_is_there_already_stays(tmp_path: Path) -> None:
    program = """
import types
there = sys.modules["rfc3987_syntax"] = types.ModuleType("rfc3987_syntax")
there.is_valid_syntax_iri = there.is_valid_syntax_iri_reference = lambda text: True
there.is_valid_syntax = lambda *_: True
from app.imports import import_jsonschema
import_jsonschema()
print(sys.modules["rfc3987_syntax"] is there)
"""
    assert run(program, tmp_path).strip() == "True"
