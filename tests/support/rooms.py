"""The rooms of `app/`: which there are, and which may import which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "FILE_LINES",
    "FUNCTION_LINES",
    "ROOMS",
    "Import",
    "Module",
    "functions",
    "imports",
    "modules",
    "room_of",
]

REPOSITORY: Final = Path(__file__).parents[2]

ROOMS: Final = (
    "app.protocol",
    "app.leaves",
    "app.keeper",
    "app.managers",
    "app.managers.owners",
    "app.managers.telemetry",
    "app.managers.limits",
    "app.managers.log",
    "app.managers.executions",
    "app.managers.messages",
    "app.managers.processes.isolation",
    "app.managers.processes.keeper",
    "app.managers.processes.hosts",
    "app.managers.processes.engines",
    "app.managers.processes.forking",
    "app.managers.processes",
    "app.managers.handover",
    "app.managers.replicas",
    "app.managers.kernels",
    "app.managers.sessions",
    "app.managers.files",
    "app.identity_providers",
    "app.ws",
    "app.api",
    "app",
)
"""From the lowest to the highest: a module imports modules of its own room and of lower ones."""

LEAVES: Final = frozenset({"app"}) | frozenset(
    f"app.{name}"
    for name in (
        *(
            "access_options",
            "agent_options",
            "callers",
            "config_file",
            "durations",
            "engine_options",
            "hub_environment",
            "identity_options",
            "imports",
            "isolation_options",
            "limit_options",
            "log_formats",
            "machine",
            "name_patterns",
            "option_types",
            "options",
        ),
        *("origins", "plugins", "replica_options", "settings", "uvicorn_internals"),
    )
)
"""The package itself, and modules of the top level that import nothing of the rooms above."""


FILE_LINES: Final = 500
FUNCTION_LINES: Final = 60
"""What no file and no function is to exceed."""


class Module(NamedTuple):
    """One module: its dotted name, its file and its source."""

    name: str
    path: Path
    source: str


class Import(NamedTuple):
    """That one module imports another."""

    importer: str
    imported: str


def modules(root: Path = REPOSITORY) -> dict[str, Module]:
    """Every module below ``app/`` of a clone, by its name."""
    found = {}
    for path in sorted((root / "app").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path, path.read_text())
    return found


def room_of(name: str) -> str:
    """The room of a module."""
    if name in LEAVES:
        return "app.leaves"
    fitting = [room for room in ROOMS if name == room or name.startswith(f"{room}.")]
    return max(fitting, key=len)


def imports(known: dict[str, Module]) -> Iterator[Import]:
    """What each module imports of ``app``, those for type checkers only among them."""
    for module in known.values():
        for node in ast.walk(ast.parse(module.source)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "app":
                        yield Import(module.name, alias.name)
            elif isinstance(node, ast.ImportFrom):
                base = _base_of(module, node)
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    if base.split(".")[0] == "app":
                        yield Import(module.name, full if full in known else base)


def _base_of(module: Module, node: ast.ImportFrom) -> str:
    """The package or module that a ``from ... import`` names."""
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    if module.path.name != "__init__.py":
        package.pop()
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def functions(module: Module) -> Iterator[tuple[str, int]]:
    """The functions of a module, each with its number of lines."""
    for node in ast.walk(ast.parse(module.source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{module.name}.{node.name}", node.end_lineno - node.lineno + 1
