"""The kernelspecs that this server can start, read from disk at each request.

Directories are not cached: people install and remove kernels while the server runs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from traitlets import TraitError

from app.managers.errors import KernelSpecNotFound, NotFound

__all__ = ["Specs", "kernel_spec_manager"]

logger = logging.getLogger(__name__)


def kernel_spec_manager(allowed: Iterable[str]) -> KernelSpecManager:
    """jupyter_client's finder of kernelspecs, for these names only if there are any."""
    return KernelSpecManager(allowed_kernelspecs={name.lower() for name in allowed})


class SpecFile(msgspec.Struct):
    """The fields of a ``kernel.json`` that clients are shown."""

    argv: list[str]
    env: dict[str, Any]
    display_name: str
    language: str
    interrupt_mode: str
    metadata: dict[str, Any]
    kernel_protocol_version: str


class SpecModel(msgspec.Struct):
    """The kernelspec model of Jupyter's REST API."""

    name: str
    spec: SpecFile
    resources: dict[str, str]


# What reading and converting a spec raises when it is broken.
_UNREADABLE: Final = (ValueError, OSError, KeyError, TypeError, RecursionError)

# As jupyter_client has it, but for its line break at the end.
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")

# Files beside kernel.json that front ends load.
_SCRIPTS: Final = ("kernel.js", "kernel.css")


class Specs:
    """Finds kernelspecs as jupyter_client does; its methods read the disk in a thread."""

    def __init__(self, manager: KernelSpecManager, default_name: str, prefix: str = "/") -> None:
        self.manager = manager
        self.default_name = default_name
        self._prefix = prefix

    async def find(self, name: str) -> KernelSpec:
        """The spec of this name, whatever its case.

        Raises `KernelSpecNotFound`, which tells those that there are.
        """
        try:
            return await asyncio.to_thread(self._find, name)
        except KernelSpecNotFound:
            raise KernelSpecNotFound(name, await self.names()) from None

    async def model(self, name: str) -> SpecModel:
        """The model of one spec, under the name that was asked for."""
        return await asyncio.to_thread(lambda: self._model(name, self._find(name)))

    async def models(self) -> dict[str, SpecModel]:
        """The models of all specs that can be read, by name; a broken one is left out."""
        return await asyncio.to_thread(self._models)

    async def names(self) -> list[str]:
        """The names of all specs that can be read, sorted."""
        return sorted(await self.models())

    async def resource(self, name: str, path: str) -> Path:
        """A file in a spec's directory. Raises `NotFound` for any other."""
        return await asyncio.to_thread(self._resource, name, path)

    def exist(self) -> bool:
        """Whether there is any spec; reads the disk, so call it in a thread."""
        return bool(self.manager.find_kernel_specs())

    def _find(self, name: str) -> KernelSpec:
        name = "python3" if name == "python" else name
        if not _NAME.fullmatch(name):  # jupyter_client would log it as it is, line breaks included
            raise KernelSpecNotFound(name)
        allowed = self.manager.allowed_kernelspecs
        if allowed and name.lower() not in allowed:  # jupyter_client only lists by it
            raise KernelSpecNotFound(name)
        try:
            spec: KernelSpec = self.manager.get_kernel_spec(name)
        except NoSuchKernel:
            raise KernelSpecNotFound(name) from None
        except (*_UNREADABLE, TraitError) as error:
            logger.warning("kernelspec %s cannot be read: %s", name, error)
            raise KernelSpecNotFound(name) from None
        return spec

    def _models(self) -> dict[str, SpecModel]:
        models = {}
        for name, found in self.manager.get_all_specs().items():
            try:
                models[name] = self._convert(name, found["spec"], found["resource_dir"])
            except _UNREADABLE as error:
                logger.warning("kernelspec %s is left out: %s", name, error)
        return models

    def _model(self, name: str, spec: KernelSpec) -> SpecModel:
        try:
            return self._convert(name, spec.to_dict(), spec.resource_dir)
        except _UNREADABLE as error:
            logger.warning("kernelspec %s cannot be shown: %s", name, error)
            raise KernelSpecNotFound(name) from None

    def _convert(self, name: str, spec: Mapping[str, Any], directory: str) -> SpecModel:
        resources = {}
        folder = Path(directory)
        if directory and folder.is_dir():
            for file in sorted(folder.iterdir()):
                if file.name in _SCRIPTS:
                    resources[file.name] = self._url(name, file)
                elif file.name.startswith("logo-"):
                    resources[file.stem] = self._url(name, file)
        model = SpecModel(name, msgspec.convert(json.loads(json.dumps(spec)), SpecFile), resources)
        # A name that is not UTF-8 would spoil every listing.
        msgspec.json.encode(model)
        return model

    def _url(self, name: str, file: Path) -> str:
        return f"{self._prefix}kernelspecs/{name}/{file.name}"

    def _resource(self, name: str, path: str) -> Path:
        directory = Path(self._find(name).resource_dir).resolve()
        try:
            file = (directory / path).resolve(strict=True)
            if not path.endswith("/") and file.is_relative_to(directory) and file.is_file():
                return file
        except (OSError, ValueError, RuntimeError):
            pass
        raise NotFound("Kernel resource not found")
