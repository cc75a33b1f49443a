"""Where heads start travels whole, and what is none is refused."""

import math

import pytest
import torch

from sottovoce.shared import calibration, seeding
from sottovoce.shared.calibration import (
    AdapterBasis,
    CalibrationHead,
    HeadAdapter,
    HeadPrior,
    conformal_fit,
)
from sottovoce.shared.errors import ModelError, SettingError

CLASSES = 4
PRIOR = HeadPrior(mean=calibration.identity_head(CLASSES))


def tilted() -> CalibrationHead:
    return CalibrationHead(log_temperature=0.3, bias=torch.tensor([0.2, -0.1, 0.4, -0.5]))


def a_basis(seed: int = 0) -> AdapterBasis:
    rng = seeding.torch_rng(seed, "basis")
    return AdapterBasis(
        centre=torch.randn(6, generator=rng), matrix=torch.randn(3, 6, generator=rng)
    )


@pytest.mark.parametrize("wide", [0.0, -1.0, math.nan, math.inf])
def test_widths_are_checked_at_birth(wide: float) -> None:
    with pytest.raises(SettingError, match="bias_sd"):
        HeadPrior(mean=tilted(), bias_sd=wide)
    with pytest.raises(SettingError, match="log_temperature_sd"):
        HeadPrior(mean=tilted(), log_temperature_sd=wide)


def test_a_prior_travels_as_plain_numbers() -> None:
    prior = HeadPrior(mean=tilted(), log_temperature_sd=0.4, bias_sd=0.3)
    back = calibration.prior_from_dict(prior.as_dict())

    assert back.as_dict() == prior.as_dict()
    assert torch.equal(back.precision, prior.precision)


@pytest.mark.parametrize(
    "change",
    [
        {"bias": [math.nan] * 4},
        {"bias": "none"},
        {"bias_sd": -1.0},
        {"log_temperature": [0.0]},
        {"log_temperature_sd": math.nan},
    ],
)
def test_a_damaged_prior_is_refused(change: dict[str, float | list[float]]) -> None:
    with pytest.raises(ModelError):
        calibration.prior_from_dict(PRIOR.as_dict() | change)


@pytest.mark.parametrize(
    "rubbish", [None, [], [1, None], 3, {"bias": [0.0, 0.0]}, {"bias": [[0], 1]}]
)
def test_rubbish_is_no_prior(rubbish: object) -> None:
    with pytest.raises(ModelError, match="cannot be used"):
        calibration.prior_from_dict(rubbish)  # type: ignore[arg-type]


def test_a_prior_carries_scores_through_a_message() -> None:
    known = conformal_fit.fit_population_scores([torch.tensor([0.1, 0.6]), torch.tensor([0.3])])
    prior = HeadPrior(mean=calibration.identity_head(3), scores=known)

    assert calibration.prior_from_dict(prior.as_dict()).scores == known
    assert (
        calibration.prior_from_dict(HeadPrior(mean=calibration.identity_head(3)).as_dict()).scores
        is None
    )


@pytest.mark.parametrize(
    "spoilt",
    [
        {"scores": 0.5},
        {"scores": []},
        {"scores": [0.5, 0.1]},
        {"scores": [0.1, math.nan]},
        {"scores": [0.1, 1.5]},
        {"scores_beyond": 1.0},
        {"scores_concentration": 0.0},
        {"scores_concentration": [1.0]},
    ],
)
def test_scores_that_are_none_are_refused(spoilt: dict[str, float | list[float]]) -> None:
    known = conformal_fit.fit_population_scores([torch.tensor([0.1, 0.6])])
    numbers = HeadPrior(mean=calibration.identity_head(3), scores=known).as_dict()

    with pytest.raises(ModelError):
        calibration.prior_from_dict(numbers | spoilt)


def test_a_basis_travels_beside_the_numbers() -> None:
    prior = HeadPrior(mean=tilted(), basis=a_basis())
    back = calibration.prior_from_dict(prior.as_dict(), prior.basis_tensors())

    assert back.basis is not None
    assert back.basis.tag == a_basis().tag
    assert calibration.prior_from_dict(prior.as_dict()).basis is None
    assert PRIOR.basis_tensors() == {}
    assert PRIOR.project_vectors(torch.zeros(2, 6)) is None


@pytest.mark.parametrize(
    "spoilt",
    [
        {"centre": torch.zeros(5)},
        {"matrix": torch.zeros(33, 6)},
        {"matrix": torch.full((3, 6), math.inf)},
        {"matrix": torch.zeros(6)},
        {"third": torch.zeros(1)},
    ],
)
def test_a_damaged_basis_is_refused(spoilt: dict[str, torch.Tensor]) -> None:
    prior = HeadPrior(mean=tilted(), basis=a_basis())

    with pytest.raises(ModelError):
        calibration.prior_from_dict(prior.as_dict(), prior.basis_tensors() | spoilt)


def test_a_prior_knows_the_adapters_of_its_own_basis_alone() -> None:
    bent = HeadAdapter(weights=torch.ones(CLASSES, 3), basis_tag=a_basis().tag)
    head = CalibrationHead(log_temperature=0.0, bias=torch.zeros(CLASSES), adapter=bent)
    prior = HeadPrior(mean=tilted(), basis=a_basis())

    assert prior.is_compatible(head)
    assert prior.is_compatible(tilted())
    assert not PRIOR.is_compatible(head)
    assert not HeadPrior(mean=tilted(), basis=a_basis(1)).is_compatible(head)
    with pytest.raises(ModelError, match="another basis"):
        HeadPrior(mean=head, basis=a_basis(1))
