"""The kernels of a server as one caller finds them.

Routes have this view, and never the manager behind it. What a caller does with its kernels is in
parts, each of which knows the kernels by what the caller finds.
"""

from __future__ import annotations

import time

from ..owners.principal import Principal
from .driving import Driving
from .finding import Finding
from .listing import Listing
from .locating import Locating
from .measuring import Measuring
from .multikernel import MultiKernelManager
from .sharing import Sharing
from .table import connections, last_activity

__all__ = ["CallersKernels"]


class CallersKernels(Finding):
    """What one principal finds of a server's kernels, and the parts of what it does with them."""

    def __init__(self, manager: MultiKernelManager, principal: Principal) -> None:
        super().__init__(manager, principal)
        self.listing = Listing(manager, self)
        self.sharing = Sharing(manager, self)
        self.driving = Driving(manager, self)
        self.locating = Locating(manager, self)
        self.measuring = Measuring(manager.usage, self, self.listing)
        # What is the same for every caller.
        self.settings, self.specs, self.started = manager.settings, manager.specs, manager.started
        self.check_running, self.check_adopted = manager.check_running, manager.check_adopted
        self._last_request = manager.started

    def touch(self) -> None:
        """Note that the caller has used the API."""
        self._last_request = time.time()
        self._manager.touch()

    @property
    def last_activity(self) -> float:
        """When the caller's kernels or the API were last used, in seconds since the epoch."""
        if self.finds_all:
            return self._manager.last_activity
        return last_activity(self.listing, self._last_request)

    @property
    def connections(self) -> int:
        """Open channel WebSockets on the caller's kernels."""
        return connections(self.listing)
