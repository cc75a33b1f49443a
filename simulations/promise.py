"""From an epsilon to the noise of every release, and from ledgers back to privacy.json."""

import math
from collections.abc import Mapping
from dataclasses import replace

from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.normaliser import (
    EXACT_CENTRE,
    EXACT_MEAN,
    CentreRelease,
    NormaliserRelease,
)
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import Budget, Ledger
from sottovoce.shared.privacy.release import Kind, Release, Unit
from sottovoce.shared.training import LocalTraining, NoPrivacy, UtteranceNoise
from sottovoce.simulations.runfile import Json
from sottovoce.simulations.scenario import Scenario

ASSUMPTIONS = (
    "Each device runs this code unchanged and its ledger covers its whole life.",
    (
        "In this simulation noise comes from a seed so that the run can be repeated; devices draw "
        "it from the operating system."
    ),
    "Public corpora hold no utterance of any user.",
    "Choosing settings by looking at results would cost more; it is not counted here.",
    "Each fold is a world of its own: a real device would live through one of them.",
)
NOT_PROTECTED = (
    "That a user takes part, and when.",
    "What all of a user's utterances have in common: the promise is for one utterance at a time.",
    "What is true of the whole population, whoever takes part.",
    "What the user's own screen shows, and the device itself.",
)


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
    """The plan with noise on every release, such that a device's life stays within epsilon.

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
        mechanism = UtteranceNoise(clip_norm=recipe.clip_norm, noise_multiplier=multiplier)
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
    if not scenario.private:
        return ()
    return (Budget(epsilon=scenario.epsilon, delta=scenario.delta),)


def privacy_file(
    scenario: Scenario, plan: Plan, worlds: Mapping[str, Mapping[str, Ledger]]
) -> Json:
    """Content of privacy.json.

    Args:
        scenario: The settled scenario.
        plan: A plan of the run, for its clip and noise.
        worlds: For every fold, every contributing user's ledger.
    """
    private = scenario.private
    return {
        "schema": 1,
        "unit": scenario.unit,
        "epsilon": scenario.epsilon if private else None,
        "delta": scenario.delta if private else None,
        "neighbouring": accountant.NEIGHBOURING[Unit.UTTERANCE],
        "sampling": _sampling(plan),
        "accountant": accountant.NAME,
        "noise_multiplier": plan.mechanism.noise_multiplier if private else None,
        "clip_norm": plan.mechanism.clip_norm if private else None,
        "statement": _statement(scenario, plan),
        "assumptions": list(ASSUMPTIONS),
        "not_protected": list(NOT_PROTECTED),
        "worlds": [
            {
                "name": name,
                "clients": {
                    user: _account(ledger, scenario) for user, ledger in sorted(ledgers.items())
                },
            }
            for name, ledgers in worlds.items()
        ],
        "recompute": "sottovoce budget RUN",
    }


def _account(ledger: Ledger, scenario: Scenario) -> Json:
    """One user's line."""
    releases: list[Json] = []
    so_far: list[Release] = []
    for release in ledger.releases:
        so_far.append(release)
        spent = accountant.epsilon(so_far, scenario.delta, fast=True)
        releases.append(
            {
                "kind": release.kind.value,
                "mechanism": release.mechanism.value,
                "round": release.round,
                "noise_multiplier": release.noise_multiplier,
                "sample_rate": release.sample_rate,
                "steps": release.steps,
                "clip_norm": release.sensitivity,
                "epsilon_after": spent if math.isfinite(spent) else None,
            }
        )
    spent = ledger.epsilon(scenario.delta)
    known = math.isfinite(spent) and scenario.private
    return {
        "epsilon": spent if known else None,
        "delta": scenario.delta,
        "budget": {"epsilon": scenario.epsilon if known else None, "delta": scenario.delta},
        "remaining": max(scenario.epsilon - spent, 0.0) if known else None,
        "rounds": sum(release.kind is Kind.GRADIENT for release in ledger.releases),
        "ledger_sha256": ledger.head,
        "releases": releases,
    }


def _sampling(plan: Plan) -> str:
    """How utterances come into a step, in words."""
    if plan.training.sample_rate == 1.0:
        return "every utterance in every step (rate 1); every device in every round"
    return (
        f"Poisson, each utterance with rate {plan.training.sample_rate:g} in every step; "
        "every device in every round"
    )


def _statement(scenario: Scenario, plan: Plan) -> str:
    """The promise in words."""
    if not scenario.private:
        return (
            "No privacy guarantee: this run was asked to protect nothing, and every release is "
            "booked as unprotected."
        )
    return (
        f"Whatever a device sent in this run changes by a factor of at most e^{scenario.epsilon:g} "
        f"in probability (but for a chance of {scenario.delta:g}) when one utterance of its user "
        "is added or removed. Unit: utterance. This holds against anyone who sees what the device "
        "sends, the server included. It covers label counts, centre, the normaliser that training "
        f"uses, and {plan.rounds} rounds of gradients."
    )
