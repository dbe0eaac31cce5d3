"""The message log against a list: whatever happens, each reader gets each of its messages once.

Or it is counted in a gap, in messages and in bytes.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

from app.keeper.log import LogRoom
from app.managers.log.entries import Position
from app.managers.log.message_log import Reader
from tests.support.logs import KERNEL, WrittenLog, message

SESSIONS = st.sampled_from(["a", "b", "\udc80"])
SIZES = st.integers(0, 50) | st.integers(0, 3000) | st.just(20_000) | st.just(70_000)


class Said:
    """What was said under one number; a frame of None is what nobody has."""

    def __init__(self, frame: bytes | None, owner: str | None, lost: int = 0) -> None:
        self.frame = frame
        self.owner = owner
        self.size = lost if frame is None else len(frame)


class Client:
    """A session that comes and goes."""

    def __init__(self, log: WrittenLog, session: str, start: Position | None) -> None:
        self.session = session
        self.reader = Reader(log.log, session, start)


class LogMachine(RuleBasedStateMachine):
    clients = Bundle("clients")

    @initialize(each=st.sampled_from([0, 50_000, 200_000]), together=st.integers(60_000, 400_000))
    def make_log(self, each: int, together: int) -> None:
        self.temporary = TemporaryDirectory(prefix="kk-log-")
        self.room = LogRoom(each, together, 3600)
        self.directory = Path(self.temporary.name) / KERNEL
        self.log = WrittenLog(0, self.directory, self.room)
        self.said: list[Said] = []
        self.present: list[Client] = []
        self.damaged = False

    def teardown(self) -> None:
        if hasattr(self, "temporary"):
            self.log.writer.close()
            self.temporary.cleanup()

    @property
    def size(self) -> int:
        return sum(said.size for said in self.said)

    @rule(sizes=st.lists(SIZES, min_size=1, max_size=40), owner=st.none() | SESSIONS)
    def append(self, sizes: list[int], owner: str | None) -> None:
        for size in sizes:
            number = len(self.said) + 1
            frame = (f"{number} " * (size // 2 + 1)).encode()[:size]
            place = self.log.append(message(frame), owner)
            assert place == Position(number, self.size)
            self.said.append(Said(frame, owner))

    @rule(numbers=st.integers(1, 30), size=st.integers(0, 1000))
    def leave_out(self, numbers: int, size: int) -> None:
        self.log.skip(numbers, size)
        self.said += [Said(None, None, size)]
        self.said += [Said(None, None)] * (numbers - 1)

    @rule(target=clients, session=SESSIONS, after=st.none() | st.integers(0, 500))
    def connect(self, session: str, after: int | None) -> Client:
        start = None
        if after is not None:
            after = min(after, len(self.said))
            start = Position(after + 1, sum(said.size for said in self.said[:after]))
        client = Client(self.log, session, start)
        self.present.append(client)
        return client

    @rule(client=clients)
    def reconnect(self, client: Client) -> None:
        client.reader = Reader(self.log.log, client.session, client.reader.position)

    @rule(client=consumes(clients))
    def leave(self, client: Client) -> None:
        self.present.remove(client)

    @rule()
    def go_on_in_another_process(self) -> None:
        if self.damaged:  # numbers may be given twice then
            return
        end, epoch, first = self.log.log.end, self.log.log.epoch, self.log.log.start
        said_last = self.said[-1:] and self.said[-1].frame is not None
        self.log.writer.close()
        assert self.room.used == 0
        self.log = WrittenLog(0, self.directory, self.room, resumed=True)
        if not said_last:  # what comes last was left out: whoever knows of it says so
            missing = end.cursor - self.log.log.next_seq
            self.log.skip(missing, end.offset - self.log.log.end.offset)
        if self.directory.exists() and self.log.files():
            assert self.log.log.epoch == epoch
            assert self.log.log.start == first
        assert self.log.log.end == end
        for client in self.present:
            client.reader = Reader(self.log.log, client.session, client.reader.position)

    @rule(which=st.integers(0, 10), share=st.floats(0, 1), junk=st.binary(max_size=100))
    def damage(self, which: int, share: float, junk: bytes) -> None:
        files = self.log.files()
        if not files:
            return
        self.damaged = True
        file = files[which % len(files)]
        at = int(share * file.stat().st_size)
        if junk:
            with file.open("r+b") as opened:
                opened.seek(at)
                # Where a head or an end lies, and not in a frame only, which nothing protects.
                opened.write((b"\xff" + junk) * 1000)
        else:
            with file.open("r+b") as opened:
                opened.truncate(at)

    @rule(client=clients, max_messages=st.integers(1, 50), max_bytes=st.integers(0, 100_000))
    def take(self, client: Client, max_messages: int, max_bytes: int) -> None:
        reader = client.reader
        place, was_behind, start = reader.position, reader.behind, self.log.log.start
        gap, entries = reader.take(max_messages, max_bytes)

        begin = place.cursor + (gap.messages if gap else 0)
        passed = self.said[begin - 1 : reader.position.cursor - 1]
        missed = self.said[place.cursor - 1 : begin - 1]
        if gap is not None:
            assert gap.bytes == sum(said.size for said in missed)
        if not self.damaged:
            # Only what has left the log, or was never in it, is missed.
            assert all(
                said.frame is None
                for said in self.said[start.cursor - 1 : begin - 1][
                    max(0, place.cursor - start.cursor) :
                ]
            )
        shown = [
            (number, said)
            for number, said in enumerate(passed, begin)
            if said.owner in (None, client.session)
        ]
        assert [entry.seq for entry in entries] == [number for number, _ in shown]
        for entry, (_, said) in zip(entries, shown, strict=True):
            assert said.frame is not None
            assert entry.owner == said.owner
            if not self.damaged:
                assert entry.message.frame == said.frame
            else:
                assert len(entry.message.frame) == len(said.frame)
        offset = sum(said.size for said in self.said[: reader.position.cursor - 1])
        assert reader.position.offset == offset
        assert len(passed) <= max_messages
        assert was_behind == (gap is not None or bool(passed))

    @rule()
    def everybody_reads_to_the_end(self) -> None:
        for client in self.present:
            while client.reader.behind:
                self.take(client, 50, 50_000)
            assert client.reader.position == self.log.log.end == (len(self.said) + 1, self.size)


TestLog = LogMachine.TestCase
TestLog.settings = settings(stateful_step_count=30, max_examples=60)
