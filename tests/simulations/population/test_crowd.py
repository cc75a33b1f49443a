"""Devices made when asked: they answer, byte for byte, as devices on a disk do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from sottovoce.client.app import app as product
from sottovoce.client.device import Device
from sottovoce.shared import wire
from sottovoce.shared.errors import PrivacyError
from sottovoce.simulations.engines import local
from sottovoce.simulations.engines.hosts import Nodes, serve
from sottovoce.simulations.population.crowd import name_of, place_of
from sottovoce.simulations.population.host import PopulationHost
from sottovoce.simulations.population.world import CrowdWorld

USER, HELD_OUT = 17, 502


class Both:
    """One user twice: made by the crowd's host, and on a disk."""

    def __init__(self, world: CrowdWorld, folder: Path, place: int) -> None:
        local._identify()
        world._build()
        self.world, self.place, self.folder = world, place, folder / "000000"
        self.job = world._host._job
        self.host: PopulationHost = world._host
        facts, clips = world.crowd.facts(place), world.crowd.held(place)
        self.filed = Device.create(self.folder, facts, clips)

    def ask(self, request: Any, kind: str, group: str = "0") -> list[wire.Reply]:
        """The same message to both; what they answer."""
        size = {wire.ENROL: len(self.job.plan.labels) + self.job.front.inputs}
        size[wire.TRAIN] = len(self.job.weights)
        told = size.get(kind, 0) if getattr(request, "tells", True) else 0
        nodes = Nodes(devices=1, config={})
        made = serve(product, self.host, [self._message(request, kind, group)], nodes)[0]
        node = Context(1, 100, {"device": str(self.folder)}, RecordDict(), {})
        filed = product(self._message(request, kind, group), node)
        return [wire.Reply.read(reply.content, size=told) for reply in (made, filed)]

    def _message(self, request: Any, kind: str, group: str) -> Message:
        message = Message(request.record(), 100 + self.place, kind, group_id=group)
        message.metadata.__dict__["_message_id"] = "m"
        return message

    def ledgers(self) -> list[bytes]:
        """What both have written."""
        lines = b"".join(self.host.store.lines(self.place))
        ledger = self.folder / "ledger.jsonl"
        return [lines, ledger.read_bytes() if ledger.exists() else b""]


@pytest.fixture(params=["user", "none"])
def both(request: Any, make_crowd_world: Any, tmp_path: Path) -> Both:
    more = "hours = 24.0\ndropout = 0.0\nreply_s = 0.1"
    world = make_crowd_world(tmp_path / "run", unit=request.param, more=more)
    return Both(world, tmp_path / "devices", USER)


def _enrol(both: Both, *, tells: bool) -> wire.EnrolRequest:
    job = both.job
    return wire.EnrolRequest(plan=job.plan, front=job.front, population=job.population, tells=tells)


def _train(both: Both, number: int) -> wire.TrainRequest:
    job = both.job
    return wire.TrainRequest(
        plan=job.plan.digest(),
        round=number,
        weights=job.weights + 0.1 * number,
        class_weights=torch.ones(len(job.plan.labels)),
        centre=torch.zeros(job.front.inputs),
        denominator=4.0,
    )


@pytest.mark.parametrize("tells", [True, False])
def test_a_made_device_answers_as_one_on_disk(both: Both, tells: bool) -> None:
    """Each message meets a device that was made anew; in between only the database remembers."""
    asked = [(_enrol(both, tells=tells), wire.ENROL)]
    asked += [(_train(both, number), wire.TRAIN) for number in (1, 3)]
    for request, kind in asked:
        made, filed = both.ask(request, kind)
        assert made.status is filed.status is wire.Status.OK
        assert made.user == filed.user == name_of(USER)
        if kind == wire.TRAIN or tells:
            assert made.value is not None
            assert torch.equal(made.value, filed.value)
    lines = both.ledgers()
    assert lines[0] == lines[1] != b""


def test_a_held_out_device_takes_the_model_as_one_on_disk(
    make_crowd_world: Any, tmp_path: Path
) -> None:
    both = Both(make_crowd_world(tmp_path / "run"), tmp_path / "devices", HELD_OUT)
    assert [reply.status for reply in both.ask(_enrol(both, tells=False), wire.ENROL)] == [
        wire.Status.RECEIVES
    ] * 2
    request = wire.PersonalRequest(
        plan=both.job.plan.digest(),
        weights=both.job.weights,
        centre=torch.zeros(both.job.front.inputs),
        prior=both.job.prior_of(both.job.weights),
    )
    made, filed = both.ask(request, wire.PERSONAL)

    assert len(made.head) == len(filed.head) == 2048
    again = both.host.device(HELD_OUT)
    for name in ("normaliser", "head-scores"):
        ours, theirs = again.vault.get_tensors(name), both.filed.vault.get_tensors(name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert again.vault.get("head") == both.filed.vault.get("head")
    assert both.ledgers()[0] == both.ledgers()[1]


def test_a_round_is_answered_once_however_often_the_device_is_made(
    make_crowd_world: Any, tmp_path: Path
) -> None:
    """What was paid for in advance covers one answer to each round; that outlives the device."""
    more = "hours = 24.0\ndropout = 0.0\nreply_s = 0.1"
    both = Both(make_crowd_world(tmp_path / "run", more=more), tmp_path / "devices", USER)
    both.ask(_enrol(both, tells=False), wire.ENROL)
    first, again = (both.ask(_train(both, 2), wire.TRAIN)[0] for _ in range(2))
    other = _train(both, 2)
    refused = both.ask(
        wire.TrainRequest(
            plan=other.plan,
            round=2,
            weights=other.weights + 1,
            class_weights=other.class_weights,
            centre=other.centre,
            denominator=other.denominator,
        ),
        wire.TRAIN,
    )

    assert torch.equal(first.value, again.value)  # type: ignore[arg-type]
    assert [reply.status for reply in refused] == [wire.Status.REFUSED] * 2


def test_no_reply_leaves_before_its_lines_are_on_disk(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that refuses takes every reply of the slice with it."""

    def full() -> None:
        raise PrivacyError("no space left on device")

    monkeypatch.setattr(both.host.store, "commit", full)
    with pytest.raises(PrivacyError, match="no space"):
        both.ask(_enrol(both, tells=True), wire.ENROL)


def test_a_device_books_before_it_is_asked_for_what_others_are_asked_for(
    make_crowd_world: Any, tmp_path: Path
) -> None:
    """Who was in the founding cohort is the coins' secret, so whoever joins later pays alike."""
    ledgers = []
    for tells in (True, False):
        world = make_crowd_world(tmp_path / f"run{tells}")
        both = Both(world, tmp_path / f"devices{tells}", USER)
        both.ask(_enrol(both, tells=tells), wire.ENROL)
        ledgers.append(both.host.device(USER).ledger.releases)
    assert ledgers[0] == ledgers[1]
    assert {release.kind.value for release in ledgers[0]} == {"gradient", "label-counts", "centre"}
    assert sum(release.user.sums for release in ledgers[0] if release.user) == 4 + 2


def test_only_what_runs_a_node_brings_its_device(both: Both) -> None:
    """A server's configuration cannot make a node bring another's device."""
    elsewhere = {"device": "elsewhere", "devices": "elsewhere"}
    node = Nodes(devices=1, config=elsewhere).context(USER, both.host)
    assert node.bring().facts.user == name_of(USER)


def test_names_rise_with_places() -> None:
    places = [0, 9, 10, 999, 1_000_000, 999_999_999]
    names = [name_of(place) for place in places]
    assert names == sorted(names)
    assert [place_of(name) for name in names] == places
