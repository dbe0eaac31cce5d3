"""The undocumented parts of jupyter_client that this server uses.

No other module of this package names a private attribute of jupyter_client. The upper bound on its
version in ``pyproject.toml`` is there because of this module: a later release is admitted when
``tests/managers/processes/test_jupyter_internals.py`` passes with it.

Other modules use documented parts only: kernel managers and their provisioners,
`KernelProvisionerFactory`, and the attributes that subclasses of `LocalProvisioner` set
(``process``, ``pid``, ``pgid``, ``cwd``).
"""

from __future__ import annotations

from jupyter_client.connect import ConnectionFileMixin
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager

__all__ = ["SpecReader", "mark_connection_file", "use_spec"]


class SpecReader(KernelSpecManager):
    """A manager of kernelspecs that reads one from a directory which the caller has found."""

    def read(self, name: str, directory: str) -> KernelSpec:
        """The kernelspec in a directory, read by ``kernel_spec_class``.

        ipykernel's own may have no file; then its package has it. Raises what ``kernel_spec_class``
        raises, and `NoSuchKernel` if the kernelspec's provisioner is not installed.
        """
        return self._get_kernel_spec_by_name(name, directory)

    def native_directory(self) -> str | None:
        """The directory of the kernelspec ``python3``: ipykernel's own if no other has that name.

        None if there is neither.
        """
        return self._find_spec_directory(NATIVE_KERNEL_NAME)


def use_spec(manager: KernelManager, spec: KernelSpec) -> None:
    """Have a manager use this kernelspec, even if another is installed under its name by now."""
    manager._kernel_spec = spec


def mark_connection_file(manager: ConnectionFileMixin, *, written: bool) -> None:
    """Tell a manager whether it counts as the one that wrote its connection file.

    A manager removes such a file at its end, and does not write it again before a launch.
    """
    manager._connection_file_written = written
