"""The option with tables of engines' options: from all sources, and what is no table."""

from __future__ import annotations

import pytest

from app.settings import Settings
from tests.support.option_files import WriteOptions, flags, refusal


def test_all_sources_have_them(
    write_options: WriteOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flags().engines == {}
    write_options(
        '[engines.slurm]\npartition = "short"\ncpus = 2\n'
        "[engines.docker]\nread_only = false\ncpus = 0.5\n"
        '[[engines.docker.mounts]]\nsource = "/data"\ntarget = "/data"\n'
    )
    assert Settings().engines == {
        "slurm": {"partition": "short", "cpus": 2},
        "docker": {
            "read_only": False,
            "cpus": 0.5,
            "mounts": [{"source": "/data", "target": "/data"}],
        },
    }
    monkeypatch.setenv("KERNELKEEP_ENGINES", ' {"ssh": {"host": ["a", "b"], "port": null}}')
    assert Settings().engines == {"ssh": {"host": ["a", "b"], "port": None}}
    text = '{"docker": {"env": {"A": "a, b={}"}, "docker": "unix:///run/x y.sock"}, "slurm": {}}'
    expected = {"docker": {"env": {"A": "a, b={}"}, "docker": "unix:///run/x y.sock"}, "slurm": {}}
    assert flags("--engines", text).engines == expected


def test_a_secret_in_one_is_not_shown() -> None:
    settings = flags("--engines", '{"docker": {"env": {"A": "s3cret"}}}')
    assert settings.engines["docker"]["env"] == {"A": "s3cret"}
    assert "s3cret" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('engines = "slurm"', "--engines: not a JSON object of options by engine, like"),
        ("engines = 1", "--engines: not a JSON object of options by engine, like"),
        ("[engines]\nslurm = 1", "--engines: slurm: not a table of options"),
        ("[[engines.slurm]]\ncpus = 1", "--engines: slurm: not a table of options"),
        ("[engines.slurm]\ncpus = 1\ncpus = 2", "cpus: given twice"),
        ("[engine.slurm]\ncpus = 1", "engine: not known; is engines meant?"),
    ],
)
def test_what_is_no_table_is_named(write_options: WriteOptions, text: str, told: str) -> None:
    write_options(text)
    assert told in refusal()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slurm", "not a JSON object of options by engine, like"),
        ('{"slurm": {"cpus": 1', "not a JSON object"),
        ('{"slurm": {"cpus": 1, "cpus": 2}}', "cpus: given twice"),
        ('{"slurm": {}, "slurm": {}}', "slurm: given twice"),
    ],
)
def test_what_is_no_json_is_named(
    write_options: WriteOptions, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.setenv("KERNELKEEP_ENGINES", text)
    assert refusal().startswith(f"--engines: {told}")
