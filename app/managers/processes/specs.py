"""The kernelspecs that this server can start, read from disk at each request.

Directories are not cached: people install and remove kernels while the server runs. The listing and
the start of a kernel find kernelspecs by the same names, and check them in the same way
(`spec_files.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import msgspec
from jupyter_client.kernelspec import (
    NATIVE_KERNEL_NAME,
    KernelSpec,
    KernelSpecManager,
    NoSuchKernel,
)
from msgspec import Meta

from ..errors import KernelSpecInvalid, KernelSpecNotFound, NotFound
from .engines.defaults import Defaults, with_defaults
from .jupyter_internals import SpecReader
from .spec_files import FILE, CheckedSpec

__all__ = [
    "KernelSpecModel",
    "KernelSpecs",
    "SpecManager",
    "Specs",
    "every_spec",
    "kernel_spec_manager",
]

logger = logging.getLogger(__name__)


def is_name(name: str) -> bool:
    """Whether a folder with a ``kernel.json`` and this name is a kernelspec.

    Other software makes names with blanks, brackets, and letters of any script. So every name is
    allowed that is no path and can be printed on one line.
    """
    is_path = "/" in name or "\\" in name or name in ("", ".", "..")
    return not is_path and name.isprintable()


class SpecManager(SpecReader):
    """jupyter_client's manager, with one rule for listing kernelspecs and for finding one by name.

    jupyter_client itself lists any folder, logging a complaint each time, and finds fewer names.
    """

    def __init__(self, defaults: Defaults, **options: Any) -> None:
        super().__init__(**options)
        self._defaults = defaults
        self._unreadable: set[str] = set()  # directories for which a warning was logged

    def find_kernel_specs(self) -> dict[str, str]:
        allowed = self.allowed_kernelspecs
        found = self._every_directory()
        return {name: path for name, path in found.items() if not allowed or name in allowed}

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The kernelspec with the settings' options for its engine, as kernels are started by it.

        Raises what `written` raises.
        """
        # This is the one place where the two are merged: all code reads options from the result.
        return with_defaults(self.written(kernel_name), self._defaults)

    def written(self, kernel_name: str) -> KernelSpec:
        """The kernelspec as its file has it. Raises `NoSuchKernel` and `KernelSpecInvalid`."""
        name = kernel_name.lower()
        directory = self._every_directory().get(name)
        if directory is None:
            raise NoSuchKernel(kernel_name)
        return self.read(name, directory)

    def _every_directory(self) -> dict[str, str]:
        """The directory of each kernelspec, by its name in lower case; the first one of a name."""
        found: dict[str, str] = {}
        for place in filter(os.path.isdir, self.kernel_dirs):
            for entry in self._listed(place):
                name, path = entry.lower(), os.path.join(place, entry)
                if name not in found and is_name(name) and os.path.isfile(f"{path}/{FILE}"):
                    found[name] = path
        if self.ensure_native_kernel and NATIVE_KERNEL_NAME not in found:
            native = self.native_directory()  # None if ipykernel is not installed
            if native is not None:
                found[NATIVE_KERNEL_NAME] = native
        return found

    def _listed(self, place: str) -> list[str]:
        """The sorted entries of a directory; none, and one warning, if it cannot be read."""
        try:
            entries = sorted(os.listdir(place))
        except OSError as error:
            # Requests are answered in threads, and several may list at the same time. Each
            # operation on the set is one of CPython's own; the worst that comes of it is a second
            # warning.
            if place not in self._unreadable:
                logger.warning("kernelspecs in %s are not found: %s", place, error.strerror)
            self._unreadable.add(place)
            return []
        self._unreadable.discard(place)
        return entries


def kernel_spec_manager(
    allowed: Iterable[str] = (), defaults: Defaults | None = None, **options: Any
) -> SpecManager:
    """A manager that finds kernelspecs where jupyter_client does; all, if ``allowed`` is empty.

    ``defaults`` are what the settings say of engines' options. Its ``get_kernel_spec`` raises
    `KernelSpecInvalid` for a broken kernelspec.
    """
    return SpecManager(
        defaults or {},
        allowed_kernelspecs={name.lower() for name in allowed},
        kernel_spec_class=CheckedSpec,
        **options,
    )


def every_spec(manager: KernelSpecManager) -> Iterator[tuple[str, KernelSpec | KernelSpecInvalid]]:
    """Every kernelspec by its name; a broken one as the error that tells what is wrong with it."""
    # `get_all_specs` would log a traceback for each broken kernelspec, each time.
    for name, directory in manager.find_kernel_specs().items():
        try:
            if name == NATIVE_KERNEL_NAME and not Path(directory, FILE).is_file():
                yield name, manager.get_kernel_spec(name)  # ipykernel's package has it, not a file
            else:
                yield name, CheckedSpec.from_resource_dir(directory)
        except KernelSpecInvalid as error:
            yield name, error
        except NoSuchKernel:  # removed since the directories were listed
            continue


class KernelSpecFile(msgspec.Struct):
    """The contents of a `kernel.json`."""

    argv: list[str]
    env: dict[str, Any]
    display_name: str
    language: str
    interrupt_mode: str
    metadata: dict[str, Any]
    kernel_protocol_version: str


class KernelSpecModel(msgspec.Struct):
    """A kernelspec: a kind of kernel that can be started."""

    name: str
    spec: KernelSpecFile
    resources: Annotated[
        dict[str, str], Meta(description="Its logos and scripts, by name, with their URLs.")
    ]


class KernelSpecs(msgspec.Struct):
    """Every kernelspec that is not broken."""

    default: Annotated[
        str, Meta(description="The name of the one that is started when none is named.")
    ]
    kernelspecs: dict[str, KernelSpecModel]


# Files beside kernel.json that front ends load; they are named in the model's ``resources``.
_SCRIPTS: Final = ("kernel.js", "kernel.css")


class Specs:
    """Finds kernelspecs as jupyter_client does; its methods read the disk in a thread."""

    def __init__(self, manager: SpecManager, default_name: str, prefix: str = "/") -> None:
        self.manager = manager
        self.default_name = default_name
        self._prefix = prefix
        # By the path of each broken file: the time of its last change, and the fault.
        self._logged: dict[str, tuple[int, str]] = {}

    async def find(self, name: str) -> KernelSpec:
        """The spec of this name, in upper or lower case.

        Raises `KernelSpecNotFound`, which lists the names that exist, or `KernelSpecInvalid`.
        """
        try:
            return await asyncio.to_thread(self._find, name, self.manager.get_kernel_spec)
        # A second look at the disk: the kernelspec may be there by now, and then is in this list.
        except KernelSpecNotFound:
            raise KernelSpecNotFound(name, await self.names()) from None

    async def model(self, name: str) -> KernelSpecModel:
        """The model of one spec, as its file has it, under the name that was asked for.

        Raises `KernelSpecNotFound` or `KernelSpecInvalid`.
        """
        return await asyncio.to_thread(lambda: self._model(name, self._written(name)))

    async def models(self) -> dict[str, KernelSpecModel]:
        """The models of all specs, by name; a broken one is left out."""
        return await asyncio.to_thread(self._models)

    async def names(self) -> list[str]:
        """The names of all specs that are not broken, sorted."""
        return sorted(await self.models())

    async def resource(self, name: str, path: str) -> Path:
        """The path of a file in a spec's directory. Raises `NotFound` if there is no such file."""
        return await asyncio.to_thread(self._resource, name, path)

    def exist(self) -> bool:
        """Whether there is any spec that is not broken; reads the disk, so call it in a thread."""
        return any(isinstance(found, KernelSpec) for _, found in every_spec(self.manager))

    def _written(self, name: str) -> KernelSpec:
        # Clients are not shown the options of the settings, which are the operator's.
        return self._find(name, self.manager.written)

    def _find(self, name: str, find: Callable[[str], KernelSpec]) -> KernelSpec:
        name = "python3" if name == "python" else name
        allowed = self.manager.allowed_kernelspecs
        # `get_kernel_spec` finds every name, so that a running kernel can restart; a start may not.
        if allowed and name.lower() not in allowed:
            raise KernelSpecNotFound(name)
        try:
            return find(name)
        except NoSuchKernel:
            raise KernelSpecNotFound(name) from None
        except OSError as error:
            logger.warning("kernelspecs cannot be looked for: %s", error)
            raise KernelSpecNotFound(name) from None
        except KernelSpecInvalid as error:
            self._log(error)
            raise

    def _models(self) -> dict[str, KernelSpecModel]:
        models = {}
        broken = set()
        for name, found in every_spec(self.manager):
            if isinstance(found, KernelSpecInvalid):
                broken.add(found.path)
                self._log(found)
            else:
                models[name] = self._model(name, found)
        for path in self._logged.keys() - broken:  # these were mended, or are gone
            self._logged.pop(path, None)
        return models

    def _log(self, error: KernelSpecInvalid) -> None:
        """Log a broken file, once for each change of it: clients ask for listings all the time."""
        try:
            changed = os.stat(error.path).st_mtime_ns
        except OSError:
            changed = 0
        said = (changed, error.fault)
        # Two threads may read the file at the same time. Both may then log it, which does no harm.
        if self._logged.get(error.path) != said:
            self._logged[error.path] = said
            logger.warning("%s", error.message)

    def _model(self, name: str, spec: KernelSpec) -> KernelSpecModel:
        resources = {}
        for file in _files(spec.resource_dir):
            key = file.name if file.name in _SCRIPTS else file.stem
            is_shown = file.name in _SCRIPTS or file.name.startswith("logo-")
            if is_shown and _served(spec.resource_dir, file.name):
                resources[key] = self._url(name, file)
        return KernelSpecModel(name, msgspec.convert(spec.to_dict(), KernelSpecFile), resources)

    def _url(self, name: str, file: Path) -> str:
        return f"{self._prefix}kernelspecs/{quote(name)}/{quote(file.name)}"

    def _resource(self, name: str, path: str) -> Path:
        file = _served(self._written(name).resource_dir, path)
        if file is None:
            raise NotFound("Kernel resource not found")
        return file


def _served(resource_dir: str, path: str) -> Path | None:
    """The file of a spec's directory that has this path there; None if there is none to serve."""
    if not resource_dir:  # as a path this is the working directory
        return None
    try:
        directory = Path(resource_dir).resolve()
        file = (directory / path).resolve(strict=True)
        if not path.endswith("/") and file.is_relative_to(directory) and file.is_file():
            return file
    except (OSError, ValueError, RuntimeError):
        pass
    return None


def _files(directory: str) -> list[Path]:
    """The files in a spec's directory, sorted, without those whose names are not UTF-8."""
    if not directory:
        return []
    try:
        return sorted(file for file in Path(directory).iterdir() if _is_utf8(file.name))
    except OSError:
        return []


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
