"""The end of what a kernel's processes have written."""

from __future__ import annotations

from pathlib import Path

from app.managers.kernels.process_output import end_of


def test_where_nothing_was_written_there_is_nothing(tmp_path: Path) -> None:
    assert end_of(tmp_path / "kernel-x.log") == ""


def test_the_end_goes_on_in_the_newest_file(tmp_path: Path) -> None:
    file = tmp_path / "kernel-x.log"
    file.with_name("kernel-x.log.1").write_text("one\ntwo\n")
    file.write_text("three\n")
    assert end_of(file) == "one\ntwo\nthree\n"
    assert end_of(file, 10) == "two\nthree\n"
    assert end_of(file, 4) == "ree\n"


def test_bytes_that_are_no_text_are_repaired_and_a_cut_character_is_left_out(
    tmp_path: Path,
) -> None:
    file = tmp_path / "kernel-x.log"
    file.write_bytes(b"a\xff\n")
    assert end_of(file) == "a\ufffd\n"
    file.write_bytes("äb".encode())
    assert end_of(file, 2) == "b"
