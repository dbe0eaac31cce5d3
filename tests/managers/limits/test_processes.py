"""What the keeper is told of an owner's limits."""

from __future__ import annotations

from app.keeper.limits import NO_LIMITS, limits_from
from app.managers.limits.limits import LimitPolicy
from app.managers.limits.processes import process_limits
from app.managers.limits.shares import Shares
from app.managers.owners.ownership import Ownership


def test_limits_of_processes_and_no_others() -> None:
    table = {"memory": 2**30, "cpu": 1.5, "processes": 50, "open_files": 100, "kernels": 3}
    shares = Shares(LimitPolicy({}, {"staff": table}, {"eve": {"kernels": 1}}))
    found = process_limits(shares, Ownership("anna", ["staff"]))
    assert (found.memory, found.cpu, found.processes, found.open_files) == (2**30, 1.5, 50, 100)
    assert found.owner != process_limits(shares, Ownership("ben", ["staff"])).owner
    assert limits_from({"owner": found.owner, "memory": 1}).owner == found.owner
    assert process_limits(shares, Ownership("eve")) is NO_LIMITS
    assert process_limits(shares, Ownership("anna")) is NO_LIMITS
