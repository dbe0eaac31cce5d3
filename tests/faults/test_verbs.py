"""Every verb of the keeper fails in the tables, or is named here with a reason."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

from app.keeper import joined, service
from tests.faults.table import ASKS

NEVER_FAIL = {
    "addresses": "only keepers that dial in are told",
    "credential": "only keepers that dial in are told",
    "drain": "only keepers of another version are asked",
    "host": "only keepers that dial in are asked",
    "load": "the answer decides nothing about a kernel: a keeper answers, or it hangs",
    "prepare": "only keepers on other hosts are asked",
    "renew": "it has no answer, and is sent only when a log cannot be read",
    "run": "only fork servers are launched by it",
    "stop": "only servers that end their kernels ask; here all servers keep theirs",
    "strays": "only replicas ask",
    "usage": "the answer decides nothing about a kernel",
}
"""The verbs that do not fail in the tables, and why."""


def verbs_of(module: ModuleType) -> set[str]:
    """The verbs in a table ``_requests``, and those to which ``fields.get("ask")`` is compared."""
    found: set[ast.expr | None] = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        match node:
            case ast.AnnAssign(target=ast.Attribute(attr="_requests"), value=ast.Dict(keys=keys)):
                found.update(keys)
            case ast.Assign(targets=[ast.Subscript(ast.Attribute(attr="_requests"), verb)]):
                found.add(verb)
            case ast.Compare(ast.Call(ast.Attribute(attr="get"), [ast.Constant("ask")]), _, [verb]):
                found.add(verb)
    return {str(verb.value) for verb in found if isinstance(verb, ast.Constant)}


def test_every_verb_of_the_keeper_fails_in_the_tables_or_is_an_exception() -> None:
    verbs = verbs_of(service) | verbs_of(joined)
    assert {"hello", "drain", "usage", "host"} <= verbs, "verbs are found in each of their places"
    assert verbs == {*ASKS} | NEVER_FAIL.keys()


def test_no_exception_fails_in_the_tables() -> None:
    assert {*ASKS} & NEVER_FAIL.keys() == set()
    assert len({*ASKS}) == len(ASKS)
