"""Inline SVG figures: same data, same bytes; colours follow the page's theme.

Matplotlib draws in placeholder colours, which are then replaced by the page's CSS variables. One
figure serves light and dark screens and paper. Text stays text.
"""

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours that nothing else uses, so that replacing them is safe.
INK, MUTED, LINE, MAIN, WARM, ON_MAIN = (f"#0{n}0b0c" for n in range(1, 7))
_THEME = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    MAIN: "var(--main)",
    WARM: "var(--warm)",
    ON_MAIN: "var(--on-main)",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    # Ids are hashes with this salt; a random salt would change the bytes of every page.
    "svg.hashsalt": "sottovoce",
    "text.parse_math": False,  # names are data: "$" in one must not start a formula
    "font.family": "DejaVu Sans",  # carried by Matplotlib, so that every machine measures alike
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
FIGURE_SIZE = (5.0, 3.6)


def draw_svg(
    name: str, label: str, draw: Callable[[Axes], None], *, size: tuple[float, float] = FIGURE_SIZE
) -> str:
    """Draw one pair of axes as an inline SVG element.

    Args:
        name: Prefix of every id, so that figures on one page do not mix.
        label: Description of the figure in words.
        draw: Draws on the axes, in the colours above.
        size: Width and height in inches.
    """
    return _drawn(name, label, lambda figure: draw(figure.add_subplot()), size)


def draw_panels(
    name: str, label: str, draws: Mapping[str, Callable[[Axes], None]], *, across: int = 4
) -> str:
    """Draw small pictures of one kind side by side, on shared axes, as one inline SVG element.

    Args:
        name: As in :func:`draw_svg`.
        label: Likewise.
        draws: Functions that draw, by title.
        across: Number of figures in a row.
    """
    columns = min(across, len(draws))
    # Division that rounds up.
    rows = -(-len(draws) // columns)

    def draw(figure: Figure) -> None:
        grid = [*figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat]
        for axes, (title, one) in zip(grid, draws.items(), strict=False):
            one(axes)
            axes.set_title(title, fontsize=10.5)
        # The last row may be short: its empty axes are hidden.
        for axes in grid[len(draws) :]:
            axes.set_axis_off()

    return _drawn(name, label, draw, (2.1 * columns + 0.4, 2.1 * rows + 0.3))


def _drawn(name: str, label: str, draw: Callable[[Figure], None], size: tuple[float, float]) -> str:
    """A figure as an inline SVG element."""
    stream = io.StringIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Names may use letters that the measuring font lacks; the reader's browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        # Without date and creator the same data give the same bytes, on any day and version.
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue(), name, label)


def _inline(svg: str, name: str, label: str) -> str:
    """Fit Matplotlib's SVG into a page: own ids, the page's colours and font, a description."""
    body = svg[svg.index("<svg") :]
    # Metadata has a date and a namespace that HTML does not know.
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', body)
    start = f'<svg role="img" aria-label="{html.escape(label)}" {box.group() if box else ""}>'
    body = start + body[body.index(">") + 1 :]
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    # Only ids that something refers to are needed; they get the figure's name, all others go.
    linked = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    for one in sorted(linked):
        body = re.sub(
            rf'(id="|url\(#|href="#){re.escape(one)}(?=["\)])', rf"\g<1>{name}-{one}", body
        )
    body = re.sub(rf' id="(?!{name}-)[^"]*"', "", body)
    for color, variable in _THEME.items():
        body = body.replace(color, variable)
    body = re.sub(r"font-family: [^;\"]*", "", body)
    return re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", body).replace("xlink:href", "href")
