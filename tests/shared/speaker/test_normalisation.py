"""The normaliser: one utterance moves what leaves by no more than the ledger says."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sottovoce.client.training.local_trainer import TrainingSettings, compute_local_update
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import flatten_parameters, load_parameters
from sottovoce.shared.models.projection import normalise_and_mask
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy.gaussian_noise import SeededGaussianSampler
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining
from sottovoce.shared.speaker import normalisation
from sottovoce.shared.speaker.normalisation import (
    CentreRelease,
    NormaliserRelease,
    SpeakerStatistics,
)

INPUTS = 5
PEOPLE = normalisation.default_statistics(INPUTS)
CENTRE = CentreRelease(clip_norm=1.5, noise_multiplier=2.0)
MEAN = NormaliserRelease(clip_norm=0.8, count_weight=0.3, noise_multiplier=2.0)
ROUNDING = 1e-9


class Silence:
    """No noise, to see what lies below it; remembers the scales it was asked for."""

    def __init__(self) -> None:
        self.scales: list[float] = []
        self.shapes: list[tuple[int, ...]] = []

    def add_noise(self, values: Tensor, std: float) -> Tensor:
        self.scales.append(std)
        self.shapes.append(tuple(values.shape))
        return values.double()

    def sample_noise(self, shape: Sequence[int], std: float) -> Tensor:
        raise AssertionError("what is released must be rounded")


class Push(Silence):
    """A known vector instead of noise: it shows the numbers before post-processing."""

    def __init__(self, push: Tensor) -> None:
        super().__init__()
        self.push = push

    def add_noise(self, values: Tensor, std: float) -> Tensor:
        return super().add_noise(values, std) + self.push


AWKWARD = [0.0, 1e-30, 0.1, 1.0, -3.0, 1e6, -1e30, 3e38, math.inf, -math.inf, math.nan]
ROWS = st.lists(st.lists(st.sampled_from(AWKWARD), min_size=INPUTS, max_size=INPUTS), max_size=6)
ROW = st.lists(st.sampled_from(AWKWARD), min_size=INPUTS, max_size=INPUTS)
QUICK = settings(max_examples=150, deadline=None)


def _rows(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, INPUTS)


def _before_noise(rows: Tensor, settings: NormaliserRelease) -> Tensor:
    """The (inputs + 1) numbers that noise is added to, by undoing what comes after."""
    return torch.cat(
        [
            normalisation._clipped_sum(rows, settings.clip_norm),
            torch.tensor([settings.count_weight * len(rows)], dtype=torch.float64),
        ]
    )


# --- sensitivity ------------------------------------------------------------------------------


@QUICK
@given(ROWS, ROW)
def test_one_utterance_moves_the_sum_by_at_most_its_clip_norm(
    values: list[list[float]], further: list[float]
) -> None:
    rows = _rows(values)
    without = normalisation.release_sum(rows, CENTRE, Silence())
    with_it = normalisation.release_sum(_rows([*values, further]), CENTRE, Silence())

    assert without.isfinite().all()
    assert with_it.isfinite().all()
    moved = torch.linalg.vector_norm(with_it.double() - without.double())
    assert moved <= CENTRE.clip_norm * (1 + 1e-5)


@QUICK
@given(ROWS, ROW)
def test_one_utterance_moves_the_mean_release_by_at_most_its_sensitivity(
    values: list[list[float]], further: list[float]
) -> None:
    moved = _before_noise(_rows([*values, further]), MEAN) - _before_noise(_rows(values), MEAN)

    assert torch.linalg.vector_norm(moved) <= MEAN.sensitivity * (1 + ROUNDING)


def test_the_bound_is_reached_so_less_noise_would_be_too_little() -> None:
    far = torch.full((1, INPUTS), 1e30)
    moved = _before_noise(far, MEAN)
    assert torch.linalg.vector_norm(moved) == pytest.approx(MEAN.sensitivity)

    total = normalisation.release_sum(far, CENTRE, Silence())
    assert torch.linalg.vector_norm(total) == pytest.approx(CENTRE.clip_norm)


def test_nothing_else_enters_the_released_mean() -> None:
    """Two sets of clips with the same clipped sum and count release the same, whatever they are."""
    push = torch.randn(INPUTS + 1, generator=torch.Generator().manual_seed(0)).double()
    rows = 0.1 * torch.randn(7, INPUTS, generator=torch.Generator().manual_seed(1))
    even = rows.mean(0).repeat(7, 1)
    assert torch.allclose(_before_noise(rows, MEAN), _before_noise(even, MEAN), atol=1e-6)

    one, other = (normalisation.release_mean(r, MEAN, PEOPLE, Push(push)) for r in (rows, even))

    assert torch.allclose(one, other, atol=1e-6)
    assert not torch.allclose(one, normalisation.release_mean(rows, MEAN, PEOPLE, Push(2 * push)))


def test_the_count_that_is_divided_by_is_the_noised_one() -> None:
    rows = 0.1 * torch.ones(20, INPUTS)
    push = torch.zeros(INPUTS + 1, dtype=torch.float64)
    exact = normalisation.release_mean(rows, MEAN, PEOPLE, Push(push))
    push[-1] = 20 * MEAN.count_weight  # twice the clips, says the noise

    doubled = normalisation.release_mean(rows, MEAN, PEOPLE, Push(push))

    assert (doubled < exact).all()


@pytest.mark.parametrize("count", [0, 1, 30])
def test_noise_has_the_scale_that_the_ledger_says_whatever_there_is(count: int) -> None:
    rows = torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(0))
    silence = Silence()

    normalisation.release_sum(rows, CENTRE, silence)
    released = normalisation.release_mean(rows, MEAN, PEOPLE, silence)

    assert silence.scales == [
        pytest.approx(CENTRE.clip_norm * CENTRE.noise_multiplier),
        pytest.approx(MEAN.sensitivity * MEAN.noise_multiplier),
    ]
    assert silence.shapes == [(INPUTS,), (INPUTS + 1,)]
    assert released.isfinite().all()
    assert MEAN.sensitivity == pytest.approx(math.sqrt(0.8**2 + 0.3**2))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_row_counts_as_zeros(bad: float) -> None:
    good = torch.full((2, INPUTS), 0.1)
    broken = torch.full((1, INPUTS), 0.1)
    broken[0, 2] = bad
    zeros = torch.zeros(1, INPUTS)

    for rows in (torch.cat([good, broken]), torch.cat([good, zeros])):
        total = normalisation.release_sum(rows, CENTRE, Silence())
        assert torch.allclose(total, torch.full((INPUTS,), 0.2))


# --- the trap ---------------------------------------------------------------------------------

CLIP = 0.5


def _clipped_gradient_sum(rows: Tensor, labels: Tensor, mean: Tensor) -> Tensor:
    """What noise is added to in one round of training behind a mean, shape (params,)."""
    model = build_network(ModelSpec(kind="linear", inputs=INPUTS, classes=2), 0)
    weights = torch.randn(
        flatten_parameters(model).shape, generator=torch.Generator().manual_seed(4)
    )
    load_parameters(model, weights)
    frames = torch.ones(len(rows), dtype=torch.int64)
    inputs = normalise_and_mask(rows, mean, frames, row_norm=1.0)
    update = compute_local_update(
        model,
        Examples(features=inputs, frames=frames, labels=labels),
        TrainingSettings(
            local_training=LocalTraining(
                steps=1, sample_rate=1.0, learning_rate=1.0, denominator=1.0
            ),
            mechanism=ExampleLevelMechanism(clip_norm=CLIP, noise_multiplier=1.0),
            class_weights=torch.ones(2),
        ),
        Silence(),
        torch.Generator().manual_seed(0),
    )
    return update.vector


def test_an_exact_normaliser_in_training_voids_the_promise() -> None:
    """FINDINGS: the mean moves with one utterance, and with it every other utterance's gradient."""
    rows = torch.randn(30, INPUTS, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(30) % 2
    further = torch.cat([rows, torch.full((1, INPUTS), 40.0)])
    with_label = torch.cat([labels, torch.zeros(1, dtype=torch.int64)])

    def exact(clips: Tensor) -> Tensor:
        return clips.mean(0)

    moved = _clipped_gradient_sum(further, with_label, exact(further)) - _clipped_gradient_sum(
        rows, labels, exact(rows)
    )
    assert torch.linalg.vector_norm(moved) > 4 * CLIP, "no noise scaled to the clip covers this"

    released = normalisation.release_mean(rows, MEAN, PEOPLE, _noise())
    moved = _clipped_gradient_sum(further, with_label, released) - _clipped_gradient_sum(
        rows, labels, released
    )
    assert torch.linalg.vector_norm(moved) <= CLIP * (1 + 1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e10, 1e30])
def test_behind_a_released_mean_no_utterance_outgrows_the_clip(size: float) -> None:
    rows = torch.randn(10, INPUTS, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(10) % 2
    mean = normalisation.release_mean(rows, MEAN, PEOPLE, _noise())
    further = torch.cat([rows, torch.full((1, INPUTS), size)])

    moved = _clipped_gradient_sum(further, torch.cat([labels, labels[:1]]), mean)
    moved = moved - _clipped_gradient_sum(rows, labels, mean)

    assert torch.linalg.vector_norm(moved) <= CLIP * (1 + 1e-4)


def _noise() -> SeededGaussianSampler:
    return SeededGaussianSampler(torch.Generator().manual_seed(2))


# --- the exact estimate, which stays on the device --------------------------------------------


def _people(**changes: float) -> SpeakerStatistics:
    """A population whose statistics are flat over the inputs."""
    usual = {
        "between": 1.0,
        "within": 4.0,
        "neutral_offset": 0.0,
        "neutral_within": 1.0,
        "offset_variance": 0.0,
    }
    return SpeakerStatistics(**{k: torch.full((INPUTS,), v) for k, v in (usual | changes).items()})


def test_a_user_without_clips_is_the_population() -> None:
    empty = torch.zeros(0, INPUTS)
    for neutral in (False, True):
        assert (
            normalisation.estimate_mean(empty, _people(), is_neutral=neutral).count_nonzero() == 0
        )


def test_unlabelled_clips_are_taken_at_their_word() -> None:
    rows = torch.randn(7, INPUTS, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        normalisation.estimate_mean(rows, _people(), is_neutral=False), rows.mean(0)
    )


def test_more_neutral_clips_are_believed_more() -> None:
    means = [
        float(normalisation.estimate_mean(torch.ones(n, INPUTS), _people(), is_neutral=True)[0])
        for n in (1, 4, 16, 10_000)
    ]
    assert means == sorted(means)
    assert means[0] == pytest.approx(1 / (1 + 1))  # between / (between + within / n)
    assert means[-1] == pytest.approx(1.0, abs=1e-3)


def test_neutral_clips_are_corrected_for_being_neutral() -> None:
    rows = torch.ones(10_000, INPUTS)
    plain = normalisation.estimate_mean(rows, _people(), is_neutral=True)
    moved = normalisation.estimate_mean(rows, _people(neutral_offset=0.4), is_neutral=True)
    doubtful = normalisation.estimate_mean(rows, _people(offset_variance=1.0), is_neutral=True)

    assert (moved < plain).all()
    assert doubtful[0] == pytest.approx(0.5, abs=1e-3)


def test_what_the_model_hears_of_neutral_speech_corrects_neutral_clips() -> None:
    rows, people = torch.ones(10_000, INPUTS), _people(neutral_offset=0.4)
    direction = torch.zeros(INPUTS)
    direction[1] = -1.0
    heard = normalisation.estimate_mean(rows, people, is_neutral=True, direction=direction)
    alone = normalisation.estimate_mean(rows, people, is_neutral=True)

    assert heard[0] == pytest.approx(1 - 0.25 * 0.4, abs=1e-3)
    assert heard[1] == pytest.approx(1 - 0.25 * 0.4 + 0.16, abs=1e-3)
    assert alone[1] == pytest.approx(1 - 0.5 * 0.4, abs=1e-3)
    unlabelled = normalisation.estimate_mean(rows, people, is_neutral=False, direction=direction)
    assert torch.allclose(unlabelled, rows.mean(0)), "clips of any emotion are not corrected"


@pytest.mark.parametrize("value", [99.0, math.inf, -math.inf, math.nan])
def test_frames_beyond_the_last_say_nothing(value: float) -> None:
    projected = torch.randn(3, 8, INPUTS, generator=torch.Generator().manual_seed(0))
    frames = torch.tensor([8, 3, 1])
    rows = normalisation.average_frames(projected, frames)
    projected[1, 3:] = value
    projected[2, 1:] = -value

    assert torch.equal(normalisation.average_frames(projected, frames), rows)
    assert torch.allclose(rows[1], projected[1, :3].mean(0))
    assert torch.equal(normalisation.average_frames(rows, frames), rows)


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"clip_norm": 0.0},
        {"clip_norm": math.nan},
        {"clip_norm": math.inf},
        {"clip_norm": -1.0},
        {"clip_norm": 5e-324},
        {"clip_norm": 9e-13},
        {"clip_norm": 1.1e12},
        {"clip_norm": math.inf, "noise_multiplier": 1e-9},
        {"clip_norm": 1e-30, "noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"count_weight": 0.0},
        {"count_weight": 1e-30},
        {"count_weight": 1e30},
        {"count_weight": math.inf},
    ],
)
def test_a_release_without_a_bound_is_refused(values: dict[str, float]) -> None:
    usual = {"clip_norm": 0.8, "count_weight": 0.3, "noise_multiplier": 2.0}
    with pytest.raises(SettingError):
        NormaliserRelease(**usual | values)
    if "count_weight" not in values:
        with pytest.raises(SettingError):
            CentreRelease(**{"clip_norm": 0.8, "noise_multiplier": 2.0} | values)


def test_statistics_of_different_widths_are_refused() -> None:
    with pytest.raises(ModelError, match="shapes"):
        SpeakerStatistics(**_people_of(INPUTS) | {"within": torch.ones(INPUTS + 1)})


def _people_of(width: int) -> dict[str, Tensor]:
    """A population as keywords."""
    return normalisation.default_statistics(width).to_tensors()


def test_statistics_of_an_earlier_release_are_read() -> None:
    """It wrote the variance of the neutral offset under another name."""
    written = _people(offset_variance=0.7).to_tensors()
    written["offset_spread"] = written.pop("offset_variance")
    written["beside"] = torch.zeros(1)

    assert SpeakerStatistics.from_tensors(written).offset_variance[0] == pytest.approx(0.7)
    with pytest.raises(KeyError):
        SpeakerStatistics.from_tensors({"between": torch.ones(INPUTS)})
