"""A real server as root, whose owners' kernels run as users of their own, and try to get out.

Anna's kernel has secrets; Ben's tries to get at them, and at the service's, in every way that the
system knows.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from app.managers.errors import IsolationUnavailable
from app.managers.kernels.services import KernelServices
from app.managers.processes.hosts.provisioner import SSHProvisioner
from app.managers.processes.isolation.accounts import Account
from app.managers.processes.isolation.isolation import UserIsolation
from app.managers.processes.paths import cwd_for_path
from app.settings import Settings
from tests.conftest import servers
from tests.support.identities import token
from tests.support.isolated import (
    IDS,
    OPEN_FILES,
    USER,
    IsolatedHome,
    Owner,
    UserServer,
    check_files,
)
from tests.support.kernelspecs import write_kernelspecs
from tests.support.processes import eventually, is_alive, keepers
from tests.support.rest import RestClient, RestError

REFUSED = "PermissionError"

MOST = 50
"""The limit of Dora's processes."""

TOO_MANY = """
import errno, subprocess
children, refused = [], None
while len(children) < 60 and not refused:
    try:
        children.append(subprocess.Popen(["sleep", "60"]))
    except OSError as error:
        refused = errno.errorcode[error.errno]
"""


def test_what_another_package_launches_is_refused() -> None:
    """As it knows nothing of isolation (`app.managers.kernels.services`)."""
    manager: Any = SimpleNamespace(provisioner=LocalProvisioner())
    services: Any = SimpleNamespace(isolation=SimpleNamespace(kind="none"))
    KernelServices.check_isolation(services, manager)
    services.isolation.kind = "user"
    with pytest.raises(IsolationUnavailable, match="a provisioner of another package"):
        KernelServices.check_isolation(services, manager)


def test_what_runs_on_another_host_is_refused() -> None:
    """As the kernels there are those of one user, whoever their owners are."""
    manager: Any = SimpleNamespace(provisioner=SSHProvisioner())
    services: Any = SimpleNamespace(isolation=SimpleNamespace(kind="bubblewrap"))
    with pytest.raises(IsolationUnavailable, match="it runs on another host"):
        KernelServices.check_isolation(services, manager)


async def test_a_home_behind_a_link_is_one_to_work_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, linked = tmp_path / "real", tmp_path / "linked"
    (real / "anna" / "work").mkdir(parents=True)
    linked.symlink_to(real)
    settings = Settings(
        _cli_parse_args=False,
        isolation="user",
        isolation_dir=tmp_path / "homes",
        isolation_accounts=True,
        state_dir=tmp_path / "state",
        root_dir=real,
    )
    (tmp_path / "homes").mkdir()
    isolation = UserIsolation(settings, tmp_path / "run")
    own = Account(os.getuid(), os.getgid(), "anna", linked / "anna", own=False)
    monkeypatch.setattr(isolation._accounts, "find", lambda _: own)
    root = await isolation.root("anna")
    assert cwd_for_path(root, "work") == real / "anna" / "work"


@pytest.fixture(scope="module")
def isolated(request: pytest.FixtureRequest) -> Iterator[UserServer]:
    with servers(request.config) as make_server:
        home = IsolatedHome()
        limits = ("--limits-by-name", f'{{"dora": {{"processes": {MOST}}}}}')
        options = (*limits, "--files-by-owner")
        server = make_server(*options, kind=UserServer, home=home, specs=home.specs())
        assert isinstance(server, UserServer)
        yield server
    home.remove()


async def test_nothing_of_another_owners_kernel_is_within_reach(anna: Owner, ben: Owner) -> None:
    await anna.executions.run("open('secret', 'w').write('x'); import os; os.chmod('.', 0o700)")
    pid, argv, home = await anna.value("(os.getpid(), sys.argv, os.getcwd())")
    place = Path(argv[-1]).parent
    outcome = await ben.attempt(
        connection=f"open({argv[-1]!r}).read()",
        runtime=f"os.listdir({str(place)!r})",
        sockets=f"os.listdir({str(place / 's')!r})",
        shell=f"unix({str(place / 's' / 'c-1')!r})",
        memory=f"open('/proc/{pid}/mem', 'rb').read(1)",
        variables=f"open('/proc/{pid}/environ', 'rb').read(1)",
        descriptors=f"os.listdir('/proc/{pid}/fd')",
        directory=f"os.listdir('/proc/{pid}/cwd')",
        home=f"os.listdir({home!r})",
        file=f"open({home!r} + '/secret').read()",
        planted=f"open({home!r} + '/planted', 'w')",
        homes=f"os.listdir({os.path.dirname(home)!r})",
        signal=f"os.kill({pid}, 0)",
        group=f"os.killpg({pid}, signal.SIGINT)",
        ptrace=f"ptrace({pid})",
    )
    assert outcome == dict.fromkeys(outcome, REFUSED)


async def test_the_files_that_are_served_are_those_of_the_owners_user(
    isolated: UserServer, anna: Owner, ben: Owner
) -> None:
    await check_files(anna, ben, isolated)


async def test_nothing_of_the_service_is_within_reach(isolated: UserServer, ben: Owner) -> None:
    home = isolated.home
    (keeper,) = keepers(home.processes())
    state = str(home.state_dir)
    outcome = await ben.attempt(
        state=f"os.listdir({state!r})",
        keeper=f"unix({str(home.run_dir / 'keeper' / 'socket')!r})",
        token=f"open('/proc/{isolated.pid}/environ', 'rb').read(1)",
        memory=f"open('/proc/{isolated.pid}/mem', 'rb').read(1)",
        keepers=f"open('/proc/{keeper.pid}/environ', 'rb').read(1)",
        signal=f"os.kill({isolated.pid}, 0)",
        signal_keeper=f"os.kill({keeper.pid}, 0)",
        ptrace=f"ptrace({keeper.pid})",
        accounts=f"open({str(isolated.isolated_home.homes / '.owners.sqlite')!r})",
        home_of_its_own=f"os.mkdir({str(isolated.isolated_home.homes / 'carl')!r})",
        system="open('/etc/planted', 'w')",
        programs="open('/usr/bin/planted', 'w')",
        root="os.setuid(0)",
        groups="os.setgroups([0])",
    )
    assert outcome == dict.fromkeys(outcome, REFUSED)


async def test_its_owners_limits_hold_for_it(anna: Owner) -> None:
    limits = await anna.value("__import__('resource').getrlimit(7)")  # RLIMIT_NOFILE of Linux
    assert limits == [OPEN_FILES, OPEN_FILES]
    used = (await anna.rest.request("GET", f"/api/kernels/{anna.kernel_id}/usage")).json()
    assert used["limits"]["open_files"] == {"value": OPEN_FILES, "enforced": "setrlimit"}


async def test_an_owner_that_starts_too_many_processes_is_stopped_and_no_other_is(
    isolated: UserServer, ben: Owner
) -> None:
    async with Owner(isolated, "dora") as dora:
        await dora.start()
        try:
            assert (await dora.executions.run(TOO_MANY))["state"] == "ok"
            refused, begun = await dora.value("(refused, len(children))")
            assert refused == "EAGAIN"
            assert 0 < begun < MOST  # its kernel has threads, and they count
            assert await ben.value("__import__('subprocess').call(['true'])") == 0
            await dora.executions.run("for each in children: each.kill(), each.wait()")
            assert await dora.value("__import__('subprocess').call(['true'])") == 0
            used = (await dora.rest.request("GET", f"/api/kernels/{dora.kernel_id}/usage")).json()
            assert used["limits"]["processes"] == {"value": MOST, "enforced": "setrlimit"}
        finally:
            await dora.rest.delete(dora.kernel_id)  # with all that it has started


async def test_each_owner_has_a_user_and_a_home(
    isolated: UserServer, anna: Owner, ben: Owner
) -> None:
    asked = (
        "[os.getresuid(), os.getresgid(), os.getgroups(), os.umask(0o77), os.getcwd(), "
        "os.environ['HOME'], os.environ['USER'], os.environ.get('TMPDIR'), "
        "open('/proc/self/status').read().count('NoNewPrivs:\\t1'), open('/dev/stdout', 'w').mode]"
    )
    seen = []
    for name, owner in (("anna", anna), ("ben", ben)):
        seen_by_it = await owner.value(asked)
        ids, groups, others, umask, cwd, home, user, tmp, unprivileged, _ = seen_by_it
        assert len({*ids, *groups}) == 1, (ids, groups)
        assert ids[0] in IDS
        assert (others, umask, tmp, unprivileged) == ([], 0o77, None, 1)
        assert (user, cwd, home) == (name, *[str(isolated.isolated_home.homes / name)] * 2)
        seen.append(ids[0])
    assert seen[0] != seen[1]


async def test_it_is_interrupted_restarted_and_killed_as_any_kernel(anna: Owner) -> None:
    executions = anna.executions
    begun = await executions.begin("import time; print('begun', flush=True); time.sleep(1000)")

    async def has_begun() -> bool:
        return bool((await executions.get(begun))["outputs"])

    await eventually(has_begun)
    await anna.rest.interrupt(anna.kernel_id)
    assert (await executions.ended(begun))["outputs"][-1]["ename"] == "KeyboardInterrupt"
    before = await anna.value("os.getpid()")
    await anna.rest.restart(anna.kernel_id)
    assert await anna.value("os.getpid()") != before
    await executions.begin("os.kill(os.getpid(), 9)")
    await anna.rest.wait_for_state(anna.kernel_id, "idle", timeout=60)


async def test_a_path_is_relative_to_the_home_and_leads_nowhere_else(
    isolated: UserServer, anna: Owner, ben: Owner
) -> None:
    home = isolated.isolated_home.homes / "ben"
    await anna.executions.run("import os; os.mkdir('open', 0o755); os.chmod('open', 0o755)")
    await ben.executions.run(
        "import os; os.makedirs('work/deep'); os.symlink('../anna/open', 'link')"
    )
    async with Owner(isolated, "ben") as deep:
        await deep.start(path="work/deep/a.ipynb")
        assert await deep.value("os.getcwd()") == str(home / "work" / "deep")
        await deep.rest.delete(deep.kernel_id)
        with pytest.raises(RestError) as refused:
            await deep.start(path="link/a.ipynb")
    assert refused.value.error["code"] == "invalid_path"


async def test_an_interpreter_that_the_user_may_not_execute_is_named_in_one_line(
    isolated: UserServer,
) -> None:
    program = isolated.home.state_dir / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    async with RestClient(isolated.url, token("carl", USER)) as carl:
        with pytest.raises(RestError) as refused:
            await carl.start_kernel("unreadable")
    error = refused.value.error
    assert error["code"] == "isolation_unavailable"
    assert f"may not execute {program}, as {program.parent} is closed to it" in error["message"]
    assert "\n" not in error["message"]


async def test_kernels_outlive_the_server_and_their_end_is_complete() -> None:
    home = IsolatedHome()
    keep = ("--on-shutdown", "keep")
    write_kernelspecs(home.jupyter_path, home.specs())
    first = UserServer(*keep, home=home).start()
    async with Owner(first, "anna") as anna:
        kernel_id = await anna.start()
        await anna.executions.run("x = 42")
    first.crash()
    second = UserServer(*keep, home=home).start()
    try:
        async with Owner(second, "anna", kernel_id) as anna:
            assert await anna.value("x") == 42
            uid, argv = await anna.value("(os.getuid(), sys.argv)")
            (place,) = (home.homes / ".run").glob("*/*")
            assert Path(argv[-1]).parent == place
            (keeper,) = keepers(home.processes())
            os.kill(keeper.pid, signal.SIGKILL)
            assert await anna.value("x") == 42
            await anna.rest.interrupt(kernel_id)
            await anna.rest.restart(kernel_id)
            again, pid = await anna.value("(os.getuid(), os.getpid())")
            assert again == uid
            await anna.rest.delete(kernel_id)
        await eventually(lambda: not place.exists() and not is_alive(pid))
    finally:
        second.stop()
        home.remove()
