"""What a kernel's process writes itself: a tail for people, a bounded file, no leaks."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import stat
import sys
import warnings
from pathlib import Path

import pytest

from app.keeper.last_words import MAX_CHARS
from app.keeper.output import ProcessOutput
from tests.support.processes import own_descriptors

WAIT = 20  # seconds


def write(output: ProcessOutput, *chunks: bytes) -> None:
    """Let a process write these chunks, and end."""
    descriptor = output.open()
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            view = view[os.write(descriptor, view[:32768]) :]
            output.tail()  # takes what is in the pipe
    output.started()
    output.close()


def read(path: Path) -> bytes:
    return path.read_bytes()


def names(directory: Path) -> list[str]:
    return os.listdir(directory)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def sizes(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(path.parent.iterdir())}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    directory = tmp_path / "output"
    directory.mkdir()
    return directory / "kernel.log"


async def test_what_a_process_writes_is_kept_and_its_end_can_be_told(path: Path) -> None:
    output = ProcessOutput(path, 10_000)
    descriptor = output.open()
    script = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", script, stdout=descriptor, stderr=descriptor
    )
    output.started()
    assert await asyncio.wait_for(process.wait(), WAIT) == 3

    assert output.tail() == "out\nerr"
    output.close()

    assert output.tail() == "out\nerr"
    assert read(path) == b"out\nerr\n"
    assert mode(path) == 0o600


async def test_a_pipe_that_cannot_be_read_leaves_no_descriptor(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, before = ProcessOutput(path, 10_000), own_descriptors()

    def none_is_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(output, "follow", none_is_left)
    with pytest.raises(OSError, match="Too many open files"):
        output.open_lasting()
    assert own_descriptors() == before


async def test_a_process_that_writes_much_is_not_held_up(path: Path) -> None:
    output = ProcessOutput(path, 10_000)
    descriptor = output.open()
    script = "import os; [os.write(1, b'x' * 4096) for _ in range(500)]; os.write(1, b'the end')"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", script, stdout=descriptor, stderr=descriptor
    )
    output.started()

    assert await asyncio.wait_for(process.wait(), WAIT) == 0
    output.close()
    assert output.tail().endswith("xxxthe end")
    assert sum(sizes(path).values()) <= 10_000


async def test_the_tail_is_there_while_the_process_runs(path: Path) -> None:
    output = ProcessOutput(path, 10_000)
    descriptor = output.open()
    os.write(descriptor, b"so far\n")

    assert output.tail() == "so far"
    os.write(descriptor, b"so good\n")
    assert output.tail() == "so far\nso good"
    output.close()


async def test_the_tail_is_the_last_lines(path: Path) -> None:
    output = ProcessOutput(path, 10_000)
    write(output, b"".join(b"line %d\n" % number for number in range(100)) + b"\n\n")

    assert output.tail(3) == "line 97\nline 98\nline 99"
    assert output.tail().splitlines() == [f"line {number}" for number in range(88, 100)]


async def test_the_tail_is_bounded_however_much_is_written(path: Path) -> None:
    output = ProcessOutput(path, 4096)
    write(output, b"x" * 1_000_000, b"the end")

    assert len(output.tail()) == MAX_CHARS + 1
    assert output.tail().startswith("…xxx")
    assert output.tail().endswith("xxxthe end")


async def test_bytes_that_are_no_text_do_no_harm(path: Path) -> None:
    output = ProcessOutput(path, 10_000)
    write(output, b"caf\xe9 \xff\x00\n", "naïve".encode()[:-3])

    assert output.tail() == "caf\ufffd \ufffd\x00\nna\ufffd"
    assert read(path) == b"caf\xe9 \xff\x00\nna\xc3"


async def test_a_new_process_has_a_tail_of_its_own_and_the_same_file(path: Path) -> None:
    output = ProcessOutput(path, 10_000)
    write(output, b"first\n")
    write(output, b"second\n")

    assert output.tail() == "second"
    assert read(path) == b"first\nsecond\n"
    write(output)
    assert output.tail() == ""


async def test_a_full_file_becomes_the_older_one(path: Path) -> None:
    output = ProcessOutput(path, 8000)
    write(output, b"a" * 3000, b"b" * 1500)

    assert sizes(path) == {"kernel.log": 1500, "kernel.log.1": 3000}
    assert read(path) == b"b" * 1500
    assert mode(path) == 0o600
    write(output, b"c" * 3000)
    assert sizes(path) == {"kernel.log": 3000, "kernel.log.1": 1500}


@pytest.mark.parametrize("chunk", [1, 999, 2000, 2001, 5000, 200_000])
async def test_the_files_never_hold_more_than_their_bound(path: Path, chunk: int) -> None:
    output = ProcessOutput(path, 4000)

    for number in range(6):
        write(output, *[bytes([65 + number]) * chunk] * 3)
        assert sum(sizes(path).values()) <= 4000
    assert read(path).endswith(b"F")


async def test_a_process_that_dies_again_and_again_does_not_fill_the_disk(path: Path) -> None:
    output = ProcessOutput(path, 4000)

    for _ in range(50):
        write(output, b"cannot start\n" * 40)

    assert sum(sizes(path).values()) <= 4000
    assert output.tail(1) == "cannot start"


async def test_a_file_of_an_earlier_server_is_bounded_too(path: Path) -> None:
    write(ProcessOutput(path, 10**6), b"old" * 10_000)
    output = ProcessOutput(path, 4000)

    write(output, b"new")

    assert read(path) == b"new"
    write(output, b"x" * 1999)
    assert sum(sizes(path).values()) <= 4000


def block(path: Path, obstacle: str) -> Path:
    """Put something in the way of a file; returns what must not come to be."""
    target = path.parent.parent / "target"
    match obstacle:
        case "no directory":
            path.parent.rmdir()
        case "a file":
            path.parent.rmdir()
            path.parent.touch()
        case "a directory":
            path.mkdir()
        case "a link":
            path.symlink_to(target)
    return target


@pytest.mark.parametrize("obstacle", ["no directory", "a file", "a directory", "a link"])
async def test_a_file_that_cannot_be_written_costs_one_warning(
    path: Path, obstacle: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = block(path, obstacle)
    before = own_descriptors()
    output = ProcessOutput(path, 4000)

    with caplog.at_level(logging.WARNING):
        write(output, b"one\n", b"two\n")
        write(output, b"three\n")

    assert output.tail() == "three"
    assert [record.message.split(" in ")[0] for record in caplog.records] == [
        "a kernel's output is no longer kept"
    ]
    assert target.name not in names(target.parent)
    assert own_descriptors() == before


async def test_removing_leaves_nothing(path: Path) -> None:
    output = ProcessOutput(path, 4000)
    write(output, b"a" * 1900, b"b" * 1900)
    assert len(sizes(path)) == 2

    output.remove()
    output.remove()

    assert sizes(path) == {}


async def test_removing_what_was_never_opened_is_fine(path: Path) -> None:
    ProcessOutput(path, 4000).remove()

    assert sizes(path) == {}


async def test_no_descriptor_is_left_behind(path: Path) -> None:
    output = ProcessOutput(path, 4000)
    write(output, b"warm up")
    before = own_descriptors()

    for _ in range(20):
        write(output, b"x" * 3000)
        output.open()
        output.open()
        output.started()
        output.started()
        output.close()
        output.close()

    assert own_descriptors() == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del output
        gc.collect()


async def test_a_child_that_outlives_the_process_does_not_hold_it_open(path: Path) -> None:
    output = ProcessOutput(path, 4000)
    held = os.dup(output.open())
    try:
        os.write(held, b"from the child")
        output.started()

        output.close()
        assert output.tail() == "from the child"
        with pytest.raises(BrokenPipeError):
            os.write(held, b"later")
    finally:
        os.close(held)
