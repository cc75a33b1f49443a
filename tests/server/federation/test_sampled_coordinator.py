"""A sampled run, by its server alone: whom it asks, what it divides by, what it remembers."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_plan
from flwr.app import Error, Message

from sottovoce.server.aggregation.server_optimizer import (
    AggregationSettings,
    ServerState,
    initial_state,
)
from sottovoce.server.federation.cohort_sampling import CohortSampler
from sottovoce.server.federation.device_channel import DeviceChannel
from sottovoce.server.federation.membership import MembershipStore
from sottovoce.server.federation.sampled_coordinator import (
    MEMBERSHIP_FILE,
    SampledTrainingCoordinator,
)
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.calibration.head_statistics import CalibrationRelease
from sottovoce.shared.errors import EngineError, ModelError, SettingError
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import identity_projection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.release import NoiseSource, SumMechanism
from sottovoce.shared.privacy.user_level import AdaptiveClipping, UserLevelPrivacy
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import CentreRelease, default_statistics
from sottovoce.simulations.engines import local

USERS, RATE, INPUTS, LABELS = 1_000_000, 1e-3, 3, ("angry", "happy")
QUIET = SumMechanism(noise_multiplier=1e-9, clip_norm=5.0, noised_by=NoiseSource.SERVER)
UPDATE = 0.01


def _plan(*, rate: float = RATE, noise: SumMechanism = QUIET) -> Plan:
    return make_plan(
        run="crowd",
        labels=LABELS,
        projection_hash=identity_projection(INPUTS).content_hash(),
        model=ModelSpec(kind="linear", inputs=INPUTS, classes=len(LABELS)),
        user=UserLevelPrivacy(counts=noise, centre=noise, update=replace(noise, sample_rate=rate)),
    )


def _job(plan: Plan | None = None, *, users: int = USERS, rate: float = RATE, **more: Any) -> Job:
    agreed = plan or _plan(rate=rate)
    settings: dict[str, Any] = {
        "plan": agreed,
        "aggregation": AggregationSettings(max_weight_noise_std=1e9),
        "weights": flatten_parameters(build_network(agreed.model, seed=0)),
        "projection": identity_projection(INPUTS),
        "speaker_statistics": default_statistics(INPUTS),
        "devices": users,
        "quorum": 0.01,
        "simulated_seed": 3,
        "cohort_sampler": CohortSampler(users=users, user_sampling_rate=rate),
    }
    return Job(**settings | more)


@pytest.fixture(autouse=True)
def _identity() -> None:
    """Flower builds no message before a task has an identity."""
    local.set_task_identity()


WEIGHTS = _job().weights


class Grid:
    """A million devices that all answer alike, but for those that ``fate`` silences."""

    def __init__(self, nodes: int = USERS, *, answering: int = 1) -> None:
        self.nodes, self.answering = range(nodes), answering
        self.asked: list[tuple[str, str, list[int]]] = []
        self.user_of: dict[int, str] = {}

    def get_node_ids(self) -> Iterable[int]:
        return self.nodes

    def send_and_receive(self, messages: Iterable[Message], **_: object) -> list[Message]:
        answered = list(messages)
        if answered:
            first = answered[0].metadata
            nodes = [one.metadata.dst_node_id for one in answered]
            self.asked.append((first.group_id, first.message_type, nodes))
        return [self._answer(one) for one in answered]

    def _answer(self, message: Message) -> Message:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        if node % self.answering:
            return Message(Error(code=5, reason="asleep"), reply_to=message)
        user, value = self.user_of.get(node, f"user-{node:09d}"), None
        if kind == messages.TRAIN:
            value = torch.full_like(WEIGHTS, UPDATE)
        elif flower_records.decode_enrol_request(message.content).report_statistics:
            value = torch.tensor([3.0, 1.0, 0.5, 0.0, 0.0])
        reply = messages.Reply(user=user, status=messages.Status.OK, value=value)
        return Message(flower_records.encode_reply(reply), reply_to=message)

    def of(self, kind: str, group: str) -> list[int]:
        """Nodes that were asked this in a round."""
        return [n for g, k, nodes in self.asked if (g, k) == (group, kind) for n in nodes]


def _train(folder: Path, grid: Grid, job: Job | None = None) -> SampledTrainingCoordinator:
    folder.mkdir(parents=True, exist_ok=True)
    channel = DeviceChannel(grid, timeout_s=1.0, logs_failures=False)  # type: ignore[arg-type]
    return SampledTrainingCoordinator(job or _job(), folder, channel)


@pytest.mark.parametrize("answering", [1, 2, 5])
def test_sums_are_divided_by_those_expected_whoever_comes(tmp_path: Path, answering: int) -> None:
    """Dividing by those who came would tell who was drawn, which the accounting takes as secret."""
    grid, job = Grid(answering=answering), _job()
    training = _train(tmp_path, grid)
    founded = training.summarise_initial_cohort()
    state = training.train_round(_begun(job), founded)

    used = MembershipStore(tmp_path / MEMBERSHIP_FILE).load_outcomes()[1].used
    assert used < 1_200 / answering
    expected = job.weights + UPDATE * used / (USERS * RATE)
    assert torch.allclose(state.weights, expected, atol=1e-6)
    founders = MembershipStore(tmp_path / MEMBERSHIP_FILE).load_outcomes()[0].used
    assert float(founded.centre[0]) == pytest.approx(0.5 * founders / (USERS * RATE), abs=1e-4)


def test_without_a_promise_a_mean_is_over_those_who_came(tmp_path: Path) -> None:
    job = _job(replace(_plan(), user=None))
    training = _train(tmp_path, Grid(answering=5), job)
    founded = training.summarise_initial_cohort()
    state = training.train_round(_begun(job), founded)

    assert torch.allclose(state.weights, job.weights + UPDATE, atol=1e-6)
    assert founded.utterances_per_device == pytest.approx(4.0)


def test_a_device_is_asked_to_enrol_when_it_is_first_drawn_and_once(tmp_path: Path) -> None:
    grid = Grid(2_000)
    job = _job(_plan(rate=0.2), users=2_000, rate=0.2)
    _train(tmp_path, grid, job).run()

    enrolled = [node for n in range(4) for node in grid.of(messages.ENROL, str(n))]
    assert len(enrolled) == len(set(enrolled)), "nobody twice"
    for number in (1, 2, 3):
        drawn = set(grid.of(messages.TRAIN, str(number)))
        assert set(grid.of(messages.ENROL, str(number))) <= drawn <= set(enrolled)
        tally = MembershipStore(tmp_path / MEMBERSHIP_FILE).load_outcomes()[number]
        assert tally.newcomers == len(grid.of(messages.ENROL, str(number)))
        assert tally.sampled == tally.used == len(drawn)
    assert 2_000 not in enrolled
    assert set(grid.of(messages.TRAIN, "1")) != set(grid.of(messages.TRAIN, "2"))


def test_only_founders_tell_and_a_resumed_run_does_not_ask_them_again(tmp_path: Path) -> None:
    grid = Grid()
    first = _train(tmp_path, grid).summarise_initial_cohort()
    again = Grid()
    loaded = _train(tmp_path, again).summarise_initial_cohort()

    assert len(grid.of(messages.ENROL, "0")) > 800
    assert again.asked == []
    assert torch.equal(first.label_counts, loaded.label_counts)
    assert torch.equal(first.centre, loaded.centre)


def test_what_another_plan_founded_is_refused(tmp_path: Path) -> None:
    _train(tmp_path, Grid()).summarise_initial_cohort()
    other = _job(replace(_plan(), run="other"))
    with pytest.raises(ModelError, match="another plan"):
        _train(tmp_path, Grid(), other).summarise_initial_cohort()


def test_a_user_behind_two_nodes_counts_once(tmp_path: Path) -> None:
    """Whoever enrols twice would be in a sum twice, and the sum is noised for once."""
    grid = Grid(40)
    grid.user_of = {node: f"user-{node // 2}" for node in range(40)}
    job = _job(_plan(rate=1.0), users=40, rate=1.0)
    training = _train(tmp_path, grid, job)
    training.train_round(_begun(job), training.summarise_initial_cohort())

    assert len(grid.of(messages.TRAIN, "1")) == 20
    assert MembershipStore(tmp_path / MEMBERSHIP_FILE).load_outcomes()[1].used == 20


def test_memory_goes_neither_with_the_crowd_nor_with_the_cohort(tmp_path: Path) -> None:
    grid = Grid()
    training = _train(tmp_path, grid)
    training.run()

    assert max(len(nodes) for _, _, nodes in grid.asked) <= 256
    assert isinstance(training._all_nodes, range), "nobody listed the nodes"
    sizes = {
        name: len(value)
        for part in (training, training._channel)
        for name, value in vars(part).items()
        if isinstance(value, dict | list)
    }
    assert all(size <= 256 for size in sizes.values()), sizes
    assert MembershipStore(tmp_path / MEMBERSHIP_FILE).count_members() > 3_000


def test_the_silent_are_counted_and_do_not_fill_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = _train(tmp_path, Grid(answering=4))
    training.train_round(_begun(_job()), training.summarise_initial_cohort())
    tally = MembershipStore(tmp_path / MEMBERSHIP_FILE).load_outcomes()[1]

    assert tally.sampled == tally.unresponsive + tally.used + tally.refused
    assert tally.unresponsive > 2 * tally.used
    assert not caplog.records


def test_too_few_stop_the_run_with_the_way_out(tmp_path: Path) -> None:
    training = _train(tmp_path, Grid(answering=10), _job(quorum=0.5))
    with pytest.raises(EngineError, match=r"initial cohort: \d+ devices .* 1000 were expected"):
        training.summarise_initial_cohort()


def test_a_real_server_that_begins_a_round_again_draws_nobody_anew(tmp_path: Path) -> None:
    """Its sum was released: another cohort's would be a second one, on the same booking."""
    job = _job(simulated_seed=None)
    first = _train(tmp_path, Grid(), job)
    state = first.train_round(_begun(job), first.summarise_initial_cohort())
    grid = Grid()
    again = _train(tmp_path, grid, job)

    assert torch.equal(
        again.train_round(_begun(job), again.summarise_initial_cohort()).weights,
        state.weights,
    )
    assert grid.asked == []
    assert len(again.aggregator.ledger.releases) == 3


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (
            replace(
                _plan(rate=1.0),
                mechanism=ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=1.0, sum_norm=5.0),
                centre=CentreRelease(clip_norm=1.0, noise_multiplier=1.0),
                count_noise=1.0,
            ),
            "unit user without secure",
        ),
        (_plan(rate=0.5), "sampled with rate 0.5, cohorts are sampled with 0.001"),
    ],
)
def test_plans_that_a_crowd_cannot_keep_are_refused(tmp_path: Path, plan: Plan, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        _train(tmp_path, Grid(), _job(plan))


def test_a_bound_that_learns_is_refused(tmp_path: Path) -> None:
    """The silent would be read as half within, and the bound would drift."""
    adaptive = AdaptiveClipping(start=1.0)
    noise = replace(QUIET, clip_norm=adaptive.norm_bound)
    plan = _plan(noise=noise)
    assert plan.user
    with pytest.raises(SettingError, match="without adaptive"):
        _train(tmp_path, Grid(), _job(replace(plan, user=replace(plan.user, adaptive=adaptive))))


def test_noise_of_a_kind_that_is_not_made_here_is_refused(tmp_path: Path) -> None:
    """Left out, it would be accounted for as one thing and drawn as another."""
    usual = _plan()
    assert usual.user
    noise = replace(QUIET, bands=BandedNoise.from_square_root(bands=2, min_separation=2))
    plan = replace(usual, user=replace(usual.user, update=noise))
    with pytest.raises(SettingError, match="noise with bands, which is not made over a sampled"):
        _train(tmp_path, Grid(), _job(plan))


def test_a_crowd_is_not_asked_of_calibration(tmp_path: Path) -> None:
    asked = CalibrationRelease(noise_multiplier=0.0, subtracted_share=0.0)
    plan = replace(_plan(), user=None, calibration=asked)
    with pytest.raises(SettingError, match="asks devices for head statistics"):
        _train(tmp_path, Grid(), _job(plan))


def test_a_grid_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="the grid has 10 devices"):
        _train(tmp_path, Grid(10))


def test_a_job_keeps_its_crowd(tmp_path: Path) -> None:
    _job().save(tmp_path)
    assert Job.load(tmp_path).cohort_sampler == CohortSampler(users=USERS, user_sampling_rate=RATE)


def _begun(job: Job) -> ServerState:
    return initial_state(job.weights)
