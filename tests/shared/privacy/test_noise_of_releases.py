"""The noise of all that leaves is the noise that was booked: no less, no more, nobody else's.

Drawn through the code that devices and servers run, on their disks, and compared with their own
ledgers. Each test of a scale accepts the booked one and rejects 2/3 and 3/2 of it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_clips, make_device, make_examples, make_plan
from torch import Tensor

from sottovoce.client.device.device import Device, PreparedRelease
from sottovoce.client.device.randomness import Randomness
from sottovoce.client.federation import enrolment, statistics_round, training_round
from sottovoce.server.aggregation.private_sums import PrivateAggregator
from sottovoce.server.aggregation.secure_sum import run_secure_sum
from sottovoce.shared import crypto
from sottovoce.shared.calibration.head_statistics import (
    SCORE_QUANTILES,
    STATISTICS_SIZE,
    CalibrationQuery,
    CalibrationRelease,
)
from sottovoce.shared.models.parameters import count_parameters, flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy.gaussian_noise import lattice_step
from sottovoce.shared.privacy.release import NoiseSource, Release, ReleaseKind, SumMechanism
from sottovoce.shared.privacy.user_level import (
    ENROLMENT_SUM,
    HEAD_STATISTICS_SUM,
    SecureSumConfigs,
    UserLevelPrivacy,
    secure_sum_name,
)
from sottovoce.shared.protocol import messages
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining
from sottovoce.shared.protocol.messages import SecureSumRequest, TrainRequest
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
from sottovoce.shared.speaker.normalisation import (
    CentreRelease,
    NormaliserRelease,
    SpeakerStatistics,
    default_statistics,
)

CLASSES = INPUTS = 100
RUNS, DEVICES, CLIPS = 8, 5, 12
LABELS = tuple(f"emotion {number:03d}" for number in range(CLASSES))
RATE, DENOMINATOR = 0.5, 4.0
PROJECTION = PublicProjection(mean=torch.zeros(INPUTS), matrix=torch.eye(INPUTS), row_norm=1.0)
MODEL = ModelSpec(kind="linear", inputs=INPUTS, classes=CLASSES)
PARAMS = count_parameters(build_network(MODEL, 0))
PLAIN = make_plan(
    labels=LABELS,
    extractor="random",
    projection_hash=PROJECTION.content_hash(),
    model=MODEL,
    training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=RATE, denominator=1.0),
)
UTTERANCE = replace(
    PLAIN,
    mechanism=ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=1.5),
    centre=CentreRelease(clip_norm=1.5, noise_multiplier=4.0),
    count_noise=10.0,
    calibration=CalibrationRelease(noise_multiplier=3.0, subtracted_share=0.5),
)
NOISE = SumMechanism(noise_multiplier=2.0, clip_norm=0.5, noised_by=NoiseSource.SERVER)
USER_LEVEL = UserLevelPrivacy(
    counts=replace(NOISE, clip_norm=30.0),
    centre=replace(NOISE, clip_norm=1.5),
    update=NOISE,
    calibration=replace(NOISE, clip_norm=0.4),
)
USER = replace(
    PLAIN,
    user=USER_LEVEL,
    calibration=CalibrationRelease(noise_multiplier=0.0, subtracted_share=0.5),
)
Seed = int | None


# --- how a scale is tested ---------------------------------------------------------------------


def plausible(draws: Tensor, std: float) -> bool:
    """Chi-square test of a scale (Fisher's approximation); wrong about the right one in 1e9."""
    square = float((draws.double() / std).square().sum())
    return abs(math.sqrt(2 * square) - math.sqrt(2 * draws.numel() - 1)) < 6.2


def normal(draws: Tensor, std: float) -> bool:
    """Kolmogorov and Smirnov's test, by the bound of Massart; wrong in 1e9."""
    values = draws.flatten().double().sort().values / std
    below = (1 + torch.erf(values / math.sqrt(2))) / 2
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    gap = float(torch.maximum((below - steps[:-1]).abs(), (steps[1:] - below).abs()).max())
    return gap < math.sqrt(math.log(2e9) / (2 * len(values)))


def check_scale(draws: Tensor, std: float) -> None:
    """Fail unless the noise has this scale and no other."""
    assert normal(draws, std)
    assert plausible(draws, std)
    assert not plausible(draws, std * 2 / 3)
    assert not plausible(draws, std * 3 / 2)


def correlated(one: Tensor, other: Tensor) -> bool:
    """Whether two draws share anything; wrong in 1e9."""
    joint = torch.stack([one.flatten().double(), other.flatten().double()])
    return abs(float(torch.corrcoef(joint)[0, 1])) > 6.2 / math.sqrt(one.numel())


def test_the_tests_can_tell() -> None:
    draws = torch.randn(800, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    check_scale(draws, 1.0)
    for wrong in (draws * 2 / 3, draws * 3 / 2, torch.zeros(800)):
        with pytest.raises(AssertionError):
            check_scale(wrong, 1.0)
    assert correlated(draws, draws + draws.flip(0))
    assert not correlated(draws[:400], draws[400:])


# --- devices ----------------------------------------------------------------------------------


def make(folder: Path, user: str = "u0", *, seed: Seed = 7, clips: int = 0) -> Device:
    """A device; without clips all that leaves it is noise."""
    features = torch.randn(clips, INPUTS, generator=torch.Generator().manual_seed(3))
    return make_device(
        folder / user,
        make_clips(make_examples(features, classes=CLASSES)),
        user=user,
        labels=LABELS,
        simulated_seed=seed,
    )


def joined(
    device: Device, plan: Plan = UTTERANCE, people: SpeakerStatistics | None = None
) -> Tensor:
    """What leaves at enrolment, shape (classes + inputs,)."""
    value = enrolment.enrol_device(device, plan, PROJECTION, people or default_statistics(INPUTS))
    assert value is not None
    return value


def request(plan: Plan, number: int = 1) -> dict[str, Any]:
    """A round as the server asks for it."""
    return {
        "plan_hash": plan.content_hash(),
        "round": number,
        "weights": flatten_parameters(build_network(MODEL, 0)),
        "class_weights": torch.ones(CLASSES),
        "centre": torch.zeros(INPUTS),
        "denominator": DENOMINATOR,
    }


def trained(device: Device, plan: Plan = UTTERANCE, number: int = 1) -> Tensor:
    """What leaves in a round, shape (params,)."""
    return training_round.train_round(device, TrainRequest(**request(plan, number)))


def counts_of(device: Device) -> Tensor:
    """Label counts of several runs."""
    plans = [replace(UTTERANCE, run=f"run {number}") for number in range(RUNS)]
    return torch.cat([joined(device, plan)[:CLASSES] for plan in plans])


def centre_of(device: Device) -> Tensor:
    """Contributions to the centre of several runs."""
    plans = [replace(UTTERANCE, run=f"run {number}") for number in range(RUNS)]
    return torch.cat([joined(device, plan)[CLASSES:] for plan in plans])


def gradient_of(device: Device) -> Tensor:
    """The sum of gradients as it was noised: an update in units of its steps."""
    joined(device)
    return trained(device) * DENOMINATOR / RATE


def normaliser_of(device: Device) -> Tensor:
    """The noised sum behind the mean that training uses, where no utterance counts: over 8."""
    settings = NormaliserRelease(clip_norm=0.8, count_weight=0.24, noise_multiplier=0.5)
    far = replace(
        default_statistics(INPUTS), between=torch.full((INPUTS,), 1e12)
    )  # nothing is shrunk
    means = []
    for number in range(RUNS):
        plan = replace(UTTERANCE, run=f"run {number}", normaliser=settings)
        joined(device, plan, far)
        trained(device, plan)
        means.append(device.vault.get_tensors("outbox-normaliser")["value"])
    return torch.cat(means) * 8


def answers_of(device: Device) -> Tensor:
    """Head statistics of devices, in many runs: they are short."""
    released = []
    for number in range(12 * RUNS):
        plan = replace(UTTERANCE, run=f"run {number}")
        joined(device, plan)
        released.append(statistics_round.release_head_statistics(device, statistics_request(plan)))
    return torch.cat(released)


def statistics_request(plan: Plan) -> messages.HeadStatisticsRequest:
    """What the server asks after the last round."""
    return messages.HeadStatisticsRequest(
        plan_hash=plan.content_hash(),
        weights=flatten_parameters(build_network(MODEL, 0)),
        centre=torch.zeros(INPUTS),
        query=CalibrationQuery(
            log_temperature=0.0,
            curvature=0.5,
            edges=torch.linspace(0.1, 0.9, len(SCORE_QUANTILES)),
            shares=torch.full((len(SCORE_QUANTILES) + 1,), 1 / (len(SCORE_QUANTILES) + 1)),
        ),
    )


RELEASES: dict[ReleaseKind, Callable[[Device], Tensor]] = {
    ReleaseKind.LABEL_COUNTS: counts_of,
    ReleaseKind.CENTRE: centre_of,
    ReleaseKind.NORMALISER: normaliser_of,
    ReleaseKind.GRADIENT: gradient_of,
    ReleaseKind.HEAD_STATISTICS: answers_of,
}


def booked(device: Device, kind: ReleaseKind) -> Release:
    """What the ledger on disk says of a kind of release: the same each time."""
    (release, *others) = [
        one for one in Device.open(device.folder).ledger.releases if one.kind is kind
    ]
    assert {one.noise_multiplier for one in others} <= {release.noise_multiplier}
    return release


@pytest.mark.parametrize("kind", RELEASES)
@pytest.mark.parametrize("seed", [7, None])
def test_what_leaves_a_device_has_the_noise_that_was_booked(
    tmp_path: Path, kind: ReleaseKind, seed: Seed
) -> None:
    device = make(tmp_path, seed=seed)

    draws = RELEASES[kind](device)

    release = booked(device, kind)
    check_scale(draws, release.noise_multiplier * release.sensitivity)


@pytest.mark.parametrize(
    "kind",
    [
        ReleaseKind.LABEL_COUNTS,
        ReleaseKind.CENTRE,
        ReleaseKind.GRADIENT,
        ReleaseKind.HEAD_STATISTICS,
    ],
)
def test_noise_is_the_same_whatever_the_device_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: ReleaseKind
) -> None:
    """What leaves less what would leave without noise is what leaves an empty device."""
    noise = RELEASES[kind](make(tmp_path / "empty"))
    noised = RELEASES[kind](make(tmp_path / "full", clips=CLIPS))
    monkeypatch.setattr(Randomness, "noise_source", Silence())
    exact = RELEASES[kind](make(tmp_path / "silent", clips=CLIPS))

    assert exact.count_nonzero() > 0
    assert torch.allclose(noised - exact, noise, atol=1e-4)


class Silence:
    """No noise."""

    def add_noise(self, values: Tensor, std: float) -> Tensor:
        """The values."""
        return values.double() + 0 * std


@pytest.mark.parametrize("kind", RELEASES)
def test_what_leaves_a_real_device_lies_on_its_noises_lattice(
    tmp_path: Path, kind: ReleaseKind
) -> None:
    """With clips and without: low-order bits that only some values can reach would betray them."""
    for name, clips in (("empty", 0), ("full", CLIPS)):
        device = make(tmp_path / name, seed=None, clips=clips)

        released = RELEASES[kind](device).double()

        release = booked(device, kind)
        steps = released / lattice_step(release.noise_multiplier * release.sensitivity)
        if kind is ReleaseKind.NORMALISER and clips:
            continue  # divided by a noised count: only its numerator lies there
        # Steps are whole but for float32's rounding of what is made of them.
        assert float((steps - steps.round()).abs().max()) < 0.01
        assert steps.round().unique().numel() > 40
        simulated = RELEASES[kind](make(tmp_path / f"{name}, simulated", clips=clips)).double()
        steps = simulated / lattice_step(release.noise_multiplier * release.sensitivity)
        assert float((steps - steps.round()).abs().max()) > 0.1  # the test can tell


@pytest.mark.parametrize("kind", RELEASES)
@pytest.mark.parametrize("seed", [7, None])
def test_two_devices_and_two_kinds_share_no_noise(
    tmp_path: Path, kind: ReleaseKind, seed: Seed
) -> None:
    one, other = (RELEASES[kind](make(tmp_path, user, seed=seed)) for user in ("u0", "u1"))
    assert not correlated(one, other)
    if kind is not ReleaseKind.GRADIENT:
        return
    device = make(tmp_path, "u2", seed=seed)
    joined(device)
    first, second = (trained(device, number=number) for number in (1, 2))
    assert not correlated(first, second)


@pytest.mark.parametrize("kind", RELEASES)
def test_seeds_repeat_a_simulation_and_no_device(tmp_path: Path, kind: ReleaseKind) -> None:
    def draws(folder: str, seed: Seed) -> Tensor:
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002  (the one that a careless library would use)
        return RELEASES[kind](make(tmp_path / folder, seed=seed))

    assert torch.equal(draws("a", 7), draws("b", 7))
    assert not correlated(draws("c", 7), draws("d", 8))
    assert not correlated(draws("e", None), draws("f", None))


# --- a server's sums --------------------------------------------------------------------------


SUMS: dict[str, Callable[[PrivateAggregator, list[Tensor]], Tensor]] = {
    "counts": lambda sums, parts: sums.release_label_counts(parts),
    "centre": lambda sums, parts: sums.release_centre(parts),
    "update": lambda sums, parts: sums.release_updates(1, parts, denominator=DENOMINATOR),
    "answers": lambda sums, parts: sums.release_head_statistics(parts),
}


def server(folder: Path, plan: Plan, seed: Seed) -> PrivateAggregator:
    """A server's sums."""
    folder.mkdir(parents=True, exist_ok=True)
    return PrivateAggregator(plan, folder, budgets=[], seed=seed)


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("seed", [7, None])
def test_a_servers_sum_has_the_noise_that_was_booked(tmp_path: Path, name: str, seed: Seed) -> None:
    sums = server(tmp_path, USER, seed)

    total = SUMS[name](sums, [torch.zeros(PARAMS)] * DEVICES)

    user = sums.ledger.releases[0].user
    assert user is not None
    std = user.noise_multiplier * user.clip_norm
    check_scale(total, std)
    # On a real server's lattice no value's last bits betray what was added to the noise.
    steps = total / lattice_step(std)
    assert bool((steps == steps.round()).all()) == (seed is None)


@pytest.mark.parametrize("name", SUMS)
def test_seeds_repeat_a_simulated_servers_sums_and_no_real_ones(tmp_path: Path, name: str) -> None:
    def total(folder: str, seed: Seed) -> Tensor:
        torch.manual_seed(1)
        sums = server(tmp_path / folder, USER, seed)
        return SUMS[name](sums, [torch.zeros(PARAMS)] * DEVICES)

    assert torch.equal(total("a", 7), total("b", 7))
    assert not correlated(total("c", 7), total("d", 8))
    assert not correlated(total("e", None), total("f", None))


@pytest.mark.parametrize(
    ("promised", "own"), [(6.0, False), (1.0, True)], ids=["the server adds", "devices suffice"]
)
def test_where_devices_noise_their_own_the_sum_has_what_was_promised(
    tmp_path: Path, promised: float, own: bool
) -> None:
    """Over what really leaves devices: their noise counts, and only what lacks is added."""
    update = replace(NOISE, noise_multiplier=promised, noised_by=NoiseSource.DEVICES)
    centre = replace(update, clip_norm=6.0)
    plan = replace(
        UTTERANCE,
        mechanism=ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=1.5, sum_norm=0.5),
        user=UserLevelPrivacy(
            counts=replace(update, clip_norm=30.0),
            centre=centre,
            update=update,
            calibration=update,
        ),
    )
    parts = []
    for number in range(DEVICES):
        device = make(tmp_path, f"u{number}", seed=None)
        joined(device, plan)
        parts.append(trained(device, plan))
    sums = server(tmp_path / "server", plan, None)

    total = sums.release_updates(1, parts, denominator=DENOMINATOR)

    wanted = promised * 0.5
    devices = 0.5 * 1.5 * math.sqrt(DEVICES)
    # One of them knows its own noise: what the others leave is topped up.
    counted = 0.5 * 1.5 * math.sqrt(DEVICES - 1)
    added = math.sqrt(max(0.0, wanted**2 - counted**2))
    assert (added == 0) == own
    check_scale(total * DENOMINATOR / RATE, math.hypot(devices, added))


@pytest.mark.parametrize("colluders", [1, 2, 3])
def test_colluders_who_tell_their_noise_leave_what_was_promised(
    tmp_path: Path, colluders: int
) -> None:
    """A participant takes its own noise off the sum it sees, and the sum still hides a user."""
    noise = replace(NOISE, noise_multiplier=3.2, noised_by=NoiseSource.DEVICES)
    plan = replace(
        UTTERANCE,
        mechanism=ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=1.5, sum_norm=0.5),
        user=UserLevelPrivacy(
            counts=noise,
            centre=noise,
            update=noise,
            calibration=noise,
            colluding_share=colluders / DEVICES,
        ),
    )
    parts = []
    for number in range(DEVICES):
        device = make(tmp_path, f"u{number}", seed=None)
        joined(device, plan)
        parts.append(trained(device, plan))

    total = server(tmp_path / "server", plan, None).release_updates(
        1, parts, denominator=DENOMINATOR
    )

    left = (total - torch.stack(parts[:colluders]).sum(0)) * DENOMINATOR / RATE
    check_scale(left, 3.2 * 0.5)


# --- secure sums ------------------------------------------------------------------------------


def _secure(dropout: float) -> Plan:
    """Sums over the devices, each with a share of the noise."""
    root = math.sqrt(2)
    share = partial(replace, NOISE, noised_by=NoiseSource.DISTRIBUTED, discrete=True)
    arranged = {"dropout": dropout, "corruption": 0.0}
    secure = SecureSumConfigs(
        enrolment=select_parameters(
            DEVICES, CLASSES + INPUTS, root, noise_multiplier=2.0 / root, **arranged
        ),
        update=select_parameters(DEVICES, PARAMS, 0.5, noise_multiplier=2.0, **arranged),
        dishonest=0,
        calibration=select_parameters(
            DEVICES, STATISTICS_SIZE, 0.4, noise_multiplier=2.0, **arranged
        ),
    )
    promise = UserLevelPrivacy(
        counts=share(clip_norm=30.0),
        centre=share(clip_norm=1.5),
        update=share(),
        secure=secure,
        calibration=share(clip_norm=0.4),
    )
    return replace(USER, user=promise)


def _pending(device: Device, plan: Plan, kind: str) -> PreparedRelease:
    """What a device adds to a sum of this kind."""
    if kind == HEAD_STATISTICS_SUM:
        return statistics_round.prepare_head_statistics(device, statistics_request(plan))
    return training_round.prepare_round(device, TrainRequest(**request(plan)))


def _opened(folder: Path, plan: Plan, kind: str, *, seed: Seed, lost: str = "") -> Tensor:
    """A secure sum over empty devices; ``lost`` goes away before it masks."""
    assert plan.user is not None
    assert plan.user.secure is not None
    devices = {f"u{n}": make(folder, f"u{n}", seed=seed) for n in range(DEVICES)}
    roster = {user: crypto.identity_public_key(one.identity_key) for user, one in devices.items()}
    for one in devices.values():
        one.pin_roster(roster)
        joined(one, plan)
    name = secure_sum_name(plan.content_hash(), kind)

    def ask(step: str, requests: Any) -> dict[str, bytes]:
        answers = {}
        for user, body in requests.items():
            if not (user == lost and step != "advertise" and step != "share"):
                pending = _pending(devices[user], plan, kind)
                update = pending if step == "mask" and kind != ENROLMENT_SUM else None
                answers[user] = training_round.secure_sum_step(
                    devices[user],
                    SecureSumRequest(
                        plan_hash=plan.content_hash(), name=name, step=step, body=body
                    ),
                    update,
                )
        return answers

    secure = plan.user.secure
    settings = secure.config_for(kind)
    return torch.from_numpy(run_secure_sum(settings, name, roster, ask).total)


@pytest.mark.parametrize("seed", [7, None])
@pytest.mark.parametrize(("dropout", "lost"), [(0.0, ""), (0.2, "u3")])
def test_the_shares_of_a_secure_sum_come_to_the_noise_that_was_booked(
    tmp_path: Path, seed: Seed, dropout: float, lost: str
) -> None:
    """With as many devices as the quorum; with more there is more noise."""
    plan = _secure(dropout)

    total = _opened(tmp_path, plan, "round-1", seed=seed, lost=lost)

    release = booked(Device.open(tmp_path / "u0"), ReleaseKind.GRADIENT)
    assert release.user is not None
    check_scale(total, release.user.noise_multiplier * release.user.clip_norm)


def test_with_a_device_to_spare_there_is_more_noise_and_never_less(tmp_path: Path) -> None:
    total = _opened(tmp_path, _secure(0.2), "round-1", seed=None)

    check_scale(total, 2.0 * 0.5 * math.sqrt(DEVICES / (DEVICES - 1)))


def test_the_secure_sum_of_an_enrolment_has_the_noise_that_was_booked(tmp_path: Path) -> None:
    """Each part is bounded by 1, and hidden by as much as was promised of it."""
    plan = _secure(0.0)
    totals = [
        _opened(
            tmp_path / str(number), replace(plan, run=f"run {number}"), ENROLMENT_SUM, seed=None
        )
        for number in range(4)
    ]

    release = booked(Device.open(tmp_path / "0" / "u0"), ReleaseKind.LABEL_COUNTS)
    assert release.user is not None
    check_scale(torch.cat(totals), release.user.noise_multiplier)


def test_the_secure_sum_of_answers_has_the_noise_that_was_booked(tmp_path: Path) -> None:
    plan = _secure(0.0)
    totals = [
        _opened(
            tmp_path / str(number),
            replace(plan, run=f"run {number}"),
            HEAD_STATISTICS_SUM,
            seed=None,
        )
        for number in range(48)
    ]

    release = booked(Device.open(tmp_path / "0" / "u0"), ReleaseKind.HEAD_STATISTICS)
    assert release.user is not None
    check_scale(torch.cat(totals), release.user.noise_multiplier * release.user.clip_norm)


def test_seeds_repeat_a_simulated_secure_sum_and_no_real_one(tmp_path: Path) -> None:
    plan = _secure(0.0)
    first, again, other, real, anew = (
        _opened(tmp_path / str(place), plan, "round-1", seed=seed)
        for place, seed in enumerate([7, 7, 8, None, None])
    )

    assert torch.equal(first, again)  # masks are fresh each time, and cancel
    assert not correlated(first, other)
    assert not correlated(real, anew)


def test_the_shares_of_two_devices_share_nothing(tmp_path: Path) -> None:
    plan = _secure(0.0)
    for seed in (7, None):
        one, other = (make(tmp_path / str(seed), user, seed=seed) for user in ("u0", "u1"))
        release = plan.gradient_release(1)
        words = [
            one_.book_release("round-1", "x", release).random_words.draw_words(2_000)
            for one_ in (one, other)
        ]
        first, second = (torch.from_numpy((each >> np.uint64(1)).astype(float)) for each in words)
        assert not correlated(first, second)
