"""The request with which a server greets a keeper, and the keeper's answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Required, TypedDict

import msgspec

from ....keeper.processes import start_time
from ....keeper.protocol import Fields
from ...errors import KeeperUnavailable
from .kept import Greeted
from .link import KeeperLink

__all__ = ["TELLS_HEARD", "KeeperOptions", "ReplicaTerms", "greeted_by", "hello_fields"]

GRACE_SECONDS: Final = 2.0
"""How long the keeper waits for a server that it has lost and whose process it cannot see."""


TELLS_HEARD: Final = 4
"""The first version of the protocol in which the answer to a greeting names the heard kernels."""


class ReplicaTerms(NamedTuple):
    """A replica's id, and a function from a kernel's id to its term (0: not this replica's)."""

    replica: str
    term_of: Callable[[str], int]


class KeeperOptions(TypedDict, total=False):
    """What a keeper is to do for this server.

    Kernels outlive this process by ``orphan_timeout`` seconds; if that is None, they end with it,
    and the keeper then removes the directories ``own``. ``log_bytes`` bounds each log,
    ``log_total_bytes`` all of them together, ``log_age`` (seconds) the age of messages, and
    ``output_bytes`` the file with each process's output.
    """

    log_bytes: int
    log_total_bytes: int
    log_age: float
    orphan_timeout: Required[float | None]
    output_bytes: int
    own: Sequence[Path]


def hello_fields(options: KeeperOptions, terms: ReplicaTerms | None) -> Fields:
    """The fields of the request ``hello``."""
    lasts = options["orphan_timeout"]
    fields: Fields = {
        "log_bytes": options.get("log_bytes", 2**28),
        "log_total_bytes": options.get("log_total_bytes", 2**32),
        "log_age": options.get("log_age", 86400.0),
        "orphan_timeout": GRACE_SECONDS if lasts is None else lasts,
        "output_bytes": options.get("output_bytes", 2**20),
    }
    if lasts is None:
        pid = os.getpid()
        who = {"pid": pid, "start_time": start_time(pid)}
        fields["server"] = {**who, "own": [str(directory) for directory in options.get("own", ())]}
    if terms is not None:
        fields["replica"] = terms.replica
    return fields


def greeted_by(link: KeeperLink, answer: Any, terms: ReplicaTerms | None) -> Greeted:
    """A keeper's answer to ``hello``.

    Raises `KeeperUnavailable` if the keeper is so old that it does not check terms: it would obey a
    replica that has a kernel no longer.
    """
    if link.protocol < TELLS_HEARD:
        answer = {"kept": answer, "heard": []}
    greeted = msgspec.convert(answer, Greeted)
    link.can = frozenset(greeted.can)
    if terms is not None and "term" not in link.can:
        raise KeeperUnavailable(
            f"The keeper of kernels, process {link.pid}, is an earlier one that knows no replicas; "
            "it ends with its kernels"
        )
    return greeted
