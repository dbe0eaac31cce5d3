"""Every option: in ``--help`` with its sentence and its default, and refused when it is wrong.

Both go by the fields of the settings (`app.access_options` has some), so that an option which is
new and not in the table of wrong values fails here.

These are the tests of `app.identity_options` and `app.replica_options`, too.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from app.settings import Settings, explain
from tests.support.commands import Commands
from tests.support.home import Home
from tests.support.postgresql import tells_password
from tests.support.refusals import refusal, refused
from tests.support.server import run_server

FIELDS = Settings.model_fields
CONNECTIONS = "tests.support.connections"

# For each option a value that it cannot have. FILE is a file, MISSING is nothing at all.
WRONG: dict[str, str] = {
    "host": "",
    "port": "65536",
    "root_path": "/lab/",
    "trusted_proxies": "10.0.0.1/8",
    "allowed_hosts": "lab.example.org:443",
    "root_dir": "MISSING",
    "allow_contents": "perhaps",
    "files_by_owner": "perhaps",
    "state_dir": "FILE",
    "config": "MISSING",
    "auth": "password",
    "token": "two\nlines",
    "open_docs": "perhaps",
    "serve_page": "perhaps",
    "serve_metrics": "perhaps",
    "metrics_by_owner": "perhaps",
    "authenticate_prometheus": "perhaps",
    "authorizer_class": "tests.support.authorizers:Mute",
    "identity_provider_class": "tests.support.identities:Mute",
    "trusted_gateways": '["gateway"',
    "allow_remote_access": "perhaps",
    "local_hostnames": '["localhost"',
    "allow_origin": "https://lab.example.org/",
    "allow_origin_pat": "(",
    "allow_credentials": "perhaps",
    "open_to_web_pages": "perhaps",
    "max_connections": "-1",
    "identity_default_scopes": "kernels:everything",
    "identity_timeout": "0",
    "jupyterhub_tokens": "perhaps",
    "jupyterhub_api_url": "127.0.0.1:8081",
    "jupyterhub_service": "services/kernelkeep",
    "jupyterhub_url": "hub",
    "jupyterhub_client_id": "my client",
    "jupyterhub_client_secret": "two\nlines",
    "oidc_client_id": "my client",
    "oidc_client_secret": "two\nlines",
    "oidc_login_scopes": "[",
    "jupyterhub_cache_seconds": "0",
    "jupyterhub_outage_seconds": "-1",
    "oidc_issuer": "http://login.example.org",
    "registry_url": "postgresql://kernelkeep:pass@word@127.0.0.1/kernelkeep",
    "replica_name": "a b",
    "lease_seconds": "0.5",
    "replica_listen": "8889",
    "replica_address": "host:65536",
    "replica_certificate": "MISSING",
    "oidc_audience": "[1]",
    "oidc_algorithms": "RS256,HS256",
    "oidc_name_claim": "",
    "oidc_groups_claim": "",
    "oidc_scopes_claim": "",
    "oidc_scope_prefix": "",
    "oidc_clock_skew": "301",
    "oidc_keys_max_age": "0",
    "owner_limits": "kernels=many",
    "group_limits": '{"staff": {"kernel": 1}}',
    "limits_by_name": '{"an/na": {"kernels": 1}}',
    "default_kernel_name": "",
    "max_kernels": "-1",
    "max_concurrent_starts": "0",
    "start_queue_limit": "-1",
    "fork_kernels": '["python3"',
    "warm_kernels": "python3=many",
    "transport": "pigeon",
    "kernel_info_timeout": "0",
    "shutdown_wait_time": "-1",
    "on_shutdown": "abandon",
    "orphan_timeout": "0",
    "autorestart": "perhaps",
    "restart_limit": "-1",
    "allowed_kernelspecs": "no-such-kernelspec",
    "kernel_argv": "[1]",
    "transport_encryption": "rot13",
    "allow_external_kernels": "perhaps",
    "external_connection_dir": "FILE",
    "external_networks": "10.0.0.1/8",
    "kernel_env_allow": "[null]",
    "client_env_allow": "[null]",
    "client_env_code": "perhaps",
    "extra_event_schema_paths": "MISSING",
    "cull_idle_timeout": "-1",
    "cull_interval": "0",
    "cull_connected": "perhaps",
    "cull_busy": "perhaps",
    "untracked_message_types": '[{"a": 1}]',
    "isolation": "jail",
    "isolation_dir": "FILE",
    "isolation_uids": "1000",
    "isolation_accounts": "perhaps",
    "isolation_paths": "MISSING",
    "isolation_network": "perhaps",
    "allowed_message_types": "[",
    "allow_tracebacks": "perhaps",
    "traceback_replacement_message": "",
    "limit_rate": "perhaps",
    "iopub_msg_rate_limit": "many",
    "iopub_data_rate_limit": "nan",
    "rate_limit_window": "0",
    "database_filepath": "FILE/below",
    "buffer_offline_messages": "perhaps",
    "log_bytes": "1",
    "log_total_bytes": "1",
    "log_age": "0",
    "engines": '{"slurm": {"partitoin": "short"}}',
    "agent_listen": "0.0.0.0:65536",
    "agent_addresses": "kernels.example.org:port",
    "agent_certificate": "MISSING",
    "execution_wait_limit": "-1",
    "execution_timeout_default": "-1",
    "execution_timeout_max": "9999999",
    "execution_interrupt_grace": "-1",
    "stream_keepalive": "-1",
    "websocket_max_message_size": "1",
    "websocket_ping_interval": "-1",
    "websocket_ping_timeout": "0",
    "websocket_compression": "perhaps",
    "kernel_ws_protocol": "v2.example",
    "kernel_websocket_connection_class": f"{CONNECTIONS}:Unrelated",
    "audit_log": "FILE/below",
    "audit_log_bytes": "-1",
    "audit_log_files": "0",
    "log_format": "xml",
    "log_level": "loud",
}


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def test_the_table_has_every_option_and_no_other() -> None:
    assert set(WRONG) == set(FIELDS)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_wrong_value_stops_the_start_with_one_line_that_names_the_option(
    commands: Commands, home: Home, name: str
) -> None:
    (home.path / "file").touch()
    value = WRONG[name].replace("FILE", str(home.path / "file"))
    value = value.replace("MISSING", str(home.path / "missing"))
    # In the environment every option is set alike; what is wrong is found in the same place.
    env = {"KERNELKEEP_PORT": "0", f"KERNELKEEP_{name.upper()}": value}
    line = refusal(refused(commands, home=home, env=env))
    assert re.match(rf"{flag(name)}(\.\d+)?: \S", line), line


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:Class", "no_such_module"),
        (f"{CONNECTIONS}:NoSuchClass", "NoSuchClass"),
        (f"{CONNECTIONS}:not_a_class", "is no ChannelsConnection"),
        (CONNECTIONS, "module:Class"),
        ("", "module:Class"),
    ],
)
def test_a_connection_class_that_cannot_be_loaded(
    commands: Commands, home: Home, name: str, says: str
) -> None:
    arguments = ("--kernel-websocket-connection-class", name, "--port", "0")
    line = refusal(refused(commands, *arguments, home=home))
    assert line.startswith("--kernel-websocket-connection-class: ")
    assert says in line


@pytest.fixture(scope="module")
def help_text() -> str:
    """``--help``, in one line, every space single."""
    home = Home()
    try:
        ended = run_server("--help", home=home, env={"COLUMNS": "100"}, timeout=60)
    finally:
        home.remove()
    assert ended.returncode == 0
    assert ended.stderr == ""
    return squeezed(ended.stdout.partition("\noptions:\n")[2])


def squeezed(text: str) -> str:
    # argparse breaks lines at spaces and after hyphens.
    return re.sub(r"\s+", "", text)


def shown(default: Any) -> str:
    """A default as a person is told it."""
    return "" if isinstance(default, SecretStr) else str(default)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_help_has_the_option_with_its_sentence_and_its_default(help_text: str, name: str) -> None:
    field = FIELDS[name]
    assert field.description is not None
    sentence = squeezed(f"{field.description} (default: {shown(field.default)})")
    if name == "state_dir":  # which depends on where the home directory is
        sentence = squeezed(f"{field.description} (default: ")
    before, found, _ = help_text.partition(sentence)
    assert found
    # The flag that this belongs to is the last one before it.
    assert re.search(rf"{flag(name)}(,--no{flag(name)[1:]})?[^-]*$", before), before[-100:]


def test_help_begins_with_what_it_is_and_tells_nothing_of_the_code() -> None:
    home = Home()
    try:
        text = run_server("--help", home=home, timeout=60).stdout
    finally:
        home.remove()
    assert "Starts, drives and keeps Jupyter kernels." in text
    assert "pydantic" not in text


@pytest.mark.parametrize("password", ["s3cret%20word", "s3cret word"])
def test_the_password_of_the_registry_is_shown_by_nothing(password: str) -> None:
    url = f"postgresql://owner:{password}@127.0.0.1"

    def settings(*arguments: str) -> Settings:
        given = ["--token=5ecret", "--on-shutdown=keep", *arguments]
        return Settings(_cli_parse_args=given)

    right = settings(f"--registry-url={url}/name")
    shown = f"{right!r} {right} {right.model_dump()} {right.model_dump_json()}"
    assert not tells_password(shown)
    for wrong in (
        [f"--registry-url={url}"],
        [f"--registry-url={url}:1x/name"],
        [f"--registry-url={url}/name", "--on-shutdown=stop"],
    ):
        with pytest.raises(ValidationError) as caught:
            settings(*wrong)
        for told in (str(caught.value), repr(caught.value), explain(caught.value)):
            assert not tells_password(told)
            assert "5ecret" not in told
