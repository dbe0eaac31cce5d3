"""Where keepers dial in, as the options have it; also `app.agent_options`."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from app.agent_options import host_and_port
from app.keeper.protocol import pack, receive
from app.managers.processes.hosts.errors import HostUnusable
from app.managers.processes.hosts.new_joining import check_joining, new_joining
from app.settings import Settings
from tests.conftest import MakeServer
from tests.support.home import Home
from tests.support.server import run_server
from tests.support.streams import aborted


def settings(tmp_path: Path, **options: object) -> Settings:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return Settings(_cli_parse_args=["--state-dir", str(tmp_path / "state"), *flags])


async def addresses_of(tmp_path: Path, **options: object) -> tuple[list[str], int]:
    joining = new_joining(settings(tmp_path, **options), tmp_path)
    try:
        document = json.loads((await joining.invite("k")).document)
        return document["addresses"], joining.port
    finally:
        await joining.close()


async def test_nothing_listens_by_default(tmp_path: Path) -> None:
    check_joining(settings(tmp_path))
    joining = new_joining(settings(tmp_path), tmp_path)
    assert not joining.is_on
    await joining.close()


async def test_keepers_dial_where_it_listens_unless_they_are_told_otherwise(tmp_path: Path) -> None:
    found, port = await addresses_of(tmp_path, agent_listen="127.0.0.1:0")
    assert found == [f"127.0.0.1:{port}"]
    found, port = await addresses_of(tmp_path, agent_listen="[::1]:0")
    assert found == [f"[::1]:{port}"]
    found, port = await addresses_of(tmp_path, agent_listen="0.0.0.0:0")
    assert found == [f"{socket.gethostname()}:{port}"]
    named = "kernels.example.org:443,[2001:db8::1],192.0.2.1"
    found, port = await addresses_of(tmp_path, agent_listen="127.0.0.1:0", agent_addresses=named)
    assert found == ["kernels.example.org:443", f"[2001:db8::1]:{port}", f"192.0.2.1:{port}"]
    pem = (tmp_path / "state" / "authority" / "server.pem").read_bytes()
    certificate = x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERT") :])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "kernels.example.org" in names.get_values_for_type(x509.DNSName)
    assert len(names.get_values_for_type(x509.IPAddress)) == 2


@pytest.mark.parametrize("where", ["192.0.2.1:0", "nowhere.invalid:80", "[::ffff:0:0:1]:0"])
def test_where_nobody_can_listen_is_told(tmp_path: Path, where: str) -> None:
    with pytest.raises(HostUnusable, match="nobody can listen on"):
        check_joining(settings(tmp_path, agent_listen=where))


@pytest.mark.parametrize("text", ["", "a b", "a:b", "a:65536", "[x]:1", "::1:80", "a:1:2"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not host:port"):
        host_and_port(text, 1)


def test_there_are_not_many_addresses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than 8 addresses"):
        settings(tmp_path, agent_addresses=",".join(["a"] * 9))


def refusal(ended: subprocess.CompletedProcess[str]) -> str:
    assert ended.returncode == 2, ended
    (line,) = ended.stderr.splitlines()
    return line


def test_a_port_in_use_refuses_the_start(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        line = refusal(run_server("--port", "0", "--agent-listen", where, home=home))
    assert line.startswith(f"kernelkeep: --agent-listen: nobody can listen on {where}: ")


def test_a_certificate_of_no_use_refuses_the_start(home: Home) -> None:
    file = home.path / "server.pem"
    file.write_text("no key")
    options = ("--port=0", "--agent-listen=127.0.0.1:0", f"--agent-certificate={file}")
    line = refusal(run_server(*options, home=home))
    assert line.startswith(
        "kernelkeep: --agent-listen: The certificates for keepers cannot be used"
    )


async def test_a_server_listens_and_sends_strangers_away(make_server: MakeServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = await asyncio.to_thread(
        make_server, "--agent-listen", f"127.0.0.1:{port}", "--on-shutdown", "stop"
    )
    directory = server.home.state_dir / "authority"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    context = ssl.create_default_context(cafile=str(directory / "authority.pem"))
    dialled = asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="127.0.0.1")
    with aborted(await dialled) as (reader, writer):
        writer.write(pack({"join": 1, "keeper": "k", "secret": "s"}))
        answer, _ = await receive(reader)
        assert answer["refused"] == "join_secret_unknown"
