"""Progress of a run: made of the events of its rounds and folds."""

from sottovoce.server.planning import noise_calibration
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.protocol.events import FoldEnded, RoundEnded
from sottovoce.simulations.data import run_plan
from sottovoce.simulations.runs.progress import ProgressReporter, RunStatus
from sottovoce.simulations.scenario.loading import vary_scenario

SCENARIO = vary_scenario(None, {"corpus": "synthetic", "rounds": 4})


def test_rounds_of_all_folds_are_reported() -> None:
    plan = run_plan.plan_without_noise(SCENARIO.plan_settings, run="", labels=("a", "b"), inputs=3)
    plan = noise_calibration.add_noise(plan, SCENARIO.privacy, SCENARIO.recipe.bounds)
    shown: list[RunStatus] = []
    budget = PrivacyBudget(epsilon=8.0, delta=1e-5)
    reporter = ProgressReporter(plan, folds=2, budget=budget, on_status=shown.append)

    reporter.handle_event(RoundEnded(run="", round=1, total_rounds=4, cohort_size=3))
    reporter.handle_event(RoundEnded(run="", round=4, total_rounds=4))
    reporter.handle_event(FoldEnded(fold="a", uar=0.5))
    reporter.handle_event(RoundEnded(run="", round=2, total_rounds=4))

    assert [(one.rounds_done, one.total_rounds, one.mean_uar) for one in shown] == [
        (1, 8, None),
        (4, 8, None),
        (4, 8, 0.5),
        (6, 8, 0.5),
    ]
    assert shown[0].epsilon < shown[3].epsilon < shown[1].epsilon <= 8.0  # type: ignore[operator]
    assert str(shown[3]).endswith("of 8, UAR so far 0.500 (1 fold)")
