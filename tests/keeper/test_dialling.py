"""In which order a keeper dials the addresses of its service, and whom it believes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from app.keeper.dialling import HOPS, Dialler, SentAway
from app.keeper.joining import AWAY_CHARACTERS, Address, Document, NotInvited, Trust, addresses_of
from app.keeper.servers import ServerLink

ONE, TWO, THREE = [("one", 1), ("two", 2), ("three", 3)]

DOCUMENT = (
    b'{"join": 1, "keeper": "k", "secret": "s", "authority": "a", "server_name": "n", '
    b'"addresses": ["one:1", "[::1]:2"]}'
)


def no_link() -> ServerLink:
    raise AssertionError("nobody takes the keeper in")


class Scripted(Dialler):
    """What becomes of each address is the test's: an error, or whether a link has lasted."""

    def __init__(
        self, addresses: Sequence[Address], become: Mapping[Address, Exception | bool], path: Path
    ) -> None:
        super().__init__(addresses, Trust(Document(DOCUMENT), path), no_link)
        self.become = dict(become)
        self.dialled: list[Address] = []

    async def _dial(self, address: Address) -> bool:
        self.dialled.append(address)
        what = self.become[address]
        if isinstance(what, Exception):
            raise what
        self._away.pop(address, None)
        return what

    async def round(self) -> list[Address]:
        """The addresses that are dialled in one round."""
        self.dialled = []
        await self._round()
        return self.dialled


def to(*addresses: Address) -> SentAway:
    return SentAway("elsewhere", "another replica has this keeper", ends=False, to=addresses)


async def test_what_has_not_answered_is_dialled_last(tmp_path: Path) -> None:
    dialler = Scripted([ONE, TWO], {ONE: OSError(), TWO: False}, tmp_path)
    assert await dialler.round() == [ONE, TWO]
    assert await dialler.round() == [TWO, ONE]
    assert [*dialler._away] == [ONE]
    dialler.become[ONE] = False
    await dialler.round()
    assert not dialler._away
    assert await dialler.round() == [ONE, TWO]


async def test_a_link_that_has_lasted_begins_another_round(tmp_path: Path) -> None:
    dialler = Scripted([ONE, TWO], {ONE: True, TWO: False}, tmp_path)
    assert await dialler.round() == [ONE]


async def test_another_replica_is_dialled_where_one_says_so(tmp_path: Path) -> None:
    dialler = Scripted([ONE, TWO], {ONE: to(THREE), TWO: False, THREE: False}, tmp_path)
    assert await dialler.round() == [ONE, THREE, TWO]
    dialler.become |= {ONE: to(TWO), TWO: False}
    assert await dialler.round() == [ONE, TWO]


async def test_replicas_that_send_a_keeper_to_each_other_are_not_believed_for_ever(
    tmp_path: Path,
) -> None:
    dialler = Scripted([ONE, TWO], {ONE: to(TWO), TWO: to(ONE)}, tmp_path)
    assert len(await dialler.round()) == HOPS + 1


async def test_a_replica_that_is_told_and_does_not_answer_is_told_of_for_a_round(
    tmp_path: Path,
) -> None:
    dialler = Scripted([ONE], {ONE: to(THREE), THREE: TimeoutError()}, tmp_path)
    assert await dialler.round() == [ONE, THREE]
    dialler.become[ONE] = SentAway("later", "nobody waits for it", ends=False)
    assert await dialler.round() == [ONE]
    assert [*dialler._away] == [THREE]
    assert await dialler.round() == [ONE]
    assert not dialler._away


async def test_new_addresses_count_from_the_next_round_on(tmp_path: Path) -> None:
    dialler = Scripted([ONE], {ONE: False, TWO: False}, tmp_path)
    assert await dialler.round() == [ONE]
    dialler.know([TWO])
    # A replica may be back where one was that the document names.
    assert await dialler.round() == [TWO, ONE]


@pytest.mark.parametrize(
    ("code", "ends", "raises"),
    [
        ("later", False, False),
        ("elsewhere", False, False),
        ("other", False, True),
        ("x", True, True),
    ],
)
async def test_who_is_not_wanted_before_it_has_joined_ends(
    tmp_path: Path, code: str, ends: bool, raises: bool
) -> None:
    dialler = Scripted([ONE], {ONE: SentAway(code, "", ends=ends)}, tmp_path)
    if raises:
        with pytest.raises(SentAway):
            await dialler.round()
    else:
        await dialler.round()


def test_a_hello_names_what_is_away_within_its_bound(tmp_path: Path) -> None:
    trust = Trust(Document(DOCUMENT), tmp_path)
    assert "away" not in trust.hello()
    said = trust.hello([("one", 1), ("::1", 2)])
    assert said["away"] == ["one:1", "[::1]:2"]
    assert (said["keeper"], said["secret"]) == ("k", "s")
    trust.has_joined = True
    assert trust.hello([ONE]) == {"join": 1, "away": ["one:1"]}
    many = trust.hello([("x" * 250, number) for number in range(1, 60)])["away"]
    assert 0 < sum(map(len, many)) <= AWAY_CHARACTERS


@pytest.mark.parametrize("told", ["a:1", [], [7], ["a"], ["a:1"] * 65, {"a:1": 1}])
def test_what_are_no_addresses_is_refused(told: object) -> None:
    with pytest.raises(NotInvited):
        addresses_of(told)
