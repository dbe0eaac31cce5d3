"""A server's ties to others: what there is without any, and when the next server has its turn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from app.managers.handover.handover import Handover
from app.managers.handover.registry import Registry, check_registry
from app.managers.handover.store import UnusableRegistry
from app.managers.kernels.ties import NO_TIES, Ties, registered
from app.managers.processes.isolation.isolation import Isolation
from app.managers.processes.keeper.keepers import Keepers
from app.settings import Settings


def handover_of(ties: Ties, state_dir: Path) -> Handover:
    isolation = Isolation(Settings(_cli_parse_args=False))
    return ties.handover(cast(Keepers, SimpleNamespace()), state_dir, isolation)


async def test_a_server_without_ties_hands_nothing_over_and_is_a_service_of_its_own(
    tmp_path: Path,
) -> None:
    assert not handover_of(NO_TIES, tmp_path).hands_over
    service = NO_TIES.service(tmp_path)
    assert service.is_alone
    assert await service.name() == (tmp_path / "service-id").read_text()
    NO_TIES.check_start()
    await NO_TIES.close()


async def test_the_next_server_has_its_turn_when_the_ties_of_this_one_are_closed(
    tmp_path: Path,
) -> None:
    ties = registered(Registry(tmp_path))
    handover = handover_of(ties, tmp_path)
    assert handover.hands_over
    with pytest.raises(UnusableRegistry, match="in use by another server"):
        check_registry(tmp_path)
    await handover.close()
    await ties.close()
    check_registry(tmp_path)


def test_what_postgresql_takes_is_not_loaded_for_a_server_that_has_no_replicas() -> None:
    program = "import sys, app.main; print([name for name in sys.modules if 'psycopg' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
