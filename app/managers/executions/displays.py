"""Which executions show which displays."""

from __future__ import annotations

from typing import Final

from .execution import Execution

__all__ = ["Displays"]

MAX_SHOWING: Final = 32
"""How many executions, the latest, are known to show one display id: an update touches each."""


class Displays:
    """The executions of one kernel that show something under a ``display_id``, by that id."""

    def __init__(self) -> None:
        self._showing: dict[str, list[Execution]] = {}

    def add(self, execution: Execution, display_id: str) -> None:
        """Note that an execution shows a display."""
        # Code makes up as many ids as it likes: each is forgotten with the last execution it is in.
        showing = self._showing.setdefault(display_id, [])
        showing.append(execution)
        if len(showing) > MAX_SHOWING:
            del showing[0]

    def of(self, display_id: str | None) -> list[Execution]:
        """The executions that are known to show a display with this id."""
        return list(self._showing.get(display_id or "", ()))

    def remove(self, execution: Execution) -> None:
        """Forget the displays of an execution."""
        for display_id in execution.display_ids:
            showing = self._showing.get(display_id, [])
            if execution in showing:
                showing.remove(execution)
            if not showing:
                self._showing.pop(display_id, None)
