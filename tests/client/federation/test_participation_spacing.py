"""A device's rounds lie apart, whatever the server asks, in whatever order, crash or no crash."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from builders import make_clips, make_device, make_examples, make_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.client.federation import enrolment, training_round
from sottovoce.shared.errors import BudgetSpent, PrivacyError
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, ReleaseKind, SumMechanism
from sottovoce.shared.privacy.user_level import UserLevelPrivacy
from sottovoce.shared.protocol.messages import TrainRequest
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import default_statistics

LABELS, INPUTS, CLIPS, ROUNDS, DELTA = ("angry", "sad"), 3, 6, 12, 1e-3
FRONT = PublicProjection(mean=torch.zeros(INPUTS), matrix=torch.eye(INPUTS), row_norm=1.0)
MODEL = ModelSpec(kind="linear", inputs=INPUTS, classes=2)
NOISE = SumMechanism(noise_multiplier=3.0, clip_norm=0.5, noised_by=NoiseSource.SERVER)
BANDS = BandedNoise.from_square_root(bands=3, min_separation=4)


def plan(bands: BandedNoise = BANDS, run: str = "r") -> Plan:
    """A plan of twelve rounds whose noise is correlated."""
    user = UserLevelPrivacy(counts=NOISE, centre=NOISE, update=replace(NOISE, bands=bands))
    return make_plan(
        run=run,
        labels=LABELS,
        extractor="random",
        projection_hash=FRONT.content_hash(),
        model=MODEL,
        rounds=ROUNDS,
        user=user,
    )


def make(folder: Path, *, seed: int | None = 7, epsilon: float | None = None) -> Device:
    """A device with a few random clips, which has joined."""
    clips = make_clips(
        make_examples(
            torch.randn(CLIPS, INPUTS, generator=torch.Generator().manual_seed(1)), classes=2
        )
    )
    budgets = (
        ()
        if epsilon is None
        else (PrivacyBudget(epsilon=epsilon, delta=DELTA, unit=PrivacyUnit.USER),)
    )
    device = make_device(
        folder / "device", clips, budgets=budgets, labels=LABELS, simulated_seed=seed
    )
    enrolment.enrol_device(device, plan(), FRONT, default_statistics(INPUTS))
    return device


def ask(device: Device, number: int, *, scale: float = 1.0, agreed: Plan | None = None) -> Tensor:
    """One round, of a device opened anew, as after a crash; ``scale`` changes the request."""
    return training_round.train_round(
        Device.open(device.folder),
        TrainRequest(
            plan_hash=(agreed or plan()).content_hash(),
            round=number,
            weights=flatten_parameters(build_network(MODEL, 0)) + scale,
            class_weights=torch.ones(2),
            centre=torch.zeros(INPUTS),
            denominator=1.0,
        ),
    )


def took_part(device: Device, run: str = "r") -> list[int]:
    """Booked rounds, as they lie on disk."""
    rounds = Device.open(device.folder, read_only=True).ledger.releases_of(run)
    return [one.round for one in rounds if one.kind is ReleaseKind.GRADIENT]


def test_rounds_that_lie_apart_are_given_and_booked(tmp_path: Path) -> None:
    device = make(tmp_path)
    for number in (2, 6, 12):
        assert bool(ask(device, number).any())
    assert took_part(device) == [2, 6, 12]
    (line,) = [one for one in Device.open(device.folder).ledger.releases if one.round == 6]
    assert line.user is not None
    assert line.user.bands == BANDS, "the record says why the lines add up"


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7, 8, 9])
def test_a_round_too_near_is_refused_and_neither_booked_nor_made(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = make(tmp_path)
    ask(device, 6)

    def made(*_: object) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(training_round, "compute_local_update", made)
    with pytest.raises(PrivacyError, match="must be 4 apart"):
        ask(device, number, scale=2.0)
    assert took_part(device) == [6]


@pytest.mark.parametrize("seed", [7, None])
def test_the_same_request_gets_the_same_bytes_and_another_nothing(
    tmp_path: Path, seed: int | None
) -> None:
    device = make(tmp_path, seed=seed)
    first = ask(device, 3)
    assert torch.equal(ask(device, 3), first)
    with pytest.raises(PrivacyError, match="must be 4 apart"):
        ask(device, 3, scale=2.0)
    assert took_part(device) == [3]


@pytest.mark.parametrize("seed", [7, None])
def test_what_was_given_and_lost_is_given_again_only_in_a_simulation(
    tmp_path: Path, seed: int | None
) -> None:
    device = make(tmp_path, seed=seed)
    first = ask(device, 3)
    for path in (device.folder / "vault").glob("outbox-gradient*"):
        path.unlink()
    if seed is None:
        with pytest.raises(PrivacyError, match="a round is released once"):
            ask(device, 3)
    else:
        assert torch.equal(ask(device, 3), first)
    assert took_part(device) == [3]
    ask(device, 7)


@pytest.mark.parametrize("seed", [7, None])
def test_killed_after_booking_a_real_device_waits_for_its_next_turn(
    tmp_path: Path, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = make(tmp_path, seed=seed)

    def die(*_: object, **_more: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(training_round, "compute_local_update", die)
        with pytest.raises(InterruptedError):
            ask(device, 3)
    assert took_part(device) == [3]
    if seed is None:
        with pytest.raises(PrivacyError, match="released once"):
            ask(device, 3)
    else:
        assert bool(ask(device, 3).any())
    with pytest.raises(PrivacyError, match="apart"):
        ask(device, 4)
    ask(device, 7)
    assert took_part(device) == [3, 7]


def test_another_plan_of_the_run_does_not_bring_rounds_nearer(tmp_path: Path) -> None:
    device = make(tmp_path)
    ask(device, 3)
    hasty = plan(BandedNoise(min_separation=2))
    enrolment.enrol_device(Device.open(device.folder), hasty, FRONT, default_statistics(INPUTS))
    with pytest.raises(PrivacyError, match="must be 4 apart"):
        ask(device, 5, agreed=hasty)
    other = plan(BandedNoise(min_separation=2), run="s")
    enrolment.enrol_device(Device.open(device.folder), other, FRONT, default_statistics(INPUTS))
    ask(device, 4, agreed=other)
    assert (took_part(device), took_part(device, "s")) == ([3], [4])


def test_over_the_budget_no_turn_is_taken(tmp_path: Path) -> None:
    dear = accounting.compute_epsilon(
        list(plan().all_releases())[:-1], DELTA, unit=PrivacyUnit.USER
    )
    device = make(tmp_path, epsilon=dear)
    for number in (1, 5):
        ask(device, number)
    with pytest.raises(BudgetSpent):
        ask(device, 9)
    assert took_part(device) == [1, 5]


ASKED = st.lists(
    st.tuples(st.integers(1, ROUNDS), st.sampled_from([1.0, 2.0]), st.booleans()), max_size=8
)


@settings(max_examples=25, deadline=None)
@given(asked=ASKED, seed=st.sampled_from([7, None]))
def test_no_order_of_requests_and_crashes_brings_rounds_too_near(
    asked: list[tuple[int, float, bool]], seed: int | None
) -> None:
    given_out: dict[int, set[bytes]] = {}
    with TemporaryDirectory() as folder:
        device = make(Path(folder), seed=seed)
        for number, scale, forgets in asked:
            try:
                value = ask(device, number, scale=scale)
            except PrivacyError:
                continue
            given_out.setdefault(number, set()).add(value.numpy().tobytes())
            if forgets:
                for path in (device.folder / "vault").glob("outbox-gradient*"):
                    path.unlink()
        rounds = sorted(took_part(device))
        spent = Device.open(device.folder).ledger.epsilon_spent(DELTA, PrivacyUnit.USER)

    assert set(given_out) == set(rounds), "what was given was booked"
    assert all(len(values) == 1 for values in given_out.values()), "one answer to each round"
    assert all(after - before >= 4 for before, after in pairwise(rounds))
    assert (
        spent
        <= accounting.compute_epsilon(plan().all_releases(), DELTA, unit=PrivacyUnit.USER)
        < math.inf
    )
