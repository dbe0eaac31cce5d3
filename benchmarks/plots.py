"""The table's lines with a target as bars, one picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from benchmarks.columns import OURS
from benchmarks.figures import Results
from benchmarks.table import LINES

matplotlib.use("Agg")

from matplotlib import pyplot as plt

__all__ = ["plot"]

COLUMNS = 4


def plot(results: Results, file: Path) -> None:
    """Write a picture of every line with a target, with a logarithmic scale where it spans much."""
    lines = [
        line
        for line in LINES
        if line.target and any(value for value in results.row(line.key).values())
    ]
    rows = -(-len(lines) // COLUMNS) or 1
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(4.2 * COLUMNS, 2.4 * rows), squeeze=False)
    for axis in axes.flat[len(lines) :]:
        axis.axis("off")
    for axis, line in zip(axes.flat, lines, strict=False):
        row = results.row(line.key)
        values = [row[server] or 0.0 for server in results.servers]
        colors = ["C1" if server == OURS else "C0" for server in results.servers]
        axis.barh(results.servers[::-1], values[::-1], color=colors[::-1])
        positive = [value for value in values if value > 0]
        if positive and max(positive) > 20 * min(positive):
            axis.set_xscale("log")
        direction = "more is better" if line.more_is_better else "less is better"
        axis.set_title(f"{line.title}\n{line.unit} ({direction})", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
