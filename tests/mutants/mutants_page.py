"""The page of mutation tests, docs/results/mutants.md, from the figures beside it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

AIMED = "aimed at randomness, durability, locks and checks"
KILLED = ("killed", "timeout")


def _counts(found: Mapping[str, Any], group: str) -> Counter[str]:
    return Counter(one["status"] for one in found["mutants"] if one["group"] == group)


def count_at_first(found: Mapping[str, Any], group: str) -> dict[str, int]:
    """How many were tried, and killed before anybody looked at what lived."""
    apart = {"equivalent", "not tried"}
    tried = [
        one["at_first"] in KILLED
        for one in found["mutants"]
        if one["group"] == group and not {one["status"], one["at_first"]} & apart
    ]
    return {"tried": len(tried), "killed": sum(tried)}


def _share(killed: int, tried: int) -> str:
    return f"{100 * killed / tried:.1f} %" if tried else "-"


def format_figures(found: Mapping[str, Any]) -> Iterator[str]:
    """One line for each group."""
    for group, name in (("sample", "random sample"), ("aimed", AIMED)):
        counts = _counts(found, group)
        killed = sum(counts[one] for one in KILLED)
        tried = killed + counts["alive"] + counts["unreached"]
        share, first = _share(killed, tried), _share(**count_at_first(found, group))
        yield (
            f"| {name} | {tried} | {killed} | {share} | {counts['alive'] + counts['unreached']} | "
            f"{counts['equivalent']} | {counts['not tried']} | {first} |"
        )


def format_page(found: Mapping[str, Any]) -> str:
    """Format the page from the content of mutants.json."""
    return "\n".join(_page(found)) + "\n"


def _page(found: Mapping[str, Any]) -> Iterator[str]:
    yield "# Mutation tests"
    yield ""
    yield (
        "Made by `make mutants`: one small change at a time in the modules that promises rest on, "
        "tried against the quick tests that reach the changed line (at most 25 s of them). "
        "The operators are mutmut's, and two of ours: a call that is left out, and a refusal that "
        f"never happens. The random sample is of {found['population']} changes, one a line, by the "
        f"seed {found['seed']}. What ends in an endless loop counts as killed; what no test "
        "reaches counts as alive."
    )
    yield ""
    yield "| mutants | tried | killed | share | alive | equivalent | not tried yet | at first |"
    yield "|---|---|---|---|---|---|---|---|"
    yield from format_figures(found)
    yield ""
    yield (
        "*At first*: the share killed when each was first tried, as far as the record goes back. "
        "Tests were written since for those that lived. So of changes that nobody has looked at "
        "fewer are killed than of these; samples by other seeds, when first tried:"
    )
    yield ""
    for seed, count in found.get("other_samples", {}).items():
        yield f"- seed {seed}: {count['killed']} of {count['tried']}, {_share(**count)}"
    yield ""
    yield from _section(
        "Alive",
        "These change something, and no test that they were tried against notices.",
        [one for one in found["mutants"] if one["status"] in ("alive", "unreached")],
    )
    yield from _section(
        "Equivalent",
        "These change nothing that anybody could see, or nothing that is promised.",
        [one for one in found["mutants"] if one["status"] == "equivalent"],
        found["equivalents"],
    )
    yield "## Aimed"
    yield ""
    yield "Thought of by hand, each a way in which a promise could be broken unnoticed."
    yield ""
    yield "| mutant | module | outcome | first test that fails |"
    yield "|---|---|---|---|"
    for one in found["mutants"]:
        if one["group"] == "aimed":
            killer = one["killer"].split("::")[-1].split("[")[0]
            yield f"| {one['key']} | `{one['path']}` | {one['status']} | {killer} |"


def _section(
    title: str,
    text: str,
    rows: Sequence[Mapping[str, str]],
    reasons: Mapping[str, str] | None = None,
) -> Iterator[str]:
    if not rows:
        return
    yield f"## {title}"
    yield ""
    yield text
    yield ""
    for one in rows:
        reason = f": {reasons[one['key']]}" if reasons else ""
        where = f"{one['path']}, {one['function']}".rstrip(", ")
        yield f"- {where}: `{one['before']}` to `{one['after']}`{reason}"
    yield ""
