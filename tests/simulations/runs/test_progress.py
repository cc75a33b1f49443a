"""Progress of a run: taken from the server's log, without showing more of it to others."""

import logging

import pytest

from sottovoce.server.planning import noise_calibration
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.simulations.runs.progress import ProgressReporter, RunStatus
from sottovoce.simulations.scenario.scenario import Scenario, fill_defaults

SCENARIO = fill_defaults(Scenario(corpus="synthetic", rounds=4))
LOG = logging.getLogger("sottovoce.server")


def test_rounds_of_all_folds_are_reported_and_nobody_else_sees_more_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = noise_calibration.plan_without_noise(SCENARIO, run="", labels=("a", "b"), inputs=3)
    plan = noise_calibration.add_noise(plan, SCENARIO)
    shown: list[RunStatus] = []
    before, budget = LOG.level, PrivacyBudget(epsilon=8.0, delta=1e-5)

    with caplog.at_level(logging.WARNING, "sottovoce.server"):
        with ProgressReporter(plan, folds=2, budget=budget, on_status=shown.append) as reporter:
            LOG.info("round %d of %d", 1, 4)
            LOG.warning("something else")
            LOG.info("round %d of %d", 4, 4)
            reporter.report_fold_end(0.5)
            LOG.info("round %d of %d", 2, 4)
        LOG.info("round %d of %d", 3, 4)

    assert [(one.rounds_done, one.total_rounds, one.mean_uar) for one in shown] == [
        (1, 8, None),
        (4, 8, None),
        (4, 8, 0.5),
        (6, 8, 0.5),
    ]
    assert shown[0].epsilon < shown[3].epsilon < shown[1].epsilon <= 8.0  # type: ignore[operator]
    assert str(shown[3]).endswith("of 8, UAR so far 0.500 (1 fold)")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    assert LOG.level == before
