"""The limits of an owner, made from the options for everybody, for groups and for names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from ...plugins import CannotLoad
from ...settings import Settings
from ..owners.names import InvalidName, owner_name

__all__ = ["NO_LIMITS", "LimitPolicy", "Limits", "Table", "merged"]

Table = Mapping[str, int | float | None]
"""The value of an option: limits by name; None is no limit."""

MAX_REMEMBERED: Final = 10_000
"""How many combinations of a name and groups are remembered."""


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one owner may use. A limit that is absent is none."""

    kernels: Annotated[int | None, Meta(description="Kernels at a time, without dead ones.")] = None
    starts_per_minute: Annotated[
        int | None, Meta(description="Starts and restarts of kernels that are asked for, a minute.")
    ] = None
    memory: Annotated[int | None, Meta(description="Bytes of memory of all kernels.")] = None
    cpu: Annotated[float | None, Meta(description="Processors of all kernels; 0.5 is a half.")] = (
        None
    )
    processes: Annotated[int | None, Meta(description="Processes and threads of all kernels.")] = (
        None
    )
    open_files: Annotated[int | None, Meta(description="Open files of each process.")] = None
    idle_timeout: Annotated[
        float | None, Meta(description="Seconds that a kernel may run nothing, before it is ended.")
    ] = None
    lifetime: Annotated[
        float | None, Meta(description="Seconds from a kernel's start to its end.")
    ] = None
    queued_executions: Annotated[
        int | None, Meta(description="Executions that wait, at all kernels.")
    ] = None
    log_bytes: Annotated[
        int | None, Meta(description="Bytes of messages kept on disk, of all kernels.")
    ] = None
    contents_bytes_per_day: Annotated[
        int | None, Meta(description="Bytes that are written to files, a day.")
    ] = None
    requests_per_second: Annotated[
        float | None, Meta(description="Requests and new WebSockets, a second.")
    ] = None
    websockets: Annotated[int | None, Meta(description="Open WebSockets.")] = None


NO_LIMITS: Final = Limits()


def merged(everybodys: Table, of_groups: Iterable[Table], by_name: Table) -> Limits:
    """An owner's limits: those for its name come before groups', those before everybody's.

    If several groups have a limit, the most generous counts; the most generous is to have none.
    """
    found = dict(everybodys)
    groups: dict[str, int | float | None] = {}
    for table in of_groups:
        for name, value in table.items():
            known = groups.get(name, value)
            groups[name] = None if value is None or known is None else max(value, known)
    return msgspec.convert({**found, **groups, **by_name}, Limits)


class LimitPolicy:
    """The limits in the options: those of everybody, and those of groups and names instead."""

    def __init__(
        self,
        everybodys: Table | None = None,
        by_group: Mapping[str, Table] | None = None,
        by_name: Mapping[str, Table] | None = None,
    ) -> None:
        self._everybodys = everybodys or {}
        self._by_group = by_group or {}
        self._by_name = by_name or {}
        self._groups = frozenset(self._by_group)
        self._known: dict[tuple[str, frozenset[str]], Limits] = {}
        tables = [self._everybodys, *self._by_group.values(), *self._by_name.values()]
        self.named = frozenset(
            name for table in tables for name, value in table.items() if value is not None
        )
        """The names of the limits that some owner has."""
        self._values = {
            name: [value for table in tables if (value := table.get(name)) is not None]
            for name in self.named
        }

    @classmethod
    def of(cls, settings: Settings) -> LimitPolicy:
        """The policy of a server. Raises `CannotLoad` for invalid names, or one twice."""
        return cls(
            settings.owner_limits,
            _by_names("group-limits", settings.group_limits),
            _by_names("limits-by-name", settings.limits_by_name),
        )

    def least(self, *names: str) -> float | None:
        """The least value that some owner has for one of these limits; None if there is none."""
        return min((value for name in names for value in self._values.get(name, ())), default=None)

    def limits(self, owner: str, groups: Set[str] = frozenset()) -> Limits:
        """The limits of an owner who is in these groups."""
        if not self.named:
            return NO_LIMITS
        # Most owners have no limits of their own, and share one object with each other.
        key = owner if owner in self._by_name else "", self._groups & groups
        found = self._known.get(key)
        if found is None:
            # Callers may come with more sets of groups than this. The table is emptied as a whole:
            # it is soon filled again, and no entry needs an age.
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            of_groups = [self._by_group[name] for name in key[1]]
            own = self._by_name.get(owner, {})
            found = self._known[key] = merged(self._everybodys, of_groups, own)
        return found


def _by_names(option: str, tables: Mapping[str, Table]) -> dict[str, Table]:
    """Tables by names in the one form that names have. Raises `CannotLoad`."""
    found: dict[str, Table] = {}
    for written, table in tables.items():
        try:
            name = owner_name(written)
        except InvalidName as error:
            raise CannotLoad(f"--{option}: {written[:60]!a}: {error}") from None
        if name in found:
            raise CannotLoad(f"--{option}: {name[:60]!a}: given twice, in two forms of Unicode")
        found[name] = table
    return found
