"""``kernelkeep migrate``: brings the registry that replicas share to this version."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from .commands import CommandParser, say, settings_of
from .managers.handover.store import UnusableRegistry
from .plugins import CannotLoad, from_extra

__all__ = ["migrate_command"]


def migrate_command(arguments: list[str]) -> NoReturn:
    """Run ``kernelkeep migrate``. Exits with 0, 1 if the registry cannot be used, 2 for misuse.

    The URL comes from the environment or a file, as the server's does: a flag would be shown to
    everybody who lists processes.
    """
    parser = CommandParser(
        prog="kernelkeep migrate",
        description="Bring the registry that replicas share to this version. The first replica "
        "does it, too; there is no way back.",
    )
    parser.add_argument(
        "--config", type=Path, help="the server's configuration file, which names the registry"
    )
    options: argparse.Namespace = parser.parse_args(arguments)
    url = settings_of(options.config).registry_url.get_secret_value()
    if not url:
        parser.error("there is no registry_url (KERNELKEEP_REGISTRY_URL)")
    try:
        with from_extra("postgresql", "registry_url", "psycopg"):
            from .managers.replicas.database import Database, migrate
    except CannotLoad as error:
        parser.error(str(error))
    database = Database(url)
    try:
        before, now = migrate(database)
    except UnusableRegistry as error:
        say(str(error))
        sys.exit(1)
    finally:
        database.close()
    say(f"the registry has version {now}" + (f"; it had {before}" if before != now else ""))
    sys.exit(0)
