"""After the last round users say, once, where heads and sets start: of what they did not teach."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from safetensors.torch import save_file
from torch import Tensor

from sottovoce.client.app import app as product
from sottovoce.client.device.device import Device
from sottovoce.server.federation import checkpoint
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.calibration.head_statistics import STATISTICS_SIZE, CalibrationRelease
from sottovoce.shared.errors import EngineError, SettingError
from sottovoce.shared.privacy.release import ReleaseKind
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.shared.protocol.local_training import NoPrivacy
from sottovoce.shared.speaker.normalisation import EXACT_CENTRE, EXACT_MEAN
from sottovoce.simulations.engines import device_host

USERS = ("ada", "ben", "cleo", "dan")
INPUTS, CLASSES, SPOKEN = 4, 3, 20


def _asking(federation: Any, *, groups: int = 0, private: bool = True) -> Job:
    """The federation's job, with public speakers and a plan that asks its users."""
    folder = federation.folder / "server"
    generator = torch.Generator().manual_seed(3)
    public = {
        "features": torch.randn(4 * SPOKEN, INPUTS, generator=generator),
        "frames": torch.ones(4 * SPOKEN, dtype=torch.int64),
        "labels": torch.arange(4 * SPOKEN) % CLASSES,
        "speakers": torch.arange(4 * SPOKEN) // SPOKEN,
    }
    save_file(public, federation.folder / "held_out.safetensors")
    job = Job.load(folder)
    noise = 3.0 if private else 0.0
    asked = CalibrationRelease(noise_multiplier=noise, subtracted_share=0.5 if private else 0.0)
    changes: dict[str, Any] = {"calibration": asked}
    if not private:
        changes |= {"mechanism": NoPrivacy(), "count_noise": 0.0}
        changes |= {"centre": EXACT_CENTRE, "normaliser": EXACT_MEAN}
    plan = replace(job.plan, **changes)
    job = replace(
        job,
        plan=plan,
        calibration_groups=groups,
        held_out_path=federation.folder / "held_out.safetensors",
        simulated_seed=7,
    )
    job.save(folder)
    return job


def _told(federation: Any) -> int:
    """How many answers ada's device booked."""
    releases = federation.device("ada").ledger.releases
    return sum(one.kind is ReleaseKind.HEAD_STATISTICS for one in releases)


def test_heads_and_sets_start_where_users_said(make_federation: Any) -> None:
    federation = make_federation("one", epsilon=50.0)
    job = _asking(federation)

    federation.run()

    weights, prior = checkpoint.load_released_model(federation.folder / "server")
    public = job.estimate_head_prior(weights["weights"])
    assert _told(federation) == 1
    assert prior.mean.log_temperature != public.mean.log_temperature
    assert prior.scores is not None
    assert public.scores is not None
    assert prior.scores.atoms != public.scores.atoms


def test_without_public_speakers_nothing_is_asked(make_federation: Any) -> None:
    federation = make_federation("one", epsilon=50.0)
    job = _asking(federation)
    replace(job, held_out_path=None).save(federation.folder / "server")

    federation.run()

    assert _told(federation) == 0
    assert checkpoint.load_released_model(federation.folder / "server")[1].scores is None


def test_a_run_cut_off_at_the_answers_goes_on_with_the_same_ones(make_federation: Any) -> None:
    whole, broken = make_federation("whole", epsilon=50.0), make_federation("broken", epsilon=50.0)
    for federation in (whole, broken):
        _asking(federation)
    whole.run()

    def deaf(kind: str, replies: list[Message]) -> list[Message]:
        return [] if kind == messages.HEAD_STATISTICS else replies

    with pytest.raises(EngineError, match="--resume"):
        broken.run(tamper=deaf)
    broken.run()

    assert torch.equal(whole.released(), broken.released())
    priors = [
        checkpoint.load_released_model(one.folder / "server")[1].as_dict()
        for one in (whole, broken)
    ]
    assert priors[0] == priors[1]
    assert _told(broken) == 1


@pytest.mark.parametrize("value", [3e38, -3e38, 1e6])
def test_an_answer_longer_than_any_honest_one_counts_as_none(
    make_federation: Any, value: float
) -> None:
    def without_ada(kind: str, replies: list[Message]) -> list[Message]:
        return [
            one
            for one in replies
            if kind != messages.HEAD_STATISTICS or one.metadata.src_node_id != 100
        ]

    def lying(kind: str, replies: list[Message]) -> list[Message]:
        for one in replies:
            if kind == messages.HEAD_STATISTICS and one.metadata.src_node_id == 100:
                reply = flower_records.decode_reply(one.content, size=STATISTICS_SIZE)
                one.content = flower_records.encode_reply(
                    replace(reply, value=torch.full((STATISTICS_SIZE,), value))
                )
        return replies

    federations = {"lost": without_ada, "lie": lying}
    priors = []
    for name, tamper in federations.items():
        federation = make_federation(name, epsilon=50.0)
        _asking(federation)
        federation.run(tamper=tamper)
        priors.append(checkpoint.load_released_model(federation.folder / "server")[1].as_dict())

    assert priors[0] == priors[1]


class _Listening(ClientApp):
    """Notes in order who trained which round, and whose clips were judged by which weights."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[tuple[str, int]] = []
        self.judged: list[tuple[str, Tensor, set[str]]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        user = USERS[int(context.node_config["partition-id"])]
        if message.metadata.message_type == messages.TRAIN:
            self.trained.append((user, flower_records.decode_train_request(message.content).round))
        if message.metadata.message_type == messages.HEAD_STATISTICS:
            weights = flower_records.decode_statistics_request(message.content).weights
            self.judged.append((user, weights, self._teachers()))
        return device_host.call_client(product, message, context)

    def _teachers(self) -> set[str]:
        """Who trained the newest model: all since the last time that a first round began."""
        rounds = [number for _, number in self.trained]
        begun = max(
            index
            for index, number in enumerate(rounds)
            if number == 1 and (index == 0 or rounds[index - 1] != 1)
        )
        return {user for user, _ in self.trained[begun:]}


def test_in_groups_nobody_is_judged_by_a_model_that_heard_them(make_federation: Any) -> None:
    federation, listener = make_federation("one"), _Listening()
    job = _asking(federation, groups=3, private=False)
    for user in USERS:  # nothing is promised, so no budget may stand in the way
        facts = federation.device(user).folder / "device.json"
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"budgets": []}))
        Device.confirm_profile(facts.parent)

    federation.run(client=listener)

    final, contributing = federation.released(), set(USERS[:3])
    assert [user for user, _, _ in listener.judged] == sorted(contributing)
    for user, weights, teachers in listener.judged:
        assert teachers == contributing - {user}
        assert not torch.equal(weights, final)
    rounds = [number for user, number in listener.trained if user == "ada"]
    assert rounds == [*range(1, job.plan.rounds + 1)] * 3  # the final model, and two without others


def test_groups_are_refused_where_something_is_promised(make_federation: Any) -> None:
    with pytest.raises(SettingError, match="groups"):
        _asking(make_federation("one"), groups=2)
    with pytest.raises(SettingError, match="groups"):
        _asking(make_federation("other"), groups=-1)
