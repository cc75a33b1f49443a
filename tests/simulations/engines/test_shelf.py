"""Devices in one database: the run of devices in folders, bit for bit, killed or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from sottovoce.client import enrolment, participant
from sottovoce.shared import wire
from sottovoce.shared.errors import PrivacyError, SettingError
from sottovoce.simulations.devices import shelf
from sottovoce.simulations.devices.shelf import Shelf, ShelfHost
from sottovoce.simulations.devices.store import Store


class Killed(BaseException):
    """The operator pulled the plug."""


def _same(one: Any, other: Any) -> None:
    """Two runs came to one end."""
    assert torch.equal(one.released(), other.released())
    assert one.ledgers() == other.ledgers()
    assert one.ledgers()["ada"].count(b"\n") == 7  # three rounds, head, three before


def _host(world: Any, *, shared: bool) -> ShelfHost:
    return ShelfHost(Path(world.config["shelf"]), Path(world.config["job"]), shared=shared)


def test_it_is_the_run_of_devices_in_folders(make_world: Any) -> None:
    filed, shelved = make_world("filed"), make_world("shelved", shelved=True)

    filed.run()
    shelved.run()

    _same(filed, shelved)
    for name in ("normaliser", "head-scores"):
        ours, theirs = (w.device("dan").vault.get_tensors(name) for w in (filed, shelved))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("exchange", [1, 2, 3, 4, 5])
def test_a_killed_run_goes_on_to_the_same_end(make_world: Any, exchange: int) -> None:
    """Killed once the devices have answered, when only the database knows of it."""
    whole, killed = make_world("whole", shelved=True), make_world("killed", shelved=True)
    whole.run()
    count = iter(range(1, 100))

    def tamper(_kind: str, replies: list[Message]) -> list[Message]:
        if next(count) == exchange:
            raise Killed
        return replies

    with pytest.raises(Killed):
        killed.run(tamper=tamper)
    killed.run()

    _same(whole, killed)


def test_no_reply_is_heard_whose_booking_did_not_reach_the_disk(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, full = make_world("whole", shelved=True), make_world("full", shelved=True)
    whole.run()
    heard, commits, real = [], iter(range(1, 100)), Store.commit

    def commit(store: Store) -> None:
        if next(commits) == 3:  # enrolment, a round, and then no space
            store._forget()
            raise PrivacyError("no space left on device")
        real(store)

    def tamper(kind: str, replies: list[Message]) -> list[Message]:
        heard.append(kind)
        return replies

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", commit)
        with pytest.raises(PrivacyError, match="no space left"):
            full.run(tamper=tamper)
    assert heard == [wire.ENROL, wire.TRAIN]
    assert full.ledgers()["ada"].count(b"round-1/") == 1
    assert b"round-2/" not in full.ledgers()["ada"]

    full.run()

    _same(whole, full)


def test_devices_for_whom_there_is_no_room_are_made_again(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy, tight = make_world("roomy", shelved=True), make_world("tight", shelved=True)
    roomy.run()
    made, real = [], Shelf.device

    def device(own: Shelf, place: int) -> Any:
        made.append(place)
        return real(own, place)

    monkeypatch.setattr(shelf, "_ROOM", 1)
    monkeypatch.setattr(Shelf, "device", device)
    tight.run()

    assert len(made) > 2 * len(set(made)) == 8
    monkeypatch.undo()
    _same(roomy, tight)


def test_a_process_does_not_use_what_another_has_outdated(make_world: Any) -> None:
    """Two hosts take turns on one device; each sees what the other booked."""
    world = make_world("a", shelved=True)
    here, there = (_host(world, shared=True) for _ in range(2))
    job = here._job
    enrolment.enrol(here.device(0), job.plan, job.front, job.population)
    here.commit()

    for number, host in ((1, there), (2, here), (3, there)):
        device = host.device(0)
        update = participant.train(
            device,
            plan=job.plan.digest(),
            number=number,
            weights=job.weights,
            class_weights=torch.ones(3),
            centre=torch.zeros(4),
            denominator=4.0,
        )
        assert update.isfinite().all()
        host.commit()

    rounds = [one.round for one in _host(world, shared=False).device(0).ledger.releases][-3:]
    assert rounds == [1, 2, 3]
    assert here.device(0) is not device  # the other one has answered since
    assert there.device(0) is device


def test_what_is_not_there_or_not_simulated_is_refused(make_world: Any, tmp_path: Path) -> None:
    world = make_world("a", shelved=True)
    with pytest.raises(SettingError, match=r"holds no device of place 9"):
        _host(world, shared=False).device(9)
    with pytest.raises(SettingError, match=r"ada is no simulated user; a real device lies"):
        make_world("real", shelved=True, seed=None)
