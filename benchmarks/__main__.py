"""``python -m benchmarks``: measures kernelkeep beside its peers, and writes what came out."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.bare import Bare
from benchmarks.calibration import calibrate, turn
from benchmarks.columns import BEFORE, SETTINGS, is_peer
from benchmarks.commits import checkout, described
from benchmarks.environments import PEERS, prepare
from benchmarks.figures import NotMeasured, Results
from benchmarks.measures import MEASURES, Measure, Scale
from benchmarks.plots import plot
from benchmarks.servers import KERNELS, ROOT, Server, ServerDied, forwarder, kernelkeep, peer
from benchmarks.table import markdown
from benchmarks.thousands import raise_descriptors

BEGIN: Final = "<!-- scripts/benchmark --readme writes from here -->"
END: Final = "<!-- to here -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    options = _parse(arguments)
    folder = Path(options.output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    raise_descriptors()
    with ExitStack() as stack:
        return _measure_all(options, folder, stack)


def _measure_all(options: argparse.Namespace, folder: Path, stack: ExitStack) -> int:
    wanted = [m for m in MEASURES if not options.only or m.name in options.only]
    ours = kernelkeep()
    ours.version = f"kernelkeep {described()}"
    targets: list[Server | Bare] = [ours]
    if options.before:
        try:
            root = stack.enter_context(checkout(options.before))
        except (OSError, subprocess.SubprocessError) as error:
            print(f"--before: no files of {options.before}: {error}", file=sys.stderr)
            return 2
        before = kernelkeep(BEFORE, root)
        before.version = f"before: kernelkeep {described(root)}"
        targets.append(before)
    targets += [Bare(KERNELS), forwarder()]
    for name, settings in SETTINGS.items():
        if any(measure.is_for(name) for measure in wanted):
            other = kernelkeep(name, options=settings)
            other.version = f"{name}: {' '.join(settings)}"
            targets.append(other)
    missing: dict[str, str] = {}
    for name in options.peers:
        environment = prepare(name, folder / "peers")
        if environment.problem:
            missing[name] = environment.problem
            continue
        other = peer(name, environment.python)
        other.version = environment.version
        targets.append(other)
    results = Results([target.name for target in targets] + list(missing))
    for name, problem in missing.items():
        results.fail(name, "installation", problem)
    began, load = time.monotonic(), os.getloadavg()[0]
    limit = calibrate()
    try:
        _run(targets, wanted, options, results)
    finally:
        for target in targets:
            target.stop()
        seconds = time.monotonic() - began
        about = _about(targets, options, results.rounds, limit, load, seconds)
        table = _write(folder, results, about)
        if options.readme:
            _into_readme(table)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a look in some minutes: no figures")
    parser.add_argument("--rounds", type=int, help="how often each measure is repeated, at most")
    parser.add_argument(
        "--before", metavar="COMMIT", help="measure this commit of the clone too, beside this one"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=15,
        help="no round begins that would go beyond, and no measure of a peer (default: 15)",
    )
    parser.add_argument("--readme", action="store_true", help="put the table into the README too")
    parser.add_argument("--output", default=str(ROOT / "build" / "benchmarks"))
    names = [measure.name for measure in MEASURES]
    parser.add_argument("--only", action="append", choices=names, help="only this measure")
    parser.add_argument(
        "--peers",
        type=lambda text: [name for name in text.split(",") if name],
        default=list(PEERS),
        help=f"of {','.join(PEERS)}; empty for none",
    )
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    unknown = set(options.peers) - set(PEERS)
    if unknown:
        parser.error(f"--peers: not known: {', '.join(sorted(unknown))}")
    return options


def _run(
    targets: list[Server | Bare],
    measures: list[Measure],
    options: argparse.Namespace,
    results: Results,
) -> None:
    """Every measure of every round on every server in turn, so that all see the same machine."""
    scale = Scale(0.08 if options.quick else 1.0)
    end = time.monotonic() + 60 * options.minutes
    for target in targets:
        _start(target, results)
    repeated = [measure for measure in measures if not measure.once]
    longest = 0.0
    for number in range(options.rounds if repeated else 1):
        began = time.monotonic()
        if number and began + longest > end:
            break
        _round(targets, repeated, scale, results, math.inf)
        longest = max(longest, time.monotonic() - began)
        results.rounds += 1
        if number == 0:
            _round(targets, [m for m in measures if m.once], scale, results, end)


def _round(
    targets: list[Server | Bare],
    measures: list[Measure],
    scale: Scale,
    results: Results,
    end: float,
) -> None:
    """Each of these measures on every server; after ``end`` (monotonic) only on our own."""
    for measure in measures:
        for target in targets:
            if not measure.is_for(target.name):
                continue
            if time.monotonic() > end and is_peer(target.name):
                results.fail(target.name, measure.name, "no time was left")
                continue
            _measure(target, measure, scale, results)


def _start(target: Server | Bare, results: Results) -> None:
    try:
        target.start()
    except ServerDied as error:
        results.fail(target.name, "start", str(error).splitlines()[0])


def _measure(target: Server | Bare, measure: Measure, scale: Scale, results: Results) -> None:
    if not target.is_alive:
        results.fail(target.name, measure.name, "the server was not running")
        return
    began = time.monotonic()
    outcome, failed = "", False
    try:
        results.add(target.name, measure.function(target, scale))
    except NotMeasured as error:
        outcome = str(error)
        results.add(target.name, error.figures)
    except Exception as error:  # whatever a server does, the others are measured
        outcome, failed = f"{type(error).__name__}: {error}", True
        if not target.is_alive:
            outcome = f"the server died ({outcome})"
    if outcome:
        results.fail(target.name, measure.name, outcome)
        if failed and isinstance(target, Server):
            # It may have died, or hang, or still be at it: the next measure begins with a new one.
            target.stop()
            _start(target, results)
    print(f"{measure.name}, {target.name}: {time.monotonic() - began:.1f} s {outcome}", flush=True)


def _about(
    targets: Sequence[Server | Bare],
    options: argparse.Namespace,
    rounds: int,
    limit: float,
    load: float,
    seconds: float,
) -> list[str]:
    """What a reader must know of the run."""
    return [
        f"{time.strftime('%Y-%m-%d %H:%M')} UTC; {rounds} round(s), {seconds / 60:.0f} min"
        + (
            " (--quick: a look; with about a tenth of the kernels and messages that the lines name)"
            if options.quick
            else ""
        ),
        f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}, "
        f"load average at the start {load:.1f}",
        f"Python {platform.python_version()}, in which a turn of a loop takes {turn():.0f} ns",
        ", ".join(target.version for target in targets),
        f"the client alone reads {limit:,.0f} messages of 100 B a second",
        "limits on output switched off everywhere (--no-limit-rate); all other options of "
        "kernelkeep as they come, but in the columns that say so",
    ]


def _write(folder: Path, results: Results, about: Sequence[str]) -> str:
    """Write what came out; the table, with what a reader must know."""
    text = "\n".join(f"- {line}" for line in about) + "\n\n" + markdown(results) + "\n"
    (folder / "table.md").write_text(text)
    data = {"about": list(about), **results.as_json()}
    (folder / "results.json").write_text(json.dumps(data, indent=1))
    plot(results, folder / "plots.png")
    print(f"\n{text}\nwritten to {folder}: table.md, results.json, plots.png")
    return text


def _into_readme(table: str) -> None:
    """Replace the table in the README; what else is said there is for people to write."""
    path = Path(__file__).parent / "README.md"
    before, mark, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    path.write_text(f"{before}{mark}\n\n{table}\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
