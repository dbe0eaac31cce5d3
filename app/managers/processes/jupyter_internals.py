"""What this server uses of jupyter_client that its documentation does not promise.

Nothing else in this package names a private attribute of jupyter_client. The upper bound in
``pyproject.toml`` stands for this module: a release beyond it is admitted when
``tests/managers/processes/test_jupyter_internals.py`` passes with it.

Documented, and used elsewhere without further ado: kernel managers and their provisioners,
`KernelProvisionerFactory`, and what subclasses of `LocalProvisioner` set (``process``, ``pid``,
``pgid``, ``cwd``).
"""

from __future__ import annotations

from jupyter_client.connect import ConnectionFileMixin
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager

__all__ = ["SpecReader", "mark_connection_file", "use_spec"]


class SpecReader(KernelSpecManager):
    """A manager of kernelspecs that reads one from a directory which the caller has found."""

    def read(self, name: str, directory: str) -> KernelSpec:
        """The kernelspec in a directory, by the class ``kernel_spec_class``.

        That of ipykernel is in no file, but in its package. Raises what that class does, and
        `NoSuchKernel` where the kernelspec's provisioner is not installed.
        """
        return self._get_kernel_spec_by_name(name, directory)

    def native_directory(self) -> str | None:
        """The directory of ``python3``, which is ipykernel's own where no other has the name.

        None without ipykernel.
        """
        return self._find_spec_directory(NATIVE_KERNEL_NAME)


def use_spec(manager: KernelManager, spec: KernelSpec) -> None:
    """Have a manager use this kernelspec, whatever is installed under its name by now."""
    manager._kernel_spec = spec


def mark_connection_file(manager: ConnectionFileMixin, *, written: bool) -> None:
    """Tell a manager whether it has written the connection file.

    It removes at its end a file that it has written, and writes none again that it has.
    """
    manager._connection_file_written = written
