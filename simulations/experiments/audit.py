"""Experiment with attacks on runs over RAVDESS: docs/results/audit.md.

    sottovoce reproduce audit --corpora ../shared/corpora --runs runs/audits

A run or an audit that is there already is not made again; the page keeps what is not there.
``--gender NAME`` repeats gender inference on runs whose other attacks are on the page already.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.features.version import FEATURE_VERSION
from sottovoce.shared.printable import print_lines
from sottovoce.simulations.experiments.commands import build_parser, run_command

Json = Mapping[str, Any]

RUNS: Mapping[str, tuple[str, ...]] = {
    "eps1": ("--unit", "utterance", "--epsilon", "1"),
    "eps4": ("--unit", "utterance", "--epsilon", "4"),
    "eps8": ("--unit", "utterance", "--epsilon", "8"),
    "user": ("--unit", "user", "--epsilon", "8"),
    "secure": ("--unit", "user", "--secure-aggregation", "--epsilon", "8"),
    "both": ("--unit", "both", "--epsilon", "8"),
    "none": ("--unit", "none"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Make and attack the missing runs, then write the page."""
    parser = build_parser("audit", __doc__)
    parser.add_argument("--corpora", default="../shared/corpora", help="folder of the corpora")
    parser.add_argument("--runs", type=Path, default=Path("runs/audits"), help="run folders")
    parser.add_argument(
        "--gender", nargs="*", default=(), choices=RUNS, help="runs to look for gender in again"
    )
    arguments = parser.parse_args(argv)
    failed = 0
    for name in () if arguments.table or arguments.gender else RUNS:
        failed += _make(name, arguments)
    path = arguments.out / "audit.json"
    written = json.loads(path.read_text()) if path.is_file() else {}
    audits = written | {
        name: {**found, **_page_facts(name, arguments.runs)}
        for name in RUNS
        if (found := _read(arguments.runs / name))
    }
    for name in arguments.gender:
        audits[name] = _repeat_gender_inference(name, audits[name], arguments)
    replace_text(path, json.dumps(audits, indent=1) + "\n")
    replace_text(arguments.out / "audit.md", format_page(audits))
    return 1 if failed else 0


def build_command(name: str, corpora: str) -> list[str]:
    """Build the command of a run, without its output folder.

    Example:
        >>> build_command("none", "corpora")[-2:]
        ['--unit', 'none']
    """
    words = ["sottovoce", "simulate", "--corpus", "ravdess", "--data", f"{corpora}/ravdess"]
    words += ["--protocol", "ravdess8-6fold", "--public", f"cremad={corpora}/cremad"]
    return words + list(RUNS[name])


def _make(name: str, arguments: argparse.Namespace) -> int:
    """One run and its audit, unless they are there; how many steps failed."""
    out, failed = arguments.runs / name, 0
    if not (out / "run.json").is_file():
        resume = ["--resume"] if (out / "config.toml").is_file() else []
        words = [*build_command(name, arguments.corpora), "--out", str(out), "--quiet", *resume]
        failed += _run(words)
    # A run that failed left no model to attack.
    if not failed and not (out / "audit.json").is_file():
        failed += _run(["sottovoce", "audit", str(out), "--quiet"])
    return failed


def _repeat_gender_inference(name: str, audit: Json, arguments: argparse.Namespace) -> Json:
    """The audit with gender looked for again; its run is made where it is gone."""
    from sottovoce.simulations.audit.suite import repeat_gender_inference
    from sottovoce.simulations.results.schema import validate_audit

    out = arguments.runs / name
    if not (out / "run.json").is_file():
        _run([*build_command(name, arguments.corpora), "--out", str(out), "--quiet"])
    # The page's own keys, which the audit's schema does not know.
    plain = validate_audit({key: audit[key] for key in audit if key not in ("secure", "features")})
    return {**repeat_gender_inference(out, plain), **_page_facts(name, arguments.runs)}


def _page_facts(name: str, runs: Path) -> dict[str, Any]:
    """What the page says of a run beside its audit: its sums, and the version of its features."""
    model = json.loads((runs / name / "model" / "model.json").read_text())
    return {"secure": name == "secure", "features": model["feature_version"]}


def _run(words: Sequence[str]) -> int:
    """Run a command; 1 if it failed."""
    print_lines(" ".join(words))
    return int(run_command(words) != 0)


def _read(folder: Path) -> Json | None:
    """An audit, if it is there."""
    path = folder / "audit.json"
    found: Json | None = json.loads(path.read_text()) if path.is_file() else None
    return found


def format_page(audits: Mapping[str, Json]) -> str:
    """Format the page from all audits, by run."""
    commands = "".join(" ".join(build_command(name, "../shared/corpora")) + "\n" for name in audits)
    return (
        f"{_HEAD}{_earlier_features(audits)}## Lower bounds on ε\n\n"
        f"{_table(_BOUND_HEADS, map(_bound_row, audits.values()))}\n{_BOUNDS}\n"
        "## An exact normaliser\n\n"
        f"{_table(_NORMALISER_HEADS, _normaliser_rows(audits.values()))}\n{_NORMALISER}\n"
        f"## What else an attacker learns\n\n{_table(*_rates_table(audits))}\n"
        f"{_RATES.format(trials=_trial_counts(audits))}\n"
        f"## Commands\n\n```\n{commands}sottovoce audit RUN\n```\n"
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


_HEAD = """\
# Audit

Attacks on runs over RAVDESS (first fold of `ravdess8-6fold`, 20 users, CREMA-D public), made by
`sottovoce reproduce audit`. How each attack works: [attacks](../concepts/attacks.md).
Figures are of one seed and one fold; those of gender are of all six folds.

"""
_BOUND_HEADS = (
    "run",
    "promise",
    "tightest",
    "if Gaussian",
    "many trials",
    "if Gaussian",
    "first message",
    "last message",
    "one run, many canaries",
    "by f-DP",
    "if Gaussian",
    "summed scores, if Gaussian",
    "one user, many trials",
    "if Gaussian",
)
_BOUNDS = """\
In brackets: the same recipe with clip and noise switched off. Columns that are not *if Gaussian*
suppose nothing of the mechanism and hold together at 95 % confidence, so the tightest of all does.
N trials of each kind, or N canaries, cannot show more than about ln(N / 5), which is why the quick
first message gets very many where nothing is noised, and the last one, the head statistics, many.
*If Gaussian*: supposing a Gaussian mechanism, as ours is; 95 % together. *By f-DP*: Mahloujifar et
al. 2024, with the trade-off function of (ε, δ)-DP, and with that of a Gaussian mechanism.
"""
_NORMALISER_HEADS = (
    "ε claimed",
    "booked: many trials",
    "if Gaussian",
    "exact mean: many trials",
    "if Gaussian",
)
_NORMALISER = """\
Training with the user's exact mean subtracted, all other noise as booked: one far canary moves
every other utterance's features, and clipped, noised gradients show it. The assumption-free bound
is at its ceiling: so few trials cannot show more, whatever they see.
"""
_RATES = """\
Gender (UAR) and name (share named right): from the first message / the updates / everything; once
all rounds were seen, from the first message / the updates / the head statistics / everything.
Gender is learned from what all other users send on average, with the same noise, and from 40 public
speakers where they help; names from the other half of each user's clips. Under `user` and `both`
the attacker sees only noised sums, as secure aggregation leaves them, and is given all other users'
clips; a server that sees single updates learns more. *Privacy off* is the same recipe without clip
and noise, everything in sight.

After ± stands a standard error of gender, by resampling users and their trials:

{trials}
Names come from 3 trials of each of 20 users, 12 under `user` and `both`, 1 in the open recipe:
their standard errors are .06, .03 and .11 at the least.
"""


def _earlier_features(audits: Mapping[str, Json]) -> str:
    """Which runs were not made again since features changed."""
    titles = [_title(one) for one in audits.values() if one.get("features", 1) < FEATURE_VERSION]
    if not titles:
        return ""
    return (
        f"Made with features of version 1 and the attacks of that time: {'; '.join(titles)}. All "
        f"others have features of version {FEATURE_VERSION}.\n\n"
    )


def _trial_counts(audits: Mapping[str, Json]) -> str:
    """Where the figures of gender come from."""
    found = {_title(audit): audit["attacks"]["as_run"] for audit in audits.values()}
    off = [audit["attacks"]["noise_off"] for audit in audits.values() if _both(audit)]
    if off:
        found["*privacy off*"] = off[0]
    return "".join(
        f"- {title}: {one['gender_of']['trials']:,} trials of {one['gender_of']['users']} users "
        f"over {one['gender_of']['folds']} folds\n"
        for title, one in found.items()
    )


def _title(audit: Json) -> str:
    """A run in words."""
    if audit["epsilon"] is None:
        return "no privacy (open recipe)"
    secure = ", secure aggregation" if audit.get("secure") else ""
    return f"`{audit['unit']}`{secure}, ε = {audit['epsilon']:g}"


def _bound_row(audit: Json) -> list[str]:
    """Lower bounds of one run, and of the same with privacy off."""
    found = audit["attacks"]["as_run"]
    promise = "none" if audit["epsilon"] is None else f"{audit['epsilon']:g}"
    keys = (
        ("many_run", "epsilon"),
        ("many_run", "epsilon_gaussian"),
        ("first_message", "epsilon"),
        ("last_message", "epsilon"),
        ("one_run", "epsilon"),
        ("one_run_f_dp", "epsilon"),
        ("one_run_f_dp", "epsilon_gaussian"),
        ("summed_scores", "epsilon_gaussian"),
        ("many_run_user", "epsilon"),
        ("many_run_user", "epsilon_gaussian"),
    )
    off = audit["attacks"].get("noise_off", {})
    tightest = [f"**{audit[key]:.2f}**" for key in ("epsilon_lower", "epsilon_lower_gaussian")]
    return [_title(audit), promise, *tightest, *(_pair(found, off, *key) for key in keys)]


def _pair(found: Json, off: Json, attack: str, key: str) -> str:
    """A bound, and in brackets that with privacy off."""
    if attack not in found:
        return "–"
    with_it = f"{found[attack][key]:.2f}"
    return f"{with_it} ({off[attack][key]:.1f} off)" if attack in off else with_it


def _normaliser_rows(audits: Iterable[Json]) -> Iterator[list[str]]:
    """Booked and exact normaliser."""
    for audit in audits:
        if "exact_normaliser_attack" in audit:
            pair = audit["attacks"]["as_run"]["many_run"], audit["exact_normaliser_attack"]
            figures = [f"{one[key]:.2f}" for one in pair for key in ("epsilon", "epsilon_gaussian")]
            yield [f"{audit['epsilon']:g} ({audit['unit']})", *figures]


def _rates_table(audits: Mapping[str, Json]) -> tuple[list[str], list[list[str]]]:
    """Heads, and one line an attack, one column a run."""
    columns = [dict(_rates(audit["attacks"]["as_run"])) for audit in audits.values()]
    off = next((one["attacks"]["noise_off"] for one in audits.values() if _both(one)), None)
    if off:
        columns.append(dict(_rates(off)))
    titles = [_title(audit) for audit in audits.values()] + (["privacy off"] if off else [])
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, _chance(name), *(one.get(name, "–") for one in columns)] for name in names]
    return ["attack", "chance", *titles], rows


def _both(audit: Json) -> bool:
    """Whether the run was attacked with its privacy off, all that it sends in sight."""
    return "noise_off" in audit["attacks"]


def _chance(name: str) -> str:
    """What a blind attacker reaches."""
    return {"member": ".500", "gender": ".500", "name": ".050"}.get(name.split(":")[0], "0")


def _rates(found: Json) -> Iterator[tuple[str, str]]:
    """Every rate of one run."""
    for whose, member in found["membership"].items():
        yield f"member: one {whose}, AUC", _share(member["auc"])
    for kind, words in (("gender", "gender"), ("speaker", "name")):
        looks = found.get(kind, {})
        last = list(looks)[-1:]
        for shown, rounds in (("1 round", ["1"]), ("10 rounds", ["10"]), ("all rounds", last)):
            for look in rounds:
                errors = found.get(f"{kind}_error", {}).get(look)
                shares = " / ".join(
                    _share(looks[look][part]) + (f" ± {_share(errors[part])}" if errors else "")
                    for part in looks.get(look, ())
                )
                yield f"{words}: {shown}", shares
    for batch, cosine in found["inversion"].items():
        yield f"features of a batch of {batch}, cosine", _share(cosine)


def _share(value: float) -> str:
    """Three digits without the leading 0."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"
