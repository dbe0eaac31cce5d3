"""Where isolated kernels have their connection files and sockets."""

from __future__ import annotations

import os
from pathlib import Path

from app.managers.processes.isolation.places import MAX_DIRECTORY, KernelPlace, kernels_dir
from app.managers.processes.transports import MAX_SOCKET_NAME


def test_the_longest_directory_leaves_room_for_a_sockets_name() -> None:
    kernels = kernels_dir(Path("/" + "x" * (MAX_DIRECTORY - 1)), Path("/state"))
    assert len(os.fsencode(KernelPlace(kernels, "some id").address + "-5")) == 107
    assert MAX_SOCKET_NAME <= 107


def test_each_kernel_of_each_run_has_a_place_that_is_found_again() -> None:
    homes = Path("/homes")
    places = {
        KernelPlace(kernels_dir(homes, Path(run)), kernel_id).directory
        for run in ("/state", "/state/run/1")
        for kernel_id in ("one", "other")
        for _ in range(2)
    }
    assert len(places) == 4
