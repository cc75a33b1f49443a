"""Devices made when asked: they answer, byte for byte, as devices on a disk do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from sottovoce.client.app import app as product
from sottovoce.client.device.device import Device
from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.simulations.engines import local
from sottovoce.simulations.engines.device_host import SimulatedNodes, serve_messages
from sottovoce.simulations.population.fold import PopulationFoldRun
from sottovoce.simulations.population.host import PopulationHost
from sottovoce.simulations.population.users import user_index, user_name

USER, HELD_OUT = 17, 502


class Both:
    """One user twice: made by the population's host, and on a disk."""

    def __init__(self, fold_run: PopulationFoldRun, folder: Path, index: int) -> None:
        local.set_task_identity()
        fold_run.devices.prepare()
        self.fold_run, self.index, self.folder = fold_run, index, folder / "000000"
        self.job = fold_run.population_devices.host._job
        self.host: PopulationHost = fold_run.population_devices.host
        profile, features = (
            fold_run.population.device_profile(index),
            fold_run.population.device_features(index),
        )
        self.filed = Device.create(self.folder, profile, features)

    def ask(self, request: Any, kind: str, group: str = "0") -> list[messages.Reply]:
        """The same message to both; what they answer."""
        size = {messages.ENROL: len(self.job.plan.labels) + self.job.projection.output_size}
        size[messages.TRAIN] = len(self.job.weights)
        length = size.get(kind, 0) if getattr(request, "report_statistics", True) else 0
        nodes = SimulatedNodes(devices=1, config={})
        made = serve_messages(product, self.host, [self._message(request, kind, group)], nodes)[0]
        node = Context(1, 100, {"device": str(self.folder)}, RecordDict(), {})
        filed = product(self._message(request, kind, group), node)
        return [flower_records.decode_reply(reply.content, size=length) for reply in (made, filed)]

    def _message(self, request: Any, kind: str, group: str) -> Message:
        message = Message(
            flower_records.encode_request(request), 100 + self.index, kind, group_id=group
        )
        message.metadata.__dict__["_message_id"] = "m"
        return message

    def ledgers(self) -> list[bytes]:
        """What both have written."""
        lines = b"".join(self.host.database.ledger_lines(self.index))
        ledger = self.folder / "ledger.jsonl"
        return [lines, ledger.read_bytes() if ledger.exists() else b""]


@pytest.fixture(params=["user", "none"])
def both(request: Any, make_fold_run: Any, tmp_path: Path) -> Both:
    more = "available_hours_per_day = 24.0\ndropout = 0.0\nmedian_reply_s = 0.1"
    fold_run = make_fold_run(tmp_path / "run", unit=request.param, more=more)
    return Both(fold_run, tmp_path / "devices", USER)


def _enrol(both: Both, *, reports: bool) -> messages.EnrolRequest:
    job = both.job
    return messages.EnrolRequest(
        plan=job.plan,
        projection=job.projection,
        speaker_statistics=job.speaker_statistics,
        report_statistics=reports,
    )


def _train(both: Both, number: int) -> messages.TrainRequest:
    job = both.job
    return messages.TrainRequest(
        plan_hash=job.plan.content_hash(),
        round=number,
        weights=job.weights + 0.1 * number,
        class_weights=torch.ones(len(job.plan.labels)),
        centre=torch.zeros(job.projection.output_size),
        denominator=4.0,
    )


@pytest.mark.parametrize("reports", [True, False])
def test_a_made_device_answers_as_one_on_disk(both: Both, reports: bool) -> None:
    """Each message meets a device that was made anew; in between only the database remembers."""
    asked = [(_enrol(both, reports=reports), messages.ENROL)]
    asked += [(_train(both, number), messages.TRAIN) for number in (1, 3)]
    for request, kind in asked:
        made, filed = both.ask(request, kind)
        assert made.status is filed.status is messages.Status.OK
        assert made.user == filed.user == user_name(USER)
        if kind == messages.TRAIN or reports:
            assert made.value is not None
            assert torch.equal(made.value, filed.value)
    lines = both.ledgers()
    assert lines[0] == lines[1] != b""


def test_a_held_out_device_takes_the_model_as_one_on_disk(
    make_fold_run: Any, tmp_path: Path
) -> None:
    both = Both(make_fold_run(tmp_path / "run"), tmp_path / "devices", HELD_OUT)
    assert [reply.status for reply in both.ask(_enrol(both, reports=False), messages.ENROL)] == [
        messages.Status.RECEIVE_ONLY
    ] * 2
    request = messages.FinalModelRequest(
        plan_hash=both.job.plan.content_hash(),
        weights=both.job.weights,
        centre=torch.zeros(both.job.projection.output_size),
        prior=both.job.estimate_head_prior(both.job.weights),
    )
    made, filed = both.ask(request, messages.FINAL_MODEL)

    assert len(made.head) == len(filed.head) == 2048
    again = both.host.open_device(HELD_OUT)
    for name in ("normaliser", "head-scores"):
        ours, theirs = again.vault.get_tensors(name), both.filed.vault.get_tensors(name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert again.vault.get("head") == both.filed.vault.get("head")
    assert both.ledgers()[0] == both.ledgers()[1]


def test_a_round_is_answered_once_however_often_the_device_is_made(
    make_fold_run: Any, tmp_path: Path
) -> None:
    """What was paid for in advance covers one answer to each round; that outlives the device."""
    more = "available_hours_per_day = 24.0\ndropout = 0.0\nmedian_reply_s = 0.1"
    both = Both(make_fold_run(tmp_path / "run", more=more), tmp_path / "devices", USER)
    both.ask(_enrol(both, reports=False), messages.ENROL)
    first, again = (both.ask(_train(both, 2), messages.TRAIN)[0] for _ in range(2))
    other = _train(both, 2)
    refused = both.ask(
        messages.TrainRequest(
            plan_hash=other.plan_hash,
            round=2,
            weights=other.weights + 1,
            class_weights=other.class_weights,
            centre=other.centre,
            denominator=other.denominator,
        ),
        messages.TRAIN,
    )

    assert torch.equal(first.value, again.value)  # type: ignore[arg-type]
    assert [reply.status for reply in refused] == [messages.Status.REFUSED] * 2


def test_no_reply_leaves_before_its_lines_are_on_disk(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that refuses takes every reply of the slice with it."""

    def full() -> None:
        raise PrivacyError("no space left on device")

    monkeypatch.setattr(both.host.database, "commit", full)
    with pytest.raises(PrivacyError, match="no space"):
        both.ask(_enrol(both, reports=True), messages.ENROL)


def test_a_device_books_in_advance_what_others_are_asked_for(
    make_fold_run: Any, tmp_path: Path
) -> None:
    """Who was in the initial cohort is secret, so whoever joins later pays the same."""
    ledgers = []
    for reports in (True, False):
        fold_run = make_fold_run(tmp_path / f"run{reports}")
        both = Both(fold_run, tmp_path / f"devices{reports}", USER)
        both.ask(_enrol(both, reports=reports), messages.ENROL)
        ledgers.append(both.host.open_device(USER).ledger.releases)
    assert ledgers[0] == ledgers[1]
    assert {release.kind.value for release in ledgers[0]} == {"gradient", "label-counts", "centre"}
    assert sum(release.user.sums for release in ledgers[0] if release.user) == 4 + 2


def test_only_what_runs_a_node_opens_its_device(both: Both) -> None:
    """A server's configuration cannot make a node open another's device."""
    elsewhere = {"device": "elsewhere", "devices": "elsewhere"}
    node = SimulatedNodes(devices=1, config=elsewhere).node_context(USER, both.host)
    assert node.open_device().profile.user == user_name(USER)


def test_names_rise_with_places() -> None:
    indices = [0, 9, 10, 999, 1_000_000, 999_999_999]
    names = [user_name(index) for index in indices]
    assert names == sorted(names)
    assert [user_index(name) for name in names] == indices
