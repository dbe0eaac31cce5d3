"""The OpenAPI document goes on being good for the clients that were generated from it."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.compatibility import breaks
from tests.support.server import REPOSITORY

Json = dict[str, Any]

DOCUMENT: Json = json.loads((REPOSITORY / "docs" / "openapi.json").read_text(encoding="utf-8"))
KERNELS = DOCUMENT["paths"]["/api/kernels"]


def git(*arguments: str) -> str | None:
    """What git says, or None: there is no such tag, commit or file, or no history at all."""
    command = ["git", "-c", "safe.directory=*", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def release(document: Json) -> list[str]:
    """The part of the version that stays while clients need not be generated anew."""
    major, minor, *_ = document["info"]["version"].split(".")
    return [major, minor] if major == "0" else [major]


def test_it_breaks_no_client_of_the_last_release() -> None:
    # Before there is one, what the last change was to.
    tag = git("describe", "--tags", "--abbrev=0")
    for base in [tag] if tag else ["HEAD^", "HEAD"]:
        found = git("show", f"{base}:docs/openapi.json")
        old = json.loads(found) if found else DOCUMENT
        if release(old) == release(DOCUMENT):
            assert breaks(old, DOCUMENT) == [], f"since {base}; a new release may do that"


def _schema(document: Json, name: str) -> Json:
    found: Json = document["components"]["schemas"][name]
    return found


def _rename(document: Json) -> None:
    document["paths"]["/api/kernels"]["get"]["operationId"] = "list_kernels"


def _new_parameter(document: Json) -> None:
    parameter = {"name": "of", "in": "query", "required": True, "schema": {"type": "string"}}
    document["paths"]["/api/kernels"]["get"]["parameters"] = [parameter]


def _other_status(document: Json) -> None:
    responses = document["paths"]["/api/kernels"]["post"]["responses"]
    responses["200"] = responses.pop("201")


def _fewer_names(document: Json) -> None:
    _schema(document, "StreamEvent")["properties"]["text"] = {"type": ["string", "null"]}


BREAKS: list[tuple[Callable[[Json], Any], str]] = [
    (lambda new: new["paths"].pop("/api/me"), "GET /api/me: is gone"),
    (_rename, "GET /api/kernels: has the operation id list_kernels"),
    (_new_parameter, "GET /api/kernels: needs the query parameter of"),
    (_other_status, "POST /api/kernels: no longer answers 201"),
    (
        lambda new: _schema(new, "KernelModel")["properties"].pop("connections"),
        "KernelModel.connections: is gone",
    ),
    (
        lambda new: _schema(new, "KernelModel")["required"].remove("id"),
        "KernelModel.id: may be left out",
    ),
    (
        lambda new: _schema(new, "RunCode")["required"].append("timeout"),
        "RunCode.timeout: is required",
    ),
    (
        lambda new: _schema(new, "RunCode")["properties"]["timeout"]["anyOf"].pop(),
        "RunCode.timeout: no longer takes the type null",
    ),
    (
        lambda new: _schema(new, "ExecutionModel")["properties"]["state"]["enum"].append("new"),
        "ExecutionModel.state: may be the value new",
    ),
    (_fewer_names, "StreamEvent.text: may be the type null"),
]


@pytest.mark.parametrize(("change", "told"), BREAKS, ids=[told for _, told in BREAKS])
def test_what_breaks_clients_is_told(change: Callable[[Json], Any], told: str) -> None:
    new = copy.deepcopy(DOCUMENT)
    change(new)
    assert told in breaks(DOCUMENT, new)


def test_what_is_added_breaks_nobody() -> None:
    new = copy.deepcopy(DOCUMENT)
    new["paths"]["/api/new"] = KERNELS
    parameter = {"name": "of", "in": "query", "schema": {"type": "string"}}
    new["paths"]["/api/kernels"]["get"]["parameters"].append(parameter)
    for name in ("KernelModel", "RunCode"):
        _schema(new, name)["properties"]["more"] = {"type": "string"}
    _schema(new, "KernelModel")["required"].append("more")
    code = _schema(new, "RunCode")["properties"]["code"]
    _schema(new, "RunCode")["properties"]["code"] = {"anyOf": [code, {"type": "null"}]}
    events = _schema(new, "ExecutionEventModel")
    events["oneOf"].append({"$ref": "#/components/schemas/StatusModel"})
    assert breaks(DOCUMENT, new) == []
