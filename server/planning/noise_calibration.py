"""Noise calibration: from an epsilon to the noise of every release.

``simulations.results.privacy_record`` goes the way back. What depends on the privacy unit is its
scheme's; here is what a server plans with: a recipe, a target, and public facts of the task.
"""

from sottovoce.server.planning.recipe import FROZEN_ENCODER_MODELS, Recipe
from sottovoce.shared.calibration.head_statistics import CalibrationRelease
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.privacy.bounds import PrivacyBounds
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.protocol.local_training import LocalTraining, NoPrivacy
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import EXACT_CENTRE, EXACT_MEAN


def plan_without_noise(
    recipe: Recipe,
    *,
    run: str,
    labels: tuple[str, ...],
    inputs: int,
    extractor: str,
    rounds: int,
    subtracts_user_mean: bool = True,
) -> Plan:
    """Make a plan without noise, which :func:`add_noise` can make private.

    Args:
        recipe: How the model is trained; its share for head statistics says whether they are asked.
        run: Name of the run.
        labels: Emotions in the order of the model's classes.
        inputs: Width of the model's input.
        extractor: Name of the feature extractor.
        rounds: Rounds of training, at least 1.
        subtracts_user_mean: Whether training subtracts the user's own mean, as for users who enrol
            with all their clips, where the recipe has a centre.

    Example:
        >>> from sottovoce.server.planning.recipe import USER_RECIPE
        >>> facts = {"run": "r", "labels": ("calm", "angry"), "inputs": 4}
        >>> plan = plan_without_noise(USER_RECIPE, **facts, extractor="descriptors", rounds=2)
        >>> plan.scheme.unit
        'none'
    """
    end_to_end = recipe.model not in FROZEN_ENCODER_MODELS
    centred = recipe.centre and not end_to_end
    return Plan(
        run=run,
        labels=labels,
        extractor=extractor,
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
        rounds=rounds,
        training=LocalTraining(
            steps=recipe.steps,
            sample_rate=recipe.sample_rate,
            learning_rate=recipe.learning_rate,
            denominator=1.0,
            momentum=recipe.momentum,
            label_smoothing=recipe.label_smoothing,
            loss=recipe.loss.assign_coordinates(labels),
            targets=recipe.targets,
            curriculum=recipe.curriculum,
        ),
        mechanism=NoPrivacy(),
        centre=EXACT_CENTRE if centred else None,
        normaliser=EXACT_MEAN if centred and subtracts_user_mean else None,
        count_noise=0.0,
        calibration=_calibration_release(recipe),
    )


def _calibration_release(recipe: Recipe) -> CalibrationRelease | None:
    """Release of head statistics, without noise; None where devices are not asked for any."""
    if not recipe.shares.head_statistics:
        return None
    return CalibrationRelease(
        noise_multiplier=0.0, subtracted_share=recipe.calibration_subtracted_share
    )


def add_noise(plan: Plan, target: PrivacyTarget, bounds: PrivacyBounds) -> Plan:
    """Add noise to a plan for every unit that the target promises something.

    Args:
        plan: As :func:`plan_without_noise` makes it.
        target: What is to be promised.
        bounds: What one utterance and one user add, by the recipe.

    Guarantees:
        - All of the plan's releases together cost each promised unit at most ``target.epsilon``.

    Raises:
        SettingError: The budget is too small for these releases, or bounds and loss do not go with
            the unit.
    """
    scheme = scheme_for(target.unit, secure=target.secure)
    scheme.check_bounds(bounds)
    scheme.check_loss(plan.training.loss)
    return scheme.add_noise(plan, target, bounds)


def add_secure_aggregation(
    plan: Plan, target: PrivacyTarget, bounds: PrivacyBounds, *, devices: int
) -> Plan:
    """Make a plan's sums over users secure, by shares of the noise.

    Args:
        plan: As :func:`add_noise` gives it.
        target: Where it does not ask for secure sums, the plan stays as it is.
        bounds: The dropout and corruption that sums must bear.
        devices: How many take part in a sum.

    Raises:
        SettingError: Too few devices for the dropout and corruption that sums must bear.
    """
    scheme = scheme_for(target.unit, secure=target.secure)
    return scheme.add_secure_sums(plan, bounds, devices=devices)


def device_budgets(target: PrivacyTarget, plan: Plan | None = None) -> tuple[PrivacyBudget, ...]:
    """Budgets of a device, one for each promised unit; none at all allows unprotected releases.

    Args:
        target: What is promised.
        plan: The first plan of the device's life, with its noise. Where its steps are sampled, it
            decides the order of the Renyi filter; without a plan sampling is not amplified.

    Example:
        >>> [budget.unit.value for budget in device_budgets(PrivacyTarget(unit="both"))]
        ['utterance', 'user']
    """
    releases = plan.all_releases() if plan else ()
    return scheme_for(target.unit, secure=target.secure).budgets(target, releases)


def server_budgets(target: PrivacyTarget) -> tuple[PrivacyBudget, ...]:
    """Budgets of a server's sums, for one user; none at all lets all pass.

    Example:
        >>> server_budgets(PrivacyTarget(unit="utterance"))
        ()
    """
    return scheme_for(target.unit, secure=target.secure).sum_budgets(target)
