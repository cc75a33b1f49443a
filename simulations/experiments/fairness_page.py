"""The page of the experiment on fairness, from its figures."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.simulations.evaluation.fairness.comparison import COVERAGE, MIN_SPEAKERS

Json = Mapping[str, Any]

NAMES: Final = {"uar": "UAR", "ece": "ECE", "answered": "answered"}
LEVEL: Final = 0.05

HEAD: Final = f"""# Fairness between groups of speakers

Made by `sottovoce reproduce fairness`: whether a model serves some speakers worse, and whether
privacy takes more from some than from others. Everything is computed from the predictions that
the runs kept, on speakers that training never saw, without any label of theirs, and from the
attributes in each corpus's manifest.

- **UAR**: unweighted average recall over the emotions that all compared groups have.
- **ECE**: expected calibration error, in bins of equal mass that are the same for all groups. Few
  clips show some error even where predictions are calibrated perfectly, so small groups look
  worse; p-values allow for that.
- **answered**: share of a group's clips that are answered where the model abstains from the
  {1 - COVERAGE:.0%} of all clips that it is least confident of.
- **Brackets**: 95 % intervals, not corrected, over new speakers (10,000 draws of speakers with all
  their clips and seeds).
- **Gap**: between the groups with the highest and the lowest value. Behind its interval stand how
  wide one gap in twenty is by chance; *p*, the chance of a gap as wide between any two groups if
  groups meant nothing; and *p* corrected (Holm) for all gaps of one promise on one corpus, in bold
  below {LEVEL:g}. All by 10,000 permutations of the speakers' groups (of a speaker's own clips
  where the attribute is intensity).

Groups of fewer than {MIN_SPEAKERS} speakers and of what is unknown are not compared. Intensity is
how strongly actors were asked to express an emotion: it is no attribute of people, and shows what
a gap looks like that these tests find. No gap found is no proof of none: the intervals say how
wide it could be.
"""


def format_page(lines: Sequence[Json]) -> str:
    """Format the page from the figures of all lines.

    Args:
        lines: One for each protocol and promise, a protocol's together, without a promise first.
    """
    by_protocol: dict[str, list[Json]] = {}
    for line in lines:
        by_protocol.setdefault(line["protocol"], []).append(line)
    sections = [part for own in by_protocol.values() for part in _section(own)]
    commands = "".join(f"{line['command']}\n" for line in lines)
    tail = f"\n## Commands\n\nAnd the same with other seeds.\n\n```\n{commands}```\n"
    return f"{HEAD}{''.join(sections)}{tail}"


def _section(lines: Sequence[Json]) -> Iterator[str]:
    """All of one protocol."""
    yield f"\n## {lines[0]['protocol']}\n\n{lines[0]['clips']} clips. Seeds: "
    yield "; ".join(f"{_promise(one)}, {_seeds(one['seeds'])}" for one in lines) + ".\n\n"
    yield from _verdict(lines)
    yield from _speakers(lines)
    private = [line for line in lines if "change" in line]
    yield "\n### Gaps\n\n"
    yield from _gaps(lines, [line["attributes"] for line in lines])
    if private:
        yield "\n### What privacy changes for one group more than for another\n\n"
        yield "Change from the same speakers' figures without privacy, on the same seeds ("
        yield "; ".join(f"{_promise(one)}, {_seeds(one['change']['seeds'])}" for one in private)
        yield "). *a − b*: the\nchange is higher in group a, by as much as the gap between both "
        yield "widens or narrows.\n\n"
        yield from _gaps(private, [line["change"]["attributes"] for line in private])
    yield "\n### By group\n\n"
    yield from _groups(lines)


def _verdict(lines: Sequence[Json]) -> Iterator[str]:
    """What is significant after correction, in words."""
    # Read before any table: whoever reads no further knows what was found.
    for line in lines:
        yield f"- {_promise(line)}: {_name_significant('gap', line['attributes'])}"
        if "change" in line:
            added = _name_significant(
                "difference in what privacy changes", line["change"]["attributes"]
            )
            yield f"; {added}"
        yield ".\n"
    yield "\n"


def _name_significant(what: str, found: Json) -> str:
    """Gaps that are significant after correction, or how near the nearest is."""
    tested = [
        (one[key]["corrected"], one[key]["p_value"], f"{name} by {attribute}")
        for attribute, one in found.items()
        for key, name in NAMES.items()
    ]
    if not tested:
        return f"no {what} can be tested"
    named = [name for corrected, _, name in tested if corrected < LEVEL]
    if named:
        return f"significant {what}: {' and '.join(named)}"
    corrected, p_value, name = min(tested)
    least = f"{name}: p {p_value:.4f}, corrected {corrected:.3f}"
    return f"no significant {what} after correction (the least likely by chance: {least})"


def _speakers(lines: Sequence[Json]) -> Iterator[str]:
    """The spread over speakers."""
    yield "| promise | UAR | 10th percentile speaker | worst | Gini | change of the percentile | "
    yield f"change of Gini |\n|{'---|' * 7}\n"
    for line in lines:
        seeds, own = line["uar_per_seed"], line["speakers"]
        deviation = f" ± {statistics.stdev(seeds):.3f}" if len(seeds) > 1 else ""
        change = line["change"]["speakers"] if "change" in line else {}
        cells = [_signed(change[name]) if change else "" for name in ("p10", "gini")]
        yield f"| {_promise(line)} | {statistics.fmean(seeds):.3f}{deviation} | "
        yield f"{_plain(own['p10'])} | {own['worst']:.3f} | {_plain(own['gini'])} | "
        yield f"{' | '.join(cells)} |\n"


def _gaps(lines: Sequence[Json], found: Sequence[Json]) -> Iterator[str]:
    """The widest gap of each attribute and measure, a column for every promise."""
    if not found[0]:
        yield "No attribute has two groups that are large enough.\n"
        return
    titles = " | ".join(f"{_promise(line)}: gap; by chance; p; corrected" for line in lines)
    yield f"| attribute | measure | {titles} |\n|{'---|' * (2 + len(lines))}\n"
    for attribute in found[0]:
        for key, name in NAMES.items():
            cells = " | ".join(_gap(one[attribute][key]) for one in found)
            yield f"| {attribute} | {name} | {cells} |\n"


def _gap(one: Json) -> str:
    """One gap with its groups, interval and p-values."""
    # Three places, as 0.000 is below any level, and p itself stands in four beside it.
    corrected = f"{one['corrected']:.3f}"
    corrected = f"**{corrected}**" if one["corrected"] < LEVEL else corrected
    groups = f"{one['highest']} − {one['lowest']}"
    return (
        f"{groups}: {_plain(one['gap'])}; {one['by_chance']:.3f}; {one['p_value']:.4f}; {corrected}"
    )


def _groups(lines: Sequence[Json]) -> Iterator[str]:
    """Every group's figures, a row for every promise."""
    titles = " | ".join(NAMES.values())
    yield f"| attribute | group | speakers | promise | {titles} |\n|{'---|' * (4 + len(NAMES))}\n"
    for attribute, measures in lines[0]["attributes"].items():
        for group, speakers in measures["speakers"].items():
            for line in lines:
                own = line["attributes"][attribute]
                cells = " | ".join(_plain(own[key]["groups"][group]) for key in NAMES)
                yield f"| {attribute} | {group} | {speakers} | {_promise(line)} | {cells} |\n"


def _seeds(seeds: Sequence[int]) -> str:
    """Seeds in words."""
    return ", ".join(map(str, seeds))


def _promise(line: Json) -> str:
    """A line's promise in a few words."""
    scheme = scheme_for(line["unit"])
    if not scheme.promised:
        return "no privacy"
    return f"ε = {line['epsilon']:g} for one {scheme.wording.name}"


def _plain(values: Sequence[float]) -> str:
    """Estimate and interval."""
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def _signed(values: Sequence[float]) -> str:
    """A change and its interval."""
    return f"{values[0]:+.3f} [{values[1]:+.3f}, {values[2]:+.3f}]"
