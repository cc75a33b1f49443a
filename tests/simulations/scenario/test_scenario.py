"""Scenarios: settled from public facts, whole on the disk, refused where they make no sense."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from sottovoce.server.planning import noise_calibration
from sottovoce.server.planning.recipe import (
    END_TO_END_ROUNDS,
    FROZEN_ENCODER_MODELS,
    NON_PRIVATE_ROUNDS,
    UTTERANCE_ROUNDS,
)
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.losses import Loss
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.release import PrivacyUnit
from sottovoce.shared.privacy.target import MAX_EPSILON
from sottovoce.shared.protocol.local_training import Curriculum
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.data import run_plan
from sottovoce.simulations.runs import run_folder
from sottovoce.simulations.scenario.file_settings import ScenarioSettings
from sottovoce.simulations.scenario.loading import (
    RENAMED_SETTINGS,
    load_scenario,
    parse_scenario,
    vary_scenario,
)
from sottovoce.simulations.scenario.population import PopulationSettings
from sottovoce.simulations.scenario.scenario import Scenario, settle_scenario


def _settled(*, model: str | None = None, **settings: object) -> Scenario:
    return vary_scenario(None, {"corpus": "synthetic"} | settings, model=model)


def _plan(scenario: Scenario, *, devices: int = 20) -> Plan:
    """The scenario's plan, with all the noise that it promises."""
    how, bounds = scenario.plan_settings, scenario.recipe.bounds
    plan = run_plan.plan_without_noise(how, run="r", labels=("one", "other"), inputs=4)
    plan = noise_calibration.add_noise(plan, scenario.privacy, bounds)
    return noise_calibration.add_secure_aggregation(plan, scenario.privacy, bounds, devices=devices)


def _check_budget(scenario: Scenario) -> None:
    run_plan.check_budget(scenario.plan_settings, scenario.privacy)


@pytest.mark.parametrize("model", [None, "linear", "mlp", "cnn-attention", "tcn"])
@pytest.mark.parametrize("unit", ["utterance", "none"])
def test_a_settled_scenario_reads_back_as_itself(unit: str, model: str | None) -> None:
    public = (("ravdess", "a b/ü"), ("synthetic", "seed=9"))
    scenario = _settled(unit=unit, public=public, model=model)

    assert parse_scenario(scenario.to_toml(), source="x") == scenario
    assert settle_scenario(scenario.to_settings()) == scenario


@pytest.mark.parametrize(("name", "run"), [("demo", "f5b12e08b6b4628d"), ("population", "fc42")])
def test_a_scenario_names_its_run_as_it_always_did(name: str, run: str) -> None:
    """Folders of earlier runs resume, and their files load, however scenarios are composed."""
    scenario = load_scenario(name)

    assert run_folder.name_run(scenario).startswith(run)
    assert parse_scenario(scenario.to_toml(), source="x") == scenario


def test_a_scenario_whose_parts_disagree_cannot_be_made() -> None:
    usual = _settled()
    shares = replace(usual.recipe.shares, centre=0.1)
    with pytest.raises(SettingError, match="must be the same"):
        replace(usual, recipe=replace(usual.recipe, shares=shares))


def test_what_is_left_out_is_settled_by_unit_and_model() -> None:
    private, plain = _settled(), _settled(unit="none")
    assert (private.run.rounds, plain.run.rounds) == (UTTERANCE_ROUNDS, NON_PRIVATE_ROUNDS)
    assert private.recipe.model in FROZEN_ENCODER_MODELS
    assert private.data.encoder == plain.data.encoder == "whisper-tiny-en"

    whole = _settled(model="tcn")
    assert (whole.recipe.model, whole.data.encoder, whole.run.rounds) == (
        "tcn",
        "log-mel",
        END_TO_END_ROUNDS,
    )


def test_what_is_given_stays() -> None:
    scenario = _settled(rounds=3, encoder="descriptors")
    assert (scenario.run.rounds, scenario.data.encoder) == (3, "descriptors")


def test_a_recipe_in_a_file_overrides_only_what_it_names() -> None:
    usual = _settled()
    changed = parse_scenario(
        'corpus = "synthetic"\n[recipe]\nclip_norm = 1\n[recipe.projection]\ndims = 32', source="x"
    )

    projection = replace(usual.recipe.projection, dims=32)
    recipe = replace(usual.recipe, clip_norm=1.0, projection=projection)
    assert changed == replace(usual, recipe=recipe)
    assert isinstance(changed.recipe.clip_norm, float)


def test_another_loss_is_a_table_of_its_own() -> None:
    usual = _settled()
    text = 'corpus = "synthetic"\n[recipe.loss]\nkind = "focal"\ngamma = 1\n'
    changed = parse_scenario(text, source="x")

    assert changed.recipe == replace(usual.recipe, loss=Loss(kind="focal", gamma=1.0))
    assert parse_scenario(changed.to_toml(), source="x") == changed
    assert "loss" not in usual.to_toml(), "the names of runs, and their draws, come from this text"
    with pytest.raises(SettingError, match="couples the utterances"):
        parse_scenario(text.replace("focal", "mmce"), source="x")
    open_ = 'corpus = "synthetic"\nunit = "none"\n[recipe.loss]\nkind = "brier"\n'
    with pytest.raises(SettingError, match="set label_smoothing to 0"):
        parse_scenario(open_, source="x")


def test_soft_targets_are_a_setting_of_the_recipe() -> None:
    usual = _settled()
    text = 'corpus = "synthetic"\n[recipe]\ntargets = "soft"\n'
    changed = parse_scenario(text, source="x")

    assert changed.recipe == replace(usual.recipe, targets="soft")
    assert parse_scenario(changed.to_toml(), source="x") == changed
    assert "targets" not in usual.to_toml(), "the names of runs, and their draws, come from it"
    with pytest.raises(SettingError, match="majority, soft"):
        parse_scenario(text.replace("soft", "votes"), source="x")


def test_a_curriculum_is_a_table_of_its_own() -> None:
    usual = _settled()
    text = 'corpus = "synthetic"\n[recipe.curriculum]\nkind = "agreement"\nstrength = 1\n'
    changed = parse_scenario(text, source="x")

    curriculum = Curriculum(kind="agreement", strength=1.0)
    assert changed.recipe == replace(usual.recipe, curriculum=curriculum)
    assert parse_scenario(changed.to_toml(), source="x") == changed
    assert "curriculum" not in usual.to_toml()
    focal = parse_scenario('corpus = "synthetic"\n[recipe.loss]\nkind = "focal"\n', source="x")
    assert "coordinates" not in focal.to_toml()


def test_scenarios_come_along_by_name_or_from_a_file(tmp_path: Path) -> None:
    demo = load_scenario("demo")
    assert (demo.data.corpus, demo.privacy.unit) == ("synthetic", "utterance")

    (tmp_path / "mine.toml").write_text(demo.to_toml())
    assert load_scenario(str(tmp_path / "mine.toml")) == demo


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"epsilon": math.inf}, "epsilon is inf"),
        ({"epsilon": 2 * MAX_EPSILON}, "promises nothing"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"delta": 1.0}, "delta is 1.0"),
        ({"delta": math.nan}, "delta is nan"),
        ({"user_delta": 0.0}, "user_delta is 0.0"),
        ({"unit": "none", "secure": True}, "unit 'none'"),
        ({"tuning_runs": 0}, "tuning_runs is 0"),
        ({"unit": "family"}, "unit is 'family'"),
        ({"engine": "steam"}, "engine is 'steam'"),
        ({"enrolment": "neutral:0"}, "neutral:0"),
        ({"enrolment": "neutral:-1"}, "neutral:-1"),
        ({"enrolment": "neutral:"}, "neutral:"),
        ({"enrolment": ""}, "enrolment is ''"),
        ({"rounds": -1}, "rounds is -1"),
        ({"labelled_clips_per_user": -1}, "labelled_clips_per_user is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"baselines": ("magic",)}, "'magic'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words.replace("(", "\\(")):
        _settled(**settings)


@pytest.mark.parametrize(
    ("own", "public"), [("a", "a"), ("a", "a/"), ("a", "b/../a"), ("a/manifest.csv", "a")]
)
def test_one_folder_is_not_both_public_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, public: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(SettingError, match="users' corpus"):
        _settled(corpus="folder", data=own, public=(("cremad", public),))

    _settled(corpus="folder", data=own, public=(("cremad", "b"),))  # another folder may


def test_a_link_to_the_users_folder_is_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "users").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "users")

    with pytest.raises(SettingError, match="users' corpus"):
        _settled(
            corpus="folder",
            data=str(tmp_path / "users"),
            public=(("folder", str(tmp_path / "link")),),
        )


def test_enrolment_names_its_clips() -> None:
    assert _settled(enrolment="neutral:5").data.enrolment.neutral_clips == 5
    assert _settled(enrolment="all").data.enrolment.neutral_clips is None
    assert _settled(enrolment="none").data.enrolment.neutral_clips is None


# --- budgets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-9, 1e-3, 0.1])
def test_a_budget_too_small_for_one_round_is_refused_before_any_work(epsilon: float) -> None:
    with pytest.raises(SettingError, match=r"too small.*raise epsilon"):
        _check_budget(_settled(epsilon=epsilon, rounds=1))


@pytest.mark.parametrize("model", ["linear", "cnn-attention"])
@pytest.mark.parametrize("enrolment", ["all", "none"])
def test_a_plan_never_costs_more_than_its_budget_and_hardly_less(
    model: str, enrolment: str
) -> None:
    scenario = _settled(rounds=2, epsilon=2.0, enrolment=enrolment, model=model)
    plan = _plan(scenario)
    (budget,) = noise_calibration.device_budgets(scenario.privacy, plan)
    spent = budget.filter.compute_epsilon(plan.all_releases(), scenario.privacy.delta)

    assert 0.99 * 2.0 < spent <= 2.0


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
@pytest.mark.parametrize("model", [None, "tcn"])
def test_utterances_in_secure_sums_get_what_they_are_promised(
    epsilon: float, model: str | None
) -> None:
    scenario = _settled(secure=True, epsilon=epsilon, model=model)
    plan = _plan(scenario)
    (budget,) = noise_calibration.device_budgets(scenario.privacy, plan)

    assert plan.scheme.secure
    assert plan.training.steps == 1
    spent = budget.filter.compute_epsilon(plan.all_releases(), scenario.privacy.delta)
    assert 0.99 * epsilon < spent <= epsilon
    _check_budget(scenario)
    with pytest.raises(SettingError, match="steps is 2"):
        _check_budget(replace(scenario, recipe=replace(scenario.recipe, steps=2)))


def test_secure_sums_bring_their_recipe() -> None:
    base = _settled(rounds=3)
    secure = vary_scenario(base, {"secure": True})

    assert base.recipe.calibration_subtracted_share == 0.5
    assert secure.recipe.calibration_subtracted_share == 0
    user = _settled(unit="user", rounds=3)
    kept = replace(user, recipe=replace(user.recipe, clip_norm=0.25))
    assert vary_scenario(kept, {"secure": True}).recipe == kept.recipe, "the same for both"


@pytest.mark.parametrize("secure", [True, False])
@pytest.mark.parametrize("enrolment", ["all", "none"])
@pytest.mark.parametrize("unit", ["user", "both"])
def test_a_plan_keeps_its_promise_to_users_and_wastes_hardly_any_of_it(
    unit: str, enrolment: str, secure: bool
) -> None:
    scenario = _settled(unit=unit, rounds=2, epsilon=2.0, enrolment=enrolment, secure=secure)
    plan = _plan(scenario, devices=20)

    assert plan.scheme.unit == unit
    for budget in noise_calibration.device_budgets(scenario.privacy):
        spent = accounting.compute_epsilon(plan.all_releases(), budget.delta, unit=budget.unit)
        # Noise that hides a user hides an utterance better; what is left goes to the normaliser.
        used = secure and plan.normaliser is None and budget.unit is PrivacyUnit.UTTERANCE
        assert (0.2 if used else 0.98) * 2.0 < spent <= 2.0
    assert plan.user is not None
    assert (plan.user.secure is not None) == secure


@pytest.mark.parametrize(("bands", "min_separation", "rounds"), [(1, 3, 6), (3, 3, 7), (2, 4, 4)])
def test_users_in_participation_groups_are_promised_as_much(
    bands: int, min_separation: int, rounds: int
) -> None:
    usual = _settled(unit="user", rounds=rounds, epsilon=4.0)
    user = replace(usual.recipe.user, bands=bands, min_separation=min_separation)
    scenario = replace(usual, recipe=replace(usual.recipe, user=user))
    plan, everybody = _plan(scenario), _plan(usual)

    spent = accounting.compute_epsilon(
        plan.all_releases(), scenario.privacy.user_delta, unit=PrivacyUnit.USER
    )
    assert 0.99 * 4.0 < spent <= 4.0
    assert plan.user is not None
    banded_noise = plan.user.update.bands
    assert banded_noise is not None
    assert (banded_noise.band_count, banded_noise.min_separation) == (bands, min_separation)
    assert everybody.user is not None
    share = math.sqrt(
        banded_noise.max_participations(rounds) / rounds
    )  # fewer rounds of one user, less noise
    assert plan.user.update.noise_multiplier == pytest.approx(
        everybody.user.update.noise_multiplier * share, rel=2e-3
    )


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ({"min_separation": 2, "bands": 3}, {}, "bands is 3 and min_separation 2"),
        ({"bands": 2}, {}, "min_separation must be a whole number and at least bands"),
        ({"min_separation": 0}, {}, "min_separation is 0"),
        ({"bands": 0}, {}, "bands is 0"),
        ({"min_separation": 2, "user_sampling_rate": 0.5}, {}, "not sampled"),
        ({"min_separation": 2, "adaptive": True}, {}, "fixed clip norm"),
        ({"min_separation": 2}, {"secure": True}, "without secure sums"),
        ({"min_separation": 2}, {"unit": "both"}, "need unit 'user'"),
        ({"min_separation": 2}, {"unit": "utterance"}, "need unit 'user'"),
    ],
)
def test_participation_groups_go_with_users_alone(
    recipe: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    usual = _settled(unit="user")

    def asked() -> Scenario:
        user = replace(usual.recipe.user, **recipe)
        changed = replace(usual, recipe=replace(usual.recipe, user=user))
        return replace(changed, privacy=replace(changed.privacy, **changes))

    with pytest.raises(SettingError, match=message):
        asked()


def test_more_participation_groups_than_rounds_are_refused_before_anything_is_computed() -> None:
    usual = _settled(unit="user", rounds=5)
    user = replace(usual.recipe.user, min_separation=6)
    with pytest.raises(SettingError, match="never train"):
        _check_budget(replace(usual, recipe=replace(usual.recipe, user=user)))


def test_sums_too_small_to_be_secure_are_refused() -> None:
    with pytest.raises(SettingError, match="3 devices"):
        _plan(_settled(unit="user", secure=True), devices=3)


def test_without_a_promise_there_is_no_budget_to_check() -> None:
    _check_budget(_settled(unit="none"))
    assert noise_calibration.device_budgets(_settled(unit="none").privacy) == ()


# --- settings that are called otherwise now ---------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tuned_over = 2", "tuned_over is called tuning_runs now"),
        ("[recipe.front]\ndims = 4", "front is called projection now"),
        ("[recipe.projection]\nlength = 1.0", "length is called row_norm now"),
        ("[recipe.user]\nspacing = 2", "spacing is called min_separation now"),
        ("[population]\nhours = 3.0", "hours is called available_hours_per_day now"),
    ],
)
def test_a_setting_of_an_earlier_release_is_refused_with_its_new_name(
    text: str, words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        parse_scenario(f'corpus = "synthetic"\n{text}\n', source="x")


def test_every_renamed_setting_names_one_that_there_is() -> None:
    recipe = _settled().recipe
    tables: dict[str, Any] = {
        "scenario": ScenarioSettings,
        "population": PopulationSettings,
        "recipe": recipe,
        "recipe.projection": recipe.projection,
        "recipe.aggregation": recipe.aggregation,
        "recipe.user": recipe.user,
    }

    assert RENAMED_SETTINGS.keys() == tables.keys()
    shares = {f"recipe.shares.{entry.name}" for entry in fields(recipe.shares)}  # moved there
    for where, names in RENAMED_SETTINGS.items():
        known = {entry.name for entry in fields(tables[where])}
        assert set(names.values()) <= known | shares
        assert not set(names) & known, where
