"""Where the keeper of a kernel with an engine is: in the kernel's job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from ..hosts.joined_place import JoinedPlace
from ..hosts.joining import Joining
from .work import Work

__all__ = ["EnginePlace"]


class EnginePlace(JoinedPlace):
    """The place of one kernel's keeper.

    ``submit`` has its job run, ``end`` sees to its end, and ``leave`` leaves it to another replica.
    """

    is_kernels_own = True

    def __init__(
        self,
        joining: Joining,
        work: Work,
        submit: Callable[[Work], Awaitable[None]],
        end: Callable[[Work], None],
        leave: Callable[[Work], None],
    ) -> None:
        options = work.chosen.options
        addresses = [options.address] if options.address else []
        super().__init__(joining, work.keeper_id, work.name, partial(submit, work), addresses)
        self.patience = options.patience
        self._end = partial(end, work)
        self._leave = partial(leave, work)

    def let_go(self) -> None:
        """As `RemotePlace.let_go`."""
        self._leave()

    async def retire(self) -> None:
        """As `RemotePlace.retire`: the kernel is gone, and its job is to end."""
        # In this order: from the first on, a keeper that dials in is told to end, which it does in
        # good order. The job is ended under it only if it has not by then.
        await super().retire()
        self._end()
