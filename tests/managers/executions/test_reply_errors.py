"""Errors that a kernel tells only in its reply."""

from __future__ import annotations

from typing import Any

import pytest

from app.managers.executions.contents import content_of
from app.managers.executions.execution import Execution
from app.managers.executions.reply_errors import output_of
from app.managers.log.entries import Position
from tests.support.messages import said, stream

ERROR = {"ename": "E", "evalue": "why", "traceback": ["E: why"]}


def execution() -> Execution:
    return Execution("request", "me", Position(1, 0))


def test_a_reply_stands_for_an_error_that_was_not_published() -> None:
    reply = said("execute_reply", {"status": "error", **ERROR}, channel="shell", seq=7)
    shown = output_of(execution(), reply)
    assert (shown.msg_type, shown.seq) == ("error", 7)
    assert content_of(shown) == ERROR


def test_it_does_not_when_the_error_was_published() -> None:
    failed = execution()
    failed.has_error = True
    reply = said("execute_reply", {"status": "error", **ERROR}, channel="shell")
    assert output_of(failed, reply) is reply


@pytest.mark.parametrize("content", [{}, {"status": "ok"}, {"status": "aborted"}, {"status": 7}])
def test_a_reply_of_no_error_stands_for_nothing(content: dict[str, Any]) -> None:
    reply = said("execute_reply", content, channel="shell")
    assert output_of(execution(), reply) is reply


def test_what_is_no_reply_is_as_it_is() -> None:
    message = stream("x")
    assert output_of(execution(), message) is message
