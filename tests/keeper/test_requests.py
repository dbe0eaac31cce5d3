"""Requests that a kernel has not finished with: to whom answers go, and who is owed an end."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.keeper.requests import MAX_REQUESTS, PendingRequests, Request
from app.protocol.messages import ClientMessage, Header


def asked(msg_id: str, msg_type: str = "execute_request", session: str = "s") -> ClientMessage:
    header = Header(msg_id=msg_id, msg_type=msg_type, session=session)
    parts = [f'{{"msg_id":"{msg_id}"}}'.encode(), b"{}", b"{}", b"{}"]
    return ClientMessage("shell", header, parts)


def parent(msg_id: str, session: str | None = "named in the parent") -> Header:
    return Header(msg_id=msg_id, msg_type="execute_request", session=session)


def reply_to(requests: PendingRequests, msg_id: str) -> str | None:
    """Whose request a reply is taken to answer."""
    request = requests.on_reply(parent(msg_id))
    return request.owner if request is not None else None


def test_a_request_remembers_what_its_end_is_made_of() -> None:
    requests = PendingRequests()
    message = asked("1", "inspect_request")
    message.parts = [memoryview(b"the header, byte for byte"), b"{}", b"{}", b"{}"]

    request = requests.add(message, "ada")

    assert request.header == b"the header, byte for byte"
    assert isinstance(request.header, bytes)
    assert (request.channel, request.msg_id, request.owner) == ("shell", "1", "ada")
    assert (request.msg_type, request.finished) == ("inspect_request", False)
    assert list(requests) == [request]


def test_a_request_is_finished_by_its_reply_and_its_idle_in_either_order() -> None:
    requests = PendingRequests()
    first, second = requests.add(asked("1"), "a"), requests.add(asked("2"), "b")

    assert reply_to(requests, "1") == "a"
    assert not first.finished
    requests.on_idle(parent("1"))
    requests.on_idle(parent("2"))
    assert not second.finished
    assert reply_to(requests, "2") == "b"

    assert first.finished
    assert second.finished
    assert len(requests) == 0
    assert requests.take_all() == []


def test_a_comm_message_is_finished_by_its_idle() -> None:
    requests = PendingRequests()
    requests.add(asked("1", "comm_msg"), "a")

    requests.on_idle(parent("1"))

    assert len(requests) == 0


def test_answers_go_to_who_asked_whatever_the_parent_says() -> None:
    requests = PendingRequests()
    requests.add(asked("1", session="the header's"), "the connection's")

    assert requests.owner(parent("1", "another's")) == "the connection's"
    assert reply_to(requests, "1") == "the connection's"


def test_what_nobody_remembers_is_for_the_parents_session() -> None:
    requests = PendingRequests()

    assert requests.owner(parent("?", "x")) == "x"
    assert requests.owner(parent("?", None)) is None
    assert requests.on_reply(parent("?", "x")) is None
    assert requests.on_idle(parent("?", "x")) is None
    assert len(requests) == 0


def test_two_requests_with_one_id_are_answered_in_order() -> None:
    requests = PendingRequests()
    requests.add(asked("1"), "a")
    requests.add(asked("1"), "b")

    assert requests.owner(parent("1")) == "a"
    assert reply_to(requests, "1") == "a"
    requests.on_idle(parent("1"))
    assert requests.owner(parent("1")) == "b"
    requests.on_idle(parent("1"))
    assert reply_to(requests, "1") == "b"
    assert len(requests) == 0


def test_a_kernel_may_go_on_before_the_first_of_two_has_its_reply() -> None:
    requests = PendingRequests()
    requests.add(asked("1"), "a")
    requests.add(asked("1"), "b")
    requests.on_idle(parent("1"))

    # What the kernel asks for now, it asks for the second, whose turn it is.
    assert requests.owner(parent("1")) == "b"
    assert reply_to(requests, "1") == "a"
    assert [request.owner for request in requests] == ["b"]


def test_a_second_reply_to_one_request_goes_to_who_asked() -> None:
    requests = PendingRequests()
    requests.add(asked("1"), "a")
    requests.on_reply(parent("1"))

    assert reply_to(requests, "1") == "a"
    assert len(requests) == 1
    requests.on_idle(parent("1"))
    requests.on_idle(parent("1"))
    assert len(requests) == 0


def test_all_that_is_owed_is_given_back_oldest_first_and_once() -> None:
    requests = PendingRequests()
    added = [requests.add(asked(msg_id), "a") for msg_id in ("1", "2", "1", "3", "2")]
    requests.on_reply(parent("3"))

    assert list(requests) == added
    assert requests.take_all() == added
    assert requests.take_all() == []
    assert requests.owner(parent("1", "x")) == "x"


def test_what_is_remembered_is_bounded_and_the_oldest_is_forgotten() -> None:
    requests = PendingRequests()
    added = [requests.add(asked(str(number)), "a") for number in range(MAX_REQUESTS + 3)]

    assert len(requests) == MAX_REQUESTS
    assert requests.take_all() == added[3:]


def test_one_that_only_lacks_its_idle_is_forgotten_first() -> None:
    requests = PendingRequests()
    added = [requests.add(asked(str(number)), "a") for number in range(MAX_REQUESTS)]
    requests.on_reply(parent("100"))

    requests.add(asked("new"), "a")

    assert set(added) - set(requests) == {added[100]}


class RequestsMachine(RuleBasedStateMachine):
    """Every request is finished by the kernel or given back, once, whoever uses whatever ids."""

    ids = st.sampled_from("123")

    @initialize()
    def start(self) -> None:
        self.requests = PendingRequests()
        self.open: list[Request] = []
        self.owners = 0

    @rule(msg_id=ids, msg_type=st.sampled_from(["execute_request", "comm_msg"]))
    def ask(self, msg_id: str, msg_type: str) -> None:
        self.owners += 1
        self.open.append(self.requests.add(asked(msg_id, msg_type), f"owner {self.owners}"))

    @rule(msg_id=ids)
    def reply(self, msg_id: str) -> None:
        candidates = [request for request in self.open if request.msg_id == msg_id]
        waiting = [request for request in candidates if not request.replied]
        expected = (waiting or candidates)[0] if candidates else None
        assert self.requests.on_reply(parent(msg_id)) is expected

    @rule(msg_id=ids)
    def idle(self, msg_id: str) -> None:
        candidates = [request for request in self.open if request.msg_id == msg_id]
        waiting = [request for request in candidates if not request.idle]
        expected = (waiting or candidates)[0] if candidates else None
        assert self.requests.on_idle(parent(msg_id)) is expected
        assert not any(request.idle for request in waiting[1:])

    @rule()
    def die(self) -> None:
        assert self.requests.take_all() == [r for r in self.open if not r.finished]
        self.open.clear()

    @invariant()
    def what_is_open_is_remembered(self) -> None:
        if not hasattr(self, "requests"):
            return
        self.open = [request for request in self.open if not request.finished]
        assert list(self.requests) == self.open
        assert len(self.requests) == len(self.open)


TestRequests = RequestsMachine.TestCase
