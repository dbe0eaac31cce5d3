"""The audit log: which user had which kernel do what, one JSON object a line.

A thread of its own writes it, so that a slow disk does not hold up the event loop. A record that
cannot be written (the disk is full), or comes when too many wait to be written, is lost. A loss is
counted, the first one is logged, and no request fails by it.

The loop's thread and the writing thread share the waiting records, ``_closed`` and the count of
losses, all under the condition ``_arrived``. ``_failing`` only decides whether a line is logged.
``_torn`` belongs to the writing thread alone, which tells its end by ``_ended``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from ...callers import caller
from ...plugins import CannotLoad
from ...protocol.messages import Buffer, format_timestamp
from ..errors import KernelkeepError
from .audit_files import AuditFiles, open_audit_file
from .counters import Counters

__all__ = ["MAX_TEXT", "AuditLog", "check_audit_log"]

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 10_000  # records
MAX_WAITING_BYTES: Final = 64 * 2**20  # of contents and texts: more than one message may have
CLOSE_SECONDS: Final = 5.0
"""How many seconds the writing of the rest may take when the server stops."""


REFUSED: Final = "refused"

REFUSALS: Final = 100
REFUSALS_SECONDS: Final = 60.0
"""How many refused requests of strangers are noted, and in how many seconds."""

MAX_ASKED: Final = 200
"""Characters of what was asked that are noted."""

MAX_TEXT: Final = 4096
"""Characters of a path, or of another text of a client's, that are noted: no path is longer."""


class _Request(msgspec.Struct):
    """The fields of an ``execute_request`` or an ``input_reply`` that the kernel executes."""

    code: str = ""
    user_expressions: dict[str, Any] = {}
    value: str | None = None


_request_decoder: Final = msgspec.json.Decoder(_Request)


class _Refusals:
    """Counts the refused requests of strangers."""

    def __init__(self) -> None:
        self._began = -math.inf
        self._noted = 0
        self.left_out = 0

    def next(self, now: float) -> int | None:
        """How many refusals were left out before this one, which is noted; None to leave it out."""
        if now - self._began >= REFUSALS_SECONDS:
            self._began, self._noted = now, 0
        if self._noted >= REFUSALS:
            self.left_out += 1
            return None
        self._noted += 1
        before, self.left_out = self.left_out, 0
        return before


class AuditLog:
    """The audit log of one server; without a ``path`` nothing is noted. `close` it at the end.

    The file is moved aside when it has ``max_bytes`` (0: never), and so many ``older`` ones stay.
    """

    def __init__(
        self, path: Path | None, counters: Counters, *, max_bytes: int = 0, older: int = 1
    ) -> None:
        self._files = None if path is None else AuditFiles(path, max_bytes, older)
        self._counters = counters
        self._refusals = _Refusals()
        self._waiting: deque[tuple[dict[str, Any], Buffer]] = deque()
        self._waiting_bytes = 0
        self._arrived = threading.Condition()
        self._closed = False
        self._failing = False
        self._torn = False
        self._ended: Future[None] = Future()
        self._thread: threading.Thread | None = None
        if self._files is not None:
            self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
            self._thread.start()

    def note(self, action: str, content: Buffer = b"", **data: Any) -> None:
        """Add a record of an action that was just done, with the user whose request it was.

        ``data`` names the kernel, and more. ``content`` is the content of an ``execute_request`` or
        an ``input_reply``: the hash of its code, or of its value, becomes part of the record.
        """
        if self._files is None:
            return
        failed = "failed" if "error" in data else "done"
        outcome = {"outcome": "refused" if action == REFUSED else failed}
        record: dict[str, Any] = {"time": format_timestamp(time.time()), "action": action}
        record |= data | outcome
        if (found := caller()) is not None:
            record["user"] = found.user
            record["credential"] = found.credential
            record["client"] = found.address
            record["request_id"] = found.request_id
        self._add(record, content)

    @contextmanager
    def action(self, action: str, **data: Any) -> Iterator[dict[str, Any]]:
        """Note the action that the ``with`` block does: that it is done, or the error it raises.

        The block may add to the ``data`` that it is given. A refusal of the service is noted as for
        any other request (`app.api.errors.note_refusal`), and not here; that a thing does not exist
        is not noted at all. An action that is noted as failed may be done in part.
        """
        try:
            yield data
        except KernelkeepError as error:
            is_refused = error.status == 403 and not error.by_system
            if not (is_refused or error.status == 404 or error.hides):
                self.note(action, error=error.code, **_cut(data))
                error.noted = True
            raise
        except asyncio.CancelledError:
            # A thread may go on with the action although its request is cancelled.
            self.note(action, error="cancelled", **_cut(data))
            raise
        except Exception:
            self.note(action, error="internal_error", **_cut(data))
            raise
        self.note(action, **_cut(data))

    def refuse(self, asked: str, error: str, *, known: bool, **data: Any) -> None:
        """Note that a request was refused: ``asked`` is its method and path, ``error`` the code.

        ``known`` is whether the caller has a token in force. Strangers could drive everything else
        out of the log: so only `REFUSALS` of their requests are noted in `REFUSALS_SECONDS`, and
        the others are counted.
        """
        if self._files is None:
            return
        left_out = 0 if known else self._refusals.next(time.monotonic())
        if left_out is not None:
            data |= {"left_out": left_out} if left_out else {}
            self.note(REFUSED, asked=asked[:MAX_ASKED], error=error, **data)

    def _add(self, record: dict[str, Any], content: Buffer) -> None:
        # The bytes in memory: clients choose texts such as paths, with up to 4 bytes a character.
        size = len(content) + sum(map(sys.getsizeof, record.values()))
        with self._arrived:
            # A record that is larger than the bound is taken when no other waits.
            full = self._waiting_bytes and self._waiting_bytes + size > MAX_WAITING_BYTES
            if full or len(self._waiting) >= MAX_WAITING:
                self._lose(1, "more waits to be written than may wait")
                return
            self._waiting.append((record, content))
            self._waiting_bytes += size
            self._arrived.notify()

    async def close(self) -> None:
        """Write the waiting records; returns when that is done, or has taken `CLOSE_SECONDS`."""
        # The lifespan closes this after everything that notes records. A record that comes later
        # all the same, as of a token that ends in that moment, is not written.
        if self._refusals.left_out:
            self.note(REFUSED, left_out=self._refusals.left_out)
        if self._thread is not None:
            with self._arrived:
                self._closed = True
                self._arrived.notify()
            # The thread is a daemon: if a disk holds it up, the process can end all the same. The
            # wait needs no thread of a pool, in which none may be free.
            await asyncio.wait({asyncio.wrap_future(self._ended)}, timeout=CLOSE_SECONDS)

    # In the writing thread

    def _run(self) -> None:
        try:
            self._write_all()
        finally:
            self._ended.set_result(None)

    def _write_all(self) -> None:
        """Write the records that wait, and those that come, until the log is closed."""
        while True:
            with self._arrived:
                while not self._waiting and not self._closed:
                    self._arrived.wait()
                if not self._waiting:
                    return
                batch = [*self._waiting]
                self._waiting.clear()
                self._waiting_bytes = 0
            # Without the condition: the loop's thread goes on adding while a slow disk writes. The
            # bounds are for what waits, so up to twice as much is in memory then.
            self._write([_line(record, content) for record, content in batch])

    def _write(self, lines: list[bytes]) -> None:
        assert self._files is not None
        # The last write may have ended in the middle of a line: the first record must not go on
        # with that line.
        data = (b"\n" if self._torn else b"") + b"".join(lines)
        try:
            written = self._files.write(data)
        except OSError as error:
            with self._arrived:
                self._lose(len(lines), error.strerror or str(error))
            return
        self._torn = not data[:written].endswith(b"\n")
        if written < len(data):
            with self._arrived:
                self._lose(len(lines) - _ends(lines, written), "the disk takes no more")
        elif self._failing:
            self._failing = False
            logger.warning("the audit log is written again")

    def _lose(self, count: int, why: str) -> None:
        """Count lost records. Only the first loss is logged, until writing works again.

        Call it with ``_arrived`` held: both threads do.
        """
        self._counters.audit_lost += count
        if not self._failing:
            self._failing = True
            logger.error("the audit log cannot be written, what happens now is lost: %s", why)


def check_audit_log(path: Path | None) -> None:
    """Check that the audit log can be written. Raises `CannotLoad` if it cannot."""
    if path is not None:
        try:
            os.close(open_audit_file(path))
        except OSError as error:
            raise CannotLoad(f"--audit-log: {path}: {error.strerror}") from None


def _cut(data: dict[str, Any]) -> dict[str, Any]:
    """The data without fields that are None, and with each text cut: clients send the texts."""
    return {
        name: value[:MAX_TEXT] if isinstance(value, str) else value
        for name, value in data.items()
        if value is not None
    }


def _line(record: dict[str, Any], content: Buffer) -> bytes:
    if len(content):
        record |= _executed(content)
    return json.dumps(record, default=str).encode() + b"\n"


def _executed(content: Buffer) -> dict[str, Any]:
    """The hash of the code or the value, rather than the text, which may hold secrets."""
    try:
        request = _request_decoder.decode(content)
    except (msgspec.MsgspecError, RecursionError):
        return {"code_sha256": None}
    if request.value is not None:  # an answer to input(), which may be code as well
        value = request.value.encode("utf-8", "surrogatepass")
        return {"value_bytes": len(value), "value_sha256": hashlib.sha256(value).hexdigest()}
    code = request.code.encode("utf-8", "surrogatepass")
    told: dict[str, Any] = {"code_sha256": hashlib.sha256(code).hexdigest()}
    if request.user_expressions:
        told["user_expressions"] = len(request.user_expressions)
    return told


def _ends(lines: Iterable[bytes], written: int) -> int:
    """How many of the lines are complete in the first ``written`` bytes."""
    count = 0
    for line in lines:
        written -= len(line)
        if written < 0:
            break
        count += 1
    return count
