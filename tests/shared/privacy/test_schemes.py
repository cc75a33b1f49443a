"""One object for each privacy unit; a seventh, sketched here, touches no other file."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from builders import make_noised_plan

from sottovoce.server.aggregation.private_sums import PrivateAggregator
from sottovoce.server.planning import noise_calibration, recipe
from sottovoce.shared.calibration.head_statistics import CalibrationRelease
from sottovoce.shared.errors import MessageError, SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.bounds import PrivacyBounds
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, SumMechanism
from sottovoce.shared.privacy.scheme import PlanFacts, PlanT, PrivacyScheme, SumKind, UnitWording
from sottovoce.shared.privacy.schemes import (
    find_scheme,
    register_scheme,
    scheme_for,
    scheme_of,
    unit_names,
    unregister_scheme,
)
from sottovoce.shared.privacy.schemes.user import UserScheme
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.results import schema
from sottovoce.simulations.results.privacy_record import build_privacy_record

RECIPE = recipe.default_recipe(unit="user")
BARE = noise_calibration.plan_without_noise(
    RECIPE, run="r", labels=("calm", "angry"), inputs=4, extractor="descriptors", rounds=3
)


class ReplacedUserScheme(UserScheme):
    """One user's data replaced by another's: two bounds apart, so that noise is twice as much."""

    unit: ClassVar[str] = "replaced-user"
    wording: ClassVar[UnitWording] = UnitWording(
        name="replaced user", short="one replaced user", protects="for one person, replaced"
    )

    def describes(self, plan: PlanFacts) -> bool:
        return plan.unit == self.unit

    def add_noise(self, plan: PlanT, target: PrivacyTarget, bounds: PrivacyBounds) -> PlanT:
        noised = super().add_noise(plan, target, bounds)
        assert noised.user is not None
        doubled = {
            name: replace(one, noise_multiplier=2 * one.noise_multiplier)
            for name in ("counts", "centre", "update", "calibration")
            if isinstance(one := getattr(noised.user, name), SumMechanism)
        }
        return replace(noised, unit=self.unit, user=replace(noised.user, **doubled))

    def statement(self, plan: PlanFacts, target: PrivacyTarget) -> str:
        return super().statement(plan, target).replace("added or removed", "replaced")


@pytest.fixture
def seventh() -> Iterator[ReplacedUserScheme]:
    scheme = ReplacedUserScheme()
    register_scheme(scheme)
    yield scheme
    unregister_scheme(scheme)


def _planned(unit: str) -> tuple[Plan, PrivacyTarget]:
    target = PrivacyTarget(unit=unit, epsilon=4.0, shares=RECIPE.shares)
    bounds = recipe.default_recipe(unit=unit).bounds
    return noise_calibration.add_noise(BARE, target, bounds), target


def test_a_seventh_unit_plans_travels_books_and_states(
    tmp_path: Path, seventh: ReplacedUserScheme
) -> None:
    plan, target = _planned("replaced-user")
    usual, _ = _planned("user")

    assert plan.scheme is seventh
    assert Plan.from_json(plan.to_json()).scheme is seventh
    spent = accounting.compute_epsilon(
        plan.all_releases(), target.user_delta, unit=PrivacyUnit.USER
    )
    assert spent < 0.6 * 4.0, "add or remove costs about half"
    assert "replaced" in plan.scheme.statement(plan, target)

    budgets = noise_calibration.server_budgets(target)
    server = PrivateAggregator(plan, tmp_path, budgets=budgets, seed=1)
    parts = [torch.zeros(20_000) for _ in range(4)]
    total = server.release_updates(1, parts, denominator=1.0)
    (booked,) = server.ledger.releases
    assert booked == plan.gradient_release(1)
    assert booked.user is not None
    assert usual.user is not None
    assert booked.user.noise_multiplier == 2 * usual.user.update.noise_multiplier
    assert float(total.std()) == pytest.approx(booked.user.noise_std, rel=0.03)


def test_a_seventh_unit_writes_and_reads_its_privacy_record(
    tmp_path: Path, seventh: ReplacedUserScheme
) -> None:
    plan, target = _planned("replaced-user")
    Ledger.create(tmp_path / "ada.jsonl", "ada")
    device = Ledger(tmp_path / "ada.jsonl")
    server = PrivateAggregator(
        plan, tmp_path, budgets=noise_calibration.server_budgets(target), seed=1
    )
    server.release_updates(1, [torch.zeros(20)], denominator=1.0)

    record = build_privacy_record(
        target, plan, {"fold-1": {"ada": device}}, {"fold-1": server.ledger}
    )
    schema.write_json(tmp_path / "privacy.json", record)

    assert schema.read_privacy(tmp_path)["unit"] == seventh.unit
    published = schema.build_schemas()["privacy"]["$defs"]["PrivacyRecord"]["properties"]
    assert published["unit"]["enum"] == list(unit_names())
    assert "replaced" in record["statement"]
    unregister_scheme(seventh)
    try:
        with pytest.raises(MessageError, match=r"unit: expected one of none, .* 'replaced-user'"):
            schema.read_privacy(tmp_path)
    finally:
        register_scheme(seventh)


def test_a_plan_of_a_unit_that_nobody_registered_is_refused(seventh: ReplacedUserScheme) -> None:
    text = _planned("replaced-user")[0].to_json()
    unregister_scheme(seventh)
    try:
        with pytest.raises(MessageError, match="replaced-user"):
            Plan.from_json(text)
    finally:
        register_scheme(seventh)
    with pytest.raises(SettingError, match="registered already"):
        register_scheme(ReplacedUserScheme())


def test_a_scheme_that_leaves_something_out_cannot_be_made() -> None:
    class Careless(PrivacyScheme):
        """Names itself and nothing else."""

        unit: ClassVar[str] = "careless"

    with pytest.raises(TypeError, match="abstract"):
        Careless()  # type: ignore[abstract]


@pytest.mark.parametrize("unit", unit_names())
def test_every_unit_describes_its_own_plans(unit: str) -> None:
    plan, _ = _planned(unit)
    assert scheme_of(plan).unit == unit
    assert '"unit"' not in plan.to_json(), "plans of these units travel as they always did"


EVERY = [("none", False), ("utterance", False), ("utterance", True), ("user", False),
         ("user", True), ("both", False), ("both", True)]  # fmt: skip


@pytest.mark.parametrize(("unit", "secure"), EVERY)
def test_only_users_in_open_sums_take_turns(unit: str, secure: bool) -> None:
    bounds = recipe.default_recipe(unit=unit, secure=secure).bounds
    scheme = scheme_for(unit, secure=secure)
    scheme.check_bounds(bounds)
    grouped = replace(bounds, user=replace(bounds.user, min_separation=2))
    if (unit, secure) == ("user", False):
        scheme.check_bounds(grouped)
        return
    with pytest.raises(SettingError, match=f"unit '{unit}', secure {secure}; .* need unit 'user'"):
        scheme.check_bounds(grouped)


def test_units_have_the_words_that_pages_show() -> None:
    words = {
        one: (scheme.wording.name, scheme.wording.short, scheme.wording.protects)
        for one in EVERY
        for scheme in [scheme_for(one[0], secure=one[1])]
    }
    assert words["utterance", False] == ("utterance", "one utterance", "for one utterance")
    assert words["user", False] == ("user", "one user", "for one person")
    assert words["both", False][:2] == ("utterance and user", "both")
    assert all(all(one) for one in words.values())


def test_secure_sums_go_with_every_promise() -> None:
    assert scheme_for("user", secure=True).noise_source is NoiseSource.DISTRIBUTED
    assert scheme_for("utterance", secure=True).noise_source is None, "no user is hidden"
    assert scheme_for("both", secure=True).noise_source is NoiseSource.DISTRIBUTED
    with pytest.raises(SettingError, match="unit must be 'utterance' or 'user' or 'both'"):
        scheme_for("none", secure=True)
    with pytest.raises(SettingError, match="must be one of none, utterance, user, both"):
        scheme_for("everything")
    assert find_scheme("everything") is None


@pytest.mark.parametrize("value", [0.0, 1e30, math.inf, math.nan])
def test_what_a_user_adds_stays_within_the_bound_whatever_came_in(value: float) -> None:
    plan, _ = _planned("user")
    assert plan.user is not None
    update = plan.scheme.clip_update(plan, torch.full((50,), value), 1.0)
    counts = plan.scheme.clip_counts(plan, torch.full((2,), value, dtype=torch.float64))
    part = plan.scheme.clip_part(plan, SumKind.UPDATE, torch.full((50,), value), None)

    assert float(update.norm()) <= plan.user.update.clip_norm * (1 + 1e-6)
    assert float(counts.norm()) <= plan.user.counts.clip_norm * (1 + 1e-6)
    assert float(part.norm()) <= plan.user.update.clip_norm * (1 + 1e-6)


def test_a_user_without_clips_adds_zeros() -> None:
    plan, _ = _planned("user")
    rows = torch.zeros(0, 9, dtype=torch.float64)
    assert not plan.scheme.clip_statistics(plan, rows).any()
    assert not len(plan.scheme.device_rows(torch.zeros(0, 4)))


def test_what_a_plan_does_not_ask_for_has_no_noise() -> None:
    plan = make_noised_plan(
        calibration=CalibrationRelease(noise_multiplier=2.0, subtracted_share=0.5)
    )
    bare = replace(plan, centre=None, normaliser=None, calibration=None)

    for kind in (SumKind.CENTRE, SumKind.HEAD_STATISTICS):
        assert plan.scheme.device_noise(plan, kind) > 0
        assert bare.scheme.device_noise(bare, kind) == 0
