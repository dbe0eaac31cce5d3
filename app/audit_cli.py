"""``kernelkeep audit``: prints the audit log, or those lines of it that the options choose."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from .commands import CommandParser, printable, say, settings_of
from .durations import InvalidDuration, parse_duration
from .managers.telemetry.audit_files import audit_files
from .protocol.messages import format_timestamp

__all__ = ["audit_command"]

MAX_LINE: Final = 2**20
"""Bytes of a line that are read at most. No line is as long, unless the file is damaged."""

_COLUMNS: Final = ("time", "action", "user", "credential", "client", "kernel_id")

_OUTCOMES: Final = ("done", "failed", "refused")

Record = dict[str, Any]


def audit_command(arguments: list[str]) -> NoReturn:
    """Run ``kernelkeep audit ...``. Exits with 0, 1 if the log cannot be read, 2 for misuse."""
    parser = _parser()
    options = parser.parse_args(arguments)
    path: Path | None = options.audit_log or settings_of(options.config).audit_log
    if path is None:
        parser.error("no server is set up to have an audit log here: say which (--audit-log FILE)")
    try:
        path = path.expanduser().absolute()
        damaged = _print(path, options)
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except (OSError, RuntimeError) as error:
        say(printable(f"{path}: {getattr(error, 'strerror', None) or error}"))
        sys.exit(1)
    if damaged:
        say(f"{damaged} lines are no records, and were left out")
    sys.exit(0)


def _parser() -> CommandParser:
    parser = CommandParser(prog="kernelkeep audit", description="Who did what to which kernel.")
    parser.add_argument(
        "--audit-log", type=Path, help="the audit log's file (default: the server's)"
    )
    parser.add_argument(
        "--config", type=Path, help="the server's configuration file, which names it"
    )
    parser.add_argument("--owner", help="the owner who did it, or who owns the kernel or token")
    parser.add_argument("--kernel", metavar="ID", help="the kernel's id, or the beginning of it")
    parser.add_argument("--action", help="start, execute, refused, token_revoked, and so on")
    parser.add_argument("--outcome", choices=_OUTCOMES)
    parser.add_argument("--token", metavar="ID", help="the first characters of the token")
    parser.add_argument(
        "--since",
        type=_since,
        metavar="WHEN",
        help="only lines since then: 2h, 7d, 2026-11-29, 2026-11-29T14:30",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the lines as they are in the file"
    )
    return parser


def _since(text: str) -> float:
    """Parse the option ``--since``; returns seconds since the epoch."""
    try:
        return time.time() - parse_duration(text)
    except InvalidDuration:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError("a span of time, 2h, or a time, 2026-11-29") from None


def _print(path: Path, options: argparse.Namespace) -> int:
    """Print the records that fit the options; returns how many lines hold no record.

    Raises `OSError`.
    """
    damaged, file = 0, None
    since: float = options.since or 0.0
    try:
        earliest = format_timestamp(since) if since else ""
    except (ValueError, OverflowError, OSError):
        earliest = ""
    for file in audit_files(path):
        if os.fstat(file.fileno()).st_mtime < since:
            continue  # its last line is older
        for line, record in _records(file):
            if record is None:
                damaged += 1
            elif str(record.get("time", "")) >= earliest and _fits(record, options):
                print(line if options.json else _shown(record))
    if file is None:
        raise FileNotFoundError(2, os.strerror(2), path)
    sys.stdout.flush()
    return damaged


def _records(file: BinaryIO) -> Iterator[tuple[str, Record | None]]:
    while line := file.readline(MAX_LINE):
        text = line.decode("utf-8", "replace").strip()
        try:
            record = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            record = None
        if text:
            yield text, record if isinstance(record, dict) else None


def _fits(record: Record, options: argparse.Namespace) -> bool:
    whose = (record.get("user"), record.get("owner"), record.get("token_owner"))
    return (
        options.owner in (None, *whose)
        and options.action in (None, record.get("action"))
        and options.outcome in (None, record.get("outcome"))
        and str(record.get("kernel_id", "")).startswith(options.kernel or "")
        and options.token in (None, record.get("credential"), record.get("token"))
    )


def _shown(record: Record) -> str:
    cells = [_cell(record.get(name) or "-") for name in _COLUMNS]
    more = {
        name: value
        for name, value in record.items()
        if name not in _COLUMNS and value not in (None, "") and (name, value) != ("outcome", "done")
    }
    cells += [f"{name}={_cell(value)}" for name, value in more.items()]
    return "  ".join(cells)


def _cell(value: object) -> str:
    """A value as people read it; quoted if it could be taken for several, or for another column.

    Clients choose some of the values, such as paths and names.
    """
    text = printable(str(value))
    return json.dumps(text, ensure_ascii=False) if re.search(r'[\s"=]', text) else text
