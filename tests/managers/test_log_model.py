"""The message log against a list: whatever happens, each reader gets each of its messages once.

Or it is counted in a gap, in messages and in bytes.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from app.managers.log import Entry, MessageLog, Reader
from app.protocol.messages import Header, Message

SESSIONS = st.sampled_from(["a", "b", "c"])
SIZES = st.integers(0, 50) | st.integers(0, 3000) | st.just(20_000)


class Client:
    """A session that comes and goes, and the number that it should see next."""

    def __init__(self, log: MessageLog, session: str) -> None:
        self.log = log
        self.session = session
        self.reader: Reader = Reader(log, session)
        self.next = log.next_seq
        self.taken: list[Entry] = []


class LogMachine(RuleBasedStateMachine):
    clients = Bundle("clients")

    @initialize(max_bytes=st.integers(0, 20_000))
    def make_log(self, max_bytes: int) -> None:
        self.log = MessageLog(max_bytes)
        self.history: list[Entry] = []
        self.present: list[Client] = []

    @rule(sizes=st.lists(SIZES, min_size=1, max_size=12), owner=st.none() | SESSIONS)
    def append(self, sizes: list[int], owner: str | None) -> None:
        for size in sizes:
            before = self.log.first_seq
            entry = self.log.append(Message("iopub", bytes(size), Header(), Header()), owner)
            self.history.append(entry)
            assert entry.seq == len(self.history)
            self.check_that_it_had_to_leave(before)

    def check_that_it_had_to_leave(self, before: int) -> None:
        first = self.log.first_seq
        assert first >= before
        if first > before:
            assert self.log.bytes + self.history[first - 2].charged > self.log.max_bytes

    @rule(target=clients, session=SESSIONS)
    def connect(self, session: str) -> Client:
        client = Client(self.log, session)
        self.present.append(client)
        return client

    @rule(client=clients)
    def reconnect(self, client: Client) -> None:
        client.reader = Reader(self.log, client.session, client.reader.position)

    @rule(client=consumes(clients))
    def leave(self, client: Client) -> None:
        self.present.remove(client)

    @rule(
        client=clients,
        max_messages=st.integers(1, 20),
        max_bytes=st.integers(0, 10_000),
    )
    def take(self, client: Client, max_messages: int, max_bytes: int) -> None:
        was_behind = client.reader.behind
        first = self.log.first_seq
        gap, entries = client.reader.take(max_messages, max_bytes)

        if first > client.next:
            missed = self.history[client.next - 1 : first - 1]
            assert gap == (len(missed), sum(len(entry.message.frame) for entry in missed))
            client.next = first
        else:
            assert gap is None
        cursor, offset = client.reader.position
        looked_at = self.history[client.next - 1 : cursor - 1]
        assert entries == [e for e in looked_at if e.owner in (None, client.session)]
        assert offset == sum(len(entry.message.frame) for entry in self.history[: cursor - 1])
        assert len(looked_at) <= max_messages
        if looked_at:
            assert looked_at[-1].offset - looked_at[0].offset <= max_bytes
        else:
            assert gap or not was_behind
        client.next = cursor
        client.taken = entries

    @rule(client=clients, size=st.integers(0, 2000), tells=st.booleans())
    def build_frames(self, client: Client, size: int, tells: bool) -> None:
        before = self.log.first_seq
        for entry in client.taken:
            if entry.message.legacy is None:
                entry.message.legacy = bytes(size)
        if tells:
            self.log.charge(client.taken)
            self.check_that_it_had_to_leave(before)

    @rule(target=clients)
    def everybody_reads_to_the_end(self) -> object:
        for client in self.present:
            while client.reader.behind:
                self.take(client, 7, 5000)
            assert client.next == len(self.history) + 1
        return multiple()

    @invariant()
    def it_counts_what_it_keeps(self) -> None:
        if not hasattr(self, "log"):
            return
        entries = self.log.read(self.log.first_seq, 2**31, 2**62)
        assert entries == self.history[self.log.first_seq - 1 :]
        assert self.log.bytes == sum(entry.charged for entry in entries)
        assert self.log.bytes <= self.log.max_bytes or len(entries) == 1


TestLog = LogMachine.TestCase
TestLog.settings = settings(stateful_step_count=40)
