"""What the files of a run say of its privacy, beside each other: nobody and nothing is left out.

``config.toml`` says what was asked for, ``run.json`` who was there and what came out,
``privacy.json`` what was promised and spent. Accounts are held against their ledgers elsewhere; see
``accounts``.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sottovoce.shared.errors import MessageError, SottovoceError
from sottovoce.simulations import record
from sottovoce.simulations.accounts import alike
from sottovoce.simulations.runfile import Json, read_run
from sottovoce.simulations.scenario import Scenario

_SHOWN = 5
"""How many of a kind are named one by one."""

_CHANGED = "what was promised was changed after the run"


def faults(run_folder: Path, privacy: Json) -> list[str]:
    """What ``config.toml``, ``run.json`` and ``privacy.json`` say otherwise than each other.

    Args:
        run_folder: Where they are; one that is missing or damaged is a fault.
        privacy: What ``privacy.json`` holds.
    """
    found: list[str] = []
    asked = run = None
    try:
        asked = _asked(run_folder)
    except SottovoceError as error:
        found.append(f"what was promised cannot be compared with what was asked for: {error}")
    try:
        run = read_run(run_folder)
    except SottovoceError as error:
        found.append(f"who took part cannot be compared with who was there: {error}")
    if asked:
        found += [*_promise(asked, privacy), *_tuning(asked, privacy), *_turns(asked, privacy)]
    found += [*_statement(privacy), *_servers(privacy)]
    if run:
        found += [*_told(run, privacy), *_folds(run, privacy), *_rounds(run, privacy)]
        crowd = "population" in run or bool(asked and asked["population"])
        found += (_crowd if crowd else _clients)(run, privacy)
    if asked and run:
        found += _repeated(asked, run)
    return found


def _asked(run_folder: Path) -> Json:
    """The settings of ``config.toml`` that decide a promise; the usual ones where it is silent.

    Runs of earlier releases lack some settings, and have others: they must stay countable.

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
    usual = Scenario(corpus="synthetic")
    names = ("unit", "epsilon", "delta", "user_delta", "secure", "tuned_over", "rounds", "seed")
    asked = {name: record.get(name, getattr(usual, name)) for name in names}
    recipe = record.get("recipe")
    user = recipe.get("user") if isinstance(recipe, dict) else None
    turns = user if isinstance(user, dict) else {}
    return asked | {
        "spacing": turns.get("spacing", 1),
        "bands": turns.get("bands", 1),
        "population": record.get("population"),
    }


def _promise(asked: Json, privacy: Json) -> Iterator[str]:
    """Unit, epsilon and delta of each promise, and who adds the noise."""
    unit = str(asked["unit"])
    first = {"none": (None, None), "user": (asked["epsilon"], asked["user_delta"])}
    epsilon, delta = first.get(unit, (asked["epsilon"], asked["delta"]))
    wanted = {"unit": unit, "epsilon": epsilon, "delta": delta}
    rows = [(name, privacy[name], value) for name, value in wanted.items()]
    user = privacy.get("user")
    if unit == "both":
        for name, value in (("epsilon", asked["epsilon"]), ("delta", asked["user_delta"])):
            rows.append((f"user.{name}", user and user[name], value))
    elif user:
        yield f"privacy.json promises users epsilon {user['epsilon']} of their own in unit {unit}"
    for name, there, value in rows:
        if not alike(there, value):
            yield f"privacy.json promises {name} {there}, config.toml asks for {value}: {_CHANGED}"
    by = {"user": "shares" if asked["secure"] else "server", "both": "devices"}.get(unit)
    sums = [line for one in _server_accounts(privacy) for line in one["releases"]]
    for other in sorted({str(line.get("noised_by")) for line in sums} - {by}):
        yield (
            f"privacy.json lists sums noised by {other}, config.toml asks for {by}: the promise "
            "holds against others than told"
        )


def _tuning(asked: Json, privacy: Json) -> Iterator[str]:
    """How many runs settings were chosen by."""
    told = (privacy.get("tuned") or {}).get("runs", 1)
    if asked["unit"] != "none" and not alike(told, asked["tuned_over"]):
        yield (
            f"privacy.json charges for {told} runs, config.toml says tuned_over "
            f"{asked['tuned_over']}: choosing settings cost another epsilon than told"
        )


def _turns(asked: Json, privacy: Json) -> Iterator[str]:
    """How users take turns."""
    told = privacy.get("participation") or {"spacing": 1, "bands": 1, "rounds": asked["rounds"]}
    for name in ("rounds", "spacing", "bands"):
        if not alike(told[name], asked[name]):
            yield (
                f"privacy.json says that users take turns with {name} {told[name]}, config.toml "
                f"asks for {asked[name]}: {_CHANGED}"
            )


def _statement(privacy: Json) -> Iterator[str]:
    """The promise in words names the numbers of the promise, in the order of its units."""
    promises = [one for one in (privacy, privacy.get("user")) if one and one["epsilon"] is not None]
    words = privacy["statement"]
    for name, pattern in (("epsilon", r"e\^([\d.e+-]+)"), ("delta", r"chance of ([\d.e+-]+)\)")):
        there = re.findall(pattern, words)
        wanted = [f"{one[name]:g}" for one in promises if one[name] is not None]
        if there != wanted:
            yield (
                f"privacy.json's statement names {name} {', '.join(there) or 'nowhere'}, its terms "
                f"have {', '.join(wanted) or 'none'}: people read another promise than programs"
            )


def _servers(privacy: Json) -> Iterator[str]:
    """Where users are hidden, each world has a server's account, and nowhere else."""
    hides = privacy["unit"] in ("user", "both")
    for world in privacy["worlds"]:
        if hides and not world.get("server"):
            yield (
                f"{world['name']}: privacy.json promises users epsilon "
                f"{(privacy.get('user') or privacy)['epsilon']}, and has no account of the "
                "server's sums: nothing shows that the promise was kept"
            )
        elif world.get("server") and not hides:
            yield (
                f"{world['name']}: privacy.json has an account of a server's sums in unit "
                f"{privacy['unit']}, which hides nobody in sums"
            )


def _told(run: Json, privacy: Json) -> Iterator[str]:
    """What ``run.json`` tells of privacy is what ``privacy.json`` says, worked out again."""
    if not alike(run["unit"], privacy["unit"]):
        yield f"run.json says unit {run['unit']}, privacy.json {privacy['unit']}: {_CHANGED}"
    if any(account["epsilon"] is None for account in _server_accounts(privacy)):
        return  # told elsewhere; there is no figure to compare
    there = dict(_leaves(run["privacy"], "privacy"))
    wanted = dict(_leaves(record.privacy_section(privacy), "privacy"))
    wrong = [
        f"run.json says {name} {there.get(name)}, privacy.json comes to {wanted.get(name)}: they "
        "were written together, and one was changed"
        for name in [*wanted, *(name for name in there if name not in wanted)]
        if not name.startswith("privacy.audit.") and not alike(there.get(name), wanted.get(name))
    ]
    yield from _few(wrong)


def _folds(run: Json, privacy: Json) -> Iterator[str]:
    """The worlds of ``privacy.json`` are the folds of ``run.json``."""
    told = [world["name"] for world in privacy["worlds"]]
    scored = [one["fold"] for one in run["accuracy"]["per_fold"]]
    number = run["protocol"]["folds"]
    if sorted(told) != sorted(scored) or len(told) != number:
        yield (
            f"privacy.json has worlds {', '.join(told) or 'none'}; run.json scored folds "
            f"{', '.join(scored)}, {number} in all: whole folds are unaccounted for, or made up"
        )


def _clients(run: Json, privacy: Json) -> Iterator[str]:
    """Everybody who was there is in a fold's accounts, or was tested there.

    Nobody is both: so the clips of those without an account in a fold are as many as it scored.
    """
    clips = {name: one["n"] for name, one in run["accuracy"]["per_speaker"].items()}
    scored = {one["fold"]: one["n"] for one in run["accuracy"]["per_fold"]}
    everyone = set(clips).union(*(world["clients"] for world in privacy["worlds"]))
    trained = set().union(*(world["clients"] for world in privacy["worlds"]))
    if len(trained) != run["clients"]:
        yield (
            f"privacy.json has accounts of {len(trained)} clients, run.json says that "
            f"{run['clients']} trained: users are unaccounted for, or made up"
        )
    for world in privacy["worlds"]:
        absent = everyone - set(world["clients"])
        held = sum(clips.get(name, 0) for name in absent)
        if world["name"] in scored and held != scored[world["name"]]:
            yield (
                f"{world['name']}: privacy.json has {len(world['clients'])} accounts; the "
                f"{len(absent)} speakers without one have {held} clips, and run.json scored "
                f"{scored[world['name']]} there: some of them trained and are unaccounted for, or "
                "accounts were made up"
            )


def _crowd(run: Json, privacy: Json) -> Iterator[str]:
    """Of a crowd, as many devices are accounted for as were asked."""
    told = run.get("population")
    worlds = privacy["worlds"]
    if not told or len(worlds) != 1 or "registered" not in worlds[0]:
        yield (
            "config.toml, run.json and privacy.json do not all tell of a population: whose ledgers "
            "there should be cannot be known"
        )
        return
    kinds = worlds[0]["clients"].values()
    rows = (
        ("users registered", worlds[0]["registered"], told["registered"]),
        ("devices with a ledger", sum(one.get("alike", 0) for one in kinds), told["asked"]),
    )
    for name, there, wanted in rows:
        if there != wanted:
            yield f"privacy.json tells of {there} {name}, run.json of {wanted}: some are left out"


def _rounds(run: Json, privacy: Json) -> Iterator[str]:
    """Every account of a run that promises something covers all of its rounds.

    Where users take turns, a round in ``spacing``. A line stands for one round, or in a user's
    account for as many sums as it has steps.
    """
    if privacy["unit"] == "none":
        return
    spacing = (privacy.get("participation") or {}).get("spacing", 1)
    sums = privacy["unit"] == "user"
    for world in privacy["worlds"]:
        accounts = [(name, one, sums) for name, one in world["clients"].items()]
        if world.get("server"):
            accounts.append(("the server", world["server"], True))
        wrong = []
        for name, account, in_sums in accounts:
            lines = [one for one in account["releases"] if one["kind"] == "gradient"]
            covered = spacing * sum(one["steps"] if in_sums else 1 for one in lines)
            if not covered > run["rounds"] - spacing:
                wrong.append(
                    f"{world['name']} {name}: privacy.json lists {covered} rounds, run.json says "
                    f"{run['rounds']}: the account leaves some out"
                )
        yield from _few(wrong)


def _repeated(asked: Json, run: Json) -> Iterator[str]:
    """What ``run.json`` repeats of ``config.toml``."""
    for name in ("unit", "rounds", "seed"):
        if not alike(run[name], asked[name]):
            yield f"run.json says {name} {run[name]}, config.toml {asked[name]}: one was changed"


def _server_accounts(privacy: Json) -> list[Json]:
    """The accounts of all worlds' servers."""
    return [world["server"] for world in privacy["worlds"] if world.get("server")]


def _leaves(value: object, where: str) -> Iterator[tuple[str, Any]]:
    """Every number and text of nested objects, by its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{where}.{key}")
    else:
        yield where, value


def _few(wrong: list[str]) -> Iterator[str]:
    """The first of many, and how many there are: one cause must not fill the screen."""
    yield from wrong[:_SHOWN]
    if wrong[_SHOWN:]:
        yield f"{len(wrong) - _SHOWN} more like the last"
