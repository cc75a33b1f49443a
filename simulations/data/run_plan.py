"""The plan of a simulated run: from its scenario's settings to what a server plans with."""

from dataclasses import replace

from sottovoce.server.planning import noise_calibration
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.scenario.scenario import Scenario


def plan_without_noise(
    scenario: Scenario, *, run: str, labels: tuple[str, ...], inputs: int
) -> Plan:
    """Make a scenario's plan without noise.

    Over a population devices are not asked for head statistics: nobody of it is asked again.
    """
    recipe = scenario.recipe
    if scenario.population:
        recipe = replace(recipe, shares=replace(recipe.shares, head_statistics=0.0))
    return noise_calibration.plan_without_noise(
        recipe,
        run=run,
        labels=labels,
        inputs=inputs,
        extractor=scenario.encoder,
        rounds=scenario.rounds,
        subtracts_user_mean=scenario.enrolment == "all",
    )


def add_noise(plan: Plan, scenario: Scenario) -> Plan:
    """Add the noise that a scenario promises.

    Raises:
        SettingError: The budget is too small for these releases.
    """
    return noise_calibration.add_noise(plan, scenario.privacy_target, scenario.recipe.bounds)


def add_secure_aggregation(plan: Plan, scenario: Scenario, *, devices: int) -> Plan:
    """Add secure aggregation to a plan, where the scenario asks for secure sums.

    Raises:
        SettingError: Too few devices for the dropout and corruption that sums must bear.
    """
    return noise_calibration.add_secure_aggregation(
        plan, scenario.privacy_target, scenario.recipe.bounds, devices=devices
    )


def check_budget(scenario: Scenario) -> None:
    """Refuse a budget that cannot pay for the run, before anything is computed.

    What releases cost depends neither on the labels nor on the width of the model.

    Raises:
        SettingError: The budget is too small.
    """
    add_noise(plan_without_noise(scenario, run="", labels=("one", "other"), inputs=1), scenario)
