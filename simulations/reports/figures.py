"""Figures of a run: accuracy, confusion, calibration, speakers, groups and budget.

Each function takes a section of run.json or privacy.json and returns an inline SVG element whose
description says in words what it shows.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.reports.ledger_tables import (
    accounts_by_round,
    epsilon_by_round,
    is_booked_ahead,
)
from sottovoce.simulations.reports.svg import INK, MAIN, MUTED, ON_MAIN, WARM, draw_panels, draw_svg
from sottovoce.simulations.results.schema import Table

_MAX_NAMES = 40
_MAX_BARS = 120


def plot_uar_by_round(curve: Sequence[Table], chance: float) -> str:
    """Plot UAR on test speakers by round: thin lines for folds, a thick one for their mean."""
    last = curve[-1]

    def draw(axes: Axes) -> None:
        folds = sorted({fold for point in curve for fold in point.get("per_fold") or {}})
        for fold in folds if len(folds) > 1 else []:
            points = [(p["round"], p["per_fold"][fold]) for p in curve if fold in p["per_fold"]]
            axes.plot(*zip(*points, strict=True), color=MUTED, linewidth=0.8, alpha=0.55)
        rounds, mean = [p["round"] for p in curve], [_float(p["uar"]) for p in curve]
        marker = "o" if len(curve) <= _MAX_NAMES else ""
        axes.plot(rounds, mean, color=MAIN, linewidth=2.4, marker=marker, markersize=4)
        if len(folds) > 1:
            # An empty line makes one entry of the legend for all folds.
            axes.plot([], [], color=MUTED, linewidth=0.8, label="one fold")
        axes.plot([], [], color=MAIN, linewidth=2.4, label="mean" if len(folds) > 1 else "UAR")
        axes.axhline(chance, color=WARM, linewidth=1.2, linestyle=(0, (4, 3)), label="chance")
        axes.set(xlabel="round", ylabel="UAR", ylim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)

    label = (
        f"Line plot of unweighted average recall by round: from {_say(curve[0]['uar'])} at round "
        f"{curve[0]['round']} to {_say(last['uar'])} at round {last['round']}; chance "
        f"{_say(chance)}."
    )
    return draw_svg("by-round", label, draw)


def plot_tradeoff(name: str, points: Sequence[tuple[float, float]], mu: float | None) -> str:
    """Plot a trade-off function: chances of a false alarm, and the least to overlook at each.

    Args:
        name: The unit, which keeps the figures of one page apart.
        points: Pairs (alpha, beta), alpha rising.
        mu: Of Gaussian differential privacy; None where no single Gaussian describes it.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [1, 0], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="guess")
        axes.plot(*zip(*points, strict=True), color=MAIN, linewidth=2.4, label="this run")
        axes.set(xlabel="false alarms (α)", ylabel="overlooked (β)", xlim=(0, 1), ylim=(0, 1))
        _legend(axes)

    known = "" if mu is None else f" Gaussian differential privacy with mu {_say(mu)}."
    middle = min(points, key=lambda point: abs(point[0] - 0.05))
    label = (
        f"Line plot of the trade-off function for one {name}: with false alarms in "
        f"{_say(middle[0])} of all cases, at least {_say(middle[1])} are overlooked.{known}"
    )
    return draw_svg(f"tradeoff-{name}", label, draw)


def plot_confusion(matrix: Sequence[Sequence[int]], emotions: Sequence[str]) -> str:
    """Plot the confusion matrix, rows scaled to shares of the true emotion."""
    counts = np.asarray(matrix, dtype=np.float64)
    # The maximum keeps an emotion without utterances at 0 instead of 0 / 0.
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [_cut(emotion, 12) for emotion in emotions]
    size = len(names)

    def draw(axes: Axes) -> None:
        for (row, column), share in np.ndenumerate(shares):
            axes.add_patch(_cell(column, row, float(share)))
            # White on dark cells, ink on light ones: readable on both.
            dark = share > 0.55
            axes.text(
                column, row, f"{100 * share:.0f}", ha="center", va="center",
                color=ON_MAIN if dark else INK, fontsize=10 if size <= 8 else 8,
            )  # fmt: skip
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xlabel="recognised as, in %")
        axes.set_xticks(range(size), names, rotation=45 if size > 4 else 0, ha=_tick(size))
        axes.set_yticks(range(size), names)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    best = int(np.argmax(np.diag(shares)))
    label = (
        f"Confusion matrix of {size} emotions, rows are the truth. Best recognised: "
        f"{emotions[best]}, {_say(shares[best, best])}. All numbers are in the table below."
    )
    return draw_svg("confusion", label, draw, size=(5.0, 4.4))


def plot_reliability(before: Sequence[Table], after: Sequence[Table]) -> str:
    """Plot accuracy against confidence, before and after calibration heads."""

    def draw(axes: Axes) -> None:
        _reliability(axes, before, after, marker=5)
        axes.set(xlabel="confidence", ylabel="accuracy")
        _legend(axes)

    label = (
        "Reliability diagram: accuracy against confidence in bins of equally many utterances, "
        "before and after calibration heads. On the dashed diagonal confidence is deserved; below "
        "it the recogniser is too sure."
    )
    return draw_svg("reliability", label, draw)


def plot_reliability_by_emotion(found: Mapping[str, Mapping[str, Sequence[Table]]]) -> str:
    """Plot for each emotion how often it was the true one against its probability."""

    def panel(bins: Mapping[str, Sequence[Table]]) -> Callable[[Axes], None]:
        return lambda axes: _reliability(axes, bins["before"], bins["after"], marker=3)

    label = (
        "Reliability diagrams, one for each emotion: how often it was that emotion against its "
        "probability, before heads (squares) and after (dots). On the dashed diagonal the "
        "probability is deserved; below it, too high."
    )
    return draw_panels("emotions", label, {name: panel(bins) for name, bins in found.items()})


def _reliability(
    axes: Axes, before: Sequence[Table], after: Sequence[Table], *, marker: float
) -> None:
    """Both lines of a reliability diagram, and its diagonal."""
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for bins, color, shape, name in (
        (before, WARM, "s", "before heads"),
        (after, MAIN, "o", "after heads"),
    ):
        x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
        axes.vlines(x, x, y, color=color, linewidth=0.8, alpha=0.5)
        axes.plot(x, y, color=color, marker=shape, markersize=marker, linewidth=1.4, label=name)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))


def plot_abstention(coverage: Sequence[float], accuracy: Sequence[float]) -> str:
    """Plot accuracy on the utterances answered by the share of utterances answered."""

    def draw(axes: Axes) -> None:
        axes.plot(coverage, accuracy, color=MAIN, linewidth=2.2)
        axes.fill_between(coverage, accuracy, accuracy[-1], color=MAIN, alpha=0.14, linewidth=0)
        axes.axhline(accuracy[-1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        low = min(accuracy) if accuracy else 0
        axes.set(xlabel="share of utterances answered", ylabel="accuracy on those", xlim=(0, 1.02))
        axes.set_ylim(max(0, low - 0.1), 1.02)

    label = (
        f"Accuracy when only the most confident utterances are answered: {_say(accuracy[-1])} when "
        f"all are, {_say(accuracy[len(accuracy) // 2 - 1])} when half are."
    )
    return draw_svg("abstention", label, draw)


def plot_speakers(per_speaker: Mapping[str, Table], chance: float) -> str:
    """Plot the UAR of each test speaker, sorted from the worst to the best."""
    ordered = sorted((_float(line["uar"]), name) for name, line in per_speaker.items())
    rates, names = [rate for rate, _ in ordered], [_cut(name, 12) for _, name in ordered]
    middle, tenth = metrics.percentile(rates, 50), metrics.percentile(rates, 10)

    def draw(axes: Axes) -> None:
        positions = np.arange(len(rates))
        # Hundreds of bars would be thinner than a pixel: draw their outline instead.
        if len(rates) <= _MAX_BARS:
            colors = [WARM if rate < tenth else MAIN for rate in rates]
            axes.bar(positions, rates, width=0.78, color=colors, linewidth=0)
        else:
            axes.fill_between(positions, rates, step="mid", color=MAIN, linewidth=0)
        axes.axhline(middle, color=INK, linewidth=1, label="median")
        axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="chance")
        _legend(axes)
        few = len(rates) <= _MAX_NAMES
        axes.set_xticks(positions if few else [], names if few else [], rotation=90, fontsize=8.5)
        axes.set(ylabel="UAR", ylim=(0, 1), xlim=(-0.6, len(rates) - 0.4))
        axes.set_xlabel("" if few else f"{len(rates)} speakers, worst to best")
        axes.grid(visible=False, axis="x")

    label = (
        f"Bars of unweighted average recall for {len(rates)} test speakers: worst "
        f"{_say(rates[0])}, tenth percentile {_say(tenth)}, median {_say(middle)}, best "
        f"{_say(rates[-1])}."
    )
    return draw_svg("speakers", label, draw)


def plot_prediction_sets(found: Table) -> str:
    """Plot how often each test speaker's prediction sets hold the truth, worst to best."""
    shares = sorted(_float(line["covered"]) for line in found["per_speaker"].values())
    wanted, (low, high) = found["wanted"], found["interval"]

    def draw(axes: Axes) -> None:
        positions = np.arange(len(shares))
        colors = [WARM if share < wanted else MAIN for share in shares]
        axes.axhspan(low, high, color=MUTED, alpha=0.25, linewidth=0, label="all, 95 %")
        axes.scatter(positions, shares, s=16, color=colors, zorder=3)
        axes.axhline(wanted, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="wanted")
        _legend(axes)
        axes.set(ylabel="share of utterances covered", ylim=(0, 1.02))
        axes.set_xticks([])
        axes.set_xlabel(f"{len(shares)} speakers, worst to best")

    label = (
        f"Dots of how often prediction sets hold the truth, for {len(shares)} test speakers: worst "
        f"{_say(shares[0])}, best {_say(shares[-1])}; over all {_say(found['covered'])} where "
        f"{_say(wanted)} was wanted."
    )
    return draw_svg("sets", label, draw)


def plot_groups(attributes: Mapping[str, Mapping[str, Table]], overall: float) -> str:
    """Plot the UAR of each group of speakers, one block of bars an attribute.

    Args:
        attributes: For each attribute its groups, each with "uar" and "n".
        overall: UAR over everybody, drawn as a line.
    """
    bars: list[tuple[str, float, int]] = []
    for found in attributes.values():
        bars += [(name, _float(group["uar"]), group["n"]) for name, group in found.items()]
        # An empty bar separates the attributes.
        bars.append(("", 0, 0))
    bars.pop()

    def draw(axes: Axes) -> None:
        positions = np.arange(len(bars))
        axes.barh(positions, [rate for _, rate, _ in bars], height=0.72, color=MAIN, linewidth=0)
        for index, (name, rate, n) in enumerate(bars):
            text = f"{100 * rate:.1f} %, n = {n:,}" if name else ""
            # Numbers stand in a column right of all bars, so that long bars do not push them out.
            axes.text(1.03, index, text, va="center", fontsize=9.5)
        axes.axvline(overall, color=INK, linewidth=1)
        named = [index for index, (name, _, _) in enumerate(bars) if name]
        axes.set_yticks(named, [_cut(bars[index][0], 16) for index in named])
        axes.set(
            xlabel="UAR, and number of utterances", xlim=(0, 1.4), ylim=(len(bars) - 0.4, -0.6)
        )
        axes.set_xticks(np.arange(6) / 5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")

    shown = "; ".join(f"{name} {_say(rate)}" for name, rate, _ in bars if name)
    label = f"Bars of unweighted average recall by group: {shown}. The line is everybody's."
    height = min(12.0, max(2.0, 0.9 + 0.3 * len(bars)))
    return draw_svg("groups", label, draw, size=(5.0, height))


def plot_budget(folds: Sequence[Table], limit: float | None) -> str:
    """Plot epsilon spent by round: the range over clients, fold medians, and the limit.

    Where devices book all rounds in advance, the server's ledger shows how epsilon accrues.
    """
    last = max((r["round"] for fold in folds for r in _releases(fold)), default=0)
    rounds = np.arange(last + 2)
    whose = "the server's ledger" if any(map(is_booked_ahead, folds)) else "all clients"
    spent = {
        fold["name"]: np.array([epsilon_by_round(account, last) for account in accounts])
        for fold in folds
        if (accounts := accounts_by_round(fold))
    }
    everybody = np.concatenate(list(spent.values()))

    def draw(axes: Axes) -> None:
        low, high = everybody.min(axis=0), everybody.max(axis=0)
        axes.fill_between(
            rounds,
            low,
            high,
            step="post",
            color=MAIN,
            alpha=0.2,
            linewidth=0,
            label=whose,
        )
        for index, matrix in enumerate(spent.values()):
            name = ("median of a fold" if len(spent) > 1 else "median") if index == 0 else None
            middle = np.median(matrix, axis=0)
            axes.step(rounds, middle, where="post", color=MAIN, linewidth=1.3, label=name)
        if limit is not None:
            axes.axhline(limit, color=WARM, linewidth=1.6, linestyle=(0, (4, 3)), label="limit")
        # At least a hair above 0: a run that spent nothing still needs an axis.
        top = max(limit or 0, float(high.max()), 1e-9)
        axes.set(xlabel="round", ylabel="ε spent so far", ylim=(0, 1.12 * top))
        axes.set_xlim(0, last + 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, prune="upper"))
        _legend(axes)

    most = float(everybody[:, -1].max())
    bound = "no limit was set" if limit is None else f"the limit is {limit:.4g}"
    label = (
        f"Epsilon spent by {whose} over {last} rounds: after the last round at least "
        f"{float(everybody[:, -1].min()):.4g} and at most {most:.4g}; {bound}."
    )
    return draw_svg("budget", label, draw)


def _legend(axes: Axes) -> None:
    """One line above the axes, where it hides nothing."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=9.5, borderaxespad=0.2)


def _releases(fold: Table) -> list[Table]:
    """Every release of a fold."""
    return [release for account in accounts_by_round(fold) for release in account["releases"]]


def _cell(column: int, row: int, share: float) -> Rectangle:
    """One cell of the confusion matrix, fainter for smaller shares; never quite invisible."""
    corner = (column - 0.48, row - 0.48)
    return Rectangle(corner, 0.96, 0.96, color=MAIN, alpha=0.04 + 0.96 * share, linewidth=0)


def _tick(size: int) -> str:
    """Horizontal alignment of column names: by their end when slanted."""
    return "right" if size > 4 else "center"


def _float(value: float | None) -> float:
    """A number to draw; what was not measured is drawn as 0."""
    return 0.0 if value is None else float(value)


def _say(share: float | None) -> str:
    """A share for a picture's description."""
    return "not measured" if share is None else f"{100 * share:.1f} %"


def _cut(name: str, most: int) -> str:
    """A name short enough for an axis; the tables hold it in full."""
    return name if len(name) <= most else name[: most - 1] + "…"
