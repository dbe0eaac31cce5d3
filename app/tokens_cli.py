"""``kernelkeep tokens``: the list of tokens of a state directory, or of the registry that replicas
share, whether a server runs or not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import sys
import time
import unicodedata
from collections.abc import Iterable
from typing import Final, NoReturn

import msgspec

from .commands import CommandParser, add_state_dir, printable, say, settings_of, state_dir_of
from .durations import NEVER, InvalidDuration, parse_duration, shown_duration
from .managers.errors import KernelkeepError
from .managers.owners.names import InvalidName, owner_name
from .managers.owners.scopes import PRESETS, InvalidScope, Scopes
from .managers.owners.token_table import (
    BY_COMMAND,
    NewToken,
    TokenPlace,
    TokenRecord,
    UnusableTokens,
)
from .plugins import CannotLoad
from .token_places import token_place

__all__ = ["tokens_command"]

DEFAULT_EXPIRES: Final = "90d"

_PRESETS: Final = {tuple(Scopes.parse([name])): name for name in PRESETS}


def tokens_command(arguments: list[str]) -> NoReturn:
    """Run ``kernelkeep tokens ...``. Exits with 0, 1 if something was not done, 2 for misuse."""
    options = _parser().parse_args(arguments)
    try:
        place = _place(options)
        if options.command == "create":
            _create(place, options)
        elif options.command == "list":
            _list(place, options)
        else:
            _revoke(place, options)
    except (UnusableTokens, _NotDone) as error:
        say(str(error))
        sys.exit(1)
    except KernelkeepError as error:
        say(error.message)
        sys.exit(1)
    sys.exit(0)


def _place(options: argparse.Namespace) -> TokenPlace:
    """Where the server has its list of tokens, by its options."""
    url = settings_of(options.config).registry_url.get_secret_value()
    if url and options.state_dir is not None:
        say("--state-dir: the list of tokens is in the registry (registry_url), not in a directory")
        sys.exit(2)
    try:
        return token_place(url, state_dir_of(options.state_dir, options.config))
    except CannotLoad as error:
        say(str(error))
        sys.exit(2)


class _NotDone(Exception):
    """What was asked for cannot be done; the text says why."""


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="kernelkeep tokens",
        description="Tokens that are scoped, expire and can be revoked.",
    )
    state = add_state_dir(CommandParser(add_help=False))
    commands = parser.add_subparsers(dest="command", required=True)
    creating = commands.add_parser("create", parents=[state], help="make a token, and print it")
    creating.add_argument("name", metavar="NAME", type=_name, help="the token's name in the list")
    creating.add_argument(
        "--scopes",
        action="append",
        required=True,
        type=_scopes,
        help="what it permits: user (all with one's own; the files are nobody's own and take "
        "contents:read or contents:write), admin (everything), or resource:action, with commas "
        "between them",
    )
    creating.add_argument(
        "--expires",
        type=_duration,
        default=DEFAULT_EXPIRES,
        help=f"when it ends: 30m, 12h, 30d, 8w, or never (default: {DEFAULT_EXPIRES})",
    )
    creating.add_argument("--owner", type=_name, help="the token's owner (default: NAME)")
    creating.add_argument(
        "--groups", action="append", default=[], type=_names, help="the owner's groups"
    )
    listing = commands.add_parser("list", parents=[state], help="list the tokens")
    listing.add_argument("--owner", type=_name, help="list this owner's tokens only")
    listing.add_argument("--all", action="store_true", help="list expired and revoked ones, too")
    listing.add_argument("--json", action="store_true", help="print JSON")
    revoking = commands.add_parser("revoke", parents=[state], help="end tokens at once")
    revoking.add_argument("tokens", nargs="*", metavar="ID|NAME")
    revoking.add_argument("--owner", type=_name, help="the owner of the tokens")
    revoking.add_argument(
        "--all", action="store_true", help="revoke all tokens, or all of the --owner"
    )
    return parser


def _name(text: str) -> str:
    try:
        return owner_name(text)
    except InvalidName as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _names(text: str) -> list[str]:
    return [_name(part.strip()) for part in text.split(",")]


def _scopes(text: str) -> list[str]:
    try:
        return [*Scopes.parse(part.strip() for part in text.split(","))]
    except InvalidScope as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _duration(text: str) -> float | None:
    try:
        return None if text == NEVER else parse_duration(text)
    except InvalidDuration as error:
        raise argparse.ArgumentTypeError(f"{error}; or {NEVER}") from None


def _create(place: TokenPlace, options: argparse.Namespace) -> None:
    now = time.time()
    scopes = Scopes.parse(scope for given in options.scopes for scope in given)
    wanted = NewToken(
        name=options.name,
        owner=options.owner or options.name,
        scopes=tuple(scopes),
        groups=tuple(sorted({group for given in options.groups for group in given})),
        made_with=_user(),
        expires=None if options.expires is None else now + options.expires,
    )
    with contextlib.closing(place.open(create=True)) as store:
        record, token = store.add(wanted, now, named_by_hand=True)
        try:
            print(token, flush=True)
        except OSError as error:
            store.revoke([record.id], now, _user())
            sys.stdout = None  # or Python writes about the broken pipe once more
            raise _NotDone(f"the token could not be printed ({error.strerror})") from None
    ends = "does not expire" if options.expires is None else f"expires {_time(record.expires)}"
    say(f"token {record.id} of {record.owner} {ends}; it is not shown again")


def _user() -> str:
    """The user of the system who runs the command."""
    number = os.getuid()
    try:
        return f"{BY_COMMAND}{number} ({printable(pwd.getpwuid(number).pw_name)})"
    except KeyError:  # as in a container
        return f"{BY_COMMAND}{number}"


def _records(place: TokenPlace, *, ended: bool = False) -> list[TokenRecord]:
    now = time.time()
    try:
        with contextlib.closing(place.open()) as store:
            return [record for record in store.records() if ended or record.in_force(now)]
    except FileNotFoundError:
        return []


def _list(place: TokenPlace, options: argparse.Namespace) -> None:
    now = time.time()
    records = [
        record
        for record in _records(place, ended=options.all)
        if options.owner in (None, record.owner)
    ]
    if options.json:
        print(json.dumps([_for_programs(record, now) for record in records], indent=1))
        return
    lines = [("ID", "NAME", "OWNER", "STATE", "EXPIRES", "LAST USED", "SCOPES")]
    for record in records:
        scopes = _PRESETS.get(record.scopes, ",".join(record.scopes))
        if record.groups:
            scopes += f" (in {','.join(record.groups)})"
        lines.append(
            (
                record.id,
                record.name,
                record.owner,
                record.state(now),
                _left(record.expires, now),
                _ago(record.last_used, now),
                scopes,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def _for_programs(record: TokenRecord, now: float) -> dict[str, object]:
    shown = msgspec.structs.asdict(record)
    del shown["digest"], shown["version"]
    return {**shown, "state": record.state(now)}


def _left(expires: float | None, now: float) -> str:
    if expires is None:
        return NEVER
    if expires > now:
        return f"in {shown_duration(expires - now)}"
    return f"{shown_duration(now - expires)} ago"


def _ago(when: float | None, now: float) -> str:
    return NEVER if when is None else f"{shown_duration(now - when)} ago"


def _time(when: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _revoke(place: TokenPlace, options: argparse.Namespace) -> None:
    if bool(options.tokens) == options.all:
        _parser().error("revoke: name tokens, or say --all")
    records = [record for record in _records(place) if options.owner in (None, record.owner)]
    chosen = records if options.all else [_chosen(records, text) for text in options.tokens]
    if not chosen:
        say("there is no token to revoke")
        return
    with contextlib.closing(place.open()) as store:
        ended = store.revoke([record.id for record in chosen], time.time(), _user())
    for record in ended:
        say(f"revoked {record.id} ({record.name} of {record.owner})")


def _chosen(records: Iterable[TokenRecord], text: str) -> TokenRecord:
    """The one token in force with this id or name."""
    name = unicodedata.normalize("NFC", text)
    fitting = [record for record in records if name in (record.id, record.name)]
    shown = printable(text[:64])
    if not fitting:
        raise _NotDone(f"there is no token {shown}")
    if len(fitting) > 1:
        owners = ", ".join(sorted(record.owner for record in fitting))
        raise _NotDone(f"several owners have a token {shown}: say which (--owner): {owners}")
    return fitting[0]
