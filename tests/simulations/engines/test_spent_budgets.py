"""A device whose budget cannot bear a release refuses before anything leaves."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Message

from sottovoce.server.federation.training_job import Job
from sottovoce.shared.errors import EngineError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.protocol import flower_records, messages

DELTA = 1e-5
Cost = Callable[[int], float]


@pytest.fixture
def cost(make_federation: Any) -> Cost:
    """What the first releases of the tiny plan cost together."""
    plan = Job.load(make_federation("costs").folder / "server").plan
    kinds = [plan.counts_release(), plan.centre_release(), plan.normaliser_release()]
    releases = [*kinds, *(plan.gradient_release(number) for number in (1, 2, 3))]

    def of_first(count: int) -> float:
        return accounting.GAUSSIAN_FILTER.compute_epsilon(
            [release for release in releases[:count] if release], DELTA
        )

    return of_first


def test_one_spent_device_only_receives_from_then_on(
    make_federation: Any, cost: Cost, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="sottovoce.server")
    federation = make_federation("a", epsilon={"ada": cost(5) + 1e-3})
    replies_of_ada: list[messages.Reply] = []

    federation.run(tamper=_collect("ada", replies_of_ada))

    assert [reply.status for reply in replies_of_ada] == ["ok", "ok", "receives"]
    assert replies_of_ada[-1].value is None
    assert replies_of_ada[-1].reason == "its budget is spent"
    assert _lines(federation, "ada") == 6
    assert _lines(federation, "ben") == 7
    assert federation.device("ada").ledger.epsilon_spent(DELTA) <= cost(5) + 1e-3
    assert federation.device("ada").vault.has_blob(
        "normaliser"
    )  # it got the final model all the same
    assert "ada takes no part" in caplog.text


def test_when_all_are_spent_the_round_misses_its_quorum(make_federation: Any, cost: Cost) -> None:
    federation = make_federation("a", epsilon=cost(5) + 1e-3)

    with pytest.raises(EngineError, match=r"round 3: 0 of 3 .*its budget is spent"):
        federation.run()

    for user in ("ada", "ben", "cleo"):
        assert _lines(federation, user) == 5
        assert federation.device(user).ledger.epsilon_spent(DELTA) <= cost(5) + 1e-3


def test_a_budget_that_is_exactly_enough_is_enough(make_federation: Any, cost: Cost) -> None:
    federation = make_federation("a", epsilon=cost(6))

    federation.run()

    assert _lines(federation, "ada") == 7


def test_a_budget_too_small_to_enrol(make_federation: Any, cost: Cost) -> None:
    federation = make_federation("a", epsilon=cost(1) / 2)

    with pytest.raises(EngineError, match=r"no device contributes.*budget is"):
        federation.run()

    assert federation.ledgers() == dict.fromkeys(federation.ledgers(), b"")


def test_nothing_is_computed_that_is_not_booked(
    make_federation: Any, cost: Cost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger's line is on disk before the trainer is called; a refusal never calls it."""
    from sottovoce.client.federation import training_round

    federation = make_federation("a", epsilon={"ada": cost(4) + 1e-3})
    booked = []
    train = training_round.compute_local_update

    def spy(*arguments: Any, **more: Any) -> Any:
        paths = (federation.folder / "devices").glob("*/ledger.jsonl")
        booked.append(sum(Ledger(path).path.read_bytes().count(b"round-") for path in paths))
        return train(*arguments, **more)

    monkeypatch.setattr(training_round, "compute_local_update", spy)
    federation.run()

    assert booked == list(range(1, 8))  # three updates, then twice two: ada was never called


def _lines(federation: Any, user: str) -> int:
    """How many releases a ledger holds."""
    return len(federation.device(user).ledger.releases)


def _collect(user: str, collected: list[messages.Reply]) -> Any:
    """Keeps a user's replies to training."""

    def tamper(kind: str, replies: list[Message]) -> list[Message]:
        if kind == messages.TRAIN:
            read = [flower_records.decode_reply(reply.content, size=15) for reply in replies]
            collected.extend(reply for reply in read if reply.user == user)
        return replies

    return tamper
