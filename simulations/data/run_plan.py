"""The plan of a simulated run: from its settings to what a server plans with."""

from sottovoce.server.planning import noise_calibration
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.scenario.settings import PlanSettings


def plan_without_noise(
    settings: PlanSettings, *, run: str, labels: tuple[str, ...], inputs: int
) -> Plan:
    """Make a run's plan without noise.

    Args:
        settings: What the plan is made of.
        run: Name of the run.
        labels: Emotions in the order of the model's classes.
        inputs: Width of the model's input.
    """
    return noise_calibration.plan_without_noise(
        settings.recipe,
        run=run,
        labels=labels,
        inputs=inputs,
        extractor=settings.extractor,
        rounds=settings.rounds,
        subtracts_user_mean=settings.subtracts_user_mean,
    )


def check_budget(settings: PlanSettings, target: PrivacyTarget) -> None:
    """Refuse a budget that cannot pay for the run, before anything is computed.

    What releases cost depends neither on the labels nor on the width of the model.

    Args:
        settings: What the plan is made of.
        target: What is promised.

    Raises:
        SettingError: The budget is too small.
    """
    plan = plan_without_noise(settings, run="", labels=("neutral", "happy"), inputs=1)
    noise_calibration.add_noise(plan, target, settings.recipe.bounds)
