"""What `jupyter_internals` uses of jupyter_client is there, and does what is needed."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, NoSuchKernel
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

import app
from app.managers.processes.jupyter_internals import SpecReader, mark_connection_file, use_spec
from app.managers.processes.specs import kernel_spec_manager

ARGV = ["/bin/false", "{connection_file}"]


@pytest.fixture
def specs(tmp_path: Path) -> SpecReader:
    return SpecReader(kernel_dirs=[str(tmp_path)])


def install(directory: Path, **fields: Any) -> Path:
    directory.mkdir()
    text = json.dumps({"argv": ARGV, "display_name": "Mine", "language": "none", **fields})
    (directory / "kernel.json").write_text(text)
    return directory


def test_a_kernelspec_is_read_from_its_directory(specs: SpecReader, tmp_path: Path) -> None:
    found = specs.read("mine", str(install(tmp_path / "other-name")))
    assert (found.argv, found.display_name) == (ARGV, "Mine")


def test_a_kernelspec_without_its_provisioner_is_none(specs: SpecReader, tmp_path: Path) -> None:
    metadata = {"kernel_provisioner": {"provisioner_name": "not-installed"}}
    directory = install(tmp_path / "mine", metadata=metadata)
    with pytest.raises(NoSuchKernel):
        specs.read("mine", str(directory))


def test_the_native_kernelspec_is_ipykernels(specs: SpecReader) -> None:
    directory = specs.native_directory()
    assert directory is not None
    assert specs.read(NATIVE_KERNEL_NAME, directory).language == "python"


def test_another_kernelspec_may_have_the_native_ones_name(
    specs: SpecReader, tmp_path: Path
) -> None:
    directory = install(tmp_path / NATIVE_KERNEL_NAME)
    assert specs.native_directory() == str(directory)
    assert specs.read(NATIVE_KERNEL_NAME, str(directory)).display_name == "Mine"


def test_a_manager_uses_a_kernelspec_that_is_not_installed(tmp_path: Path) -> None:
    manager = AsyncKernelManager(kernel_name="gone", kernel_spec_manager=kernel_spec_manager())
    with pytest.raises(NoSuchKernel):
        manager.kernel_spec  # noqa: B018 - it is looked up
    spec = KernelSpec(argv=ARGV, display_name="Gone")
    use_spec(manager, spec)
    assert manager.kernel_spec is spec
    assert manager.format_kernel_cmd()[0] == ARGV[0]


@pytest.mark.parametrize("written", [True, False])
def test_a_manager_removes_a_connection_file_that_it_has_written(
    tmp_path: Path, written: bool
) -> None:
    file = tmp_path / "kernel-1.json"
    manager = AsyncKernelManager(connection_file=str(file))
    manager.write_connection_file()
    assert file.exists()
    mark_connection_file(manager, written=written)
    manager.cleanup_connection_file()
    assert file.exists() is not written


@pytest.mark.parametrize("written", [True, False])
def test_a_manager_writes_no_connection_file_twice(tmp_path: Path, written: bool) -> None:
    file = tmp_path / "kernel-1.json"
    file.write_text("as it was")
    manager = AsyncKernelManager(connection_file=str(file), transport="ipc")
    mark_connection_file(manager, written=written)
    manager.write_connection_file()
    assert (file.read_text() == "as it was") is written
    mark_connection_file(manager, written=True)
    manager.cleanup_connection_file()


async def test_a_local_provisioner_has_what_its_subclasses_set() -> None:
    provisioner = LocalProvisioner(kernel_id="1", kernel_spec=KernelSpec())
    assert (provisioner.process, provisioner.pid, provisioner.pgid) == (None, None, None)
    assert (provisioner.cwd, provisioner.has_process) == (None, False)
    provisioner.pid, provisioner.pgid = 7, 8
    told = await provisioner.get_provisioner_info()
    assert (told["pid"], told["pgid"]) == (7, 8)
    other = LocalProvisioner(kernel_id="1", kernel_spec=KernelSpec())
    await other.load_provisioner_info(told)
    assert (other.pid, other.pgid) == (7, 8)


def test_the_factory_knows_its_provisioners_by_name() -> None:
    assert "local-provisioner" in KernelProvisionerFactory.instance().provisioners


def test_nobody_else_uses_a_private_attribute_of_jupyter_client() -> None:
    private = {"_kernel_spec", "_connection_file_written"}
    private |= {"_get_kernel_spec_by_name", "_find_spec_directory", "_check_availability"}
    root = Path(app.__file__).parent
    found = {
        path.name
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in private
    }
    assert found == {"jupyter_internals.py"}
