"""The table of kernels: everybody finds just what they may see, and looks at no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from app.managers.kernels.kernel import Kernel
from app.managers.kernels.table import KernelTable, connections, keys_for, last_activity
from app.managers.owners.ownership import Ownership, Share, access
from app.managers.owners.principal import Principal
from tests.support.identities import principal


class OwnedKernel:
    """As much of a kernel as the table looks at; it counts the looks."""

    def __init__(self, kernel_id: str, ownership: Ownership) -> None:
        self.id = kernel_id
        self._ownership = ownership
        self.looks = 0

    @property
    def ownership(self) -> Ownership:
        self.looks += 1
        return self._ownership


def _put(table: KernelTable, kernel: OwnedKernel) -> None:
    found: Any = kernel
    table[kernel.id] = found


def _seen(table: KernelTable, one: Principal) -> list[str]:
    found = table.found_by(keys_for(one))
    return [kernel.id for kernel in found if access(one, "read", "kernels", kernel.ownership)]


def _all_seen(table: KernelTable, one: Principal) -> list[str]:
    return [k.id for k in table.values() if access(one, "read", "kernels", k.ownership)]


names = st.sampled_from(["anna", "ben", "carl"])
groups = st.sampled_from(["art", "physics"])
shares = st.builds(
    Share,
    st.sampled_from(["name", "group"]),
    st.one_of(names, groups),
    st.sampled_from(["read", "execute"]),
)
ownerships = st.builds(Ownership, names, st.sets(groups), st.lists(shares, max_size=3))
scopes = st.sets(
    st.sampled_from(
        [
            *("kernels:read", "kernels:write", "kernels:execute", "sessions:read"),
            *("kernels:read!owner=anna", "kernels:admin!owner=ben", "sessions:read!owner=anna"),
            *("kernels:read!group=art", "kernels:execute!group=physics"),
        ]
    )
)
principals = st.builds(
    lambda name, asked, members: principal(name, asked, groups=members),
    names,
    scopes,
    st.frozensets(groups),
)
changes = st.lists(
    st.tuples(st.sampled_from(["put", "share", "end", "remove"]), st.integers(0, 5), shares),
    max_size=20,
)


@given(principals, st.lists(ownerships, min_size=6, max_size=6), changes)
def test_it_finds_what_looking_at_every_kernel_would(
    one: Principal,
    owned: list[Ownership],
    steps: list[tuple[str, int, Share]],
) -> None:
    table = KernelTable()
    kernels = [OwnedKernel(str(number), ownership) for number, ownership in enumerate(owned)]
    for kernel in kernels[:4]:
        _put(table, kernel)
    for step, number, share in steps:
        kernel = kernels[number]
        changed: Any = kernel
        seen, version = _seen(table, one), table.version
        if step == "put":
            _put(table, kernel)
        elif step == "remove":
            table.pop(kernel.id, None)
        else:
            if step == "share":
                kernel.ownership.grant(share)
            else:
                kernel.ownership.revoke(share.grantee)
            table.index(changed)
        assert _seen(table, one) == _all_seen(table, one)
        assert _seen(table, one) == seen or table.version > version
        assert len(table) == len([*table])


def test_a_share_changes_no_order() -> None:
    table = KernelTable()
    kernels = [OwnedKernel(str(number), Ownership("anna")) for number in range(3)]
    for kernel in kernels:
        _put(table, kernel)
    anna, ben = (principal(name, {"kernels:read"}) for name in ("anna", "ben"))
    for number in (1, 0, 2):
        kernels[number].ownership.grant(Share("name", "ben", "read"))
        changed: Any = kernels[number]
        table.index(changed)
        assert _seen(table, anna) == ["0", "1", "2"]
    assert _seen(table, ben) == ["0", "1", "2"]


def test_a_list_of_one_s_own_does_not_look_at_others() -> None:
    table = KernelTable()
    others = [
        OwnedKernel(f"{name} {number}", Ownership(f"owner {name}", ["all"]))
        for name in range(1000)
        for number in range(2)
    ]
    own = [OwnedKernel(f"own {number}", Ownership("anna", ["all"])) for number in range(2)]
    for kernel in [*others, *own]:
        _put(table, kernel)
    before = sum(kernel.looks for kernel in others)
    anna = principal("anna", ["kernels:write"], groups={"all"})
    assert _seen(table, anna) == ["own 0", "own 1"]
    assert sum(kernel.looks for kernel in others) == before


def test_a_kernel_that_is_put_again_comes_last() -> None:
    table = KernelTable()
    kernels = [OwnedKernel(name, Ownership("anna")) for name in "abc"]
    for kernel in [*kernels, kernels[0]]:
        _put(table, kernel)
    anna = principal("anna", ["kernels:read", "kernels:read!owner=ben"])
    assert [*table] == _seen(table, anna) == ["b", "c", "a"]
    table.clear()
    assert table.found_by(keys_for(anna)) == []
    stray: Any = Kernel.__new__(Kernel)
    stray.id = "a"
    table.index(stray)  # one that is gone changes nothing
    assert [*table] == []


def test_how_kernels_are_used_is_told_of_all_together() -> None:
    def used(last: float, *clients: str) -> Kernel:
        traffic = SimpleNamespace(activity=SimpleNamespace(last=last), clients=clients)
        return cast(Kernel, SimpleNamespace(traffic=traffic))

    kernels = [used(3.0, "a"), used(7.0), used(5.0, "b", "c")]
    assert last_activity(kernels, 1.0) == 7.0
    assert last_activity(kernels, 9.0) == 9.0
    assert last_activity([], 1.0) == 1.0
    assert connections(kernels) == 3
