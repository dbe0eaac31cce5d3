"""The options of a kernel's engine that a request to start the kernel may set.

The kernelspec's ``config`` names them in ``caller_may_set``, each with the values that the request
may give: a list, or a range. A name with a dot is an entry of a table, like ``limits.memory``. All
other options are the kernelspec's alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Final, NamedTuple

import msgspec
from jupyter_client.kernelspec import KernelSpec

from ...errors import MAX_NAME, InvalidRequest, KernelStartFailed
from ..hosts import options as ssh
from ..hosts.options import stanza_of, with_config
from .kinds import KINDS
from .quantities import Measure, Value, number

__all__ = ["CALLER_MAY_SET", "EngineOptionRefused", "check_given", "settled"]

CALLER_MAY_SET: Final = "caller_may_set"

SHOWN: Final = 20
"""How many allowed values the text of a refusal names."""


class EngineOptionRefused(InvalidRequest):
    """An option of the kernel's engine that whoever starts it may not set, or not to this value.

    ``option`` in the response is its name.
    """

    code = "engine_option_refused"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"engine_options: {name[:MAX_NAME]}: {why}")
        self.details = {"option": name[:MAX_NAME]}


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The least and the greatest value of an option. Without a least one it must be above 0."""

    min: Value | None = None
    max: Value | None = None


Rule = list[Value] | Range


class _Kind(NamedTuple):
    options_of: Callable[[KernelSpec], object]
    measure: Measure


def check_given(spec: KernelSpec, given: Mapping[str, Value]) -> None:
    """Check the options that a request to start a kernel gives.

    Raises `EngineOptionRefused` for an option that it may not set, or not to this value, and
    `KernelStartFailed` for a kernelspec that is wrong itself.
    """
    if not given:
        return
    kind = _kind(spec)
    if kind is None:
        raise EngineOptionRefused(next(iter(given)), "kernels of this kernelspec have no engine")
    kind.options_of(settled(spec, {}))  # an error without the given options is not the caller's
    rules = _rules(spec)
    for name, value in given.items():
        rule = rules.get(name)
        if rule is None:
            raise EngineOptionRefused(name, "the kernelspec does not name it in caller_may_set")
        if why := _why_not(rule, name, value, kind.measure):
            raise EngineOptionRefused(name, why)
    # Each option is checked alone first, so that a refusal names the one that is wrong.
    for name, value in given.items():
        _check_type(spec, kind, {name: value}, name)
    _check_type(spec, kind, given, ", ".join(given))


def _check_type(spec: KernelSpec, kind: _Kind, given: Mapping[str, Value], name: str) -> None:
    try:
        kind.options_of(settled(spec, given))
    except KernelStartFailed:
        # Without the words of the error, which may repeat options that are the operator's alone.
        raise EngineOptionRefused(name, "not what the option takes") from None


def settled(spec: KernelSpec, given: Mapping[str, Value]) -> KernelSpec:
    """The kernelspec of one kernel: with the given options, and without ``caller_may_set``."""
    config = stanza_of(spec).get("config")
    if not isinstance(config, dict) or not (given or CALLER_MAY_SET in config):
        return spec
    config = {name: value for name, value in config.items() if name != CALLER_MAY_SET}
    for name, value in given.items():
        option, dot, key = name.partition(".")
        table = config.get(option)
        table = table if isinstance(table, dict) else {}
        config[option] = {**table, key: value} if dot else value
    return with_config(spec, config)


def _kind(spec: KernelSpec) -> _Kind | None:
    name = stanza_of(spec).get("provisioner_name")
    if name == ssh.PROVISIONER:
        return _Kind(ssh.options_of, number)
    kind = KINDS.get(str(name))
    return None if kind is None else _Kind(kind.options_of, kind.measure)


def _rules(spec: KernelSpec) -> dict[str, Rule]:
    # A table, as the options of the kernelspec were read before (`check_given`).
    config = spec.metadata["kernel_provisioner"].get("config") or {}
    try:
        return msgspec.convert(config.get(CALLER_MAY_SET, {}), dict[str, Rule])
    except msgspec.ValidationError as error:
        text = f"{CALLER_MAY_SET} in the kernelspec is wrong: {error}"
        raise KernelStartFailed(text) from None


def _why_not(rule: Rule, name: str, value: Value, measure: Measure) -> str:
    """The reason why a rule does not allow a value; empty if it does."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number"
    if isinstance(rule, list):
        if any(_same(value, each) for each in rule):
            return ""
        shown = ", ".join(map(str, rule[:SHOWN])) + (", …" if len(rule) > SHOWN else "")
        return f"not one of {shown}"
    least, most = (_bound(measure, name, each) for each in (rule.min, rule.max))
    try:
        size = measure(name, value)
    except ValueError as error:
        return str(error)
    if least is None and size <= 0:
        return "not above 0"  # some engines take such a value for no limit
    if least is not None and size < least:
        return f"less than {rule.min}"
    if most is not None and size > most:
        return f"more than {rule.max}"
    return ""


def _same(one: Value, other: Value) -> bool:
    """Whether two values are equal, where True does not equal 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _bound(measure: Measure, name: str, written: Value | None) -> Decimal | None:
    try:
        return None if written is None else measure(name, written)
    except ValueError as error:
        text = f"{CALLER_MAY_SET} in the kernelspec is wrong: {name}: {error}"
        raise KernelStartFailed(text) from None
