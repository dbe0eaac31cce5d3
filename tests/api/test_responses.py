"""What is sent to clients is as the OpenAPI document has it, where no Struct tells that.

These are also the tests of what `app.api.shares` shows.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from app.api.errors import response_to
from app.api.shares import _shown
from app.main import create_app
from app.managers.errors import (
    KernelkeepError,
    KernelNotFound,
    KernelSpecInvalid,
    KernelStartFailed,
    KernelUnavailable,
    TooManyKernels,
)
from app.managers.executions.outputs import INLINE_BYTES, OutputAssembler
from app.managers.files.errors import InvalidContents
from app.managers.limits.errors import BeyondLimit, StartsLimit
from app.managers.owners.ownership import Share
from app.managers.processes.engines.caller_options import EngineOptionRefused
from app.protocol.messages import Message
from app.settings import Settings
from tests.support.messages import display, said, stream

Json = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Json:
    return create_app(Settings.model_construct()).openapi()


def faults(document: Json, schema: Json, value: object) -> list[str]:
    """What is wrong with a value, by a schema of the document."""
    validator = Draft202012Validator({**schema, "components": document["components"]})
    return [error.message for error in validator.iter_errors(value)]


def model(document: Json, name: str) -> Json:
    found: Json = document["components"]["schemas"][name]
    return found


def output_schema(document: Json) -> Json:
    found: Json = model(document, "ExecutionResultModel")["properties"]["outputs"]["items"]
    return found


# Outputs

TEXT = {"text/plain": "1"}
ERROR = {"ename": "ValueError", "evalue": "no", "traceback": ["Traceback", "ValueError: no"]}
MESSAGES: list[tuple[Message, Json]] = [
    (stream("hello", "stderr"), {"output_type": "stream"}),
    (display(TEXT), {"output_type": "display_data"}),
    (display({"image/png": "A" * (INLINE_BYTES + 4)}), {"output_type": "display_data"}),
    (
        said("execute_result", {"execution_count": 1, "data": TEXT, "metadata": {"a": [1]}}),
        {"output_type": "execute_result", "execution_count": 1},
    ),
    (
        said("execute_result", {"data": TEXT, "metadata": {}}),
        {"output_type": "execute_result", "execution_count": None},
    ),
    (said("error", ERROR), {"output_type": "error"}),
    # Kernels may leave out anything.
    *((said(kind, {}), {"output_type": kind}) for kind in ("execute_result", "error")),
]


@pytest.mark.parametrize(("message", "expected"), MESSAGES)
@pytest.mark.parametrize("max_bytes", [2**24, 300])
def test_an_output_is_as_the_document_has_it(
    document: Json, message: Message, expected: Json, max_bytes: int
) -> None:
    assembler = OutputAssembler(lambda number, mime: f"/outputs/{number}?mime={mime}", max_bytes)
    assembler.add(message)
    (output,) = json.loads(msgspec.json.encode(assembler.outputs))
    assert expected.items() <= output.items()
    schema = output_schema(document)
    assert faults(document, schema, output) == []
    (of_its_type,) = (
        model(document, reference.rpartition("/")[2])
        for kind, reference in schema["discriminator"]["mapping"].items()
        if kind == output["output_type"]
    )
    assert output.keys() == of_its_type["properties"].keys()


def test_every_type_of_output_in_the_document_is_sent(document: Json) -> None:
    types = {expected["output_type"] for _, expected in MESSAGES}
    assert types == output_schema(document)["discriminator"]["mapping"].keys()


def test_an_output_of_another_shape_is_not_as_the_document_has_it(document: Json) -> None:
    wrong = {"output_type": "stream", "name": "stdout", "text": ["a", "b"]}
    assert faults(document, output_schema(document), wrong)


# Errors

ERRORS: list[tuple[KernelkeepError, set[str]]] = [
    (KernelNotFound("k"), set()),
    (KernelStartFailed("It failed", TooManyKernels(1)), {"cause"}),
    (KernelSpecInvalid("python3", "/k/kernel.json", "no argv"), {"short_message"}),
    (KernelUnavailable("There is no such kernel", "No kernel"), {"short_message"}),
    (EngineOptionRefused("memory", "it is too much"), {"option"}),
    (StartsLimit(5, 4.5, 3.0), {"limit", "value", "usage"}),
    (BeyondLimit("contents_bytes_per_day", 10, 11), {"limit", "value", "usage"}),
    (InvalidContents("It is no file", "bad type"), set()),
]


@pytest.mark.parametrize(("error", "optional"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_is_as_the_document_has_it(
    document: Json, error: KernelkeepError, optional: set[str]
) -> None:
    body = json.loads(bytes(response_to(error).body))
    schema = model(document, "ErrorModel")
    assert faults(document, schema, body) == []
    assert body.keys() == {*schema["required"], *optional}


def test_every_optional_field_of_errors_in_the_document_is_sent(document: Json) -> None:
    schema = model(document, "ErrorModel")
    optional = set().union(*(fields for _, fields in ERRORS))
    assert optional == schema["properties"].keys() - {*schema["required"]}


def test_an_error_with_every_optional_field_is_as_the_document_has_it(document: Json) -> None:
    error = KernelkeepError("All at once")
    for one, _ in ERRORS:
        error.details = {**error.details, **one.details}
    body = json.loads(bytes(response_to(error).body))
    schema = model(document, "ErrorModel")
    assert body.keys() == schema["properties"].keys()
    assert faults(document, schema, body) == []
    assert faults(document, schema, {**body, "value": "much"})


# Shares


@pytest.mark.parametrize("share", [Share("name", "ben", "read"), Share("group", "g", "execute")])
def test_a_share_is_as_the_document_has_it(document: Json, share: Share) -> None:
    shown = json.loads(msgspec.json.encode(_shown(share)))
    operations = document["paths"]["/api/kernels/{kernel_id}/shares"]
    answers = {"get": ("200", [shown]), "post": ("201", shown)}
    for method, (status, body) in answers.items():
        content = operations[method]["responses"][status]["content"]
        schema = content["application/json"]["schema"]
        assert faults(document, schema, body) == []
    assert shown == {share.kind: share.name, "access": share.access}
    assert shown.keys() <= model(document, "ShareModel")["properties"].keys()
