"""The schemas that are made from Structs: they tell what msgspec encodes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from msgspec import UNSET, Meta, UnsetType
from pydantic import TypeAdapter

from app.api import me
from app.api.executions import ExecutionEventModel
from app.api.log_pages import LogEventModel
from app.api.schemas import schema_of, union_of
from app.managers.executions import events
from app.managers.executions.results import ExecutionModel, ExecutionResultModel
from app.managers.kernels.model import KernelModel
from app.managers.sessions.sessions import SessionModel
from app.managers.state import Restarts


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Wheel(msgspec.Struct):
    """A wheel."""

    spokes: int


class Car(msgspec.Struct):
    """A car."""

    name: Annotated[str, Meta(description="What it is called.", examples=["beetle"])]
    colour: Colour
    wheels: list[Wheel]
    spare: Wheel | None
    doors: int = 4
    note: Annotated[str | UnsetType, Meta(extra_json_schema={"deprecated": True})] = UNSET
    more: msgspec.Raw = msgspec.Raw(b"{}")


class Sparse(msgspec.Struct, omit_defaults=True):
    """It leaves out what has its default."""

    id: str
    reason: str | None = None


class Event(msgspec.Struct, tag_field="type", kw_only=True):
    seq: int | None = None


class Begun(Event, tag="begun"):
    """It has begun."""


class Over(Event, tag="over"):
    """It is over."""

    why: str


def _schema(kind: Any) -> dict[str, Any]:
    return TypeAdapter(schema_of(kind)).json_schema(mode="serialization")


def _accepts(schema: dict[str, Any], value: object) -> bool:
    return Draft202012Validator(schema).is_valid(msgspec.json.decode(msgspec.json.encode(value)))


def test_a_schema_has_the_name_the_docstring_and_the_fields_of_its_struct() -> None:
    schema = _schema(Car)
    assert (schema["title"], schema["description"]) == ("Car", "A car.")
    assert list(schema["properties"]) == [field.name for field in msgspec.structs.fields(Car)]
    name = schema["properties"]["name"]
    assert (name["description"], name["examples"]) == ("What it is called.", ["beetle"])
    assert schema["properties"]["colour"]["enum"] == ["red", "blue"]
    assert schema["properties"]["note"]["deprecated"] is True
    assert schema["properties"]["spare"]["anyOf"] == [{"$ref": "#/$defs/Wheel"}, {"type": "null"}]


def test_only_what_msgspec_may_leave_out_is_optional() -> None:
    assert {*_schema(Car)["properties"]} - {*_schema(Car)["required"]} == {"note"}
    assert _schema(Sparse)["required"] == ["id"]


def test_a_schema_accepts_what_msgspec_encodes_and_nothing_of_another_shape() -> None:
    schema = _schema(Car)
    assert _accepts(schema, Car("beetle", Colour.RED, [Wheel(32)], None))
    assert _accepts(schema, Car("beetle", Colour.RED, [], Wheel(32), note="old"))
    assert not _accepts(schema, {"name": "beetle"})
    assert not _accepts(schema, Car("beetle", Colour.RED, [], None, doors="four"))  # type: ignore[arg-type]


def test_structs_of_a_union_are_told_apart_by_their_tags() -> None:
    example: dict[str, Any] = {"type": "over", "why": "x"}
    model = union_of(Begun | Over, "Happening", "Something that happens.", example)
    schema = model.model_json_schema(mode="serialization")
    assert (schema["title"], schema["examples"]) == ("Happening", [example])
    assert schema["description"] == "Something that happens."
    assert set(schema["discriminator"]["mapping"]) == {"begun", "over"}
    assert _accepts(schema, Begun(seq=1))
    assert _accepts(schema, Over(seq=2, why="x"))
    assert not _accepts(schema, {"type": "over", "seq": 2})
    assert not _accepts(schema, {"type": "neither", "seq": 2})


def test_a_struct_has_one_model() -> None:
    assert schema_of(Wheel) is schema_of(Wheel)


@pytest.mark.parametrize(
    ("struct", "field", "name"),
    [(SessionModel, "kernel", "KernelModel"), (KernelModel, "restarts", "RestartsModel")],
)
def test_what_is_encoded_already_or_has_another_name_is_shown_as_clients_know_it(
    struct: type[msgspec.Struct], field: str, name: str
) -> None:
    assert f"#/$defs/{name}" in str(_schema(struct)["properties"][field])
    assert schema_of(Restarts).__name__ == "RestartsModel"
    assert schema_of(me.MeModel).model_fields["identity"].annotation.__name__ == "IdentityModel"


def test_a_result_is_an_execution_with_outputs_of_known_shapes() -> None:
    fields = schema_of(ExecutionResultModel).model_fields
    assert set(schema_of(ExecutionModel).model_fields) < set(fields)
    outputs = _schema(ExecutionResultModel)["properties"]["outputs"]["items"]
    assert set(outputs["discriminator"]["mapping"]) == {
        *("stream", "display_data", "execute_result", "error")
    }


def test_no_event_is_missing_in_the_document() -> None:
    of_executions, of_logs = _tags(ExecutionEventModel), _tags(LogEventModel)
    kinds = _subclasses(events.Event)
    assert {kind.__struct_config__.tag for kind in kinds} == of_executions | of_logs
    assert of_logs == {"message", "gap", "closing"}
    assert of_executions & of_logs == {"gap", "closing"}


def _tags(model: Any) -> set[str]:
    return {*model.model_json_schema(mode="serialization")["discriminator"]["mapping"]}


def _subclasses(kind: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    found = kind.__subclasses__()
    return found + [below for each in found for below in _subclasses(each)]
