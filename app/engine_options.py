"""The options about kernels on other hosts, by the engines that have them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from .option_types import OptionGroup, json_object, shown

__all__ = ["EngineTables", "Engines"]


def _engine_tables(value: Any) -> dict[str, dict[str, Any]]:
    """Parse the tables of options by engines' names. Raises `ValueError` for any other value.

    The options in them are checked where engines are known
    (`app.managers.processes.engines.defaults`).
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = json_object(value)
    if not isinstance(value, dict):
        raise ValueError(
            'not a JSON object of options by engine, like {"slurm": {"partition": "short"}}'
        )
    for engine, table in value.items():
        if not isinstance(table, dict):
            raise ValueError(f"{shown(engine)}: not a table of options")
    return value


# NoDecode: pydantic-settings would demand JSON for it in the environment.
EngineTables = Annotated[dict[str, dict[str, Any]], NoDecode, BeforeValidator(_engine_tables)]


class Engines(OptionGroup):
    """Kernels on other hosts."""

    # No repr: an option like a container's ``env`` may hold a secret.
    engines: EngineTables = Field(
        {},
        repr=False,
        description="Options of ssh, docker, kubernetes and slurm for kernelspecs that do not say "
        'them, like {"slurm": {"partition": "short"}}, in a file as [engines.slurm]; see '
        "docs/engines.md.",
    )
