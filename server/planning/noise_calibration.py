"""Noise calibration: from an epsilon to the noise of every release.

``simulations.results.privacy_record`` goes the way back.
"""

import math
from dataclasses import replace
from functools import partial

from sottovoce.shared.calibration.head_statistics import STATISTICS_SIZE, CalibrationRelease
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.parameters import count_parameters
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, SumMechanism
from sottovoce.shared.privacy.user_level import AdaptiveClipping, SecureSumConfigs, UserLevelPrivacy
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining, NoPrivacy
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
from sottovoce.shared.speaker.normalisation import (
    EXACT_CENTRE,
    EXACT_MEAN,
    CentreRelease,
    NormaliserRelease,
)
from sottovoce.simulations.scenario.scenario import Scenario


def plan_without_noise(
    scenario: Scenario, *, run: str, labels: tuple[str, ...], inputs: int
) -> Plan:
    """Make a plan without noise; :func:`add_noise` makes a private one of it."""
    recipe = scenario.recipe
    frames = recipe.model not in ("linear", "mlp") or recipe.pooling != "none"
    centred = recipe.centre and not (frames and recipe.model not in ("linear", "mlp"))
    return Plan(
        run=run,
        labels=labels,
        extractor=scenario.encoder,
        projection_hash="",
        model=ModelSpec(
            kind=recipe.model,
            pooling=recipe.pooling,
            inputs=inputs,
            classes=len(labels),
            hidden=recipe.hidden,
            dropout=recipe.dropout,
            bias_feature=recipe.bias_feature,
        ),
        rounds=scenario.rounds,
        training=LocalTraining(
            steps=recipe.steps,
            sample_rate=recipe.sample_rate,
            learning_rate=recipe.learning_rate,
            denominator=1.0,
            momentum=recipe.momentum,
            label_smoothing=recipe.label_smoothing,
            loss=recipe.loss,
        ),
        mechanism=NoPrivacy(),
        centre=EXACT_CENTRE if centred else None,
        normaliser=EXACT_MEAN if centred and scenario.enrolment == "all" else None,
        count_noise=0.0,
        calibration=_calibration_release(scenario),
    )


def _calibration_release(scenario: Scenario) -> CalibrationRelease | None:
    """Release of head statistics, without noise; None where devices are not asked for any."""
    recipe = scenario.recipe
    if not recipe.calibration_share or scenario.population:  # nobody of it is asked again
        return None
    return CalibrationRelease(
        noise_multiplier=0.0, subtracted_share=recipe.calibration_subtracted_share
    )


def add_noise(plan: Plan, scenario: Scenario) -> Plan:
    """Add noise to a plan for every unit that the scenario hides.

    Raises:
        SettingError: The budget is too small for these releases.
    """
    if scenario.hides_utterances:
        plan = _add_utterance_noise(plan, scenario)
    return _add_user_noise(plan, scenario) if scenario.hides_users else plan


def _add_user_noise(plan: Plan, scenario: Scenario) -> Plan:
    """Add noise to every sum over users, such that they stay within epsilon.

    Label counts, centre and head statistics get fixed shares of the budget (in squared Gaussian
    mu), the updates what is left, found by bisection on the safe side.
    """
    settings = scenario.recipe.user
    noised_by = NoiseSource.DEVICES if plan.utterance_level else NoiseSource.SERVER
    squared = accountant.gaussian_mu(scenario.epsilon, scenario.user_delta) ** 2

    def hidden(norm: float, multiplier: float) -> SumMechanism:
        return SumMechanism(
            noise_multiplier=multiplier,
            clip_norm=norm,
            noised_by=noised_by,
            discrete=scenario.secure,
            near_gaussian=scenario.secure,
        )

    counts_share, centre_share = _enrolment_shares(scenario)
    adaptive = None
    if settings.adaptive:
        adaptive = AdaptiveClipping(start=settings.update_norm, quantile=settings.quantile)

    def shared(norm: float, share: float) -> SumMechanism:
        return hidden(norm, 1 / math.sqrt(share * squared))

    calibration = None
    if plan.calibration:
        calibration = shared(settings.calibration_norm, scenario.recipe.calibration_share)

    def with_noise(multiplier: float) -> Plan:
        user = UserLevelPrivacy(
            counts=shared(settings.counts_norm, counts_share),
            centre=shared(settings.centre_norm, centre_share) if plan.centre else None,
            calibration=calibration,
            update=replace(
                hidden(adaptive.norm_bound if adaptive else settings.update_norm, multiplier),
                sample_rate=settings.user_sampling_rate,
                bands=settings.banded_noise,
            ),
            adaptive=adaptive,
        )
        return replace(plan, user=user)

    multiplier = accountant.calibrate_noise_multiplier(
        lambda trial: with_noise(trial).all_releases(),
        scenario.epsilon,
        scenario.user_delta,
        unit=PrivacyUnit.USER,
    )
    return with_noise(multiplier)


def _enrolment_shares(scenario: Scenario) -> tuple[float, float]:
    """Budget shares of label counts and centre; equal where one secure sum brings both."""
    settings = scenario.recipe.user
    if not scenario.secure:
        return settings.counts_share, settings.centre_share
    even = (settings.counts_share + settings.centre_share) / 2
    return even, even


def add_secure_aggregation(plan: Plan, scenario: Scenario, *, devices: int) -> Plan:
    """Make a plan's sums over users secure, by shares of the noise.

    Args:
        plan: As :func:`add_noise` gives it.
        scenario: Where it does not ask for secure sums, the plan stays as it is.
        devices: How many take part in a sum.

    Raises:
        SettingError: Too few devices for the dropout and corruption that sums must bear.
    """
    user, settings = plan.user, scenario.recipe.user
    if not scenario.secure or user is None:
        return plan
    parts = 2 if user.centre else 1
    inputs = plan.model.inputs if user.centre else 0
    make = partial(
        select_parameters, devices, dropout=settings.dropout, corruption=settings.corruption
    )
    secure = SecureSumConfigs(
        enrolment=make(
            len(plan.labels) + inputs,
            math.sqrt(parts),
            noise_multiplier=user.counts.noise_multiplier / math.sqrt(parts),
        ),
        update=make(
            count_parameters(build_network(plan.model, 0)) + plan.extra_coordinates,
            user.update.clip_norm,
            noise_multiplier=user.update.noise_multiplier,
        ),
        dishonest=math.ceil(devices * settings.corruption - 1e-9),
        calibration=make(
            STATISTICS_SIZE,
            user.calibration.clip_norm,
            noise_multiplier=user.calibration.noise_multiplier,
        )
        if user.calibration
        else None,
    )
    by_shares = {
        name: replace(noise, noised_by=NoiseSource.DISTRIBUTED)
        for name in ("counts", "centre", "update", "calibration")
        if (noise := getattr(user, name))
    }
    return replace(plan, user=replace(user, secure=secure, **by_shares))


def _add_utterance_noise(plan: Plan, scenario: Scenario) -> Plan:
    """Add noise to all that leaves a device, such that its whole life stays within epsilon.

    Centre, normaliser and head statistics get fixed shares of the budget (in squared Gaussian mu),
    label counts a fixed noise; the gradients get what is left, found by bisection on the safe side.

    Raises:
        SettingError: The budget is too small for these releases.
    """
    recipe = scenario.recipe
    precision = accountant.gaussian_mu(scenario.epsilon, scenario.delta) ** 2
    left = precision - 1 / recipe.count_noise**2
    behind = left * (1 - recipe.centre_share) if plan.centre else left
    if left <= 0:
        raise SettingError(
            f"epsilon {scenario.epsilon} at delta {scenario.delta} is too small: label counts with "
            f"noise {recipe.count_noise} spend it already; raise epsilon or recipe.count_noise"
        )
    centre, normaliser, calibration = plan.centre, plan.normaliser, plan.calibration
    if calibration:
        noise = 1 / math.sqrt(recipe.calibration_share * left)
        calibration = replace(calibration, noise_multiplier=noise)
    if centre:
        noise = 1 / math.sqrt(recipe.centre_share * left)
        centre = CentreRelease(clip_norm=recipe.centre_radius, noise_multiplier=noise)
    if normaliser:
        noise = 1 / math.sqrt(recipe.normaliser_share * behind)
        normaliser = NormaliserRelease(
            clip_norm=recipe.normaliser_radius,
            count_weight=recipe.normaliser_count * recipe.normaliser_radius,
            noise_multiplier=noise,
        )

    def with_noise(multiplier: float) -> Plan:
        mechanism = ExampleLevelMechanism(
            clip_norm=recipe.clip_norm,
            noise_multiplier=multiplier,
            sum_norm=recipe.user.update_norm if scenario.hides_users else None,
        )
        return replace(
            plan,
            mechanism=mechanism,
            centre=centre,
            normaliser=normaliser,
            count_noise=recipe.count_noise,
            calibration=calibration,
        )

    multiplier = accountant.calibrate_noise_multiplier(
        lambda trial: with_noise(trial).all_releases(), scenario.epsilon, scenario.delta
    )
    return with_noise(multiplier)


def check_budget(scenario: Scenario) -> None:
    """Refuse a budget that cannot pay for the run, before anything is computed.

    What releases cost depends neither on the labels nor on the width of the model.

    Raises:
        SettingError: The budget is too small.
    """
    if scenario.is_private:
        add_noise(plan_without_noise(scenario, run="", labels=("one", "other"), inputs=1), scenario)


def device_budgets(scenario: Scenario) -> tuple[PrivacyBudget, ...]:
    """Budgets of a simulated device; none at all allows unprotected releases."""
    return tuple(
        budget for budget in (_utterance_budget(scenario), user_budget(scenario)) if budget
    )


def _utterance_budget(scenario: Scenario) -> PrivacyBudget | None:
    """Budget that one utterance is promised."""
    if not scenario.hides_utterances:
        return None
    return PrivacyBudget(epsilon=scenario.epsilon, delta=scenario.delta)


def server_budgets(scenario: Scenario) -> tuple[PrivacyBudget, ...]:
    """Budgets of a simulated server's sums, for one user; none at all lets all pass."""
    budget = user_budget(scenario)
    return (budget,) if budget else ()


def user_budget(scenario: Scenario) -> PrivacyBudget | None:
    """Budget that one user is promised."""
    if not scenario.hides_users:
        return None
    return PrivacyBudget(epsilon=scenario.epsilon, delta=scenario.user_delta, unit=PrivacyUnit.USER)
