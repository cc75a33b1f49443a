"""How far a run is: heard from the server, without making it louder for anybody else."""

import logging

import pytest

from sottovoce.shared.privacy.ledger import Budget
from sottovoce.simulations import promise
from sottovoce.simulations.course import Course, Status
from sottovoce.simulations.scenario import Scenario, settle

SCENARIO = settle(Scenario(corpus="synthetic", rounds=4))
LOG = logging.getLogger("sottovoce.server")


def test_rounds_of_all_folds_are_heard_and_nobody_else_hears_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = promise.open_plan(SCENARIO, run="", labels=("a", "b"), inputs=3)
    plan = promise.noised(plan, SCENARIO)
    shown: list[Status] = []
    before, budget = LOG.level, Budget(epsilon=8.0, delta=1e-5)

    with caplog.at_level(logging.WARNING, "sottovoce.server"):
        with Course(plan, folds=2, budget=budget, show=shown.append) as course:
            LOG.info("round %d of %d", 1, 4)
            LOG.warning("something else")
            LOG.info("round %d of %d", 4, 4)
            course.ended(0.5)
            LOG.info("round %d of %d", 2, 4)
        LOG.info("round %d of %d", 3, 4)

    assert [(one.rounds, one.total, one.uar) for one in shown] == [
        (1, 8, None),
        (4, 8, None),
        (4, 8, 0.5),
        (6, 8, 0.5),
    ]
    assert shown[0].epsilon < shown[3].epsilon < shown[1].epsilon <= 8.0  # type: ignore[operator]
    assert str(shown[3]).endswith("of 8, UAR so far 0.500 (1 fold)")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    assert LOG.level == before
