"""Mutation tests of the modules that promises rest on: ``make mutants``.

A random sample of small changes, always the same for a seed, and those of ``aimed.toml``, which
were thought of by hand, are each tried against the tests that reach them. What was tried is kept in
``build/mutants``, so that it can be interrupted, and goes on with what was changed since. Writes
docs/results/mutants.json and mutants.md. ``equivalents.toml`` lists mutants that change nothing
that anybody could see, each with its reason.
"""

import argparse
import json
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mutants_page import KILLED, count_at_first, format_figures, format_page

FOLDER = Path(__file__).resolve().parent
HOME = FOLDER.parent.parent
RESULTS = HOME / "docs" / "results"
BUILD = HOME / "build" / "mutants"
SEED = 16
MODULES = (
    "shared/privacy",
    "shared/secure_aggregation",
    "shared/crypto.py",
    "shared/atomic_files.py",
    "shared/folder_claims.py",
    "client/device",
    "client/federation",
    "client/training",
    "server/aggregation",
    "simulations/verification",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A mutant that may be tried: one of the sample, or one that was thought of by hand."""

    key: str
    group: str
    path: str
    function: str
    lines: tuple[int, int]
    before: str
    after: str
    mutated: bytes
    tests: tuple[str, ...] = ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=300, help="how many at random (300)")
    parser.add_argument(
        "--seed", type=int, default=SEED, help="of the sample (16); of others the rate is kept"
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no trial after that long")
    parser.add_argument("--measure", action="store_true", help="see anew which tests reach what")
    parser.add_argument("--again", action="store_true", help="try those that lived once more")
    parser.add_argument("--aimed", action="store_true", help="only those of aimed.toml")
    parser.add_argument(
        "--tests", nargs="*", default=[], help="tests, or their files, that are new"
    )
    parser.add_argument("--table", action="store_true", help="only write the page")
    parser.add_argument(
        "--only", dest="names", nargs="*", default=[], help="keys or parts of paths; none tries all"
    )
    arguments = parser.parse_args()
    if arguments.table:
        found = json.loads((RESULTS / "mutants.json").read_text())
        _write(RESULTS / "mutants.md", format_page(found))
        return 0
    from trials import copy_tree

    tree = BUILD / "tree"
    copy_tree(HOME, tree)
    trials, population = _collect(arguments)
    wanted = [one for one in trials if _is_named(one, arguments.names)]
    known = _load_outcomes()
    due = [one for one in wanted if _is_due(one, known, again=arguments.again)]
    print(f"{len(trials)} mutants, {len(due)} to be tried", flush=True)
    _try_all(due, tree, arguments)
    found = _summarise(trials, population, arguments)
    if not arguments.names and not arguments.aimed:
        found = _keep_others(found, arguments.seed)
        _write(RESULTS / "mutants.json", json.dumps(found, indent=1) + "\n")
        _write(RESULTS / "mutants.md", format_page(found))
    print("\n".join(format_figures(found)))
    return 0


def _is_named(trial: Trial, names: Sequence[str]) -> bool:
    return not names or any(
        name in (trial.key, trial.group) or name in trial.path for name in names
    )


def _is_due(trial: Trial, known: Mapping[str, Any], *, again: bool) -> bool:
    if trial.key in _read_equivalents():
        return False
    outcome = known.get(trial.key)
    return outcome is None or (again and outcome["status"] not in KILLED)


# --- which mutants there are --------------------------------------------------------------------


def _collect(arguments: argparse.Namespace) -> tuple[list[Trial], int]:
    """All trials, and how many mutants the sample is of."""
    from changes import find_mutants, rank

    aimed = list(_read_aimed())
    if arguments.aimed:
        return aimed, 0
    mutants = [one for path in _module_paths() for one in find_mutants(HOME, path, arguments.seed)]
    mutants.sort(key=lambda one: rank(arguments.seed, one.key))
    sample = []
    equivalents = _read_equivalents()
    counted = 0
    for one in mutants:
        if counted == arguments.sample:
            break
        mutated = one.apply((HOME / one.path).read_bytes())
        if not _compiles(mutated):
            continue
        counted += one.key not in equivalents
        sample.append(
            Trial(
                key=one.key,
                group="sample",
                path=one.path,
                function=one.function,
                lines=one.lines,
                before=one.before,
                after=one.after,
                mutated=mutated,
            )
        )
    return [*aimed, *sample], len(mutants)


def _module_paths() -> Iterator[str]:
    for name in MODULES:
        path = HOME / name
        for found in [path] if path.is_file() else sorted(path.rglob("*.py")):
            yield found.relative_to(HOME).as_posix()


def _compiles(source: bytes) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _read_aimed() -> Iterator[Trial]:
    """Mutants that were thought of by hand; each must still apply."""
    for one in tomllib.loads((FOLDER / "aimed.toml").read_text())["mutant"]:
        source = (HOME / one["path"]).read_text()
        if source.count(one["before"]) != 1:
            print(f"aimed.toml: {one['name']}: {one['path']} has changed; say it anew")
            continue
        start = source.index(one["before"])
        first = source[:start].count("\n") + 1
        lines = (first, first + one["before"].rstrip().count("\n"))
        yield Trial(
            key=one["name"],
            group="aimed",
            path=one["path"],
            function="",
            lines=lines,
            before=" ".join(one["before"].split()),
            after=" ".join(one["after"].split()),
            mutated=source.replace(one["before"], one["after"]).encode(),
            tests=tuple(one.get("tests", ())),
        )


def _read_equivalents() -> dict[str, str]:
    """Reasons why some mutants change nothing, by their keys."""
    found = tomllib.loads((FOLDER / "equivalents.toml").read_text())
    return {one["key"]: one["reason"] for one in found.get("equivalent", [])}


# --- trying them --------------------------------------------------------------------------------


def _try_all(due: Sequence[Trial], tree: Path, arguments: argparse.Namespace) -> None:
    from trials import TESTS, Reach, preload, require_passing, run_trial

    if not due:
        return
    if arguments.measure or not (BUILD / "durations.json").exists():
        Reach.measure(BUILD, tree, TESTS)
    reach, end = Reach(BUILD, HOME), time.monotonic() + arguments.seconds
    preload()
    passing: set[str] = set()
    for one in due:
        if time.monotonic() > end:
            print("time is up; the same command goes on")
            return
        names = [*arguments.tests, *one.tests, *reach.find_tests(one.path, one.lines)]
        outcome = run_trial(tree, one.path, one.mutated, names, limit_s=reach.limit(names))
        # Each killer once: a test that always fails would make every mutant look killed.
        if outcome.status == "killed" and (outcome.killer not in passing):
            require_passing(tree, outcome.killer, names)
            passing |= {outcome.killer} - {"import"}
        _keep_outcome(one.key, asdict(outcome))
        print(
            f"{outcome.status:<9} {one.key:<14} {outcome.seconds:>6.1f} s {outcome.tests:>4} tests "
            f"{one.path}:{one.lines[0]}  {one.before[:90]}  =>  {one.after[:90]}  {outcome.killer}",
            flush=True,
        )


def _load_outcomes(*, first: bool = False) -> dict[str, Any]:
    """The newest outcome of each mutant that was ever tried here, or the first."""
    path = BUILD / "outcomes.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return {one["key"]: one for one in (reversed(found) if first else found)}


def _keep_outcome(key: str, outcome: dict[str, Any]) -> None:
    with (BUILD / "outcomes.jsonl").open("a") as file:
        file.write(json.dumps({"key": key, **outcome}) + "\n")


# --- what was found -----------------------------------------------------------------------------


def _summarise(
    trials: Sequence[Trial], population: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """All that the page says."""
    outcomes, equivalents = _load_outcomes(), _read_equivalents()
    first = _load_outcomes(first=True)
    rows = []
    for one in trials:
        untried = {"status": "not tried", "killer": ""}
        outcome = outcomes.get(one.key, untried)
        status = "equivalent" if one.key in equivalents else outcome["status"]
        rows.append(
            {
                "key": one.key,
                "group": one.group,
                "path": one.path,
                "function": one.function,
                "before": one.before,
                "after": one.after,
                "status": status,
                "at_first": first.get(one.key, untried)["status"],
                "killer": outcome["killer"],
            }
        )
    return {
        "seed": arguments.seed,
        "sample": arguments.sample,
        "population": population,
        "equivalents": {one: equivalents[one] for one in equivalents},
        "mutants": rows,
    }


def _keep_others(found: dict[str, Any], seed: int) -> dict[str, Any]:
    """What the page says, with how many of other seeds' samples were killed at first."""
    path = RESULTS / "mutants.json"
    there = json.loads(path.read_text()) if path.exists() else {}
    others = there.get("other_samples", {})
    if seed == SEED or not there:
        return found | {"other_samples": others}
    return there | {"other_samples": others | {str(seed): count_at_first(found, "sample")}}


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
