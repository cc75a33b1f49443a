"""Devices in one database: the run of devices in folders, bit for bit, killed or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from sottovoce.client.federation import enrolment, training_round
from sottovoce.shared.errors import PrivacyError, SettingError
from sottovoce.shared.protocol import messages
from sottovoce.shared.protocol.messages import TrainRequest
from sottovoce.simulations.devices import device_pool
from sottovoce.simulations.devices.database import DeviceDatabase
from sottovoce.simulations.devices.device_pool import DevicePool, DevicePoolHost


class Killed(BaseException):
    """The operator pulled the plug."""


def _same(one: Any, other: Any) -> None:
    """Two runs came to one end."""
    assert torch.equal(one.released(), other.released())
    assert one.ledgers() == other.ledgers()
    assert one.ledgers()["ada"].count(b"\n") == 7  # three rounds, head, three before


def _host(federation: Any, *, shared: bool) -> DevicePoolHost:
    return DevicePoolHost(
        Path(federation.config["device_database"]), Path(federation.config["job"]), shared=shared
    )


def test_it_is_the_run_of_devices_in_folders(make_federation: Any) -> None:
    filed, in_database = make_federation("filed"), make_federation("in_database", in_database=True)

    filed.run()
    in_database.run()

    _same(filed, in_database)
    for name in ("normaliser", "head-scores"):
        ours, theirs = (w.device("dan").vault.get_tensors(name) for w in (filed, in_database))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("exchange", [1, 2, 3, 4, 5])
def test_a_killed_run_goes_on_to_the_same_end(make_federation: Any, exchange: int) -> None:
    """Killed once the devices have answered, when only the database knows of it."""
    whole, killed = (
        make_federation("whole", in_database=True),
        make_federation("killed", in_database=True),
    )
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
    make_federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, full = (
        make_federation("whole", in_database=True),
        make_federation("full", in_database=True),
    )
    whole.run()
    exchanges, commits, real = [], iter(range(1, 100)), DeviceDatabase.commit

    def commit(store: DeviceDatabase) -> None:
        if next(commits) == 3:  # enrolment, a round, and then no space
            store._discard_staged()
            raise PrivacyError("no space left on device")
        real(store)

    def tamper(kind: str, replies: list[Message]) -> list[Message]:
        exchanges.append(kind)
        return replies

    with monkeypatch.context() as patch:
        patch.setattr(DeviceDatabase, "commit", commit)
        with pytest.raises(PrivacyError, match="no space left"):
            full.run(tamper=tamper)
    assert exchanges == [messages.ENROL, messages.TRAIN]
    assert full.ledgers()["ada"].count(b"round-1/") == 1
    assert b"round-2/" not in full.ledgers()["ada"]

    full.run()

    _same(whole, full)


def test_devices_for_whom_there_is_no_room_are_made_again(
    make_federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy, tight = (
        make_federation("roomy", in_database=True),
        make_federation("tight", in_database=True),
    )
    roomy.run()
    made, real = [], DevicePool.open_device

    def device(own: DevicePool, index: int) -> Any:
        made.append(index)
        return real(own, index)

    monkeypatch.setattr(device_pool, "MAX_MEMORY_BYTES", 1)
    monkeypatch.setattr(DevicePool, "open_device", device)
    tight.run()

    assert len(made) > 2 * len(set(made)) == 8
    monkeypatch.undo()
    _same(roomy, tight)


def test_a_process_does_not_use_what_another_has_outdated(make_federation: Any) -> None:
    """Two hosts alternate on one device; each sees what the other booked."""
    federation = make_federation("a", in_database=True)
    here, there = (_host(federation, shared=True) for _ in range(2))
    job = here._job
    enrolment.enrol_device(here.open_device(0), job.plan, job.projection, job.speaker_statistics)
    here.commit()

    for number, host in ((1, there), (2, here), (3, there)):
        device = host.open_device(0)
        update = training_round.train_round(
            device,
            TrainRequest(
                plan_hash=job.plan.content_hash(),
                round=number,
                weights=job.weights,
                class_weights=torch.ones(3),
                centre=torch.zeros(4),
                denominator=4.0,
            ),
        )
        assert update.isfinite().all()
        host.commit()

    rounds = [one.round for one in _host(federation, shared=False).open_device(0).ledger.releases][
        -3:
    ]
    assert rounds == [1, 2, 3]
    assert here.open_device(0) is not device  # the other one has answered since
    assert there.open_device(0) is device


def test_what_is_not_there_or_not_simulated_is_refused(
    make_federation: Any, tmp_path: Path
) -> None:
    federation = make_federation("a", in_database=True)
    with pytest.raises(SettingError, match=r"holds no device of index 9"):
        _host(federation, shared=False).open_device(9)
    with pytest.raises(SettingError, match=r"ada is no simulated user; a real device lies"):
        make_federation("real", in_database=True, seed=None)
