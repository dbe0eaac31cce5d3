"""Makes the schemas of the OpenAPI document from what routes answer with, msgspec's Structs."""

from __future__ import annotations

from enum import Enum
from functools import cache
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import NODEFAULT, UNSET, Meta, Struct, UnsetType
from pydantic import BaseModel, ConfigDict, Field, RootModel, create_model
from pydantic.config import JsonDict

from .responses import CONTENTS, EXAMPLES, NAMES, OPTIONAL

__all__ = ["schema_of", "union_of"]


def schema_of(kind: Any) -> Any:
    """The type that describes to FastAPI what msgspec encodes of a value of the type ``kind``.

    In it each Struct is a pydantic model with the Struct's name, docstring and fields. The `Meta`
    of a field has its description. A field is required unless msgspec may leave it out.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return Annotated[(schema_of(arguments[0]), *map(_field, arguments[1:]))]
    if origin in (UnionType, Union):
        return _union(arguments)
    if origin in (list, dict):
        return origin[tuple(schema_of(argument) for argument in arguments)]
    if not isinstance(kind, type):
        return kind
    if issubclass(kind, Struct):
        return _model(kind)
    if issubclass(kind, Enum):
        return Literal[tuple(member.value for member in kind)]
    return _OTHERS.get(kind, kind)


def union_of(kinds: Any, name: str, doc: str, example: JsonDict | None = None) -> Any:
    """The model of a value that is one of several Structs, which their tags tell apart."""
    more: JsonDict | None = {"examples": [example]} if example else None
    root = schema_of(kinds), Field(json_schema_extra=more)
    return create_model(name, __base__=RootModel, __doc__=doc, root=root)


_OTHERS: Final[dict[type, Any]] = {msgspec.Raw: dict[str, Any], UnsetType: type(None)}


@cache  # the document must have one model of a Struct
def _model(struct: type[Struct]) -> type[BaseModel]:
    config, example = struct.__struct_config__, EXAMPLES.get(struct)
    hints = get_type_hints(struct, include_extras=True)
    fields: dict[str, Any] = {}
    if config.tag_field is not None:
        fields[config.tag_field] = (Literal[config.tag], ...)
    for field in msgspec.structs.fields(struct):
        hint = schema_of(CONTENTS.get((struct, field.name), hints[field.name]))
        left_out = field.default is not NODEFAULT and config.omit_defaults
        optional = left_out or field.default is UNSET or field.name in OPTIONAL
        fields[field.name] = (hint, None if optional else ...)
    return create_model(
        NAMES.get(struct, struct.__name__),
        __doc__=struct.__doc__,
        __config__=ConfigDict(json_schema_extra={"examples": [example]}) if example else None,
        **fields,
    )


def _field(meta: Any) -> Any:
    if not isinstance(meta, Meta):
        return meta
    return Field(
        description=meta.description,
        examples=meta.examples,
        json_schema_extra=meta.extra_json_schema,
    )


def _union(kinds: tuple[Any, ...]) -> Any:
    union: Any = Union[tuple(schema_of(kind) for kind in kinds)]  # noqa: UP007
    if all(isinstance(kind, type) and issubclass(kind, Struct) for kind in kinds):
        return Annotated[union, Field(discriminator=kinds[0].__struct_config__.tag_field)]
    return union
