"""What `jupyter_internals` uses of jupyter_client is there, and does what is needed."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from collections.abc import Iterable
from itertools import chain
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


# Private attributes of jupyter_client's objects

LISTED = {
    "_connection_file_written",
    "_find_spec_directory",
    "_get_kernel_spec_by_name",
    "_kernel_spec",
}
"""All that `jupyter_internals` uses, and nobody else."""

PACKAGE = "jupyter_client"


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """The modules of `app`."""
    return {path: ast.parse(path.read_text()) for path in Path(app.__file__).parent.rglob("*.py")}


def private_attributes(trees: Iterable[ast.Module]) -> set[str]:
    """The private names of the classes in those modules of jupyter_client that are imported."""
    modules = {
        str(node.module)
        for node in chain.from_iterable(map(ast.walk, trees))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)
    }
    found: set[str] = set()
    for name in modules:
        for kind in ast.walk(ast.parse(inspect.getsource(importlib.import_module(name)))):
            if isinstance(kind, ast.ClassDef):
                found |= defined_in(kind) | {attr for attr, of in attributes(kind) if of == "self"}
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


@pytest.fixture(scope="module")
def private(trees: dict[Path, ast.Module]) -> set[str]:
    return private_attributes(trees.values())


def defined_in(kind: ast.ClassDef) -> set[str]:
    """The names that the body of a class defines."""
    found: set[str] = set()
    for node in kind.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update(target.id for target in targets if isinstance(target, ast.Name))
    return found


def attributes(tree: ast.AST) -> set[tuple[str, str]]:
    """Attributes that are used, by name or by ``getattr`` and the like, and of what they are."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value, attr):
                found.add((attr, ast.unparse(value)))
            case ast.Call(
                ast.Name("getattr" | "setattr" | "hasattr" | "delattr"),
                [value, ast.Constant(str(attr)), *_],
            ):
                found.add((attr, ast.unparse(value)))
    return found


def heirs(trees: Iterable[ast.Module]) -> set[str]:
    """The names of the classes that inherit from one of jupyter_client, at any distance."""
    bases: dict[str, set[str]] = {}
    found: set[str] = set()
    for node in chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.ClassDef):
            names = (ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases)
            bases.setdefault(node.name, set()).update(names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            found.update(alias.asname or alias.name for alias in node.names)
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


def private_uses(tree: ast.Module, private: set[str], inherits: set[str]) -> set[str]:
    """The private attributes of jupyter_client's objects that a module uses or overrides.

    The attributes of other classes' own ``self`` are not among them, even if a class of
    jupyter_client has an attribute of the same name.
    """
    own = ("self", "cls", "super()")
    used = {one for one in attributes(tree) if one[1] not in own}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in inherits:
            used |= attributes(node) | {(name, "self") for name in defined_in(node)}
    return {name for name, _ in used if name in private}


def test_nobody_else_uses_a_private_attribute_of_jupyter_client(
    trees: dict[Path, ast.Module], private: set[str]
) -> None:
    inherits = heirs(trees.values())
    assert private >= LISTED
    assert {"SpecReader", "KeeperProvisioner"} <= inherits
    found = {
        (path.name, name)
        for path, tree in trees.items()
        for name in private_uses(tree, private, inherits)
    }
    assert found == {("jupyter_internals.py", name) for name in LISTED}


@pytest.mark.parametrize(
    "line", ["manager._owns_kernel = True", "getattr(manager, '_control_socket', None)"]
)
def test_any_use_of_one_that_is_not_listed_is_found(private: set[str], line: str) -> None:
    assert private_uses(ast.parse(line), private, set())


@pytest.mark.parametrize(
    "body",
    [
        "def _kernel_spec_manager_default(self): ...",
        "_launch_args = {}",
        "def mine(self): return self._launch_args",
        "def mine(self): return super()._get_provisioner_config()",
    ],
)
def test_a_class_that_inherits_none_may_call_its_own_by_the_same_name(
    private: set[str], body: str
) -> None:
    tree = ast.parse(f"class Mine(Theirs):\n    {body}")
    assert private_uses(tree, private, {"Mine"})
    assert not private_uses(tree, private, set())
