"""What a change of the OpenAPI document takes away from clients that were made for the old one.

A client sends what the old document allows and reads what it promises. So of requests nothing may
be narrowed or newly required, and of responses nothing may be widened or left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

__all__ = ["breaks"]

Json = dict[str, Any]
Direction = Literal["request", "response"]

_METHODS: Final = ("get", "put", "post", "patch", "delete")
_REFERENCE: Final = "#/components/schemas/"


def breaks(old: Json, new: Json) -> list[str]:
    """One line for each change that breaks clients; none, if all goes on working."""
    return list(dict.fromkeys(_Comparison(old, new).run()))


class _Comparison:
    def __init__(self, old: Json, new: Json) -> None:
        self._old, self._new = old, new
        self._compared: set[tuple[str, str, Direction]] = set()

    def run(self) -> Iterator[str]:
        for path, operations in self._old["paths"].items():
            for method in _METHODS:
                if method in operations:
                    there = self._new["paths"].get(path, {}).get(method)
                    yield from self._operation(
                        f"{method.upper()} {path}", operations[method], there
                    )

    def _operation(self, where: str, old: Json, new: Json | None) -> Iterator[str]:
        if new is None:
            yield f"{where}: is gone"
            return
        if old["operationId"] != new["operationId"]:
            yield f"{where}: has the operation id {new['operationId']}"
        yield from self._parameters(where, old, new)
        old_body, new_body = old.get("requestBody", {}), new.get("requestBody", {})
        if new_body.get("required") and not old_body.get("required"):
            yield f"{where}: needs a body"
        yield from self._content(f"{where} body", old_body, new_body, "request")
        for status, response in old["responses"].items():
            if status.startswith("2"):
                if status in new["responses"]:
                    there = new["responses"][status]
                    yield from self._content(f"{where} {status}", response, there, "response")
                else:
                    yield f"{where}: no longer answers {status}"

    def _parameters(self, where: str, old: Json, new: Json) -> Iterator[str]:
        before = {(item["in"], item["name"]): item for item in old.get("parameters", ())}
        after = {(item["in"], item["name"]): item for item in new.get("parameters", ())}
        for (place, name), item in after.items():
            was = before.get((place, name), {})
            if item.get("required") and not was.get("required"):
                yield f"{where}: needs the {place} parameter {name}"
        for (place, name), item in before.items():
            what = f"{where} {place} parameter {name}"
            if (place, name) in after:
                schema = after[place, name]["schema"]
                yield from self._schema(what, item["schema"], schema, "request")
            else:
                yield f"{what}: is gone"

    def _content(self, where: str, old: Json, new: Json, direction: Direction) -> Iterator[str]:
        for media_type, content in old.get("content", {}).items():
            if media_type not in new.get("content", {}):
                yield f"{where}: {media_type} is gone"
                continue
            there = new["content"][media_type].get("schema", {})
            yield from self._schema(where, content.get("schema", {}), there, direction)

    def _schema(self, where: str, old: Json, new: Json, direction: Direction) -> Iterator[str]:
        if "$ref" in old and "$ref" in new:
            pair = (old["$ref"], new["$ref"], direction)
            if pair in self._compared:  # or one that holds itself would never end
                return
            self._compared.add(pair)
            where = old["$ref"].removeprefix(_REFERENCE)
        before, after = _choices(self._old, old), _choices(self._new, new)
        old, new = _resolve(self._old, old), _resolve(self._new, new)
        yield from self._kinds(where, old, new, direction)
        if len(before) > 1 or len(after) > 1:
            for name in sorted(before.keys() & after.keys()):
                yield from self._schema(where, before[name], after[name], direction)
            return
        yield from self._fields(where, old, new, direction)
        for key in ("items", "additionalProperties", "x-event-schema"):
            if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
                yield from self._schema(f"{where}[]", old[key], new[key], direction)

    def _kinds(self, where: str, old: Json, new: Json, direction: Direction) -> Iterator[str]:
        """The types and the values of enumerations: sets that may grow or shrink."""
        for what, before, after in (
            ("type", _types(self._old, old), _types(self._new, new)),
            ("value", _values(old), _values(new)),
        ):
            if direction == "request" and after is not None:
                lost = {"anything"} if before is None else before - after
                yield from (f"{where}: no longer takes the {what} {name}" for name in sorted(lost))
            if direction == "response" and before is not None:
                more = {"anything"} if after is None else after - before
                yield from (f"{where}: may be the {what} {name}" for name in sorted(more))

    def _fields(self, where: str, old: Json, new: Json, direction: Direction) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        was, now = set(old.get("required", ())), set(new.get("required", ()))
        for name, schema in before.items():
            if name not in after:
                yield f"{where}.{name}: is gone"
            else:
                yield from self._schema(f"{where}.{name}", schema, after[name], direction)
        if direction == "request":
            yield from (f"{where}.{name}: is required" for name in sorted(now - was))
        else:
            lost = sorted((was - now) & after.keys())
            yield from (f"{where}.{name}: may be left out" for name in lost)


def _resolve(document: Json, schema: Json) -> Json:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].removeprefix(_REFERENCE)]
    return schema


def _choices(document: Json, schema: Json) -> dict[str, Json]:
    """The kinds of a union, by name or type; of anything else, that alone."""
    resolved = _resolve(document, schema)
    union = [*resolved.get("anyOf", ()), *resolved.get("oneOf", ())]
    return {str(kind.get("$ref", kind.get("type"))): kind for kind in union or [schema]}


def _types(document: Json, schema: Json) -> set[str] | None:
    """What it can be; None for anything at all."""
    union = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    if union:
        found = [_types(document, _resolve(document, kind)) for kind in union]
        known = [kinds for kinds in found if kinds is not None]
        return set().union(*known) if len(known) == len(found) else None
    kinds = schema.get("type")
    return None if kinds is None else {kinds} if isinstance(kinds, str) else set(kinds)


def _values(schema: Json) -> set[str] | None:
    if "const" in schema:
        return {str(schema["const"])}
    return {str(value) for value in schema["enum"]} if "enum" in schema else None
