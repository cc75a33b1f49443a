"""From an epsilon to the noise of every release; ``statement`` goes the way back."""

import math
from dataclasses import replace

from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.normaliser import (
    EXACT_CENTRE,
    EXACT_MEAN,
    CentreRelease,
    NormaliserRelease,
)
from sottovoce.shared.plan import Plan, UserPromise
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import Budget
from sottovoce.shared.privacy.release import NoisedBy, Unit, UserNoise
from sottovoce.shared.training import LocalTraining, NoPrivacy, UtteranceNoise
from sottovoce.simulations.scenario import Scenario


def open_plan(scenario: Scenario, *, run: str, labels: tuple[str, ...], inputs: int) -> Plan:
    """A plan without noise; ``noised`` makes a private one of it."""
    recipe = scenario.recipe
    frames = recipe.model not in ("linear", "mlp") or recipe.pooling != "none"
    centred = recipe.centre and not (frames and recipe.model not in ("linear", "mlp"))
    return Plan(
        run=run,
        labels=labels,
        extractor=scenario.encoder,
        front="",
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
        ),
        mechanism=NoPrivacy(),
        centre=EXACT_CENTRE if centred else None,
        normaliser=EXACT_MEAN if centred and scenario.enrolment == "all" else None,
        count_noise=0.0,
    )


def noised(plan: Plan, scenario: Scenario) -> Plan:
    """The plan with noise for every unit that the scenario hides.

    Raises:
        SettingError: The budget is too small for these releases.
    """
    if scenario.hides_utterances:
        plan = _hiding_utterances(plan, scenario)
    return _hiding_users(plan, scenario) if scenario.hides_users else plan


def _hiding_users(plan: Plan, scenario: Scenario) -> Plan:
    """The plan with noise on every sum over users, such that they stay within epsilon.

    Label counts and centre get fixed shares of the budget (in squared Gaussian mu), the updates
    what is left, found by bisection on the safe side.
    """
    settings = scenario.recipe.user
    noised_by = NoisedBy.DEVICES if plan.private else NoisedBy.SERVER
    squared = accountant.gaussian_mu(scenario.epsilon, scenario.user_delta) ** 2

    def hidden(norm: float, multiplier: float) -> UserNoise:
        return UserNoise(noise_multiplier=multiplier, clip_norm=norm, noised_by=noised_by)

    def shared(norm: float, share: float) -> UserNoise:
        return hidden(norm, 1 / math.sqrt(share * squared))

    def with_noise(multiplier: float) -> Plan:
        centre = shared(settings.centre_norm, settings.centre_share) if plan.centre else None
        user = UserPromise(
            counts=shared(settings.counts_norm, settings.counts_share),
            centre=centre,
            update=hidden(settings.update_norm, multiplier),
        )
        return replace(plan, user=user)

    multiplier = accountant.calibrate(
        lambda trial: with_noise(trial).releases(),
        scenario.epsilon,
        scenario.user_delta,
        unit=Unit.USER,
    )
    return with_noise(multiplier)


def _hiding_utterances(plan: Plan, scenario: Scenario) -> Plan:
    """The plan with noise on all that leaves a device, such that its life stays within epsilon.

    Centre and normaliser get fixed shares of the budget (in squared Gaussian mu), label counts a
    fixed noise; the gradients get what is left, found by bisection on the safe side.

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
    centre, normaliser = plan.centre, plan.normaliser
    if centre:
        noise = 1 / math.sqrt(recipe.centre_share * left)
        centre = CentreRelease(radius=recipe.centre_radius, noise_multiplier=noise)
    if normaliser:
        noise = 1 / math.sqrt(recipe.normaliser_share * behind)
        normaliser = NormaliserRelease(
            radius=recipe.normaliser_radius,
            count_weight=recipe.normaliser_count * recipe.normaliser_radius,
            noise_multiplier=noise,
        )

    def with_noise(multiplier: float) -> Plan:
        mechanism = UtteranceNoise(
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
        )

    multiplier = accountant.calibrate(
        lambda trial: with_noise(trial).releases(), scenario.epsilon, scenario.delta
    )
    return with_noise(multiplier)


def check_budget(scenario: Scenario) -> None:
    """Refuse a budget that cannot pay for the run, before anything is computed.

    What releases cost depends neither on the labels nor on the width of the model.

    Raises:
        SettingError: The budget is too small.
    """
    if scenario.private:
        noised(open_plan(scenario, run="", labels=("one", "other"), inputs=1), scenario)


def budgets(scenario: Scenario) -> tuple[Budget, ...]:
    """What a simulated device may spend; none at all allows unprotected releases."""
    return tuple(
        budget for budget in (_utterance_budget(scenario), user_budget(scenario)) if budget
    )


def _utterance_budget(scenario: Scenario) -> Budget | None:
    """What one utterance is promised."""
    if not scenario.hides_utterances:
        return None
    return Budget(epsilon=scenario.epsilon, delta=scenario.delta)


def user_budget(scenario: Scenario) -> Budget | None:
    """What one user is promised."""
    if not scenario.hides_users:
        return None
    return Budget(epsilon=scenario.epsilon, delta=scenario.user_delta, unit=Unit.USER)
