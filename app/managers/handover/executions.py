"""Executions as the registry stores them for the next server."""

from __future__ import annotations

from operator import attrgetter

import msgspec

from ..executions.execution import Execution, ExecutionState, InputRequest, Step
from ..executions.late_output import LateOutput
from ..log.entries import Position
from .registry import Registry
from .store import ExecutionRecord

__all__ = ["RegisteredExecutions", "restored"]


class _Stored(msgspec.Struct, omit_defaults=True):
    """Everything of an execution but the callers that wait for it."""

    session: str
    place: tuple[int, int]
    state: str
    on_main_shell: bool
    stop_on_error: bool
    queued_at: float
    sent: bool = False
    idle: bool = False
    header: bytes = b""
    held: tuple[bytes, ...] = ()
    by_client: bool = False
    timeout: float | None = None
    reply_status: str | None = None
    has_error: bool = True  # the default is for records that are older than the field
    execution_count: int | None = None
    first_seq: int | None = None
    last_seq: int | None = None
    end: tuple[int, int] | None = None
    late: LateOutput | None = None
    display_ids: list[str] = []
    started_at: float | None = None
    ended_at: float | None = None
    seconds: float | None = None
    reason: str = ""
    steps: list[Step] = []
    input_request: InputRequest | None = None
    answered: str = ""
    cancel_asked: bool = False
    kill_after: float | None = None
    if_generation: int | None = None
    generation: int | None = None
    first_after_restart: bool = False
    queue: str | None = None
    caller: str = ""


_AS_THEY_ARE = tuple(name for name in _Stored.__struct_fields__ if name not in ("state", "seconds"))
"""The attributes of an `Execution` that are stored as they are, under the same name."""

_values = attrgetter(*_Stored.__struct_fields__)
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_Stored)


class RegisteredExecutions:
    """Stores the executions of one kernel in the registry, in batches.

    The kernel's `ExecutionTracker` calls the methods. ``count`` is the number of executions that
    the kernel has had before. The object serves one term: that in which the server has the kernel
    when the object is made. Once the term has ended the object stores nothing more: another replica
    has the kernel, or this one has taken it again, with another tracker and another such object.
    """

    def __init__(self, registry: Registry, kernel_id: str, count: int = 0) -> None:
        self._registry = registry
        self._kernel_id = kernel_id
        self._term = registry.term_of(kernel_id)
        self._numbers: dict[str, int] = {}
        self._count = count

    @property
    def _is_over(self) -> bool:
        """Whether the term has ended."""
        return self._registry.term_of(self._kernel_id) != self._term

    def changed(self, execution: Execution) -> None:
        """Store an execution soon, in the state that it has at the time of writing."""
        if self._is_over:
            return
        # Numbers give the order in which the next server puts executions back. An id that comes
        # again after `forgotten` is a new execution, and gets a new number.
        if execution.id not in self._numbers:
            self._count += 1
            self._numbers[execution.id] = self._count
        self._registry.note(self._kernel_id, execution.id, lambda: self._record(execution))

    def forgotten(self, execution: Execution) -> None:
        """Delete an execution from the registry soon."""
        if not self._is_over:
            self._numbers.pop(execution.id, None)
            self._registry.forget(self._kernel_id, execution.id)

    async def stored(self) -> None:
        """Return when every change until now is on disk, or when the disk has taken too long."""
        await self._registry.stored()

    async def execution_stored(self, execution: Execution) -> None:
        """As `ExecutionStore.execution_stored`."""
        await self._registry.execution_stored(self._kernel_id, execution.id, self._term)

    def known(self, record: ExecutionRecord) -> None:
        """Note that a record is in the registry already, so that its number is not used again."""
        self._numbers[record.id] = record.number
        self._count = max(self._count, record.number)

    def _record(self, execution: Execution) -> ExecutionRecord:
        stored = _encode(_Stored(*_values(execution)))
        # An execution that was forgotten while an earlier write of it failed has no number here.
        number = self._numbers.get(execution.id, self._count)
        return ExecutionRecord(self._kernel_id, execution.id, number, stored)


def restored(record: ExecutionRecord) -> Execution:
    """The execution that a record describes.

    Raises `msgspec.MsgspecError` or `ValueError` if the record cannot be decoded.
    """
    stored = _decoder.decode(record.data)
    execution = Execution(record.id, stored.session, Position(*stored.place))
    for name in _AS_THEY_ARE:
        setattr(execution, name, getattr(stored, name))
    execution.place = Position(*stored.place)
    execution.end = None if stored.end is None else Position(*stored.end)
    execution.put_back(ExecutionState(stored.state), stored.seconds)
    return execution
