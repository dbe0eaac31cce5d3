"""Files that a server and a host both have, by the paths of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.managers.processes.hosts.shared_files import SharedFiles, expanded, shares_files


@pytest.fixture
def shared(tmp_path: Path) -> SharedFiles:
    """The server's root has ``work/module.py``, and ``secret.py`` lies beside the root."""
    root = tmp_path / "root"
    (root / "work").mkdir(parents=True)
    (root / "work" / "module.py").touch()
    (root / "both.py").touch()
    (tmp_path / "secret.py").touch()
    return SharedFiles(root, Path("/home/ada/books"), "/home/ada")


def test_a_directory_has_the_same_path_below_the_root_there(shared: SharedFiles) -> None:
    assert shared.directory_there(str(shared.here)) == "/home/ada/books"
    assert shared.directory_there(str(shared.here / "work")) == "/home/ada/books/work"
    with pytest.raises(ValueError, match="is not in the subpath"):
        shared.directory_there("/etc")


@pytest.mark.parametrize(
    "path",
    ["module.py", "./x/../module.py", "/home/ada/books/work/module.py", "~/books/work/module.py"],
)
def test_a_file_is_found_by_the_path_that_the_kernel_knows(shared: SharedFiles, path: str) -> None:
    found = shared.find(path, "/home/ada/books/work")
    assert found == "/home/ada/books/work/module.py"


@pytest.mark.parametrize(
    "there", ["/home/ada/x/../books", "//home/ada/books", "//home//ada/./books/", "/home/ada/books"]
)
def test_a_root_may_be_said_in_any_way(shared: SharedFiles, there: str) -> None:
    root = shared._replace(there=Path(there))
    directory = root.directory_there(str(shared.here / "work"))
    found = "/home/ada/books/work/module.py"
    for path in ("module.py", found, f"/{found}", f"{there}/work/module.py"):
        assert root.find(path, directory) == found
    assert root.find("../both.py", directory) is None


@pytest.mark.parametrize(
    "path", ["nothing.py", "../both.py", "/etc/passwd", "~/.bashrc", "link.py", "../../secret.py"]
)
def test_what_is_not_below_the_kernels_directory_is_not_found(
    shared: SharedFiles, path: str
) -> None:
    (shared.here / "work" / "link.py").symlink_to(shared.here.parent / "secret.py")
    assert shared.find(path, "/home/ada/books/work") is None


def test_a_kernel_that_works_elsewhere_finds_nothing(shared: SharedFiles) -> None:
    assert shared.find("passwd", "/etc") is None


def test_the_home_is_the_one_there() -> None:
    assert expanded("~", "/home/ada") == "/home/ada"
    assert expanded("~//a/b", "/home/ada") == "/home/ada/a/b"
    assert expanded("~ada/a", "/home/ada") == "~ada/a"
    assert expanded("a/b", "/home/ada") == "a/b"


@pytest.mark.parametrize(
    ("metadata", "shares"),
    [
        ({}, False),
        ({"kernel_provisioner": "none"}, False),
        ({"kernel_provisioner": {"config": None}}, False),
        ({"kernel_provisioner": {"config": {"root_dir": ""}}}, False),
        ({"kernel_provisioner": {"config": {"root_dir": "~"}}}, True),
    ],
)
def test_a_kernelspec_says_whether_files_are_shared(metadata: Any, shares: bool) -> None:
    assert shares_files(metadata) is shares
