"""The environment of a kernel that is not the service's user's."""

from __future__ import annotations

from pathlib import Path

from app.managers.processes.isolation.environment import own_environment

HOME = Path("/homes/anna")


def test_it_has_its_own_home_and_name() -> None:
    env = own_environment({"HOME": "/root", "USER": "root"}, {}, home=HOME, name="anna")
    assert env == {"HOME": "/homes/anna", "USER": "anna", "LOGNAME": "anna"}


def test_places_of_the_services_user_are_left_out_and_others_stay() -> None:
    server = {
        "TMPDIR": "/run/service",
        "XDG_DATA_HOME": "/root/data",
        "XDG_DATA_DIRS": "/usr/share",
        "IPYTHONDIR": "/root/ipython",
        "PATH": "/usr/bin",
    }
    env = own_environment({**server, "IPYTHONDIR": "/homes/anna/i"}, server, home=HOME, name="anna")
    assert env.keys() - {"HOME", "USER", "LOGNAME"} == {"XDG_DATA_DIRS", "PATH", "IPYTHONDIR"}
    assert env["IPYTHONDIR"] == "/homes/anna/i"
