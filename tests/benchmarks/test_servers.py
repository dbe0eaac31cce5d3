"""The servers that the benchmark measures: kernelkeep with its keeper."""

from __future__ import annotations

import os

import psutil
import pytest

from benchmarks.clients import round_trip
from benchmarks.columns import SETTINGS, STOP
from benchmarks.servers import ROOT, ServerDied, kernelkeep


def test_its_keeper_is_found_after_its_server_was_killed_and_ended_with_the_next() -> None:
    server = kernelkeep()
    try:
        server.start()
        kernel_id, connection = server.ready("flood")
        connection.close()
        (keeper,) = server.keepers()
        # Of the same clone as its server, whatever clone is installed here.
        assert keeper.environ()["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
        kernels = server.kernels()
        server.kill()
        server.revive()

        assert server.keepers() == [keeper]
        assert [kernel["id"] for kernel in server.rest.request("GET", "/api/kernels")] == [
            kernel_id
        ]
        connection = server.connect(kernel_id)
        round_trip(connection)
        connection.close()
        costs = server.costs()
        assert costs.keeper is not None
        assert costs.keeper.cpu > 0
    finally:
        server.stop()
    _, alive = psutil.wait_procs([keeper, *kernels], timeout=20)
    assert alive == []


def test_a_fresh_one_has_its_settings_and_other_kernels_and_says_that_it_died() -> None:
    server = kernelkeep(STOP, options=SETTINGS[STOP])
    processes = []

    def use() -> None:
        with server.fresh({"another": ["false"]}) as fresh:
            specs = fresh.rest.request("GET", "/api/kernelspecs")["kernelspecs"]
            assert {"flood", "another"} <= specs.keys()
            _, connection = fresh.ready("flood")
            processes.extend(fresh.kernels())
            fresh.kill()
            try:
                connection.execute("")
                while connection.receive(20):
                    pass
            finally:
                connection.close()

    with pytest.raises(ServerDied, match="the server died"):
        use()
    server.stop()
    assert len(processes) == 1
    assert psutil.wait_procs(processes, timeout=20)[1] == []
