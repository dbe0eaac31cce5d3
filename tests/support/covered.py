"""Which tests cover which module of `app/`, and whether they run every branch of it.

``python -m tests.support.covered`` (``scripts/coverage``) prints the table, and fails when a module
of `PURE` has a branch that its own tests do not run. With ``--ran`` it runs nothing, and prints the
options by which pytest leaves out the tests that it would run.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.rooms import REPOSITORY, modules

__all__ = ["ELSEWHERE", "PURE", "files_of", "own_test"]

ELSEWHERE: Final[dict[str, tuple[str, ...]]] = {
    "app.api.endings": ("api/test_token_ends",),
    "app.audit_cli": ("test_audit_command",),
    "app.commands": ("test_tokens_command", "test_audit_command"),
    "app.identity_options": ("test_options",),
    "app.isolation_options": ("test_settings",),
    "app.managers.processes.isolation.confinement": ("managers/processes/isolation/test_sandbox",),
    "app.identity_providers.naming": (
        "identity_providers/test_oidc",
        "identity_providers/test_hub_model",
    ),
    "app.identity_providers.remembered": ("identity_providers/test_jupyterhub",),
    "app.identity_providers.sweeping": ("identity_providers/test_jupyterhub",),
    "app.managers.kernels.owners": ("api/test_owners",),
    "app.managers.limits.counting": ("managers/limits/test_shares",),
    "app.managers.limits.queues": ("managers/replicas/test_counting",),
    "app.managers.limits.errors": ("managers/limits/test_shares", "api/test_owners"),
    "app.managers.owners.token_table": ("managers/replicas/test_tokens",),
    "app.managers.owners.callers_tokens": ("api/test_token_list",),
    "app.managers.owners.errors": ("api/test_token_list", "api/test_shares"),
    "app.managers.telemetry.audit_files": ("managers/telemetry/test_audit",),
    "app.token_places": ("test_tokens_command",),
    "app.tokens_cli": ("test_tokens_command",),
    "app.__main__": ("test_cli",),
    "app.access_options": ("test_options",),
    "app.kernels_cli": (
        "managers/handover/test_kernels_command",
        "managers/handover/test_registry",
    ),
    "app.lifespan": ("test_stop",),
    "app.main": ("api/test_openapi", "test_stop"),
    "app.routes": ("api/test_http",),
    "app.serving": ("test_uvicorn_internals", "test_cli"),
    "app.tokens": ("test_token_file",),
    "app.api.access": (
        *("api/test_authorized_for_all", "api/test_hosts_and_origins", "api/test_tokens"),
    ),
    "app.api.dependencies": ("api/test_bad_input",),
    "app.api.errors": ("api/test_http", "api/test_bad_input"),
    "app.api.identity": ("api/test_me",),
    "app.api.log_pages": ("api/test_messages",),
    "app.api.page": ("page/test_opening",),
    "app.api.readiness": ("api/test_probes",),
    "app.api.requests": ("api/test_bad_input",),
    "app.api.server": ("api/test_status", "api/test_resolve_path"),
    "app.api.timing": ("api/test_metrics",),
    "app.api.uvicorn_protocol": ("api/test_slow_clients",),
    "app.api.views": ("api/test_owners_apart",),
    "app.api.websocket_models": ("api/test_openapi",),
    "app.keeper.__main__": ("keeper/test_keeper",),
    "app.keeper.ending": ("keeper/test_keeper",),
    "app.keeper.hearings": ("keeper/test_hearing", "managers/messages/test_line"),
    "app.keeper.kept_kernels": ("keeper/test_keeper",),
    "app.keeper.kernels": ("keeper/test_keeper",),
    "app.keeper.log_files": ("keeper/test_log", "keeper/test_much"),
    "app.keeper.looking": ("keeper/test_processes", "keeper/test_platforms"),
    "app.keeper.sights": ("keeper/test_processes", "keeper/test_platforms"),
    "app.keeper.main": ("keeper/test_keeper",),
    "app.keeper.protocol": ("keeper/test_keeper", "keeper/test_strangers"),
    "app.keeper.servers": ("keeper/test_lost_link", "managers/processes/test_remote_keeper"),
    "app.keeper.service": ("keeper/test_keeper", "keeper/test_trouble"),
    "app.managers.errors": ("api/test_openapi",),
    "app.identity_providers.errors": ("identity_providers/test_logins", "api/test_login"),
    "app.managers.executions.code": ("managers/executions/test_queues",),
    "app.managers.executions.events": ("api/test_execution_events",),
    "app.managers.executions.execution": (
        *("managers/executions/test_executions", "managers/executions/test_execution_records"),
    ),
    "app.managers.executions.held": ("managers/executions/test_after_interrupts",),
    "app.managers.executions.history": (
        "managers/executions/test_late_output",
        "api/test_messages",
    ),
    "app.managers.executions.listeners": ("managers/executions/test_executions",),
    "app.managers.executions.queue": ("managers/executions/test_executions",),
    "app.managers.executions.results": (
        *("managers/executions/test_late_output", "api/test_execution_outputs"),
    ),
    "app.managers.executions.stragglers": ("managers/executions/test_late_output",),
    "app.managers.executions.tracker": (
        *("managers/executions/test_executions", "managers/executions/test_execution_ends"),
    ),
    "app.managers.files.contents": ("api/test_contents", "managers/files/test_changes"),
    "app.managers.handover.executions": ("managers/executions/test_execution_records",),
    "app.managers.handover.handover": (
        *("managers/handover/test_adoption", "managers/handover/test_unreachable"),
    ),
    "app.managers.handover.store": ("managers/handover/test_registry",),
    "app.managers.processes.keeper.greeting": ("managers/replicas/test_fencing",),
    "app.api.relay_links": ("api/test_relay",),
    "app.managers.handover.lock": ("managers/handover/test_registry",),
    "app.managers.handover.elsewhere": ("managers/replicas/test_forwarding",),
    "app.managers.replicas.errors": ("managers/replicas/test_forwarding",),
    "app.managers.replicas.group": ("managers/replicas/test_forwarding",),
    "app.managers.sessions.shared": ("managers/replicas/test_forwarding",),
    "app.migrate_cli": ("test_migrate_command",),
    "app.managers.replicas.directory": ("managers/replicas/test_forwarding",),
    "app.managers.replicas.member": ("managers/replicas/test_takeover",),
    "app.managers.replicas.membership": ("managers/replicas/test_store",),
    "app.managers.replicas.registry": (
        *("managers/replicas/test_takeover", "managers/replicas/test_terms"),
    ),
    "app.keeper.audience": ("managers/replicas/test_fencing",),
    "app.replica_options": ("test_options",),
    "app.managers.kernels.callers": ("api/test_owners_apart",),
    "app.managers.kernels.construction": ("managers/kernels/test_supervision",),
    "app.managers.kernels.kernel": (
        *("managers/kernels/test_supervision", "managers/kernels/test_restarting"),
    ),
    "app.managers.kernels.launches": (
        *("managers/kernels/test_supervision", "managers/kernels/test_starting"),
    ),
    "app.managers.kernels.life": ("managers/kernels/test_death",),
    "app.managers.kernels.locating": ("api/test_resolve_path", "api/test_process_output"),
    "app.managers.kernels.losses": ("managers/processes/test_keeping",),
    "app.managers.kernels.measuring": ("api/test_usage",),
    "app.managers.kernels.model": ("api/test_kernels",),
    "app.managers.kernels.moving": ("managers/kernels/test_warm",),
    "app.managers.kernels.multikernel": (
        *("managers/kernels/test_supervision", "api/test_kernel_limits"),
    ),
    "app.managers.kernels.registration": ("managers/handover/test_adoption",),
    "app.managers.kernels.services": ("managers/kernels/test_supervision",),
    "app.managers.kernels.shared_ties": ("managers/replicas/test_forwarding",),
    "app.managers.kernels.sharing": ("api/test_shares",),
    "app.managers.kernels.shutdown": (
        *("managers/kernels/test_stop_escalation", "managers/kernels/test_stopping_promptly"),
    ),
    "app.managers.kernels.take_over": ("managers/handover/test_adoption",),
    "app.managers.log.entries": ("managers/log/test_log",),
    "app.managers.log.message_log": ("managers/log/test_log", "managers/log/test_log_model"),
    "app.managers.messages.attachments": ("ws/test_returning", "ws/test_same_session"),
    "app.managers.messages.conclusions": ("managers/executions/test_executions",),
    "app.managers.messages.interrupts": ("managers/messages/test_interrupt_watch",),
    "app.managers.messages.reading": ("managers/messages/test_unsent",),
    "app.managers.messages.request_ends": ("managers/executions/test_unanswered",),
    "app.managers.messages.submissions": ("ws/test_core",),
    "app.managers.messages.traffic": ("managers/executions/test_executions", "ws/test_core"),
    "app.managers.messages.voice": ("ws/test_greeting",),
    "app.managers.processes.forking.fork_server": ("managers/processes/test_forking",),
    "app.managers.processes.forking.link": (
        *("managers/processes/test_kept_forks", "managers/processes/test_failed_forks"),
    ),
    "app.managers.processes.forking.provisioner": ("managers/processes/test_automatic_forks",),
    "app.managers.processes.forking.servers": (
        *("managers/processes/test_automatic_forks", "managers/processes/test_failed_forks"),
    ),
    "app.managers.processes.keeper.client": ("keeper/test_keeper", "keeper/test_lost_link"),
    "app.managers.processes.keeper.connection": ("keeper/test_lost_link", "keeper/test_lies"),
    "app.managers.processes.keeper.errands": ("keeper/test_lost_link",),
    "app.managers.processes.hosts.errors": ("managers/processes/hosts/test_ssh",),
    "app.managers.processes.hosts.pythons": (
        *("managers/processes/hosts/test_bootstrap", "managers/processes/engines/test_job"),
    ),
    **{
        f"app.managers.processes.engines.{name}": ("managers/processes/engines/test_docker",)
        for name in ("kinds", "place", "provisioner")
    },
    "app.managers.processes.engines.order": ("managers/processes/engines/test_job",),
    "app.managers.processes.engines.kubernetes_watch": (
        "managers/processes/engines/test_kubernetes_api",
    ),
    "app.agent_options": ("managers/processes/hosts/test_new_joining",),
    "app.keeper.joining": ("keeper/test_joined",),
    "app.managers.processes.hosts.accepting": (
        "managers/processes/hosts/test_joining",
        "api/test_relay",
    ),
    "app.managers.processes.hosts.listener": ("managers/processes/hosts/test_joining",),
    "app.managers.processes.hosts.joined_place": ("managers/processes/hosts/test_joining",),
    "app.managers.processes.keeper.claims": ("managers/processes/test_claims",),
    "app.managers.processes.keeper.far_link": ("managers/processes/test_far_link",),
    "app.managers.processes.keeper.mirrors": ("managers/processes/test_far_link",),
    "app.managers.processes.keeper.remote": ("managers/processes/test_remote_keeper",),
    "app.managers.processes.keeper.keepers": ("keeper/test_versions",),
    "app.managers.processes.keeper.older_keepers": ("keeper/test_versions",),
    "app.managers.processes.keeper.remote_keepers": (
        "managers/processes/test_remote_keeper",
        "keeper/test_joined",
    ),
    "app.managers.processes.keeper.new_keepers": ("managers/processes/test_keeping",),
    "app.managers.processes.keeper.kept": ("keeper/test_trouble", "keeper/test_versions"),
    "app.managers.processes.keeper.lines": ("keeper/test_lost_link", "keeper/test_lies"),
    "app.managers.processes.keeper.link": (
        "managers/processes/test_keeper_steps",
        "keeper/test_trouble",
    ),
    "app.managers.processes.keeper.places": ("keeper/test_versions",),
    "app.managers.processes.keeper.starting": ("keeper/test_lost_link",),
    "app.managers.processes.keeper.provisioner": ("managers/processes/test_keeping",),
    "app.managers.processes.process": ("managers/kernels/test_supervision",),
    "app.managers.processes.spec_files": ("managers/processes/test_specs",),
    "app.managers.sessions.sessions": ("api/test_sessions",),
    "app.managers.sessions.store": ("managers/sessions/test_session_store",),
    "app.protocol.frames": ("protocol/test_v1", "protocol/test_legacy"),
    "app.ws.channels": ("ws/test_core",),
    "app.managers.files.errors": ("managers/files/test_bodies",),
    "app.managers.owners.principal": ("api/test_identities",),
}
"""The tests of modules that have no test file of their own name; each names its modules. Every
other module `app.room.name` has ``tests/room/test_name.py``."""

PROTOCOL: Final = "app.protocol."
"""A room whose tests are of several modules each: they count for all of them."""

PURE: Final = frozenset(
    f"app.{name}"
    for name in (
        *("callers", "name_patterns", "option_types", "signals"),
        *("api.awaiting", "api.bodies", "api.etags", "api.prefix", "api.request_ids"),
        *(
            "api.heads",
            "api.streams",
            "api.traces",
            "keeper.held_replies",
            "keeper.notes",
            "keeper.sockets",
        ),
        *(
            "managers.executions.contents",
            "managers.files.bodies",
            "managers.files.checkpoints",
            "managers.files.models",
        ),
        *("managers.files.notebooks", "managers.files.tree", "managers.files.writing"),
        *("managers.kernels.departures", "managers.kernels.phases", "managers.kernels.restarts"),
        *("managers.processes.launchable",),
        *("keeper.terms", "managers.replicas.lease", "managers.replicas.terms"),
        *(
            f"managers.processes.engines.{name}"
            for name in (
                *("defaults", "kubernetes_options", "kubernetes_pods", "kubernetes_waits"),
                *("kubernetes_words", "last_words", "quantities", "troubles"),
                *("slurm_options", "slurm_waits", "slurm_words"),
            )
        ),
    )
)
"""Modules of which their own tests run every branch; so do those of `PROTOCOL`."""


def own_test(module: str) -> Path:
    """The test file that a module has by its name, or would have."""
    *rooms, name = module.split(".")[1:]
    return REPOSITORY.joinpath("tests", *rooms, f"test_{name}.py")


def files_of(module: str) -> list[Path]:
    """The test files of a module."""
    if module not in ELSEWHERE:
        return [own_test(module)]
    return [REPOSITORY / "tests" / f"{name}.py" for name in ELSEWHERE[module]]


def _running(module: str) -> list[Path]:
    """The files or directories of tests that are to run every branch of a module."""
    if module.startswith(PROTOCOL):
        return [REPOSITORY / "tests" / "protocol"]
    return files_of(module)


def _contexts(module: str) -> str:
    """A regular expression for a module's test files, as `tests.plugins.contexts` names them.

    What is run by an import is of no test.
    """
    names = (path.relative_to(REPOSITORY).as_posix() for path in _running(module))
    return "|".join(["^$", *(f"^{re.escape(name)}" for name in names)])


def _measured() -> list[str]:
    """The modules of which every branch is to be run."""
    return sorted(PURE | {name for name in modules() if name.startswith(PROTOCOL)})


def _files() -> list[str]:
    """The files and directories of tests that are to do so, below the repository."""
    found = {path for module in _measured() for path in _running(module)}
    return sorted(path.relative_to(REPOSITORY).as_posix() for path in found)


def main() -> None:
    """Print the table, run the tests of `PURE` modules, and fail for a branch that is not run."""
    if sys.argv[1:] == ["--ran"]:
        print(*(f"--ignore={file}" for file in _files()))
        return
    known = modules()
    for name in sorted(known):
        if known[name].path.name != "__init__.py":
            print(name, *(file.relative_to(REPOSITORY) for file in files_of(name)))
    measured = _measured()
    run = [sys.executable, "-m", "coverage"]
    tests = ["pytest", "-q", "-p", "tests.plugins.contexts", *_files(), *sys.argv[1:]]
    subprocess.run([*run, "run", "-m", *tests], cwd=REPOSITORY, check=True)
    missed = []
    for module in measured:
        path = known[module].path.relative_to(REPOSITORY)
        options = [f"--include={path}", f"--contexts={_contexts(module)}"]
        ended = subprocess.run([*run, "report", *options], capture_output=True, text=True)
        if ended.returncode:
            missed.append(module)
            print(ended.stdout, ended.stderr)
    if missed:
        sys.exit(f"their own tests do not run every branch of {', '.join(missed)}")
    print(f"every branch of {len(measured)} modules is run by their own tests")


if __name__ == "__main__":
    main()
