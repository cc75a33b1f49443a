"""Participation groups: who is asked, what a mean is over, and a server that is killed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Message

from sottovoce.server.aggregation import correlated_noise
from sottovoce.server.aggregation.private_sums import LEDGER_FILE, LEDGER_OWNER
from sottovoce.server.federation import checkpoint, participation_groups
from sottovoce.server.federation.coordinator import TrainingCoordinator
from sottovoce.server.federation.device_channel import DeviceChannel
from sottovoce.server.federation.participants import Participant
from sottovoce.shared.errors import ModelError, PrivacyError
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.release import NoiseSource, ReleaseKind, SumMechanism
from sottovoce.shared.privacy.user_level import UserLevelPrivacy
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.shared.protocol.local_training import NoPrivacy
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import EXACT_CENTRE

ROUNDS = 6
NOISE = SumMechanism(noise_multiplier=20.0, clip_norm=0.5, noised_by=NoiseSource.SERVER)
BANDS = BandedNoise.from_square_root(bands=2, min_separation=2)
USERS = ("ada", "ben", "cleo", "dan")


@pytest.fixture
def plan(make_job: Any) -> Plan:
    """A plan in which three users train in two groups."""
    usual: Plan = make_job(devices=4).plan
    return replace(
        usual,
        rounds=ROUNDS,
        training=replace(usual.training, steps=1, sample_rate=1.0),
        mechanism=NoPrivacy(),
        centre=EXACT_CENTRE,
        normaliser=None,
        count_noise=0.0,
        user=UserLevelPrivacy(counts=NOISE, centre=NOISE, update=replace(NOISE, bands=BANDS)),
    )


def _asked(federation: Any, **how: Any) -> Mapping[int, list[str]]:
    """Who was asked in each round."""
    rounds: dict[int, list[str]] = {}

    def note(message: Message) -> bool:
        if message.metadata.message_type == messages.TRAIN:
            number = flower_records.decode_train_request(message.content).round
            rounds.setdefault(number, []).append(USERS[message.metadata.dst_node_id - 100])
        return False

    federation.run(is_lost=note, **how)
    return rounds


def _took_part(federation: Any) -> dict[str, list[int]]:
    """Rounds in each device's ledger."""
    return {
        user: [
            one.round
            for one in federation.device(user).ledger.releases
            if one.kind is ReleaseKind.GRADIENT
        ]
        for user in USERS
    }


@pytest.mark.parametrize("seed", [3, None])
def test_each_group_trains_in_its_turn(make_federation: Any, plan: Plan, seed: int | None) -> None:
    federation = make_federation("a", plan=plan, simulated_seed=seed)
    asked = _asked(federation)

    assert asked[1] == asked[3] == asked[5]
    assert asked[2] == asked[4] == asked[6]
    assert sorted(asked[1] + asked[2]) == ["ada", "ben", "cleo"]
    for user, rounds in _took_part(federation).items():
        assert rounds == [number for number in range(1, ROUNDS + 1) if user in asked[number]]


def _sums(federation: Any) -> Ledger:
    """The server's own ledger."""
    return Ledger(federation.folder / "server" / LEDGER_FILE, owner=LEDGER_OWNER, read_only=True)


class Killed(BaseException):
    """The operator pulled the plug."""


@pytest.mark.parametrize("owner", [correlated_noise.StoredCorrelatedNoise, checkpoint])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_real_server_that_is_killed_releases_each_round_once(
    make_federation: Any,
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    number: int,
) -> None:
    """Killed before the round's sum is kept, or behind it, before the model is."""
    federation = make_federation("a", plan=plan)  # a real server; its devices are simulated
    asks = owner is correlated_noise.StoredCorrelatedNoise
    name = "_write" if asks else "save_state"
    writes, whole = iter(range(0 if asks else 1, 99)), getattr(owner, name)

    def write(*arguments: Any, **how: Any) -> None:
        if next(writes) == number:
            raise Killed
        whole(*arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, write)
        with pytest.raises(Killed):
            federation.run()
    before = [one.round for one in _sums(federation).releases]
    asked = _asked(federation)

    assert min(asked) == number + (not asks), "what was released is not asked for again"
    rounds = [one.round for one in _sums(federation).releases]
    assert sorted(rounds) == [0, 0, 1, 3, 5], "and all of it was paid for once"
    assert rounds[: len(before)] == before
    for user, taken in _took_part(federation).items():
        assert len(taken) == (0 if user == "dan" else 3), "no turn was lost"


def test_in_the_middle_of_a_run_groups_and_noise_are_not_guessed(
    make_federation: Any, plan: Plan
) -> None:
    for name, error in (
        (participation_groups.GROUPS_FILE, ModelError),
        (correlated_noise.NOISE_FILE, PrivacyError),
    ):
        federation = make_federation(name, plan=plan)
        count = iter(range(1, 99))

        def die(kind: str, replies: list[Message], count: Any = count) -> list[Message]:
            if kind == messages.TRAIN and next(count) == 3:
                raise Killed
            return replies

        with pytest.raises(Killed):
            federation.run(tamper=die)
        (federation.folder / "server" / name).unlink()
        with pytest.raises(error, match="new run"):
            federation.run()


def test_a_mean_is_over_a_groups_share_whoever_came(
    plan: Plan, make_job: Any, tmp_path: Any
) -> None:
    quiet = replace(NOISE, noise_multiplier=1e-9)
    still = replace(
        plan, user=UserLevelPrivacy(counts=quiet, centre=quiet, update=replace(quiet, bands=BANDS))
    )
    job = make_job(devices=4, plan=still, simulated_seed=3)
    update = torch.full_like(job.weights, 0.01)

    class Grid:
        """Devices that all send the same."""

        def send_and_receive(self, messages: list[Message], **_: object) -> list[Message]:
            return [
                Message(flower_records.encode_reply(_reply(one, update)), reply_to=one)
                for one in messages
            ]

    training = TrainingCoordinator(job, tmp_path, DeviceChannel(Grid(), timeout_s=1.0))  # type: ignore[arg-type]
    request = messages.TrainRequest(
        plan_hash=still.content_hash(),
        round=1,
        weights=job.weights,
        class_weights=torch.ones(3),
        centre=torch.zeros(4),
        denominator=1.0,
    )
    devices = [Participant(user=str(node), node=node) for node in (100, 101, 102)]
    for came in (devices, devices[:1], []):
        mean = training.sums.compute_mean_update(request, came, contributors=10)
        assert torch.allclose(mean.float(), update * len(came) / 5, atol=1e-6)


def _reply(message: Message, update: torch.Tensor) -> messages.Reply:
    """What each of them sends."""
    node = message.metadata.dst_node_id
    return messages.Reply(user=str(node), status=messages.Status.OK, value=update)
