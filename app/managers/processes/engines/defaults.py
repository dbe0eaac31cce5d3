"""The options of engines that the settings give, for kernelspecs that do not.

A kernelspec's options override them, and options that a request to start a kernel may set override
those (`caller_options`). An option that is a table is overridden as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from jupyter_client.kernelspec import KernelSpec

from ....option_types import meant, shown
from ..hosts import options as ssh
from ..hosts.options import stanza_of, with_config
from .caller_options import CALLER_MAY_SET
from .kinds import KINDS

__all__ = ["Defaults", "defaults_of", "with_defaults"]

Defaults = Mapping[str, Mapping[str, Any]]
"""Options by the names of provisioners."""

_PREFIX: Final = "kernelkeep-"

_MODELS: Final[Mapping[str, type[msgspec.Struct]]] = {
    ssh.PROVISIONER.removeprefix(_PREFIX): ssh.SSHOptions,
    **{name.removeprefix(_PREFIX): kind.options for name, kind in KINDS.items()},
}
"""The options that there are, by the names of engines."""

_ANY: Final = "any"
"""A value for each option that has no default: a kernelspec or another default has a real one."""


def defaults_of(tables: Mapping[str, Mapping[str, Any]]) -> Defaults:
    """The tables of the setting ``engines``, checked as a kernelspec's options are.

    Raises `ValueError`, whose text is one line that names the option, and repeats no value.
    """
    for engine, table in tables.items():
        model = _MODELS.get(engine)
        if model is None:
            raise ValueError(f"{shown(engine)}: no engine; there are {', '.join(sorted(_MODELS))}")
        for name, value in table.items():
            if why := _why_not(model, name, value):
                raise ValueError(f"{engine}.{shown(name)}: {why}")
    return {f"{_PREFIX}{engine}": dict(table) for engine, table in tables.items()}


def _why_not(model: type[msgspec.Struct], name: str, value: object) -> str:
    """The reason why an option cannot have a value; empty if it can."""
    fields = msgspec.structs.fields(model)
    names = [field.name for field in fields]
    if name == CALLER_MAY_SET:
        return "a kernelspec alone says what callers may set"
    if name not in names:
        return f"no option of this engine{meant(name, names)}"
    needed = {field.name: _ANY for field in fields if field.required}
    try:
        msgspec.convert({**needed, name: value}, model)
    except msgspec.ValidationError as error:
        text = str(error).removesuffix(f" - at `$.{name}`")
        # Texts of msgspec with these beginnings repeat the value, or a key of it.
        repeats = text.startswith(("Invalid", "Object contains"))
        return "not what the option takes" if repeats else text
    return ""


def with_defaults(spec: KernelSpec, defaults: Defaults) -> KernelSpec:
    """The same kernelspec with the settings' options of its engine, where it says nothing."""
    stanza = stanza_of(spec)
    table = defaults.get(str(stanza.get("provisioner_name")))
    config = stanza.get("config", {})
    if not table or not isinstance(config, dict):  # what is no table is refused where it is read
        return spec
    return with_config(spec, {**table, **config})
