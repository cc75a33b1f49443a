"""A device whose budget cannot bear a release refuses before anything leaves."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Message

from sottovoce.server.job import Job
from sottovoce.shared import wire
from sottovoce.shared.errors import EngineError
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import Ledger

DELTA = 1e-5
Price = Callable[[int], float]


@pytest.fixture
def price(make_world: Any) -> Price:
    """What the first releases of the tiny plan cost together."""
    plan = Job.load(make_world("priced").folder / "server").plan
    kinds = [plan.counts_release(), plan.centre_release(), plan.normaliser_release()]
    releases = [*kinds, *(plan.gradient_release(number) for number in (1, 2, 3))]

    def of_first(count: int) -> float:
        return accountant.epsilon([release for release in releases[:count] if release], DELTA)

    return of_first


def test_one_spent_device_only_receives_from_then_on(
    make_world: Any, price: Price, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="sottovoce.server")
    world = make_world("a", epsilon={"ada": price(5) + 1e-3})
    heard: list[wire.Reply] = []

    world.run(tamper=_hear("ada", heard))

    assert [reply.status for reply in heard] == ["ok", "ok", "receives"]
    assert heard[-1].value is None
    assert heard[-1].reason == "its budget is spent"
    assert _lines(world, "ada") == 6
    assert _lines(world, "ben") == 7
    assert world.device("ada").ledger.epsilon(DELTA) <= price(5) + 1e-3
    assert world.device("ada").vault.has("normaliser")  # it got the final model all the same
    assert "ada takes no part" in caplog.text


def test_when_all_are_spent_the_round_misses_its_quorum(make_world: Any, price: Price) -> None:
    world = make_world("a", epsilon=price(5) + 1e-3)

    with pytest.raises(EngineError, match=r"round 3: 0 of 3 .*its budget is spent"):
        world.run()

    for user in ("ada", "ben", "cleo"):
        assert _lines(world, user) == 5
        assert world.device(user).ledger.epsilon(DELTA) <= price(5) + 1e-3


def test_a_budget_that_is_exactly_enough_is_enough(make_world: Any, price: Price) -> None:
    world = make_world("a", epsilon=price(6))

    world.run()

    assert _lines(world, "ada") == 7


def test_a_budget_too_small_to_enrol(make_world: Any, price: Price) -> None:
    world = make_world("a", epsilon=price(1) / 2)

    with pytest.raises(EngineError, match=r"no device contributes.*budget is"):
        world.run()

    assert world.ledgers() == dict.fromkeys(world.ledgers(), b"")


def test_nothing_is_computed_that_is_not_booked(
    make_world: Any, price: Price, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger's line is on disk before the trainer is called; a refusal never calls it."""
    from sottovoce.client import participant

    world = make_world("a", epsilon={"ada": price(4) + 1e-3})
    booked = []
    train = participant.local_update

    def spy(*arguments: Any, **more: Any) -> Any:
        paths = (world.folder / "devices").glob("*/ledger.jsonl")
        booked.append(sum(Ledger(path).path.read_bytes().count(b"round-") for path in paths))
        return train(*arguments, **more)

    monkeypatch.setattr(participant, "local_update", spy)
    world.run()

    assert booked == list(range(1, 8))  # three updates, then twice two: ada was never called


def _lines(world: Any, user: str) -> int:
    """How many releases a ledger holds."""
    return len(world.device(user).ledger.releases)


def _hear(user: str, heard: list[wire.Reply]) -> Any:
    """Keeps a user's replies to training."""

    def tamper(kind: str, replies: list[Message]) -> list[Message]:
        if kind == wire.TRAIN:
            read = [wire.Reply.read(reply.content, size=15) for reply in replies]
            heard.extend(reply for reply in read if reply.user == user)
        return replies

    return tamper
