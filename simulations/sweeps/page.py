"""The page of a sweep: privacy-accuracy curves, one line a unit, and a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from sottovoce.shared.printable import clean_inserted_value, clean_record
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.simulations.reports import pages, wording
from sottovoce.simulations.reports.svg import INK, MAIN, MUTED, WARM, draw_svg
from sottovoce.simulations.results.schema import Json, SweepRecord, Table

_COLOURS: Final = (MAIN, WARM, INK, MUTED)
_MARKERS: Final = "osD^vP"
_LINES: Final = ("-", (0, (6, 2)), (0, (2, 2)), (0, (6, 2, 2, 2)))
_MAX_LINES: Final = 12
_CURVES: Final = {
    "uar": ("Recognition", "UAR on test speakers; every emotion has the same weight"),
    "worst_speaker": ("The worst speaker", "UAR of the test speaker it works worst for"),
    "ece_after": ("Calibration", "expected calibration error with users' heads; lower is better"),
}


def render_page(sweep: SweepRecord) -> str:
    """The page, of what sweep.json holds; the same JSON gives the same bytes."""
    sweep = clean_record(sweep)
    axis = _x_axis(sweep)
    plots = {
        name: _curve(sweep, axis, name) for name in _CURVES if axis and len(_lines(sweep, axis))
    }
    environment = Environment(
        loader=ChoiceLoader(
            [FileSystemLoader(Path(__file__).parent), FileSystemLoader(pages.TEMPLATE_FOLDER)]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=clean_inserted_value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=wording.format_percent, number=wording.format_number)
    return environment.get_template("sweep.html.j2").render(
        css=(pages.TEMPLATE_FOLDER / "page.css").read_text(encoding="utf-8"),
        sweep=sweep,
        axis=axis,
        curves=[(*_CURVES[name], svg, _numbers(sweep, axis, name)) for name, svg in plots.items()],
        points=_rows(sweep),
        runs=_run_rows(sweep),
        best=_best(sweep),
    )


def _x_axis(sweep: Table) -> str:
    """What curves run over: epsilon, or else the first number that varies."""
    numeric = [
        name
        for name, values in sweep["axes"].items()
        if name != "seed" and len(values) > 1 and all(_number(value) for value in values)
    ]
    return "epsilon" if "epsilon" in numeric else (numeric or [""])[0]


def _number(value: object) -> bool:
    """A number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(sweep: Table, axis: str) -> dict[str, list[Json]]:
    """Points of each line, by its name: one a unit, and one for each other setting that varies."""
    found: dict[str, list[Json]] = {}
    for point in sweep["points"]:
        found.setdefault(_label(sweep, point, axis), []).append(point)
    return dict(list(found.items())[:_MAX_LINES])


def _label(sweep: Table, point: Table, axis: str) -> str:
    """A line's name."""
    others = [
        f"{name.rpartition('.')[2]} {value}"
        for name, value in point["settings"].items()
        if name not in (axis, "unit", "epsilon") and len(sweep["axes"][name]) > 1
    ]
    return ", ".join([scheme_for(point["unit"]).wording.short, *others])


def _curve(sweep: Table, axis: str, measure: str) -> str:
    """One measure over the axis: mean over seeds, its standard deviation, and every seed."""
    lines = _lines(sweep, axis)

    def draw(axes: Axes) -> None:
        for index, (label, points) in enumerate(lines.items()):
            _draw(axes, points, axis, measure, label, index)
        if measure == "uar":
            dashes = (0, (4, 3))
            axes.axhline(sweep["chance"], color=MUTED, linewidth=1, linestyle=dashes)
        if axis == "epsilon":
            _by_doubling(axes, sorted(sweep["axes"]["epsilon"]))
        axes.set(xlabel="ε" if axis == "epsilon" else axis, ylabel=_CURVES[measure][0])
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=9.5, borderaxespad=0.2
        )

    return draw_svg(measure.replace("_", "-"), _describe_curve(lines, axis, measure), draw)


def _draw(
    axes: Axes, points: Sequence[Table], axis: str, measure: str, label: str, index: int
) -> None:
    """One line; without a value on the axis, such as without a promise, a level."""
    colour, dashes = _COLOURS[index % 4], _LINES[index // 4 % 4]
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
    mean = [over_seeds["mean"] for _, over_seeds in placed]
    low = [over_seeds["mean"] - (over_seeds["sd"] or 0) for _, over_seeds in placed]
    high = [over_seeds["mean"] + (over_seeds["sd"] or 0) for _, over_seeds in placed]
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        x, mean, color=colour, linewidth=2, linestyle=dashes, label=label,
        marker=_MARKERS[index % len(_MARKERS)], markersize=5,
    )  # fmt: skip


def _numbers(sweep: Table, axis: str, measure: str) -> list[list[str]]:
    """A curve's points as a table."""
    return [
        [label, str(point["settings"].get(axis) or "-")]
        + [wording.format_number(point[measure][name]) for name in ("mean", "sd", "min", "max")]
        for label, points in _lines(sweep, axis).items()
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


def _describe_curve(lines: Mapping[str, Sequence[Table]], axis: str, measure: str) -> str:
    """What a curve shows, in words."""
    parts = []
    for label, points in lines.items():
        known = [point[measure]["mean"] for point in points if point[measure]]
        if known:
            parts.append(f"{label}: from {known[0]:.3f} to {known[-1]:.3f}")
    return f"{_CURVES[measure][0]} by {axis}, mean over seeds. {'; '.join(parts)}."


def _rows(sweep: Table) -> list[list[str]]:
    """The table of points."""
    return [
        [
            _settings(point["settings"]),
            str(point["seeds"]),
            _mean_and_deviation(point["uar"]),
            _mean_and_deviation(point["worst_speaker"]),
            _mean_and_deviation(point["p10_speaker"]),
            _mean_and_deviation(point["ece_before"]),
            _mean_and_deviation(point["ece_after"]),
            _mean_and_deviation(point["epsilon_spent_utterance"], digits=2),
            _mean_and_deviation(point["epsilon_spent_user"], digits=2),
        ]
        for point in sweep["points"]
    ]


def _run_rows(sweep: Table) -> list[list[str]]:
    """The table of runs."""
    return [
        [
            line["name"],
            *(wording.format_number(line[name]) for name in ("uar", "worst_speaker", "ece_after")),
            wording.format_number(line["wall_s"]),
        ]
        for line in sweep["runs"]
    ]


def _settings(settings: Table) -> str:
    """Settings as a row's name."""
    parts = [
        f"{'ε' if name == 'epsilon' else name.rpartition('.')[2]} {value}"
        for name, value in settings.items()
        if value is not None
    ]
    return ", ".join(parts) or "as given"


def _mean_and_deviation(over_seeds: Table | None, *, digits: int = 3) -> str:
    """Mean and standard deviation."""
    if over_seeds is None:
        return "-"
    mean = f"{over_seeds['mean']:.{digits}f}"
    return mean if not over_seeds["sd"] else f"{mean} ± {over_seeds['sd']:.{digits}f}"


def _best(sweep: Table) -> list[tuple[str, str]]:
    """Where each unit's best point lies; for the page's first lines."""
    found: dict[str, Json] = {}
    for point in sweep["points"]:
        best = found.get(point["unit"])
        if best is None or (point["uar"]["mean"] or 0) > (best["uar"]["mean"] or 0):
            found[point["unit"]] = point
    return [
        (
            scheme_for(unit).wording.short,
            f"{_mean_and_deviation(point['uar'])} at {_settings(point['settings'])}",
        )
        for unit, point in found.items()
    ]
