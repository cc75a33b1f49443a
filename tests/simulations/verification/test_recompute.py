"""Verification believes nothing: every kind of disagreement is named, and nothing is written."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import make_release, make_sum_release

from sottovoce.cli import main
from sottovoce.shared.errors import MessageError, SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.release import (
    DISCRETISATION_SLACK,
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)
from sottovoce.simulations.verification.ledger_checks import PLD_TOLERANCE, PRV_TOLERANCE
from sottovoce.simulations.verification.recompute import verify_run
from sottovoce.simulations.verification.second_accountant import opacus_epsilon

DELTA = 1e-5


def _ledger(run: Path, client: str = "s01") -> Path:
    """One client's ledger file."""
    return next((run / "ledgers").rglob(f"{client}-*.jsonl"))


def _edit(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change privacy.json."""
    path = run / "privacy.json"
    privacy = json.loads(path.read_text())
    change(privacy)
    path.write_text(json.dumps(privacy))


def _account(privacy: dict[str, Any], client: str = "s01") -> dict[str, Any]:
    """One client's account in privacy.json."""
    account: dict[str, Any] = privacy["folds"][0]["clients"][client]
    return account


def _forge(path: Path, **changes: Any) -> str:
    """Rewrite a ledger's last gradient, and an unbroken chain behind it; the new head."""
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    last = max(n for n, one in enumerate(records) if one["release"]["kind"] == "gradient")
    records[last]["release"] |= changes
    lines, head = [], records[0]["prev"]
    for record in records:
        lines.append((json.dumps(record | {"prev": head}, sort_keys=True) + "\n").encode())
        head = hashlib.sha256(lines[-1]).hexdigest()
    path.write_bytes(b"".join(lines))
    return head


def _faults(run: Path) -> list[str]:
    """What is wrong, with the client; the verdict must say so too."""
    counted = verify_run(run)
    faults = [
        f"{count.client}: {fault}" for count in counted.ledger_checks for fault in count.mismatches
    ]
    assert counted.is_consistent == (not faults and not counted.inconsistencies)
    assert counted.to_dict()["agrees"] == counted.is_consistent
    assert ("DISAGREES" in counted.report_lines()[-1]) != counted.is_consistent
    return [*counted.inconsistencies, *faults]


def _about_ledgers(run: Path, words: str) -> int:
    """How many ledgers' faults hold these words."""
    counted = verify_run(run)
    return sum(
        words in f"{one.client}: {fault}"
        for one in counted.ledger_checks
        for fault in one.mismatches
    )


def test_an_honest_run_agrees(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    counted = verify_run(run)

    assert counted.is_consistent
    assert {count.client for count in counted.ledger_checks} == {"s00", "s01", "s02"}
    for count in counted.ledger_checks:
        assert abs(count.pld_epsilon - count.prv_epsilon) <= PRV_TOLERANCE
        assert count.pld_epsilon <= 8.0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    record = json.loads(json.dumps(counted.to_dict()))
    assert (record["clients"][0]["releases"], record["clients"][0]["faults"]) == (7, [])
    assert record["tolerance"] == {"pld": PLD_TOLERANCE, "prv": PRV_TOLERANCE}
    apart = max(abs(one["pld"] - one["prv"]) for one in record["clients"])
    assert f"the two differ by at most {apart:.4f}; " in "\n".join(counted.report_lines())


def test_a_smaller_claim_is_found(run: Path) -> None:
    _edit(run, lambda p: _account(p).update(epsilon=_account(p)["epsilon"] - 1e-4))

    assert _about_ledgers(run, "s01: privacy.json says epsilon") == 1
    assert _about_ledgers(run, "by PLD") == 1
    faults = {one["client"]: one["faults"] for one in verify_run(run).to_dict()["clients"]}
    assert [len(faults[name]) for name in ("s00", "s01", "s02")] == [0, 2, 0]


def test_no_claim_at_all_is_found(run: Path) -> None:
    _edit(run, lambda p: _account(p).update(epsilon=None))
    assert _about_ledgers(run, "s01: privacy.json says epsilon None") == 2


@pytest.mark.parametrize("delta", [2.0, 1.0, 0.0, None])
def test_a_delta_that_is_no_chance_is_found(run: Path, delta: float | None) -> None:
    _edit(run, lambda p: _account(p).update(delta=delta))
    assert _about_ledgers(run, f"s01: privacy.json says delta {delta}, it must be in (0, 1)") == 1


def test_a_promise_below_what_was_spent_is_found(run: Path) -> None:
    _edit(run, lambda p: p.update(epsilon=7.0))
    assert _about_ledgers(run, "spent where 7.0 was promised") == 3


def test_a_forged_ledger_is_found(run: Path) -> None:
    head = _forge(_ledger(run), noise_multiplier=100.0)
    (first, *rest) = _faults(run)
    assert first.startswith("s01: the ledger's head is")
    assert [fault[-6:] for fault in rest if "costs" in fault] == ["by PLD", "by PRV"]

    _edit(run, lambda p: _account(p).update(ledger_sha256=head))
    assert _about_ledgers(run, "head is") == 0
    assert (_about_ledgers(run, "by PLD"), _about_ledgers(run, "by PRV")) == (1, 1)


def test_a_release_that_nobody_protected_is_found(run: Path) -> None:
    changes = {"mechanism": "none", "noise_multiplier": 0.0, "sensitivity": 0.0}
    head = _forge(_ledger(run), **changes)
    _edit(run, lambda p: _account(p).update(ledger_sha256=head))

    assert any("costs inf by PLD" in fault for fault in _faults(run))
    assert any("costs inf by PRV" in fault for fault in _faults(run))


@pytest.mark.parametrize("cut", ["line", "half", "all", "gone", "middle"])
def test_a_ledger_that_lost_something_is_found(run: Path, cut: str) -> None:
    path = _ledger(run)
    lines = path.read_bytes().splitlines(keepends=True)
    left = {
        "line": b"".join(lines[:-1]),
        "half": b"".join(lines)[:-20],
        "all": b"",
        "middle": b"".join([*lines[:1], *lines[2:]]),
    }
    path.unlink()
    if cut in left:
        path.write_bytes(left[cut])

    faults = _faults(run)

    assert faults
    assert all(fault.startswith("s01: ") for fault in faults)
    if cut in left:
        assert path.read_bytes() == left[cut], "an auditor changes nothing"


def test_a_ledger_that_nobody_accounts_for_is_found(run: Path) -> None:
    shutil.copy(_ledger(run), _ledger(run).with_name("s09-00000000.jsonl"))
    (fault,) = _faults(run)
    assert "s09-00000000.jsonl" in fault

    _edit(run, lambda p: p["folds"][0]["clients"].pop("s02"))
    assert any("s02-" in fault for fault in _faults(run))


def test_an_accountant_that_errs_is_found_by_the_other(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = accounting.GaussianFilter.compute_epsilon
    monkeypatch.setattr(
        accounting.GaussianFilter, "compute_epsilon", lambda *a, **k: half(*a, **k) / 2
    )
    _edit(
        run,
        lambda p: [a.update(epsilon=a["epsilon"] / 2) for a in p["folds"][0]["clients"].values()],
    )

    assert (_about_ledgers(run, "by PLD"), _about_ledgers(run, "by PRV")) == (0, 3)


def test_a_folder_that_holds_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="there is no"):
        verify_run(tmp_path / "gone")

    (run / "privacy.json").write_text("{")
    with pytest.raises(MessageError, match="damaged"):
        verify_run(run)


def test_a_run_that_protects_nothing_must_say_so_in_every_ledger(
    tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    scenario = make_scenario(tmp_path / "s.toml", tiny_run.users, tiny_run.public, unit="none")
    run = tmp_path / "open"
    assert main.main(["simulate", str(scenario), "--out", str(run), "--quiet"]) == 0
    assert _faults(run) == []
    assert "protect" in verify_run(run).report_lines()[1]

    _edit(run, lambda p: _account(p)["budget"].update(epsilon=8.0))
    assert any("budget.epsilon 8.0, it promises None" in fault for fault in _faults(run))
    _edit(run, lambda p: _account(p).update(epsilon=8.0))
    assert any("claims epsilon 8.0" in fault for fault in _faults(run))

    path = _ledger(run)
    path.unlink()
    hidden = Release(
        kind=ReleaseKind.GRADIENT,
        mechanism=Mechanism.GAUSSIAN,
        run="r/holdout",
        round=1,
        noise_multiplier=1.0,
        sensitivity=1.0,
    )
    Ledger(path, owner="s01").book_release("r/1", hidden, ())
    assert any("no unprotected release" in fault for fault in _faults(run))


# --- the independent accountant ---------------------------------------------------------------


@pytest.mark.parametrize(
    "releases",
    [
        (make_release(0.75),),
        (make_release(2.6, steps=16), make_release(10.0), make_release(1.9), make_release(3.0)),
        (make_release(1.5, rate=0.25, steps=40), make_release(10.0)),
        (make_release(1.0, rate=0.02, steps=500),),
    ],
)
def test_both_accountants_agree_though_they_share_no_code(releases: tuple[Release, ...]) -> None:
    ours, theirs = accounting.compute_epsilon(releases, DELTA), opacus_epsilon(releases, DELTA)

    assert abs(ours - theirs) <= PRV_TOLERANCE
    # The tolerance has power: a tenth less noise would show.
    weaker = tuple(
        make_release(r.noise_multiplier * 0.9, rate=r.sample_rate, steps=r.steps) for r in releases
    )
    assert abs(ours - opacus_epsilon(weaker, DELTA)) > PRV_TOLERANCE


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_the_other_accountant_composes_correlated_rounds_by_the_matrix_itself(bands: int) -> None:
    def line(number: int, noise: float = 3.0, run: str = "r") -> Release:
        column = BandedNoise.from_square_root(bands=bands, min_separation=4)
        user = SumMechanism(
            noise_multiplier=noise, clip_norm=1.0, noised_by=NoiseSource.SERVER, bands=column
        )
        protected = Mechanism.GAUSSIAN
        return Release(
            kind=ReleaseKind.GRADIENT, mechanism=protected, run=run, round=number, user=user
        )

    def both(*releases: Release) -> tuple[float, float]:
        ours = accounting.compute_epsilon(releases, DELTA, unit=PrivacyUnit.USER)
        return ours, opacus_epsilon(releases, DELTA, unit=PrivacyUnit.USER)

    for separated in ([line(1), line(5), line(9)], [line(1), line(2, run="s")], [line(3)]):
        ours, theirs = both(*separated)
        assert abs(ours - theirs) <= PRV_TOLERANCE
    _, weaker = both(*(line(number, noise=2.7) for number in (1, 5, 9)))
    assert abs(both(line(1), line(5), line(9))[0] - weaker) > PRV_TOLERANCE
    _, near = both(line(1), line(2))
    assert (near > both(line(1), line(5))[0] + PRV_TOLERANCE) == (bands > 1), (
        "a broken pattern shows"
    )
    assert both(line(1), line(2))[0] >= near - PRV_TOLERANCE
    assert opacus_epsilon((line(1),), DELTA) == math.inf, "a server sees the utterance itself"


def test_what_costs_nothing_and_what_nothing_covers() -> None:
    head = Release(kind=ReleaseKind.SEALED_HEAD, mechanism=Mechanism.ENCRYPTION, run="r", round=1)
    open_ = Release(kind=ReleaseKind.GRADIENT, mechanism=Mechanism.NONE, run="r", round=1)

    assert opacus_epsilon((), DELTA) == 0.0
    assert opacus_epsilon((head,), DELTA) == 0.0
    assert opacus_epsilon((head, make_release(5.0), open_), DELTA) == math.inf


def test_the_other_accountant_pays_the_slack_in_epsilon_and_in_delta() -> None:
    count = 300
    slack = count * DISCRETISATION_SLACK
    near = [make_sum_release(60.0, discrete=True, near_gaussian=True)] * count
    plain = [make_sum_release(60.0)] * count

    def spent(releases: list[Release], delta: float) -> float:
        return opacus_epsilon(tuple(releases), delta, unit=PrivacyUnit.USER)

    assert spent(near, DELTA) == pytest.approx(
        spent(plain, DELTA * math.exp(-slack)) + slack, abs=1e-12
    )
