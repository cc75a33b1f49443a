"""Verification is complete: nothing of what a run claims can be left out, or be changed, unseen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sottovoce.cli import main
from sottovoce.shared.errors import MessageError
from sottovoce.simulations.verification.recompute import verify_run

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def finished(
    tiny_run: Any, make_scenario: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Finished runs of two folds, by unit; copy one before touching it."""
    home, runs = tmp_path_factory.mktemp("claims"), {}
    for unit, more in (("both", ""), ("user", "[recipe.user]\nmin_separation = 2\nbands = 2\n")):
        scenario = make_scenario(
            home / f"{unit}.toml",
            tiny_run.users,
            tiny_run.public,
            unit=unit,
            protocol="2fold",
            rounds=4,
            tuning_runs=2,
        )
        with scenario.open("a") as file:
            file.write(more)
        runs[unit] = home / unit
        assert main.main(["simulate", str(scenario), "--out", str(runs[unit]), "--quiet"]) == 0
    return runs


@pytest.fixture
def run(finished: dict[str, Path], tmp_path: Path) -> Path:
    """A run of unit both, to be tampered with."""
    return Path(shutil.copytree(finished["both"], tmp_path / "run"))


def _edit(path: Path, change: Change) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _found(run: Path) -> list[str]:
    """Every fault, with whose it is; the command's verdict must say the same."""
    counted = verify_run(run)
    found = [
        *counted.inconsistencies,
        *(
            f"{one.fold} {one.client}: {fault}"
            for one in counted.ledger_checks
            for fault in one.mismatches
        ),
    ]
    assert counted.is_consistent == (not found)
    assert main.main(["verify", str(run)]) == (1 if found else 0)
    return found


def _accounts(privacy: dict[str, Any]) -> list[dict[str, Any]]:
    """All clients' accounts."""
    return [account for fold in privacy["folds"] for account in fold["clients"].values()]


def _servers(privacy: dict[str, Any]) -> list[dict[str, Any]]:
    """All servers' accounts."""
    return [fold["server"] for fold in privacy["folds"]]


@pytest.mark.parametrize("unit", ["both", "user"])
def test_an_honest_run_of_many_folds_agrees(finished: dict[str, Path], unit: str) -> None:
    assert _found(finished[unit]) == []


def test_a_promise_to_users_without_the_servers_account_is_found(run: Path) -> None:
    _edit(run / "privacy.json", lambda p: [fold.pop("server") for fold in p["folds"]])
    for path in (run / "ledgers").glob("*.server.jsonl"):
        path.unlink()

    missing = [fault for fault in _found(run) if "no account of the server's sums" in fault]
    assert [fault.split(":")[0] for fault in missing] == ["fold1", "fold2"]


def _keep_first(run: Path) -> None:
    """All but one client of each fold are gone, ledgers and accounts."""

    def change(privacy: dict[str, Any]) -> None:
        for fold in privacy["folds"]:
            fold["clients"] = dict([*fold["clients"].items()][:1])

    _edit(run / "privacy.json", change)
    for folder in (run / "ledgers").iterdir():
        for path in sorted(folder.glob("*.jsonl"))[1:]:
            path.unlink()


def test_clients_that_are_gone_are_found(run: Path) -> None:
    _keep_first(run)
    found = [fault for fault in _found(run) if "1 accounts; the 3 speakers without one" in fault]
    assert [fault.split(":")[0] for fault in found] == ["fold1", "fold2"]


def test_one_client_of_one_fold_that_is_gone_is_found(run: Path) -> None:
    _edit(run / "privacy.json", lambda p: p["folds"][1]["clients"].pop("s00"))
    next((run / "ledgers" / "fold2").glob("s00-*")).unlink()

    (found,) = (fault for fault in _found(run) if "speakers without one" in fault)
    assert found.startswith("fold2: privacy.json has 1 accounts; the 3 speakers without one have")


def test_a_whole_fold_that_is_gone_is_found(run: Path) -> None:
    _edit(run / "privacy.json", lambda p: p["folds"].pop())
    shutil.rmtree(run / "ledgers" / "fold2")
    (run / "ledgers" / "fold2.server.jsonl").unlink()

    assert any("privacy.json has folds fold1; run.json scored folds" in one for one in _found(run))


def test_rounds_that_are_left_out_are_found_in_every_fold(run: Path) -> None:
    """Half of the rounds, of the last fold alone, in its clients' and its server's accounts."""

    def change(privacy: dict[str, Any]) -> None:
        fold = privacy["folds"][1]
        for account in [*fold["clients"].values(), fold["server"]]:
            rounds = [one for one in account["releases"] if one["kind"] == "gradient"]
            account["releases"] = [
                one for one in account["releases"] if one not in rounds[len(rounds) // 2 :]
            ]

    _edit(run / "privacy.json", change)
    found = [one for one in _found(run) if "the account leaves some out" in one]

    assert [one.split(":")[0] for one in found] == ["fold2 s00", "fold2 s01", "fold2 the server"]
    assert all("lists 2 rounds, run.json says 4" in one for one in found)


@pytest.mark.parametrize("unit", ["both", "user"])
def test_sampling_is_written_where_somebody_is_sampled(
    finished: dict[str, Path], unit: str
) -> None:
    privacy = json.loads((finished[unit] / "privacy.json").read_text())
    lines = [one for account in _accounts(privacy) for one in account["releases"]]

    assert all(one["sample_rate"] == 1.0 for one in lines)
    assert privacy["sampling"].startswith("every utterance in every step (rate 1); ")
    assert "Poisson" not in privacy["sampling"]


_LISTED: dict[str, object] = {
    "kind": "centre-of-gravity",
    "mechanism": "magic",
    "round": 77,
    "noise_multiplier": 100.0,
    "clip_norm": 1e-3,
    "sample_rate": 0.5,
    "steps": 7,
    "noised_by": "shares",
}


@pytest.mark.parametrize(("key", "value"), _LISTED.items())
@pytest.mark.parametrize("whose", [_accounts, _servers])
def test_a_listed_release_that_is_not_the_ledgers_is_found(
    run: Path, key: str, value: object, whose: Any
) -> None:
    _edit(run / "privacy.json", lambda p: whose(p)[0]["releases"][0].update({key: value}))

    name = "the server" if whose is _servers else "s02"
    assert any(
        fault.startswith(f"fold1 {name}: privacy.json lists {key} {value} for release 1")
        for fault in _found(run)
    )


def test_many_releases_that_differ_are_one_sentence(run: Path) -> None:
    def change(privacy: dict[str, Any]) -> None:
        for account in _accounts(privacy):
            for release in account["releases"]:
                release["noise_multiplier"] = 100.0

    _edit(run / "privacy.json", change)
    found = _found(run)

    assert len(found) == 4, "a sentence for each ledger"
    assert all("lists noise_multiplier 100.0 for release 1 (label-counts" in one for one in found)
    assert all("the ledger's line has 10.0, and" in one for one in found)


@pytest.mark.parametrize("key", ["bands", "spacing"])
def test_participation_that_was_not_booked_is_found(
    finished: dict[str, Path], tmp_path: Path, key: str
) -> None:
    run = Path(shutil.copytree(finished["user"], tmp_path / "run"))

    def change(privacy: dict[str, Any]) -> None:
        privacy["participation"][key] = 3
        privacy["participation"]["coefficients"] = [1.0, 0.25]
        for release in _servers(privacy)[0]["releases"]:
            release.update({key: 3} if release["kind"] == "gradient" else {})

    _edit(run / "privacy.json", change)
    found = "\n".join(_found(run))

    assert f"privacy.json says participation.{key} 3, config.toml asks for 2" in found
    assert f"fold1 the server: privacy.json lists {key} 3 for release" in found
    assert "correlated by [1.0, 0.25], the ledger books [1.0, 0.5]" in found


_ACCOUNT: dict[str, tuple[Change, str]] = {
    "rounds": (lambda a: a.update(rounds=1), "says rounds 1, the ledger books 4 gradients"),
    "rest": (lambda a: a.update(remaining=5.0), "says remaining 5.0, its own budget less"),
    "no rest": (lambda a: a.update(remaining=None), "says remaining None, its own budget less"),
    "budget": (lambda a: a["budget"].update(epsilon=9.0), "says budget.epsilon 9.0, it promises"),
    "at": (lambda a: a["budget"].update(delta=0.1), "says budget.delta 0.1, it promises"),
    "after": (lambda a: a["releases"][-1].update(epsilon_after=1.0), "lists epsilon_after 1.0"),
}


@pytest.mark.parametrize("case", _ACCOUNT)
@pytest.mark.parametrize("whose", [_accounts, _servers])
def test_an_account_that_says_something_else_is_found(run: Path, case: str, whose: Any) -> None:
    change, words = _ACCOUNT[case]
    _edit(run / "privacy.json", lambda p: change(whose(p)[0]))
    assert any(words in fault for fault in _found(run))


_PROMISE: dict[str, tuple[Change, str]] = {
    "user's epsilon": (
        lambda p: p["user"].update(epsilon=1000.0),
        "promises user.epsilon 1000.0, config.toml asks for 8.0",
    ),
    "user's delta": (
        lambda p: p["user"].update(delta=0.5),
        "promises user.delta 0.5, config.toml asks for 0.001",
    ),
    "epsilon": (lambda p: p.update(epsilon=90.0), "promises epsilon 90.0, config.toml asks for 8"),
    "delta": (lambda p: p.update(delta=0.5), "promises delta 0.5, config.toml asks for 1e-05"),
    "unit": (lambda p: p.update(unit="utterance"), "promises unit utterance, config.toml asks for"),
    "no user": (lambda p: p.pop("user"), "promises user.epsilon None, config.toml asks for 8.0"),
    "noise": (
        lambda p: p.update(noise_multiplier=50.0),
        "promises noise_multiplier 50.0 in a round, the ledger books",
    ),
    "user's bound": (
        lambda p: p["user"].update(clip_norm=0.1),
        "promises clip_norm 0.1 in a round, the ledger books 2.0",
    ),
    "words": (
        lambda p: p.update(statement="No utterance can be told (epsilon 0.1)."),
        "statement names epsilon nowhere, its terms have 8, 8",
    ),
    "runs": (
        lambda p: p["tuned"].update(runs=1),
        "charges for 1 runs, config.toml says tuning_runs 2",
    ),
    "choice": (
        lambda p: p["tuned"].update(user=8.0),
        "says that 2 runs cost one user epsilon 8.0, so many of this ledger cost",
    ),
    "best run": (
        lambda p: p["tuned"]["selection"].update(user=8.0),
        "best of a random number of runs costs one user epsilon 8.0, by this ledger it is",
    ),
    "mean runs": (
        lambda p: p["tuned"]["selection"].update(mean_runs=9),
        "compares 2 runs with a random number of mean 9",
    ),
}


@pytest.mark.parametrize("case", _PROMISE)
def test_a_promise_that_was_changed_is_found(run: Path, case: str) -> None:
    change, words = _PROMISE[case]
    _edit(run / "privacy.json", change)
    assert any(words in fault for fault in _found(run))


def test_a_promise_that_was_changed_in_all_but_the_config_is_found(run: Path) -> None:
    """Files that agree with each other do not make it so: what was asked for stands."""

    def change(privacy: dict[str, Any]) -> None:
        privacy["epsilon"] = 9.0
        privacy["statement"] = privacy["statement"].replace("e^8 ", "e^9 ", 1)
        for account in _accounts(privacy):
            account["budget"]["epsilon"] = 9.0
            account["remaining"] = 9.0 - account["epsilon"]

    _edit(run / "privacy.json", change)
    _edit(run / "run.json", lambda r: r["privacy"].update(epsilon=9.0))
    assert any("promises epsilon 9.0, config.toml asks for 8.0" in fault for fault in _found(run))


_RUN: dict[str, tuple[Change, str]] = {
    "spent": (
        lambda r: r["privacy"]["user"].update(epsilon=1.0),
        "run.json says privacy.user.epsilon 1.0, privacy.json comes to 7.9",
    ),
    "of one": (
        lambda r: r["privacy"]["utterance"]["per_client"]["s01"].update(epsilon=1.0),
        "run.json says privacy.utterance.per_client.s01.epsilon 1.0",
    ),
    "releases": (lambda r: r["privacy"].update(releases=3), "run.json says privacy.releases 3"),
    "clients": (lambda r: r.update(clients=9), "accounts of 4 clients, run.json says that 9"),
    "unit": (lambda r: r.update(unit="user"), "run.json says unit user, privacy.json both"),
    "rounds": (lambda r: r.update(rounds=5), "lists 4 rounds, run.json says 5"),
    "seed": (lambda r: r.update(seed=5), "run.json says seed 5, config.toml 0"),
}


@pytest.mark.parametrize("case", _RUN)
def test_a_run_file_that_says_something_else_is_found(run: Path, case: str) -> None:
    change, words = _RUN[case]
    _edit(run / "run.json", change)
    assert any(words in fault for fault in _found(run))


@pytest.mark.parametrize("name", ["config.toml", "run.json"])
@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_file_that_cannot_be_compared_is_found(run: Path, name: str, how: str) -> None:
    (run / name).unlink()
    if how == "damaged":
        (run / name).write_text("{", encoding="utf-8")
    (fault,) = _found(run)
    assert "cannot be compared" in fault
    assert name in fault


def test_a_ledger_of_another_fold_is_found(run: Path) -> None:
    """One user's ledger of one fold is put among those of another, with its account."""
    ledgers = run / "ledgers"
    (name,) = {path.name for path in (ledgers / "fold1").iterdir() if "s02" in path.name}
    shutil.copy(ledgers / "fold1" / name, ledgers / "fold2" / name)

    def change(privacy: dict[str, Any]) -> None:
        first, second = (fold["clients"] for fold in privacy["folds"])
        second["s02"] = first["s02"]

    _edit(run / "privacy.json", change)
    found = _found(run)
    assert any("not of fold2: it is another fold's" in fault for fault in found)


def test_terms_that_are_no_terms_are_refused(run: Path) -> None:
    _edit(run / "privacy.json", lambda p: p.update(user={"epsilon": 8.0}))
    with pytest.raises(MessageError, match=r"at user: .*`delta`"):
        verify_run(run)


def test_the_cost_of_private_selection_stands_beside_that_of_all_runs(run: Path) -> None:
    tuned = json.loads((run / "privacy.json").read_text())["tuned"]
    best = tuned["selection"]

    assert (best["distribution"], best["mean_runs"]) == ("geometric", 2)
    for unit in ("utterance", "user"):
        assert 8.0 < best[unit] < tuned[unit]
    page = (run / "privacy.html").read_text()
    assert "only the best released of a random number of runs (geometric, mean 2)" in page
    assert "the server included, has seen all of them" in page
