"""What `app.managers.processes.engines.slurm` makes of answers that no small Slurm gives.

Its commands are scripts here: they write down what they are asked, and say what a file has.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest

from app.keeper.limits import NO_LIMITS
from app.managers.processes.engines import slurm as engine_module
from app.managers.processes.engines.engine import Job, JobState, Order
from app.managers.processes.engines.slurm import SlurmEngine
from app.managers.processes.engines.slurm_options import SlurmOptions
from app.managers.processes.hosts.errors import (
    HostUnreachable,
    HostUnusable,
    JobEvicted,
    QuotaMet,
)
from tests.support.processes import eventually

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct")

SCRIPT = """#!/bin/sh
cd "$(dirname "$0")"
name=$(basename "$0")
echo "$name $*" >>asked
[ ! -e "$name.hangs" ] || exec sleep 600
[ ! -e "$name.fails" ] || { cat "$name.fails" >&2; exit 1; }
[ ! -e "$name.says" ] || cat "$name.says"
"""

DISABLED = "Slurm accounting storage is disabled\n"


class Answers:
    """The commands, in a directory of their own, and an engine that uses them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory / "bin"
        self.directory.mkdir()
        for name in COMMANDS:
            (self.directory / name).write_text(SCRIPT)
            (self.directory / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.directory}:/usr/bin:/bin")
        self.shared = directory / "shared"
        self.engine = SlurmEngine(str(self.shared), "service", lambda *_: None)

    def have(self, name: str, how: str, text: str = "") -> None:
        """Have a command say something, fail with it, or hang."""
        (self.directory / f"{name}.{how}").write_text(text)

    def have_not(self, name: str, how: str) -> None:
        (self.directory / f"{name}.{how}").unlink()

    def asked(self, name: str) -> list[str]:
        """What a command was asked."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.directory / "asked").read_text().splitlines()
            return [line for line in lines if line.startswith(f"{name} ")]
        return []

    async def submit(self, generation: int = 1) -> str:
        """Submit a job of the keeper ``k``; its name."""
        order = Order(
            *("kernel", "k", "o|w ner\n", generation),
            options=SlurmOptions(shared=str(self.shared)),
            stdin=b"secret",
            limits=NO_LIMITS,
        )
        await self.engine.submit(order)
        (word,) = [w for w in self.asked("sbatch")[-1].split() if w.startswith("--job-name=")]
        return word.removeprefix("--job-name=")

    def queue(self, *states: tuple[str, str], node: str = "n1") -> None:
        """Have jobs in the queue: their names, and states."""
        lines = [f"{7 + i}|{s}|N/A|N/A|{node}|1G|{n}|None\n" for i, (n, s) in enumerate(states)]
        self.have("squeue", "says", "".join(lines))

    def files(self) -> set[str]:
        return {each.suffix for each in self.shared.iterdir()}


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    return Answers(tmp_path, monkeypatch)


async def test_nothing_of_a_callers_is_unquoted(answers: Answers) -> None:
    name = await answers.submit()
    (asked,) = answers.asked("sbatch")
    assert "--comment=kernel=kernel owner=o%7Cw%20ner%0A " in asked
    assert "--export=NONE --no-requeue" in asked
    assert "secret" not in asked
    assert answers.files() == {".in", ".out"}
    await answers.engine.joined("k", 1)
    assert answers.files() == {".out"}
    answers.queue((name, "RUNNING"))
    assert await answers.engine.find("k") == [Job("7", "k", 1, JobState.RUNNING)]
    assert await answers.engine.find("other") == []


async def test_a_job_that_nobody_knows_any_more_has_ended(answers: Answers) -> None:
    answers.have("sacct", "fails", DISABLED)
    name = await answers.submit()
    (job,) = await answers.engine.find("k")
    assert (job.where, job.state) == (name, JobState.ENDED)
    assert "does not know any more how" in (await answers.engine.explain(job)).message
    await answers.engine.find("k")
    assert len(answers.asked("sacct")) == 1  # there is no accounting
    await answers.engine.cancel(job)
    assert answers.asked("scancel") == []
    assert answers.files() == set()
    assert await answers.engine.find("k") == []


async def test_it_may_live_while_a_node_is_away(answers: Answers) -> None:
    answers.have("sacct", "fails", DISABLED)
    answers.have("sinfo", "says", "n9\n")
    await answers.submit()
    (job,) = await answers.engine.find("k")
    assert job.state is JobState.RUNNING
    assert "does not reach n9" in job.words
    with pytest.raises(HostUnreachable, match="does not reach n9"):
        await answers.engine.cancel(job)
    answers.have("sinfo", "fails", "slurm_load_node error: Unable to contact slurm controller")
    with pytest.raises(HostUnreachable, match="does not tell its nodes"):
        await answers.engine.find("k")
    answers.have_not("sinfo", "fails")
    answers.have("sinfo", "says", "")
    (job,) = await answers.engine.find("k")
    assert job.state is JobState.ENDED


async def test_the_accounting_knows_how_it_ended(answers: Answers) -> None:
    name = await answers.submit()
    answers.have("sacct", "says", f"12|CANCELLED by 0|0:15|n1|{name}\n")
    answers.have("sinfo", "says", "n9\n")  # another node
    (job,) = await answers.engine.find("k")
    assert (job.where, job.state) == ("12", JobState.ENDED)
    why = await answers.engine.explain(job)
    assert isinstance(why, JobEvicted)
    assert "job 12 was cancelled by root (user 0)" in why.message
    # What it knows to be running is not in the queue: it is late.
    other = await answers.submit(2)
    answers.have("sacct", "says", f"13|RUNNING|0:0|n1|{other}\n12|FAILED|1:0|n1|{name}\n")
    jobs = await answers.engine.find("k")
    assert [job.state for job in jobs] == [JobState.ENDED, JobState.RUNNING]


async def test_who_has_cancelled_a_job_is_asked_of_the_accounting(answers: Answers) -> None:
    name = await answers.submit()
    answers.queue((name, "CANCELLED"))
    answers.have("sacct", "says", f"7|CANCELLED by 0|0:15|n1|{name}\n")
    (job,) = await answers.engine.find("k")
    assert "cancelled by root" in (await answers.engine.explain(job)).message


async def test_a_queue_that_is_not_told_is_no_empty_one(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await answers.submit()
    answers.have("squeue", "fails", "slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(HostUnreachable, match="Unable to contact"):
        await answers.engine.find("k")
    with pytest.raises(HostUnreachable):
        await anext(answers.engine.watch())
    answers.have_not("squeue", "fails")
    monkeypatch.setattr(engine_module, "CALL_SECONDS", 1.0)
    answers.have("squeue", "hangs")
    with pytest.raises(HostUnreachable, match="does not answer within 1 s"):
        await answers.engine.find("k")


async def test_whoever_asks_at_once_is_told_at_once_that_nobody_answers(answers: Answers) -> None:
    await answers.submit()
    answers.have("squeue", "fails", "slurm_load_jobs error: Unable to contact slurm controller")
    asked = [answers.engine.find("k") for _ in range(20)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(each) for each in found} == {HostUnreachable}
    assert len(answers.asked("squeue")) == 1
    # Whoever asks later is given a new answer.
    answers.have_not("squeue", "fails")
    assert len(await answers.engine.find("k")) == 1


async def test_whoever_asks_at_once_gets_one_answer(answers: Answers) -> None:
    name = await answers.submit()
    answers.queue((name, "RUNNING"))
    found = await asyncio.gather(*(answers.engine.find("k") for _ in range(20)))
    assert all(jobs == found[0] for jobs in found)
    assert len(answers.asked("squeue")) <= 2  # one for the first, one for all who came later


async def test_a_job_that_was_not_submitted_leaves_nothing(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers.have("sbatch", "fails", "sbatch: error: Job violates accounting/QOS policy")
    with pytest.raises(QuotaMet, match="QOS policy"):
        await answers.submit()
    assert answers.files() == set()
    assert answers.asked("scancel") == []
    answers.have_not("sbatch", "fails")
    # It may have been taken all the same when nobody says so.
    answers.have("sbatch", "hangs")
    monkeypatch.setattr(engine_module, "SUBMIT_SECONDS", 1.0)
    with pytest.raises(HostUnreachable):
        await answers.submit(2)
    assert "--name=kernelkeep-service-" in answers.asked("scancel")[0]
    assert answers.files() == set()
    monkeypatch.setattr(engine_module, "SUBMIT_SECONDS", 60.0)
    submitting = asyncio.create_task(answers.submit(3))
    await eventually(lambda: len(answers.asked("sbatch")) == 3, 30)
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    assert answers.asked("scancel")[1].endswith("-k-3")
    assert answers.files() == set()


async def test_a_job_that_may_have_been_taken_is_cancelled_although_its_files_stay(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise HostUnusable("the disk is broken")

    answers.have("sbatch", "hangs")
    monkeypatch.setattr(engine_module, "SUBMIT_SECONDS", 1.0)
    monkeypatch.setattr(answers.engine._files, "remove", fail)
    with pytest.raises(HostUnreachable):
        await answers.submit()
    assert len(answers.asked("scancel")) == 1


async def test_a_directory_that_does_not_answer_holds_up_one_thread(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, asked = threading.Event(), 0

    def hang() -> list[str]:
        nonlocal asked
        asked += 1
        ends.wait(30)
        return []

    monkeypatch.setattr(engine_module, "CALL_SECONDS", 0.1)
    monkeypatch.setattr(answers.engine._files, "names", hang)
    for _ in range(3):
        with pytest.raises(HostUnreachable, match="does not answer within"):
            await answers.engine.find("k")
    assert asked == 1
    ends.set()
    monkeypatch.setattr(engine_module, "CALL_SECONDS", 20.0)
    assert await answers.engine.find("k") == []
    await answers.engine.close()


async def test_a_job_whose_node_goes_away_while_it_is_cancelled_may_live(answers: Answers) -> None:
    name = await answers.submit()
    answers.queue((name, "RUNNING"))
    (job,) = await answers.engine.find("k")
    cancelling = asyncio.create_task(answers.engine.cancel(job))
    await eventually(lambda: answers.asked("scancel"), 30)
    answers.have("sinfo", "says", "n1\n")
    answers.queue((name, "NODE_FAIL"))
    with pytest.raises(HostUnreachable, match="n1"):
        await cancelling
    assert answers.files() == {".in", ".out"}


async def test_a_job_is_gone_when_its_cancellation_returns(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await answers.submit()
    answers.queue((name, "RUNNING"))
    (job,) = await answers.engine.find("k")
    answers.have("scancel", "fails", "scancel: error: Kill job error: Unable to contact slurm")
    with pytest.raises(HostUnreachable, match="could not be cancelled"):
        await answers.engine.cancel(job)
    answers.have_not("scancel", "fails")
    cancelling = asyncio.create_task(answers.engine.cancel(job))
    await eventually(lambda: len(answers.asked("scancel")) == 2, 30)
    answers.queue((name, "COMPLETING"))
    looks = len(answers.asked("squeue"))
    await eventually(lambda: len(answers.asked("squeue")) > looks + 1, 30)
    assert not cancelling.done()
    answers.queue((name, "CANCELLED"))
    await cancelling
    # Slurm knows it for some minutes still, and it is nobody's affair.
    assert await answers.engine.find("k") == []
    # One that does not end is not said to have ended.
    other = await answers.submit(2)
    answers.queue((name, "CANCELLED"), (other, "COMPLETING"))
    monkeypatch.setattr(engine_module, "END_SECONDS", 1.0)
    job = Job("8", "k", 2, JobState.RUNNING)
    with pytest.raises(HostUnreachable, match="does not say that it has ended"):
        await answers.engine.cancel(job)
    assert answers.files() == {".in", ".out"}
