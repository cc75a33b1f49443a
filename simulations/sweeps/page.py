"""The page of a sweep: privacy-accuracy curves, one line a unit, and a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from sottovoce.simulations.reports import pages, words
from sottovoce.simulations.reports.picture import INK, MAIN, MUTED, WARM, picture

Json = Mapping[str, Any]

_COLOURS: Final = (MAIN, WARM, INK, MUTED)
_MARKERS: Final = "osD^vP"
_LINES: Final = ("-", (0, (6, 2)), (0, (2, 2)), (0, (6, 2, 2, 2)))
_MOST_LINES: Final = 12
_CURVES: Final = {
    "uar": ("Recognition", "UAR on test speakers; every emotion counts alike"),
    "worst_speaker": ("The worst speaker", "UAR of the test speaker it works worst for"),
    "ece_after": ("Calibration", "expected calibration error with users' heads; lower is better"),
}
_UNITS: Final = {
    "none": "no promise",
    "utterance": "one utterance",
    "user": "one user",
    "both": "both",
}


def page(told: Json) -> str:
    """The page, of what sweep.json holds; the same JSON gives the same bytes."""
    axis = _across(told)
    plots = {name: _curve(told, axis, name) for name in _CURVES if axis and len(_lines(told, axis))}
    environment = Environment(
        loader=ChoiceLoader(
            [FileSystemLoader(Path(__file__).parent), FileSystemLoader(pages.HERE)]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=words.percent, number=words.number)
    return environment.get_template("sweep.html.j2").render(
        css=(pages.HERE / "page.css").read_text(encoding="utf-8"),
        told=told,
        axis=axis,
        curves=[(*_CURVES[name], svg, _numbers(told, axis, name)) for name, svg in plots.items()],
        points=_rows(told),
        runs=_run_rows(told),
        best=_best(told),
    )


def _across(told: Json) -> str:
    """What curves run over: epsilon, or else the first number that varies."""
    numeric = [
        name
        for name, values in told["axes"].items()
        if name != "seed" and len(values) > 1 and all(_number(value) for value in values)
    ]
    return "epsilon" if "epsilon" in numeric else (numeric or [""])[0]


def _number(value: object) -> bool:
    """A number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(told: Json, axis: str) -> dict[str, list[Json]]:
    """Points of each line, by its name: one a unit, and one for each other setting that varies."""
    found: dict[str, list[Json]] = {}
    for point in told["points"]:
        found.setdefault(_label(told, point, axis), []).append(point)
    return dict(list(found.items())[:_MOST_LINES])


def _label(told: Json, point: Json, axis: str) -> str:
    """A line's name."""
    others = [
        f"{name.rpartition('.')[2]} {value}"
        for name, value in point["settings"].items()
        if name not in (axis, "unit", "epsilon") and len(told["axes"][name]) > 1
    ]
    return ", ".join([_UNITS[point["unit"]], *others])


def _curve(told: Json, axis: str, measure: str) -> str:
    """One measure over the axis: mean over seeds, its spread, and every seed."""
    lines = _lines(told, axis)

    def draw(axes: Axes) -> None:
        for place, (label, points) in enumerate(lines.items()):
            _draw(axes, points, axis, measure, label, place)
        if measure == "uar":
            dashes = (0, (4, 3))
            axes.axhline(told["chance"], color=MUTED, linewidth=1, linestyle=dashes)
        if axis == "epsilon":
            _by_doubling(axes, sorted(told["axes"]["epsilon"]))
        axes.set(xlabel="ε" if axis == "epsilon" else axis, ylabel=_CURVES[measure][0])
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=9.5, borderaxespad=0.2
        )

    return picture(measure.replace("_", "-"), _said(lines, axis, measure), draw)


def _draw(
    axes: Axes, points: Sequence[Json], axis: str, measure: str, label: str, place: int
) -> None:
    """One line; without a value on the axis, such as without a promise, a level."""
    colour, dashes = _COLOURS[place % 4], _LINES[place // 4 % 4]
    known = [point for point in points if point[measure] is not None]
    placed = (
        sorted(
            (point["settings"][axis], point[measure])
            for point in known
            if point["settings"].get(axis) is not None
        )
        if known and axis in known[0]["settings"]
        else []
    )
    if not placed:
        for point in known[:1]:
            level = point[measure]["mean"]
            axes.axhline(level, color=colour, linewidth=1.4, linestyle=(0, (1, 1.5)), label=label)
        return
    x = [at for at, _ in placed]
    mean = [spread["mean"] for _, spread in placed]
    low = [spread["mean"] - (spread["sd"] or 0) for _, spread in placed]
    high = [spread["mean"] + (spread["sd"] or 0) for _, spread in placed]
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        x, mean, color=colour, linewidth=2, linestyle=dashes, label=label,
        marker=_MARKERS[place % len(_MARKERS)], markersize=5,
    )  # fmt: skip


def _numbers(told: Json, axis: str, measure: str) -> list[list[str]]:
    """A curve's points as a table."""
    return [
        [label, str(point["settings"].get(axis) or "-")]
        + [words.number(point[measure][name]) for name in ("mean", "sd", "min", "max")]
        for label, points in _lines(told, axis).items()
        for point in points
        if point[measure]
    ]


def _by_doubling(axes: Axes, values: Sequence[float]) -> None:
    """Epsilon matters by its factors."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _said(lines: Mapping[str, Sequence[Json]], axis: str, measure: str) -> str:
    """What a curve shows, in words."""
    parts = []
    for label, points in lines.items():
        known = [point[measure]["mean"] for point in points if point[measure]]
        if known:
            parts.append(f"{label}: from {known[0]:.3f} to {known[-1]:.3f}")
    return f"{_CURVES[measure][0]} by {axis}, mean over seeds. {'; '.join(parts)}."


def _rows(told: Json) -> list[list[str]]:
    """The table of points."""
    return [
        [
            _settings(point["settings"]),
            str(point["seeds"]),
            _spread(point["uar"]),
            _spread(point["worst_speaker"]),
            _spread(point["p10_speaker"]),
            _spread(point["ece_before"]),
            _spread(point["ece_after"]),
            _spread(point["epsilon_spent_utterance"], digits=2),
            _spread(point["epsilon_spent_user"], digits=2),
        ]
        for point in told["points"]
    ]


def _run_rows(told: Json) -> list[list[str]]:
    """The table of runs."""
    return [
        [
            line["name"],
            *(words.number(line[name]) for name in ("uar", "worst_speaker", "ece_after")),
            words.number(line["wall_s"]),
        ]
        for line in told["runs"]
    ]


def _settings(settings: Json) -> str:
    """Settings as a row's name."""
    parts = [
        f"{'ε' if name == 'epsilon' else name.rpartition('.')[2]} {value}"
        for name, value in settings.items()
        if value is not None
    ]
    return ", ".join(parts) or "as given"


def _spread(spread: Json | None, *, digits: int = 3) -> str:
    """Mean and standard deviation."""
    if spread is None:
        return "-"
    mean = f"{spread['mean']:.{digits}f}"
    return mean if not spread["sd"] else f"{mean} ± {spread['sd']:.{digits}f}"


def _best(told: Json) -> list[tuple[str, str]]:
    """Where each unit's best point lies; for the page's first lines."""
    found: dict[str, Json] = {}
    for point in told["points"]:
        kept = found.get(point["unit"])
        if kept is None or (point["uar"]["mean"] or 0) > (kept["uar"]["mean"] or 0):
            found[point["unit"]] = point
    return [
        (_UNITS[unit], f"{_spread(point['uar'])} at {_settings(point['settings'])}")
        for unit, point in found.items()
    ]
