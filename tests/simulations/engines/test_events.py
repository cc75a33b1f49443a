"""Events of a run reach whoever listens, from this process and from another one."""

import logging
from typing import Any

import pytest

from sottovoce.server.app import LoggedEvents
from sottovoce.server.federation import checkpoint
from sottovoce.shared.protocol.events import Event, RoundEnded
from sottovoce.simulations.engines import local
from sottovoce.simulations.engines.checkpoint_events import CheckpointEvents


class Listener:
    """Remembers events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def handle_event(self, event: Event, /) -> None:
        """Remember one event."""
        self.events.append(event)


def test_every_round_is_emitted_once_in_order(make_federation: Any) -> None:
    federation, listener = make_federation("a"), Listener()
    local.run_apps(devices=4, config=federation.config, workers=1, listener=listener)

    rounds = [(one.round, one.total_rounds, one.cohort_size) for one in listener.events]  # type: ignore[union-attr]
    total = rounds[0][1]
    assert rounds == [(number, total, 3) for number in range(1, total + 1)]

    again = Listener()
    local.run_apps(devices=4, config=federation.config, workers=1, listener=again)
    assert again.events == [], "a run that is resumed at its end has no round left"


def test_without_a_listener_rounds_are_logged(
    make_federation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sottovoce.server")
    LoggedEvents().handle_event(RoundEnded(run="r", round=2, total_rounds=3))

    assert [record.getMessage() for record in caplog.records] == ["round 2 of 3"]


def test_checkpoints_of_another_process_become_events(make_federation: Any) -> None:
    federation, listener = make_federation("a"), Listener()
    watch = CheckpointEvents(federation.folder / "server", listener)
    watch.emit_saved_rounds()
    assert listener.events == []

    local.run_apps(devices=4, config=federation.config, workers=1)
    watch.emit_saved_rounds()
    watch.emit_saved_rounds()

    newest = checkpoint.read_newest_round(federation.folder / "server")
    assert [one.round for one in listener.events] == list(range(1, newest + 1))  # type: ignore[union-attr]
    assert {one.cohort_size for one in listener.events} == {None}  # type: ignore[union-attr]
