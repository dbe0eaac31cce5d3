"""What a server tells a keeper when it greets it, and is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ....keeper.processes import start_time
from ....keeper.protocol import Fields
from ...errors import KeeperUnavailable
from .kept import Greeted
from .link import KeeperLink

__all__ = ["TELLS_HEARD", "ReplicaTerms", "greeted_by", "hello_fields"]

GRACE_SECONDS: Final = 2.0
"""How long the keeper waits for a server that it has lost and whose process it cannot see."""


TELLS_HEARD: Final = 4
"""The first version of the protocol whose keepers tell, greeted, which kernels they hear."""


class ReplicaTerms(NamedTuple):
    """Which of several replicas a server is, and in which term it has a kernel (0 for none)."""

    replica: str
    term_of: Callable[[str], int]


def hello_fields(
    *,
    log_bytes: int,
    log_total_bytes: int,
    log_age: float,
    orphan_timeout: float | None,
    output_bytes: int,
    own: Sequence[Path],
    terms: ReplicaTerms | None,
) -> Fields:
    """The fields of the request ``hello``; the options are those of `Keeper`."""
    fields: Fields = {
        "log_bytes": log_bytes,
        "log_total_bytes": log_total_bytes,
        "log_age": log_age,
        "orphan_timeout": GRACE_SECONDS if orphan_timeout is None else orphan_timeout,
        "output_bytes": output_bytes,
    }
    if orphan_timeout is None:
        pid = os.getpid()
        who = {"pid": pid, "start_time": start_time(pid)}
        fields["server"] = {**who, "own": [str(directory) for directory in own]}
    if terms is not None:
        fields["replica"] = terms.replica
    return fields


def greeted_by(link: KeeperLink, answer: Any, terms: ReplicaTerms | None) -> Greeted:
    """What a keeper has answered to ``hello``.

    Raises `KeeperUnavailable` if it would obey a replica that has a kernel no longer.
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
