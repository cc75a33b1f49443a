"""Consistency of the privacy statements in a run's files: nobody and nothing is left out.

``config.toml`` has what was asked for, ``run.json`` who was there and the results,
``privacy.json`` what was promised and spent. Accounts are compared with their ledgers in
``ledger_checks``.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sottovoce.shared.errors import MessageError, SottovoceError
from sottovoce.shared.privacy.release import PrivacyUnit
from sottovoce.shared.privacy.schemes import find_scheme, scheme_for
from sottovoce.simulations.results import run_record
from sottovoce.simulations.results.schema import Json, PrivacyRecord, Table, read_run
from sottovoce.simulations.scenario.file_settings import ScenarioSettings
from sottovoce.simulations.verification import curve_checks
from sottovoce.simulations.verification.ledger_checks import is_close

_MAX_SHOWN = 5
"""Number of contradictions of a kind that are listed one by one."""

_CHANGED = "what was promised was changed after the run"


def inconsistencies(run_folder: Path, privacy: PrivacyRecord) -> list[str]:
    """List contradictions between ``config.toml``, ``run.json`` and ``privacy.json``.

    Args:
        run_folder: The run; a missing or damaged file is a fault.
        privacy: Content of ``privacy.json``.
    """
    found: list[str] = []
    asked = run = None
    try:
        asked = _promise_settings(run_folder)
    except SottovoceError as error:
        # A damaged file is a finding, not the end: the others can still be compared.
        found.append(f"what was promised cannot be compared with what was asked for: {error}")
    try:
        run = read_run(run_folder)
    except SottovoceError as error:
        found.append(f"who took part cannot be compared with who was there: {error}")
    if asked:
        found += [
            *_check_promise(asked, privacy),
            *_check_tuning(asked, privacy),
            *curve_checks.adversary_mismatches(privacy, secure=bool(asked["secure"])),
            *_check_participation(asked, privacy),
        ]
    found += [*_check_statement(privacy), *_check_servers(privacy)]
    if run:
        found += [
            *_check_privacy_section(run, privacy),
            *_check_folds(run, privacy),
            *_check_rounds(run, privacy),
        ]
        synthetic = "population" in run or bool(asked and asked["population"])
        found += (_check_population if synthetic else _check_clients)(run, privacy)
    if asked and run:
        found += _check_copied_settings(asked, run)
    return found


def _promise_settings(run_folder: Path) -> Json:
    """The settings of ``config.toml`` that decide a promise; the defaults where it is silent.

    A run whose settings this release would refuse must stay verifiable.

    Raises:
        MessageError: There is no such file, or it is not TOML.
    """
    path = run_folder / "config.toml"
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MessageError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise MessageError(f"{path} is damaged: {error}") from error
    defaults = ScenarioSettings(corpus="synthetic")
    # Read as plain TOML: the scenario's own checks may have become stricter since.
    names = ("unit", "epsilon", "delta", "user_delta", "secure", "tuning_runs", "rounds", "seed")
    asked = {name: record.get(name, getattr(defaults, name)) for name in names}
    recipe = record.get("recipe")
    user = recipe.get("user") if isinstance(recipe, dict) else None
    groups = user if isinstance(user, dict) else {}
    return asked | {
        "spacing": groups.get("min_separation", 1),
        "bands": groups.get("bands", 1),
        "population": record.get("population"),
    }


def _check_promise(asked: Table, privacy: Table) -> Iterator[str]:
    """Unit, epsilon and delta of each promise, and who adds the noise."""
    unit = str(asked["unit"])
    scheme = find_scheme(unit, secure=bool(asked["secure"]))
    if scheme is None:
        yield f"config.toml asks for unit {unit} with secure {asked['secure']}: {_CHANGED}"
        return
    deltas = {PrivacyUnit.UTTERANCE: asked["delta"], PrivacyUnit.USER: asked["user_delta"]}
    terms = [(asked["epsilon"], deltas[one]) for one in scheme.promised]
    epsilon, delta = terms[0] if terms else (None, None)
    wanted = {"unit": unit, "epsilon": epsilon, "delta": delta}
    rows = [(name, privacy[name], value) for name, value in wanted.items()]
    user, further = privacy.get("user"), terms[1:]
    for one in further:
        for name, value in zip(("epsilon", "delta"), one, strict=True):
            rows.append((f"user.{name}", user and user[name], value))
    if user and not further:
        yield f"privacy.json promises users epsilon {user['epsilon']} of their own in unit {unit}"
    for name, there, value in rows:
        if not is_close(there, value):
            yield f"privacy.json promises {name} {there}, config.toml asks for {value}: {_CHANGED}"
    by = scheme.noise_source.value if scheme.noise_source else None
    sums = [line for one in _server_accounts(privacy) for line in one["releases"]]
    # A sum noised by somebody else protects against other parties than the promise names.
    for other in sorted({str(line.get("noised_by")) for line in sums} - {by}):
        yield (
            f"privacy.json lists sums noised by {other}, config.toml asks for {by}: the promise "
            "holds against others than it says"
        )


def _check_tuning(asked: Table, privacy: Table) -> Iterator[str]:
    """How many runs settings were chosen by."""
    charged = (privacy.get("tuned") or {}).get("runs", 1)
    scheme = find_scheme(str(asked["unit"]))
    if scheme and scheme.promised and not is_close(charged, asked["tuning_runs"]):
        yield (
            f"privacy.json charges for {charged} runs, config.toml says tuning_runs "
            f"{asked['tuning_runs']}: choosing settings cost another epsilon than it says"
        )
    mean = ((privacy.get("tuned") or {}).get("selection") or {}).get("mean_runs", charged)
    if not is_close(mean, charged):
        yield (
            f"privacy.json compares {charged} runs with a random number of mean {mean}: not the "
            "same tuning"
        )


def _check_participation(asked: Table, privacy: Table) -> Iterator[str]:
    """Participation groups and correlated noise."""
    usual = {"spacing": 1, "bands": 1, "rounds": asked["rounds"]}
    listed = privacy.get("participation") or usual
    for name in ("rounds", "spacing", "bands"):
        if not is_close(listed[name], asked[name]):
            yield (
                f"privacy.json says participation.{name} {listed[name]}, config.toml asks for "
                f"{asked[name]}: {_CHANGED}"
            )


def _check_statement(privacy: Table) -> Iterator[str]:
    """The promise in words names the numbers of the promise, in the order of its units."""
    promises = [one for one in (privacy, privacy.get("user")) if one and one["epsilon"] is not None]
    words = privacy["statement"]
    # %g on both sides: the statement was written for people, with as many digits.
    for name, pattern in (("epsilon", r"e\^([\d.e+-]+)"), ("delta", r"chance of ([\d.e+-]+)\)")):
        there = re.findall(pattern, words)
        wanted = [f"{one[name]:g}" for one in promises if one[name] is not None]
        # Order matters: swapped numbers would promise the user the utterance's epsilon.
        if there != wanted:
            yield (
                f"privacy.json's statement names {name} {', '.join(there) or 'nowhere'}, its terms "
                f"have {', '.join(wanted) or 'none'}: people read another promise than programs"
            )


def _check_servers(privacy: Table) -> Iterator[str]:
    """Where users are hidden, each fold has a server's account, and nowhere else."""
    hides = scheme_for(privacy["unit"]).has_private_sums
    for fold in privacy["folds"]:
        if hides and not fold.get("server"):
            yield (
                f"{fold['name']}: privacy.json promises users epsilon "
                f"{(privacy.get('user') or privacy)['epsilon']}, and has no account of the "
                "server's sums: nothing shows that the promise was kept"
            )
        elif fold.get("server") and not hides:
            yield (
                f"{fold['name']}: privacy.json has an account of a server's sums in unit "
                f"{privacy['unit']}, which hides nobody in sums"
            )


def _check_privacy_section(run: Table, privacy: PrivacyRecord) -> Iterator[str]:
    """What ``run.json`` says of privacy is what ``privacy.json`` says, computed again."""
    if not is_close(run["unit"], privacy["unit"]):
        yield f"run.json says unit {run['unit']}, privacy.json {privacy['unit']}: {_CHANGED}"
    if any(account["epsilon"] is None for account in _server_accounts(privacy)):
        return  # reported elsewhere; there is no figure to compare
    there = dict(_leaves(run["privacy"], "privacy"))
    wanted = dict(_leaves(run_record.privacy_section(privacy), "privacy"))
    wrong = [
        f"run.json says {name} {there.get(name)}, privacy.json comes to {wanted.get(name)}: they "
        "were written together, and one was changed"
        for name in [*wanted, *(name for name in there if name not in wanted)]
        # An audit writes its bound into run.json later, on purpose.
        if not name.startswith("privacy.audit.") and not is_close(there.get(name), wanted.get(name))
    ]
    yield from _truncate_list(wrong)


def _check_folds(run: Table, privacy: Table) -> Iterator[str]:
    """The folds of ``privacy.json`` are those of ``run.json``."""
    listed = [fold["name"] for fold in privacy["folds"]]
    scored = [one["fold"] for one in run["accuracy"]["per_fold"]]
    number = run["protocol"]["folds"]
    if sorted(listed) != sorted(scored) or len(listed) != number:
        yield (
            f"privacy.json has folds {', '.join(listed) or 'none'}; run.json scored folds "
            f"{', '.join(scored)}, {number} in all: whole folds are unaccounted for, or made up"
        )


def _check_clients(run: Table, privacy: Table) -> Iterator[str]:
    """Everybody who was there is in a fold's accounts, or was tested there.

    Nobody is both: so the clips of those without an account in a fold are as many as it scored.
    """
    clips = {name: one["n"] for name, one in run["accuracy"]["per_speaker"].items()}
    scored = {one["fold"]: one["n"] for one in run["accuracy"]["per_fold"]}
    everyone = set(clips).union(*(fold["clients"] for fold in privacy["folds"]))
    # Every fold trains all users but its test users.
    trained = set().union(*(fold["clients"] for fold in privacy["folds"]))
    if len(trained) != run["clients"]:
        yield (
            f"privacy.json has accounts of {len(trained)} clients, run.json says that "
            f"{run['clients']} trained: users are unaccounted for, or made up"
        )
    for fold in privacy["folds"]:
        absent = everyone - set(fold["clients"])
        # Names without an account must have been tested: their clips add up to the fold's.
        held = sum(clips.get(name, 0) for name in absent)
        if fold["name"] in scored and held != scored[fold["name"]]:
            yield (
                f"{fold['name']}: privacy.json has {len(fold['clients'])} accounts; the "
                f"{len(absent)} speakers without one have {held} clips, and run.json scored "
                f"{scored[fold['name']]} there: some of them trained and are unaccounted for, or "
                "accounts were made up"
            )


def _check_population(run: Table, privacy: Table) -> Iterator[str]:
    """Of a population, as many devices are accounted for as were asked."""
    population = run.get("population")
    folds = privacy["folds"]
    if not population or len(folds) != 1 or "registered" not in folds[0]:
        yield (
            "config.toml, run.json and privacy.json do not all have a population: whose ledgers "
            "there should be cannot be known"
        )
        return
    # One entry stands for all devices whose ledgers are equal.
    counts = [one.get("devices_with_equal_ledgers", 0) for one in folds[0]["clients"].values()]
    rows = (
        ("users registered", folds[0]["registered"], population["registered"]),
        ("devices with a ledger", sum(counts), population["asked"]),
    )
    for name, there, wanted in rows:
        if there != wanted:
            yield f"privacy.json counts {there} {name}, run.json {wanted}: some are left out"


_ROUNDS_OF_LINE: Mapping[PrivacyUnit, Callable[[Table], int]] = {
    PrivacyUnit.UTTERANCE: lambda _: 1,
    PrivacyUnit.USER: lambda line: int(line["steps"]),
}
"""How many rounds a line of a unit's account stands for."""


def _check_rounds(run: Table, privacy: Table) -> Iterator[str]:
    """Every account of a run that promises something covers all of its rounds.

    With participation groups, one round in ``spacing``. A line stands for one round, or in a
    user's account for as many sums as it has steps.
    """
    scheme = scheme_for(privacy["unit"])
    if not scheme.promised:
        return
    spacing = (privacy.get("participation") or {}).get("spacing", 1)
    for fold in privacy["folds"]:
        accounts = [(name, one, scheme.account_unit) for name, one in fold["clients"].items()]
        if fold.get("server"):
            accounts.append(("the server", fold["server"], PrivacyUnit.USER))
        wrong = []
        for name, account, unit in accounts:
            lines = [one for one in account["releases"] if one["kind"] == "gradient"]
            covered = spacing * sum(_ROUNDS_OF_LINE[unit](one) for one in lines)
            # Written so that NaN fails.
            if not covered > run["rounds"] - spacing:
                wrong.append(
                    f"{fold['name']} {name}: privacy.json lists {covered} rounds, run.json says "
                    f"{run['rounds']}: the account leaves some out"
                )
        yield from _truncate_list(wrong)


def _check_copied_settings(asked: Table, run: Table) -> Iterator[str]:
    """What ``run.json`` repeats of ``config.toml``."""
    for name in ("unit", "rounds", "seed"):
        if not is_close(run[name], asked[name]):
            yield f"run.json says {name} {run[name]}, config.toml {asked[name]}: one was changed"


def _server_accounts(privacy: Table) -> list[Json]:
    """The accounts of all folds' servers."""
    return [fold["server"] for fold in privacy["folds"] if fold.get("server")]


def _leaves(value: object, where: str) -> Iterator[tuple[str, Any]]:
    """Every number and text of nested objects, by its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{where}.{key}")
    else:
        yield where, value


def _truncate_list(wrong: list[str]) -> Iterator[str]:
    """The first of many, and how many there are: one cause must not fill the screen."""
    yield from wrong[:_MAX_SHOWN]
    if wrong[_MAX_SHOWN:]:
        yield f"{len(wrong) - _MAX_SHOWN} more like the last"
