"""Every call of a collaborator, in everything that a kernel goes through, fails in every way.

What is called is not written down here: each operation is done once with nothing failing, and its
calls are recorded. Then each of them fails in each way, kernels side by side, while another kernel
counts. Where a collaborator dies, one kernel after the other has its turn.

Without ``--full`` each call fails in half of the ways: the next call, and the same call in the next
operation, in the other half.
"""

from __future__ import annotations

import pytest

from tests.faults.table import OPERATIONS, Record, Table, rows_of, tell, verdict
from tests.support.bench import BOUND, Bench, Who
from tests.support.processes import eventually

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("who", ["keeper", "provisioner"])
async def test_a_failure_is_one_kernels_alone(
    who: Who, operation: str, full: bool, record_property: Record
) -> None:
    async with Bench(who) as bench:
        await bench.start()
        table = Table(bench, OPERATIONS[operation])
        calls = await table.record()
        before = await bench.holdings()
        rows = rows_of(calls, full, [*OPERATIONS].index(operation))
        tell(record_property, f"{operation}, {who}", calls, rows)
        await table.walk(rows)
        verdict(table)
        await eventually(lambda: bench.holds_no_more(before), BOUND, 0.5)
        await bench.check()
