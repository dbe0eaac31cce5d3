"""Figures of `app/`: its rooms, what is long, imports, words, options, and the time of the tests.

``python -m tests.support.figures [--before COMMIT]`` (``scripts/rooms``) prints those of the work
tree, and with ``--before`` those of a commit beside them.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import tokenize
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from xml.etree import ElementTree

from tests.support.rooms import (
    FILE_LINES,
    FUNCTION_LINES,
    REPOSITORY,
    ROOMS,
    Import,
    Module,
    functions,
    imports,
    modules,
    room_of,
)

__all__ = ["cycles", "export", "figures", "options_in"]

OPTIONS: Final = re.compile(r"app\.([a-z]+_)?options|app\.settings").fullmatch
"""Whether a module of this name has options, or had some."""


def figures(root: Path, junit: Path | None = None) -> dict[str, str]:
    """Each figure of a clone, by what it tells; ``junit`` has the times of its tests."""
    known = modules(root)
    lines = {name: module.source.count("\n") for name, module in known.items()}
    long = [found for module in known.values() for found in functions(module)]
    rooms: dict[str, list[int]] = {}
    for name in known:
        rooms.setdefault(room_of(name), []).append(lines[name])
    found = {
        f"{room}: files, lines": f"{len(rooms[room])}, {sum(rooms[room])}"
        for room in ROOMS
        if room in rooms
    }
    total = sum(lines.values())
    found["all: files, lines"] = f"{len(known)}, {total}"
    found["longest file"] = _longest(lines)
    found[f"files over {FILE_LINES} lines"] = str(sum(n > FILE_LINES for n in lines.values()))
    found["longest function"] = _longest(dict(sorted(long, key=lambda one: one[1])))
    found[f"functions over {FUNCTION_LINES} lines"] = str(
        sum(length > FUNCTION_LINES for _, length in long)
    )
    among = {*imports(known)}
    between = {(room_of(one.importer), room_of(one.imported)) for one in among}
    upwards = [one for one in between if ROOMS.index(one[0]) < ROOMS.index(one[1])]
    circles = cycles(among)
    found["rooms that import a room above"] = str(len(upwards))
    found["circles of modules that import each other"] = str(len(circles))
    found["modules in such circles"] = str(sum(map(len, circles)))
    words = [_words(module) for module in known.values()]
    for what, column in zip(("comments", "docstrings"), zip(*words, strict=True), strict=True):
        found[f"{what} per 100 lines"] = f"{100 * sum(column) / total:.1f}"
    found["options"] = str(options_in(known))
    found["tests: files, lines"] = _size_of_tests(root)
    if junit is not None:
        found["tests: number, seconds of all, minutes of the run"] = _times(junit)
    return found


def cycles(among: set[Import]) -> list[set[str]]:
    """The groups of modules of which each imports each other one, over others or directly."""
    reached: dict[str, set[str]] = {}
    direct: dict[str, set[str]] = {}
    for one in among:
        direct.setdefault(one.importer, set()).add(one.imported)
    for start in direct:
        seen, left = set[str](), [start]
        while left:
            for name in direct.get(left.pop(), set()) - seen:
                seen.add(name)
                left.append(name)
        reached[start] = seen
    groups = {
        frozenset({start} | {name for name in seen if start in reached.get(name, ())})
        for start, seen in reached.items()
        if start in seen
    }
    return [{*group} for group in groups if len(group) > 1]


def _longest(lengths: dict[str, int]) -> str:
    name, length = max(lengths.items(), key=lambda found: found[1])
    return f"{length} lines, {name}"


def _words(module: Module) -> tuple[int, int]:
    """The number of lines with a comment, and of docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(module.source).readline)
    comments = sum(token.type == tokenize.COMMENT for token in tokens)
    nodes = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    tree = ast.walk(ast.parse(module.source))
    documented = [node for node in tree if isinstance(node, nodes) and ast.get_docstring(node)]
    return comments, len(documented)


def options_in(known: dict[str, Module]) -> int:
    """The fields of the options' pydantic classes: all are described by ``Field(...)``."""
    return sum(
        isinstance(node, ast.AnnAssign)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "Field"
        for name, module in known.items()
        if OPTIONS(name)
        for node in ast.walk(ast.parse(module.source))
    )


def _size_of_tests(root: Path) -> str:
    files = [*(root / "tests").rglob("*.py")]
    return f"{len(files)}, {sum(file.read_text().count(chr(10)) for file in files)}"


def _times(junit: Path) -> str:
    """What ``pytest --junitxml`` has written of one run."""
    suite = next(ElementTree.parse(junit).iter("testsuite"))
    cases = [float(case.get("time", 0)) for case in suite.iter("testcase")]
    return f"{len(cases)}, {sum(cases):.0f}, {float(suite.get('time', 0)) / 60:.1f}"


def export(commit: str, directory: str) -> Path:
    """The files of a commit, in a directory."""
    command = ["git", "archive", commit, "app", "tests"]
    packed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", directory], input=packed, check=True)
    return Path(directory)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="scripts/rooms", description=__doc__)
    parser.add_argument("--before", metavar="COMMIT", help="show those of a commit, too")
    parser.add_argument("--junit", metavar="FILE", type=Path, help="what the tests have written")
    parser.add_argument("--before-junit", metavar="FILE", type=Path, help="the same of before")
    options = parser.parse_args()
    now = figures(REPOSITORY, options.junit)
    before: dict[str, str] = {}
    if options.before:
        with TemporaryDirectory() as directory:
            before = figures(export(options.before, directory), options.before_junit)
    for what in {**now, **before}:
        old = f"{before.get(what, '-'):55}" if options.before else ""
        print(f"{what:50} {old}{now.get(what, '-')}")


if __name__ == "__main__":
    main()
