"""A fit equals its prior without labels, helps with few, and cannot be led astray."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sottovoce.shared import calibration, seeding
from sottovoce.shared.calibration import AdapterBasis, CalibrationHead, HeadAdapter, HeadPrior
from sottovoce.shared.errors import ModelError

CLASSES, RANK = 4, 3
MODEL = "ab" * 32
PRIOR = HeadPrior(mean=calibration.identity_head(CLASSES))
BASIS = AdapterBasis(centre=torch.zeros(RANK), matrix=torch.eye(RANK))
BENDING = replace(PRIOR, basis=BASIS)


def tilted() -> CalibrationHead:
    return CalibrationHead(log_temperature=0.3, bias=torch.tensor([0.2, -0.1, 0.4, -0.5]))


def a_user(number: int, utterances: int) -> tuple[Tensor, Tensor]:
    """A user whose true head is drawn from the prior: labels follow the calibrated logits."""
    rng = seeding.torch_rng(0, "user", number)
    logits = 3 * torch.randn(utterances, CLASSES, generator=rng, dtype=torch.float64)
    drawn = 0.5 * torch.randn(1 + CLASSES, generator=rng, dtype=torch.float64)
    true = CalibrationHead(log_temperature=float(drawn[0]), bias=drawn[1:])
    chances = torch.softmax(calibration.calibrate_logits(true, logits), dim=1)
    return logits, torch.multinomial(chances, 1, generator=rng).squeeze(1)


def nll(fitted: CalibrationHead, logits: Tensor, labels: Tensor) -> float:
    return float(
        torch.nn.functional.cross_entropy(calibration.calibrate_logits(fitted, logits), labels)
    )


def cost(point: Tensor, logits: Tensor, labels: Tensor, prior: HeadPrior) -> Tensor:
    """What a fit minimises, written a second time."""
    scores = logits.double() / point[0].exp() + point[1:]
    loss = -torch.log_softmax(scores, 1).gather(1, labels[:, None]).sum()
    mean = torch.cat([torch.tensor([prior.mean.log_temperature]).double(), prior.mean.bias])
    sd = torch.tensor([prior.log_temperature_sd] + [prior.bias_sd] * prior.mean.classes)
    return loss + ((point - mean) / sd).square().sum() / 2


def as_point(fitted: CalibrationHead) -> Tensor:
    return torch.cat([torch.tensor([fitted.log_temperature], dtype=torch.float64), fitted.bias])


def gains(labelled: int, prior: HeadPrior, users: int = 150) -> Tensor:
    """Fall of the NLL on each user's unlabelled utterances, shape (users,)."""
    falls = []
    for number in range(users):
        logits, labels = a_user(number, labelled + 200)
        fitted = calibration.fit_head_only(logits[:labelled], labels[:labelled], prior)
        rest = logits[labelled:], labels[labelled:]
        falls.append(nll(prior.mean, *rest) - nll(fitted, *rest))
    return torch.tensor(falls)


def a_bent_user(number: int, utterances: int, *, width: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and coordinates of one whose own last layer differs by an adapter."""
    rng = seeding.torch_rng(0, "bent", number)
    logits = 2 * torch.randn(utterances, CLASSES, generator=rng, dtype=torch.float64)
    places = torch.randn(utterances, RANK, generator=rng, dtype=torch.float64)
    weights = width * torch.randn(CLASSES, RANK, generator=rng, dtype=torch.float64)
    chances = torch.softmax(logits + places @ weights.mT, 1)
    return logits, torch.multinomial(chances, 1, generator=rng).squeeze(1), places


def bent_gains(labelled: int, *, width: float, users: int = 60) -> Tensor:
    """Fall of the NLL that an adapter brings beside temperature and biases, (users,)."""
    falls = []
    for number in range(users):
        user = a_bent_user(number, labelled + 200, width=width)
        logits, labels, places = (part[:labelled] for part in user)
        rest, truth, there = (part[labelled:] for part in user)
        straight = calibration.calibrate_logits(
            calibration.fit_head_only(logits, labels, PRIOR), rest
        )
        bent = calibration.calibrate_logits(
            calibration.fit_head_only(logits, labels, BENDING, places), rest, there
        )
        loss = torch.nn.functional.cross_entropy
        falls.append(float(loss(straight, truth) - loss(bent, truth)))
    return torch.tensor(falls)


def test_without_labels_the_head_is_the_prior() -> None:
    prior = HeadPrior(mean=tilted())
    none = torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.int64)

    fitted = calibration.fit_head_only(*none, prior)

    assert fitted.log_temperature == prior.mean.log_temperature
    assert torch.equal(fitted.bias, prior.mean.bias)
    assert float(gains(0, prior, users=5).abs().max()) == 0


def test_five_labels_help_in_expectation() -> None:
    falls = gains(5, PRIOR)

    standard_error = float(falls.std()) / math.sqrt(len(falls))
    assert float(falls.mean()) > 3 * standard_error


def test_more_labels_help_more() -> None:
    assert float(gains(5, PRIOR).mean()) < float(gains(40, PRIOR).mean())


def test_without_shrinkage_five_labels_hurt() -> None:
    # What the prior is for: near maximum likelihood, five labels are worse than no head.
    loose = HeadPrior(mean=PRIOR.mean, log_temperature_sd=20.0, bias_sd=20.0)

    assert float(gains(5, loose).mean()) < 0


@pytest.mark.parametrize("labelled", [1, 5, 60])
def test_the_fit_is_a_minimum(labelled: int) -> None:
    logits, labels = a_user(1, labelled)
    prior = HeadPrior(mean=tilted(), log_temperature_sd=0.7, bias_sd=0.2)
    point = as_point(calibration.fit_head_only(logits, labels, prior)).requires_grad_()

    value = cost(point, logits, labels, prior)
    (gradient,) = torch.autograd.grad(value, point)

    assert float(gradient.abs().max()) < 1e-5
    for move in torch.eye(1 + CLASSES).double():
        for step in (-1e-2, 1e-2):
            assert cost(point.detach() + step * move, logits, labels, prior) > value


def test_many_labels_find_the_truth() -> None:
    rng = seeding.torch_rng(0, "truth")
    logits = 3 * torch.randn(20_000, CLASSES, generator=rng)
    labels = torch.multinomial(
        torch.softmax(calibration.calibrate_logits(tilted(), logits), 1), 1, generator=rng
    )

    fitted = calibration.fit_head_only(logits, labels.squeeze(1), PRIOR)

    assert fitted.log_temperature == pytest.approx(0.3, abs=0.05)
    centred = tilted().bias - tilted().bias.mean()
    torch.testing.assert_close(fitted.bias - fitted.bias.mean(), centred, atol=0.1, rtol=0)


def test_a_fit_repeats_bit_for_bit() -> None:
    first, second = (calibration.fit_head_only(*a_user(3, 10), PRIOR) for _ in range(2))

    assert calibration.to_bytes(first, MODEL) == calibration.to_bytes(second, MODEL)


def test_order_of_utterances_does_not_matter() -> None:
    logits, labels = a_user(3, 12)
    there, back = (
        calibration.fit_head_only(logits, labels, PRIOR),
        calibration.fit_head_only(logits.flip(0), labels.flip(0), PRIOR),
    )

    torch.testing.assert_close(as_point(there), as_point(back), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 50.0, 1e5])
@pytest.mark.parametrize("utterances", [1, 5, 200])
@pytest.mark.parametrize("kind", ["one class", "all wrong", "all right"])
def test_one_sided_labels_cannot_lead_it_astray(kind: str, utterances: int, scale: float) -> None:
    logits = scale * torch.randn(utterances, CLASSES, generator=seeding.torch_rng(0, "odd"))
    labels = {
        "one class": torch.zeros(utterances, dtype=torch.int64),
        "all wrong": logits.argmin(1),
        "all right": logits.argmax(1),
    }[kind]

    fitted = calibration.fit_head_only(logits, labels, PRIOR)

    start = cost(as_point(PRIOR.mean), logits, labels, PRIOR)
    assert cost(as_point(fitted), logits, labels, PRIOR) <= start
    # The prior's quadratic alone can cost no more than the start did.
    assert fitted.bias.abs().max() <= PRIOR.bias_sd * math.sqrt(2 * float(start)) + 1e-9


def test_wrong_labels_make_it_less_sure() -> None:
    logits, _ = a_user(2, 20)

    assert calibration.fit_head_only(logits, logits.argmin(1), PRIOR).log_temperature > 0.3
    assert calibration.fit_head_only(logits, logits.argmax(1), PRIOR).log_temperature < -0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e7])
def test_logits_that_are_none_are_refused(bad: float) -> None:
    logits, labels = a_user(1, 5)
    logits[3, 1] = bad

    with pytest.raises(ModelError, match="NaN"):
        calibration.fit_head_only(logits, labels, PRIOR)


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 1, CLASSES]),
        torch.tensor([0, 1, -1]),
        torch.tensor([0.0, 1.0, 2.0]),
        torch.tensor([0, 1]),
        torch.tensor([[0], [1], [2]]),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor) -> None:
    with pytest.raises(ModelError, match="label"):
        calibration.fit_head_only(torch.zeros(3, CLASSES), labels, PRIOR)


def test_other_numbers_of_classes_are_refused() -> None:
    with pytest.raises(ModelError, match="4 classes"):
        calibration.fit_head_only(torch.zeros(1, 5), torch.tensor([0]), PRIOR)
    with pytest.raises(ModelError, match="4 classes"):
        calibration.calibrate_logits(tilted(), torch.zeros(1, 5))
    with pytest.raises(ModelError, match="4 classes"):
        calibration.calibrate_logits(tilted(), torch.tensor(0.0))


def test_more_labels_leave_less_doubt() -> None:
    few, many = a_user(4, 5), a_user(4, 100)
    doubt = [calibration.fit_head(*some, PRIOR).variance for some in (few, many)]

    assert (doubt[1] < doubt[0]).all()
    assert (doubt[0] < 1 / PRIOR.precision).all()


def test_leaving_a_clip_out_is_nearly_what_a_fit_without_it_gives() -> None:
    rng = seeding.torch_rng(5, "left out")
    logits = 2 * torch.randn(8, 3, generator=rng, dtype=torch.float64)
    labels = torch.randint(3, (8,), generator=rng)
    prior = HeadPrior(mean=calibration.identity_head(3))
    fitted = calibration.fit_head_only(logits, labels, prior)
    found = calibration.fit_head(logits, labels, prior).held_out_probabilities
    seen = torch.softmax(calibration.calibrate_logits(fitted, logits), 1)
    others = [torch.arange(8) != place for place in range(8)]
    exact = torch.stack(
        [
            torch.softmax(
                calibration.calibrate_logits(
                    calibration.fit_head_only(logits[kept], labels[kept], prior), row
                ),
                0,
            )
            for kept, row in zip(others, logits, strict=True)
        ]
    )

    off, blind = (found - exact).abs().mean(), (seen - exact).abs().mean()
    assert off < 0.2 * blind, "the fit itself has seen the labels"


def test_a_lone_clip_is_judged_by_the_prior() -> None:
    prior = HeadPrior(
        mean=CalibrationHead(log_temperature=0.4, bias=torch.tensor([0.2, 0.0, -0.2]))
    )
    logits, labels = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([2])

    usual = torch.softmax(calibration.calibrate_logits(prior.mean, logits.double()), 1)
    assert torch.allclose(calibration.fit_head(logits, labels, prior).held_out_probabilities, usual)
    assert calibration.fit_head(logits[:0], labels[:0], prior).held_out_probabilities.shape == (
        0,
        3,
    )


def test_without_labels_an_adapter_is_the_priors_too() -> None:
    none = torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.int64)

    found = calibration.fit_head(*none, BENDING, torch.zeros(0, RANK))

    assert found.head is BENDING.mean


@pytest.mark.parametrize("labelled", [5, 20, 60])
def test_an_adapter_helps_who_needs_one(labelled: int) -> None:
    falls = bent_gains(labelled, width=1.0)

    assert float(falls.mean()) > 3 * float(falls.std()) / math.sqrt(len(falls))


@pytest.mark.parametrize("labelled", [1, 5, 20, 60])
def test_an_adapter_costs_next_to_nothing_who_needs_none(labelled: int) -> None:
    falls = bent_gains(labelled, width=0.0)

    assert float(falls.mean()) > -0.01


def test_labels_themselves_say_how_far_to_bend() -> None:
    strict = []
    for width in (0.0, 1.0):
        logits, labels, places = a_bent_user(7, 60, width=width)
        adapter = calibration.fit_head_only(logits, labels, BENDING, places).adapter
        assert adapter is not None
        strict.append(float(adapter.weights.square().mean().sqrt()))

    assert strict[0] < 0.3 < strict[1]


def test_a_bent_fit_repeats_and_does_not_hang_on_the_order_of_clips() -> None:
    logits, labels, places = a_bent_user(3, 12, width=0.5)
    first, again = (calibration.fit_head_only(logits, labels, BENDING, places) for _ in range(2))
    back = calibration.fit_head_only(logits.flip(0), labels.flip(0), BENDING, places.flip(0))

    assert calibration.to_bytes(first, MODEL) == calibration.to_bytes(again, MODEL)
    assert first.adapter is not None
    assert back.adapter is not None
    torch.testing.assert_close(first.adapter.weights, back.adapter.weights, atol=1e-5, rtol=0)


def test_what_an_adapter_says_unseen_is_what_fits_without_each_clip_say() -> None:
    logits, labels, places = a_bent_user(5, 12, width=0.7)
    found = calibration.fit_head(logits, labels, BENDING, places)
    seen = torch.softmax(calibration.calibrate_logits(found.head, logits, places), 1)
    exact = []
    for place in range(12):
        kept = torch.arange(12) != place
        other = calibration.fit_head_only(logits[kept], labels[kept], BENDING, places[kept])
        exact.append(
            torch.softmax(calibration.calibrate_logits(other, logits[place], places[place]), 0)
        )

    without = torch.stack(exact)
    off, blind = (
        (found.held_out_probabilities - without).abs().mean(),
        (seen - without).abs().mean(),
    )
    assert off < 0.2 * blind


def test_a_fit_goes_on_from_an_adapter_that_was_there() -> None:
    weights = torch.full((CLASSES, RANK), 0.5)
    bent = HeadAdapter(weights=weights, basis_tag=BASIS.tag)
    start = replace(BENDING, mean=replace(BENDING.mean, adapter=bent))
    logits, labels, places = a_bent_user(2, 2, width=0.0)

    adapter = calibration.fit_head_only(logits, labels, start, places).adapter

    assert adapter is not None
    assert float((adapter.weights - weights).abs().mean()) < 0.5 * float(weights.mean())


@pytest.mark.parametrize(
    "places",
    [None, torch.zeros(5, RANK + 1), torch.zeros(4, RANK), torch.full((5, RANK), math.nan)],
)
def test_coordinates_that_do_not_fit_are_refused(places: Tensor | None) -> None:
    logits, labels = a_user(1, 5)

    with pytest.raises(ModelError, match="coordinates"):
        calibration.fit_head_only(logits, labels, BENDING, places)
