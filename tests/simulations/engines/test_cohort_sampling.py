"""Sampled rounds: every device by itself, divided by what was expected, never by who came."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Message

from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.federation.cohort_sampling import CohortSampler
from sottovoce.server.federation.coordinator import TrainingCoordinator
from sottovoce.server.federation.device_channel import DeviceChannel
from sottovoce.server.federation.participants import Participant
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.privacy.release import NoiseSource, SumMechanism
from sottovoce.shared.privacy.user_level import UserLevelPrivacy
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.shared.protocol.local_training import NoPrivacy
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import EXACT_CENTRE

ROUNDS, RATE = 12, 0.4
NOISE = SumMechanism(noise_multiplier=50.0, clip_norm=0.5, noised_by=NoiseSource.SERVER)
USERS = UserLevelPrivacy(counts=NOISE, centre=NOISE, update=replace(NOISE, sample_rate=RATE))


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


def _asked(federation: Any) -> list[list[str]]:
    """Who was asked in each round."""
    rounds: dict[int, list[str]] = {number: [] for number in range(1, ROUNDS + 1)}
    users = {100 + index: user for index, user in enumerate(("ada", "ben", "cleo", "dan"))}

    def note(message: Message) -> bool:
        if message.metadata.message_type == messages.TRAIN:
            number = flower_records.decode_train_request(message.content).round
            rounds[number].append(users[message.metadata.dst_node_id])
        return False

    federation.run(is_lost=note)
    return list(rounds.values())


def test_a_draw_decides_who_joins_and_a_simulation_repeats_it(
    make_federation: Any, plan: Plan
) -> None:
    first, again = (
        _asked(make_federation(name, plan=plan, simulated_seed=3)) for name in ("first", "again")
    )
    other = _asked(make_federation("other", plan=plan, simulated_seed=4))

    assert first == again != other
    assert len({tuple(cohort) for cohort in first}) > 2
    assert all("dan" not in cohort for cohort in first), "who only receives never trains"
    assert 2 < sum(map(len, first)) < 3 * ROUNDS


def test_every_device_pays_for_every_round_whether_it_joined_or_not(
    make_federation: Any, plan: Plan
) -> None:
    federation = make_federation("a", plan=plan, simulated_seed=3)
    federation.run()

    for user in ("ada", "ben", "cleo"):
        booked = federation.device(user).ledger.releases
        assert sum(release.user.sums for release in booked if release.user) == ROUNDS + 2


def test_a_mean_is_over_those_expected(plan: Plan, make_job: Any, tmp_path: Any) -> None:
    quiet = replace(NOISE, noise_multiplier=1e-9)
    still = replace(
        plan,
        user=UserLevelPrivacy(counts=quiet, centre=quiet, update=replace(quiet, sample_rate=RATE)),
    )
    job: Job = make_job(devices=4, plan=still, aggregation=AggregationSettings(), simulated_seed=3)
    update = torch.full_like(job.weights, 0.01)

    class Grid:
        """Three devices that all send the same."""

        def send_and_receive(self, messages: list[Message], **_: object) -> list[Message]:
            return [
                Message(
                    flower_records.encode_reply(_reply(one.metadata.dst_node_id, update)),
                    reply_to=one,
                )
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
        assert torch.allclose(mean.float(), update * len(came) / (10 * RATE), atol=1e-6)


def test_cohorts_are_sampled_from_devices_on_disk_too(make_federation: Any, plan: Plan) -> None:
    """Cohorts need no population: the sampled coordinator works over any engine."""
    sampler = CohortSampler(users=3, user_sampling_rate=RATE)
    settings: dict[str, Any] = {"plan": plan, "simulated_seed": 3, "quorum": 0.0}
    settings["cohort_sampler"] = sampler
    federations = [make_federation(name, **settings) for name in ("first", "again")]
    for federation in federations:
        federation.run()

    first, again = federations
    assert torch.equal(first.released(), again.released())
    assert first.ledgers() == again.ledgers()
    for user in ("ada", "ben", "cleo"):
        booked = first.device(user).ledger.releases
        assert sum(release.user.sums for release in booked if release.user) in (0, ROUNDS + 2)
    assert first.device("dan").vault.has_blob("head"), "who only receives takes the model"


def _reply(node: int, update: torch.Tensor) -> messages.Reply:
    """What each of them sends."""
    return messages.Reply(user=str(node), status=messages.Status.OK, value=update)
