"""Sampled rounds: each device by its own coin, divided by what was expected, never by who came."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Message

from sottovoce.server.cohorts import Cohorts
from sottovoce.server.job import Job
from sottovoce.server.round import Aggregation
from sottovoce.server.strategy import Device, Training
from sottovoce.shared import wire
from sottovoce.shared.normaliser import EXACT_CENTRE
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.release import NoisedBy, UserNoise
from sottovoce.shared.privacy.users import UserPromise
from sottovoce.shared.training import NoPrivacy

ROUNDS, RATE = 12, 0.4
NOISE = UserNoise(noise_multiplier=50.0, clip_norm=0.5, noised_by=NoisedBy.SERVER)
USERS = UserPromise(counts=NOISE, centre=NOISE, update=replace(NOISE, sample_rate=RATE))


@pytest.fixture
def plan(make_job: Any) -> Plan:
    """A plan whose rounds are sampled."""
    usual: Plan = make_job(devices=4).plan
    return replace(
        usual,
        rounds=ROUNDS,
        training=replace(usual.training, steps=1, sample_rate=1.0),
        mechanism=NoPrivacy(),
        centre=EXACT_CENTRE,
        normaliser=None,
        count_noise=0.0,
        user=USERS,
    )


def _asked(world: Any) -> list[list[str]]:
    """Who was asked in each round."""
    rounds: dict[int, list[str]] = {number: [] for number in range(1, ROUNDS + 1)}
    users = {100 + place: user for place, user in enumerate(("ada", "ben", "cleo", "dan"))}

    def note(message: Message) -> bool:
        if message.metadata.message_type == wire.TRAIN:
            number = wire.TrainRequest.read(message.content).round
            rounds[number].append(users[message.metadata.dst_node_id])
        return False

    world.run(lost=note)
    return list(rounds.values())


def test_coins_decide_who_joins_and_a_simulation_repeats_them(make_world: Any, plan: Plan) -> None:
    first, again = (
        _asked(make_world(name, plan=plan, simulated_seed=3)) for name in ("first", "again")
    )
    other = _asked(make_world("other", plan=plan, simulated_seed=4))

    assert first == again != other
    assert len({tuple(cohort) for cohort in first}) > 2
    assert all("dan" not in cohort for cohort in first), "who only receives never trains"
    assert 2 < sum(map(len, first)) < 3 * ROUNDS


def test_every_device_pays_for_every_round_whether_it_joined_or_not(
    make_world: Any, plan: Plan
) -> None:
    world = make_world("a", plan=plan, simulated_seed=3)
    world.run()

    for user in ("ada", "ben", "cleo"):
        booked = world.device(user).ledger.releases
        assert sum(release.user.sums for release in booked if release.user) == ROUNDS + 2


def test_a_mean_is_over_those_expected(plan: Plan, make_job: Any, tmp_path: Any) -> None:
    quiet = replace(NOISE, noise_multiplier=1e-9)
    still = replace(
        plan,
        user=UserPromise(counts=quiet, centre=quiet, update=replace(quiet, sample_rate=RATE)),
    )
    job: Job = make_job(devices=4, plan=still, aggregation=Aggregation(), simulated_seed=3)
    update = torch.full_like(job.weights, 0.01)

    class Grid:
        """Three devices that all send the same."""

        def send_and_receive(self, messages: list[Message], **_: object) -> list[Message]:
            return [
                Message(_reply(one.metadata.dst_node_id, update).record(), reply_to=one)
                for one in messages
            ]

    training = Training(job, tmp_path, Grid())  # type: ignore[arg-type]
    request = wire.TrainRequest(
        plan=still.digest(),
        round=1,
        weights=job.weights,
        class_weights=torch.ones(3),
        centre=torch.zeros(4),
        denominator=1.0,
    )
    devices = [Device(user=str(node), node=node) for node in (100, 101, 102)]
    for came in (devices, devices[:1], []):
        mean = training._mean(request, came, contributing=10)
        assert torch.allclose(mean.float(), update * len(came) / (10 * RATE), atol=1e-6)


def test_devices_on_disk_are_a_crowd_too(make_world: Any, plan: Plan) -> None:
    """Cohorts need no population: the server's way with a crowd works over any engine."""
    crowd = Cohorts(users=3, rate=RATE)
    settings: dict[str, Any] = {"plan": plan, "simulated_seed": 3, "quorum": 0.0, "crowd": crowd}
    worlds = [make_world(name, **settings) for name in ("first", "again")]
    for world in worlds:
        world.run()

    first, again = worlds
    assert torch.equal(first.released(), again.released())
    assert first.ledgers() == again.ledgers()
    for user in ("ada", "ben", "cleo"):
        booked = first.device(user).ledger.releases
        assert sum(release.user.sums for release in booked if release.user) in (0, ROUNDS + 2)
    assert first.device("dan").vault.has("head"), "who only receives takes the model"


def _reply(node: int, update: torch.Tensor) -> wire.Reply:
    """What each of them sends."""
    return wire.Reply(user=str(node), status=wire.Status.OK, value=update)
