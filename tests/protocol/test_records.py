"""The records of a log: what is packed comes back, and what is cut or damaged is never taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol import records
from app.protocol.records import DamagedLog, OtherFormat, Record

EPOCH = "0123456789abcdef"
NAMES = st.text(st.characters(), max_size=40)  # half of a surrogate pair as well
NUMBERS = st.integers(1, 2**63)
PACKED = st.tuples(
    NUMBERS,
    st.integers(0, 2**63),
    st.floats(0, 2**40),
    st.sampled_from(["shell", "control", "stdin", "iopub"]),
    st.none() | NAMES,
    st.sampled_from([0, records.PUBLISHED, records.TRANSIENT, 3]),
    st.binary(max_size=200),
)


def packed(
    number: int, frame: bytes = b"frame", owner: str | None = None, offset: int = 0
) -> bytes:
    return b"".join(records.pack_record(number, offset, 1.5, "shell", owner, 0, frame))


def read_whole(data: bytes, start: int, number: int) -> tuple[Record, str | None, bytes]:
    """A record that must be there whole, its owner and its frame."""
    record = records.next_record(data, start, number)
    assert record is not None
    frame_at = start + records.FRAME_AT
    behind = frame_at + record.size
    end = start + record.whole
    return record, records.owner_of(record, data[behind:end]), data[frame_at:behind]


@given(PACKED)
def test_what_is_packed_comes_back(
    values: tuple[int, int, float, str, str | None, int, bytes],
) -> None:
    number, offset, time, channel, owner, flags, frame = values
    pieces = records.pack_record(*values)
    data = b"".join(pieces)

    record, found_owner, found_frame = read_whole(b"before" + data, 6, number)

    assert found_frame == frame
    assert found_owner == owner
    assert record == Record(
        number, offset, time, channel, flags, len(frame), record.owner_size, len(data)
    )
    assert len(data) == records.RECORD_BYTES + len(frame) + (
        len(owner.encode("utf-8", "surrogatepass")) if owner is not None else 0
    )


def test_a_frame_may_come_in_pieces() -> None:
    whole = records.pack_record(1, 0, 1.5, "iopub", "me", 0, b"abc")
    pieces = records.pack_record(1, 0, 1.5, "iopub", "me", 0, b"a", (b"", memoryview(b"bc")))

    assert len(pieces) == 5
    assert b"".join(pieces) == b"".join(whole)


@given(st.lists(st.tuples(st.integers(1, 5), st.binary(max_size=50)), max_size=20))
def test_records_follow_each_other_and_numbers_may_be_left_out(
    steps: list[tuple[int, bytes]],
) -> None:
    data, number, expected = b"", 0, []
    for step, frame in steps:
        number += step
        data += packed(number, frame)
        expected.append((number, frame))

    position, wanted, found = 0, 1, []
    while (record := records.next_record(data, position, wanted)) is not None:
        record, _, frame = read_whole(data, position, wanted)
        found.append((record.number, frame))
        position, wanted = position + record.whole, record.number + 1

    assert found == expected
    assert position == len(data)


@pytest.mark.parametrize("owner", [None, "", "a session", "\udc80"])
@pytest.mark.parametrize("filler", [b"", b"\0", b"\xff"])
def test_a_record_that_is_cut_anywhere_is_not_taken(owner: str | None, filler: bytes) -> None:
    data = packed(7, b"some frame", owner)
    for cut in range(len(data)):
        # The last bytes of a small number are zeros: with them it is whole.
        damaged = data[:cut] + filler * (len(data) - cut)
        if damaged != data:
            with pytest.raises((DamagedLog, AssertionError)):
                read_whole(damaged, 0, 7)


def test_what_is_left_of_a_file_that_was_written_over_is_no_record() -> None:
    new, old = packed(20), packed(3) + packed(4)

    assert records.next_record(new + old, len(new), 21) is None
    assert records.next_record(bytes(100), 0, 1) is None
    assert records.next_record(b"", 0, 1) is None


@pytest.mark.parametrize(("at", "byte"), [(34, 4), (34, 255), (5, 2), (7, 255)])
def test_a_head_that_no_writer_makes_is_damage(at: int, byte: int) -> None:
    data = bytearray(packed(1))
    data[at] = byte

    with pytest.raises(DamagedLog, match="number 1"):
        records.next_record(bytes(data), 0, 1)


def test_a_name_that_is_no_text_is_damage() -> None:
    data = packed(1, b"", "ab").replace(b"ab", b"\xff\xfe")

    with pytest.raises(DamagedLog, match="session"):
        read_whole(data, 0, 1)


@given(NUMBERS, st.integers(0, 2**63), NAMES)
def test_a_head_comes_back(number: int, offset: int, kernel_id: str) -> None:
    data = records.pack_head(EPOCH, kernel_id, number, offset)

    head = records.read_head(data + b"more", kernel_id)

    assert len(data) == records.HEAD_BYTES == 64
    assert (head.epoch, head.number, head.offset) == (EPOCH, number, offset)
    assert records.version_of(data) == records.VERSION
    assert head.kernel == records.kernel_digest(kernel_id)
    assert len(head.kernel) == 16


def test_a_head_that_is_cut_short_is_damage() -> None:
    data = records.pack_head(EPOCH, "k", 1, 0)
    for cut in range(len(data)):
        with pytest.raises(DamagedLog, match="cut short"):
            records.read_head(data[:cut], "k")


def test_another_version_is_told_from_damage() -> None:
    data = records.pack_head(EPOCH, "k", 1, 0)

    with pytest.raises(OtherFormat, match=r"its format is 002, not 001"):
        records.read_head(data.replace(b"001", b"002", 1), "k")
    with pytest.raises(OtherFormat):
        records.read_head(data.replace(b"001", b"\xff\xff\xff", 1), "k")
    with pytest.raises(DamagedLog, match="no segment of a log"):
        records.read_head(data.replace(b"kklog", b"other"), "k")
    with pytest.raises(DamagedLog, match="of another kernel"):
        records.read_head(data, "l")


def test_an_epoch_that_is_no_text_is_not_this_logs() -> None:
    data = records.pack_head(EPOCH, "k", 1, 0).replace(EPOCH.encode(), b"\xff" * 16)

    assert records.read_head(data, "k").epoch != EPOCH
