"""The name of a service that is one server: the same for each server of a state directory."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from app.managers.errors import KeeperUnavailable
from app.managers.processes.hosts.service import OwnService, service_id


async def test_a_server_alone_has_all_kernels(tmp_path: Path) -> None:
    service = OwnService(tmp_path)
    assert await service.name() == service_id(tmp_path)
    await service.check_own("k")
    assert await service.generations(["k.1"]) == {}


def test_a_service_keeps_its_name(tmp_path: Path) -> None:
    name = service_id(tmp_path)
    assert service_id(tmp_path) == name
    assert stat.S_IMODE((tmp_path / "service-id").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["service-id"]
    (tmp_path / "other").mkdir()
    assert service_id(tmp_path / "other") != name


@pytest.mark.parametrize("content", ["", "../../../etc/x", "0123456789abcdeg"])
def test_a_name_that_was_tampered_with_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "service-id").write_text(content)
    with pytest.raises(KeeperUnavailable, match="remove it"):
        service_id(tmp_path)


def test_a_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeeperUnavailable, match="cannot be stored"):
        service_id(tmp_path / "gone")
