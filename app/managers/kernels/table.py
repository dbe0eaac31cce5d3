"""The kernels of one server, by id and by who may see them.

Listing an owner's kernels takes time by the number of that owner's kernels, not of all kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, ValuesView
from itertools import count
from typing import Literal
from uuid import UUID

from ..errors import InvalidKernelId
from ..owners.principal import Principal
from .kernel import Kernel

__all__ = ["KernelTable", "Key", "checked_id", "connections", "keys_for", "last_activity"]

Key = tuple[Literal["owner", "owners group", "name", "group"], str]
"""Why a principal may see a kernel: as its owner, by a group of the owner's, or by a share."""


def keys_for(principal: Principal) -> tuple[Key, ...]:
    """Every key by which a principal may see a kernel, if its scopes permit that as well."""
    owners, groups = principal.scopes.restrictions("kernels")
    return (
        ("owner", principal.owner),
        *(("owner", name) for name in sorted(owners - {principal.owner})),
        *(("owners group", name) for name in sorted(groups)),
        ("name", principal.owner),
        *(("group", name) for name in sorted(principal.groups)),
    )


def _keys_of(kernel: Kernel) -> frozenset[Key]:
    owned = kernel.ownership
    return frozenset(
        {
            ("owner", owned.owner),
            *(("owners group", name) for name in owned.groups),
            *(share.grantee for share in owned),
        }
    )


class KernelTable(MutableMapping[str, Kernel]):
    """Kernels by id, in the order in which they were put here."""

    def __init__(self) -> None:
        self._kernels: dict[str, Kernel] = {}
        self._numbers: dict[str, int] = {}
        self._keys: dict[str, frozenset[Key]] = {}
        self._by_key: dict[Key, dict[str, Kernel]] = {}
        self._next = count()
        self.version = 0
        """Counts the changes of which kernels there are, and of who may see them."""

    def __getitem__(self, kernel_id: str) -> Kernel:
        return self._kernels[kernel_id]

    def __setitem__(self, kernel_id: str, kernel: Kernel) -> None:
        # Removed first, so that the newer one is the last in order, and in no group of the older.
        if kernel_id in self._kernels:
            del self[kernel_id]
        self._kernels[kernel_id] = kernel
        self._numbers[kernel_id] = next(self._next)
        self.version += 1
        self._index(kernel_id)

    def __delitem__(self, kernel_id: str) -> None:
        del self._kernels[kernel_id]
        del self._numbers[kernel_id]
        self.version += 1
        self._unindex(kernel_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kernels)

    def __len__(self) -> int:
        return len(self._kernels)

    def values(self) -> ValuesView[Kernel]:
        """The kernels; the view of a mapping by default would look each of them up."""
        return self._kernels.values()

    @property
    def owners(self) -> frozenset[str]:
        """The names of the owners who have kernels."""
        return frozenset(name for kind, name in self._by_key if kind == "owner")

    def index(self, kernel: Kernel) -> None:
        """Take note that a kernel's shares have changed."""
        # A client may have looked the kernel up just before the kernel was removed.
        if self._kernels.get(kernel.id) is not kernel:
            return
        self.version += 1
        before, now = self._keys[kernel.id], _keys_of(kernel)
        self._keys[kernel.id] = now
        for key in before - now:
            self._remove(key, kernel.id)
        for key in now - before:
            found = {**self._by_key.get(key, {}), kernel.id: kernel}
            # The kernel may be older than others that have this key.
            self._by_key[key] = {each: found[each] for each in self._sorted(found)}

    def found_by(self, keys: Iterable[Key]) -> list[Kernel]:
        """The kernels that have one of these keys, in order."""
        groups = [found for key in keys if (found := self._by_key.get(key))]
        if len(groups) < 2:
            return [*groups[0].values()] if groups else []
        merged = {kernel_id: kernel for group in groups for kernel_id, kernel in group.items()}
        return [merged[kernel_id] for kernel_id in self._sorted(merged)]

    def _sorted(self, ids: Iterable[str]) -> list[str]:
        return sorted(ids, key=self._numbers.__getitem__)

    def _index(self, kernel_id: str) -> None:
        kernel = self._kernels[kernel_id]
        self._keys[kernel_id] = keys = _keys_of(kernel)
        for key in keys:
            self._by_key.setdefault(key, {})[kernel_id] = kernel

    def _unindex(self, kernel_id: str) -> None:
        # By the keys with which the kernel was indexed: its shares may have changed since, when
        # `index` has not been called yet.
        for key in self._keys.pop(kernel_id):
            self._remove(key, kernel_id)

    def _remove(self, key: Key, kernel_id: str) -> None:
        found = self._by_key[key]
        del found[kernel_id]
        if not found:
            del self._by_key[key]


def checked_id(kernel_id: str) -> str:
    """A kernel id in its one written form. It must be a UUID, because it names files."""
    try:
        identity = str(UUID(kernel_id))
    except ValueError:
        raise InvalidKernelId("kernel_id: must be a UUID") from None
    if identity != kernel_id.lower():
        raise InvalidKernelId("kernel_id: must be a UUID written with hyphens")
    return identity


def last_activity(kernels: Iterable[Kernel], since: float) -> float:
    """When a client last used one of the kernels, but not before ``since``."""
    return max((since, *(kernel.traffic.activity.last for kernel in kernels)))


def connections(kernels: Iterable[Kernel]) -> int:
    """Open channel WebSockets on the kernels."""
    return sum(len(kernel.traffic.clients) for kernel in kernels)
