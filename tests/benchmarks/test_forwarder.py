"""The server that only forwards, which the benchmark sets beside kernelkeep."""

from __future__ import annotations

from benchmarks.clients import flood, receive_all, round_trip
from benchmarks.servers import forwarder


def test_it_forwards_everything_to_everybody() -> None:
    server = forwarder()
    try:
        server.start()
        kernel_id, first = server.ready("flood")
        second = server.connect(kernel_id)
        round_trip(first)
        flood(first, 5000, 100)
        receive_all([first, second], 5000)
        second.close()
        first.close()
        server.delete_kernel(kernel_id)

        assert (first.streams, second.streams) == (5000, 5000)
        assert server.usage().cpu > 0
    finally:
        server.stop()
