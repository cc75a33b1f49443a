"""What a head says of its user goes over to another model; the head itself never does."""

import math

import pytest
import torch
from torch import Tensor

from sottovoce.shared import calibration, seeding
from sottovoce.shared.calibration import CalibrationHead, HeadPrior, adapter_basis, head_transfer
from sottovoce.shared.calibration.head_transfer import HeadPosterior
from sottovoce.shared.errors import ModelError, SettingError

MODEL, NEXT = "ab" * 32, "cd" * 32
NAMES = ("angry", "happy", "sad")
OLD = HeadPrior(mean=CalibrationHead(log_temperature=-0.4, bias=torch.tensor([0.1, 0.0, -0.1])))
NEW = HeadPrior(
    mean=CalibrationHead(log_temperature=0.3, bias=torch.zeros(3)),
    log_temperature_sd=0.2,
    bias_sd=0.15,
)


def labelled(utterances: int = 8, seed: int = 0, *, warm: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are ``warm`` times less sure than the logits say."""
    rng = seeding.torch_rng(seed, "belief")
    logits = 3 * torch.randn(utterances, 3, generator=rng)
    labels = torch.multinomial(torch.softmax(logits / warm, 1), 1, generator=rng)[:, 0]
    return logits, labels


def fitted_posterior(utterances: int = 8) -> HeadPosterior:
    logits, labels = labelled(utterances, warm=3.0)
    return head_transfer.posterior_from_fit(calibration.fit_head(logits, labels, OLD), OLD, NAMES)


def same(one: CalibrationHead, other: CalibrationHead) -> bool:
    return calibration.to_bytes(one, MODEL) == calibration.to_bytes(other, MODEL)


def test_a_posterior_travels_whole() -> None:
    posterior = fitted_posterior()
    data = head_transfer.to_bytes(posterior, MODEL)
    again = head_transfer.from_bytes(data, MODEL)

    assert same(again.head, posterior.head)
    assert same(again.prior_mean, posterior.prior_mean)
    assert torch.allclose(again.variance_explained, posterior.variance_explained, atol=1e-6)
    assert again.class_tags == posterior.class_tags
    with pytest.raises(ModelError, match="belongs to model"):
        head_transfer.from_bytes(data, NEXT)


def test_heads_that_earlier_releases_kept_are_read_but_not_transferred() -> None:
    again = head_transfer.from_bytes(calibration.to_bytes(OLD.mean, MODEL), MODEL)

    assert same(again.head, OLD.mean)
    assert head_transfer.transfer_posterior(again, NEW, NAMES) is NEW


def test_damaged_bytes_are_refused_wherever_they_are_cut() -> None:
    data = head_transfer.to_bytes(fitted_posterior(), MODEL)

    for length in range(len(data)):
        with pytest.raises(ModelError):
            head_transfer.from_bytes(data[:length], MODEL)
    with pytest.raises(ModelError):
        head_transfer.from_bytes(data + b"\0", MODEL)
    with pytest.raises(ModelError, match="schema 9"):
        head_transfer.from_bytes(data[:4] + b"\x09" + data[5:], MODEL)


@pytest.mark.parametrize("classes", [2, 8, 20, 32, 50, 64, 65, 256])
def test_every_posterior_fits_the_wire(classes: int) -> None:
    voices = torch.randn(200, 60, generator=seeding.torch_rng(0, "voices"))
    found = adapter_basis.fit_basis(voices, classes)
    prior = HeadPrior(mean=calibration.identity_head(classes), basis=found)
    clips = torch.zeros(3, classes), torch.tensor([0, 1, 1])
    names = [f"emotion {number}" for number in range(classes)]
    fitted = calibration.fit_head(*clips, prior, prior.project_vectors(voices[:3]))
    posterior = head_transfer.posterior_from_fit(fitted, prior, names)
    data = head_transfer.to_bytes(posterior, MODEL)

    assert bool(posterior.class_tags) == (classes <= head_transfer.MAX_TRANSFERABLE_CLASSES)
    assert len(data) < (2048 if classes <= 64 else calibration.MAX_HEAD_BYTES) - 33
    assert same(head_transfer.from_bytes(data, MODEL).head, fitted.head)


def test_who_labelled_nothing_starts_as_everybody_does() -> None:
    posterior = fitted_posterior(0)

    assert not bool(posterior.variance_explained.any())
    assert head_transfer.transfer_posterior(posterior, NEW, NAMES) is NEW


def test_a_transferred_head_keeps_how_its_user_differs_and_not_its_numbers() -> None:
    posterior = fitted_posterior(60)
    found = head_transfer.transfer_posterior(posterior, NEW, NAMES, correlation=0.5)
    warmer = posterior.head.log_temperature - OLD.mean.log_temperature
    moved = posterior.head.bias - OLD.mean.bias

    assert warmer > 0.2, "these labels say that the model is too sure"
    assert found.mean.log_temperature == pytest.approx(0.3 + 0.5 * warmer)
    assert torch.allclose(found.mean.bias, 0.5 * moved)
    explained = float(posterior.variance_explained[0])
    assert found.log_temperature_sd == pytest.approx(0.2 * math.sqrt(1 - 0.25 * explained))
    assert 0.15 * math.sqrt(0.75) <= found.bias_sd < 0.15, "doubt stays: it is another model"


def test_the_correlation_is_the_correlation_that_it_says() -> None:
    """Mean and width are those of one Gaussian given what labels say of its twin."""
    posterior, correlation = fitted_posterior(30), 0.7
    sd, explained = NEW.log_temperature_sd, float(posterior.variance_explained[0])
    shift = posterior.head.log_temperature - OLD.mean.log_temperature
    rng = seeding.torch_rng(1, "twins")
    old = shift + OLD.log_temperature_sd * math.sqrt(1 - explained) * torch.randn(
        200_000, generator=rng
    )
    noise = sd * math.sqrt(1 - correlation**2) * torch.randn(200_000, generator=rng)
    new = correlation * sd / OLD.log_temperature_sd * old + noise

    found = head_transfer.transfer_posterior(posterior, NEW, NAMES, correlation=correlation)

    assert found.log_temperature_sd == pytest.approx(float(new.std()), rel=0.01)
    found = head_transfer.transfer_posterior(posterior, OLD, NAMES, correlation=correlation)
    expected = OLD.mean.log_temperature + correlation * shift
    assert found.mean.log_temperature == pytest.approx(expected)


def test_emotions_are_found_by_name() -> None:
    posterior = fitted_posterior(60)
    turned = head_transfer.transfer_posterior(
        posterior, NEW, ("sad", "angry", "calm"), correlation=1.0
    )
    moved = posterior.head.bias - OLD.mean.bias

    assert turned.mean.bias.tolist() == pytest.approx([float(moved[2]), float(moved[0]), 0.0])


def test_names_that_do_not_fit_the_prior_map_nothing() -> None:
    assert head_transfer.transfer_posterior(fitted_posterior(), NEW, ("angry", "sad")) is NEW
    assert head_transfer.transfer_posterior(fitted_posterior(), NEW, ()) is NEW


def test_under_the_same_model_a_fit_goes_on_where_it_ended() -> None:
    logits, labels = labelled(40, warm=3.0)
    first = calibration.fit_head(logits[:20], labels[:20], OLD)
    half, posterior = first.head, head_transfer.posterior_from_fit(first, OLD, NAMES)

    nothing = head_transfer.transfer_posterior(posterior, OLD, NAMES, correlation=1.0)
    on = calibration.fit_head_only(logits[20:], labels[20:], nothing)
    whole, anew = (
        calibration.fit_head_only(logits[at], labels[at], OLD) for at in (slice(40), slice(20, 40))
    )

    assert nothing.mean.log_temperature == pytest.approx(half.log_temperature)
    assert torch.allclose(nothing.mean.bias, half.bias)
    distance = [abs(one.log_temperature - whole.log_temperature) for one in (on, anew)]
    assert distance[0] < distance[1]


def test_what_was_transferred_is_not_lost_where_nothing_was_labelled_since() -> None:
    first = fitted_posterior(60)
    empty = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    start = head_transfer.transfer_posterior(first, NEW, NAMES, correlation=0.5)
    second = head_transfer.posterior_from_fit(calibration.fit_head(*empty, start), NEW, NAMES)
    third = head_transfer.transfer_posterior(second, OLD, NAMES, correlation=0.5)

    moved = first.head.log_temperature - OLD.mean.log_temperature
    assert third.mean.log_temperature - OLD.mean.log_temperature == pytest.approx(moved / 4)
    assert float(second.variance_explained[0]) == pytest.approx(
        0.25 * float(first.variance_explained[0])
    )


@pytest.mark.parametrize("correlation", [-0.1, math.nan, math.inf])
def test_a_correlation_that_is_none_is_refused(correlation: float) -> None:
    with pytest.raises(SettingError, match="correlation"):
        head_transfer.transfer_posterior(fitted_posterior(), NEW, NAMES, correlation=correlation)


def test_a_posterior_that_cannot_be_is_refused() -> None:
    good = fitted_posterior()
    with pytest.raises(ModelError, match="variance_explained"):
        HeadPosterior(
            head=good.head,
            prior_mean=good.prior_mean,
            variance_explained=good.variance_explained + 1,
            class_tags=good.class_tags,
        )
    with pytest.raises(ModelError, match="classes"):
        HeadPosterior(
            head=good.head,
            prior_mean=calibration.identity_head(4),
            variance_explained=good.variance_explained,
            class_tags=good.class_tags,
        )
    with pytest.raises(ModelError, match="each once"):
        HeadPosterior(
            head=good.head,
            prior_mean=good.prior_mean,
            variance_explained=good.variance_explained,
            class_tags=good.class_tags[:1] * 3,
        )
