"""A head equals its prior without labels, helps with few, and cannot be led astray."""

import math

import pytest
import torch
from torch import Tensor

from sottovoce.shared import conformal, head, seeds
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.head import Head, HeadPrior, SealedHead

CLASSES = 4
MODEL, OTHER = "ab" * 32, "cd" * 32
PRIOR = HeadPrior(mean=head.identity(CLASSES))


def tilted() -> Head:
    return Head(log_temperature=0.3, bias=torch.tensor([0.2, -0.1, 0.4, -0.5]))


def a_user(number: int, utterances: int) -> tuple[Tensor, Tensor]:
    """A user whose true head is drawn from the prior: labels follow the calibrated logits."""
    rng = seeds.torch_rng(0, "user", number)
    logits = 3 * torch.randn(utterances, CLASSES, generator=rng, dtype=torch.float64)
    drawn = 0.5 * torch.randn(1 + CLASSES, generator=rng, dtype=torch.float64)
    true = Head(log_temperature=float(drawn[0]), bias=drawn[1:])
    chances = torch.softmax(head.apply(true, logits), dim=1)
    return logits, torch.multinomial(chances, 1, generator=rng).squeeze(1)


def nll(fitted: Head, logits: Tensor, labels: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(head.apply(fitted, logits), labels))


def cost(point: Tensor, logits: Tensor, labels: Tensor, prior: HeadPrior) -> Tensor:
    """What a fit minimises, written a second time."""
    scores = logits.double() / point[0].exp() + point[1:]
    loss = -torch.log_softmax(scores, 1).gather(1, labels[:, None]).sum()
    mean = torch.cat([torch.tensor([prior.mean.log_temperature]).double(), prior.mean.bias])
    sd = torch.tensor([prior.log_temperature_sd] + [prior.bias_sd] * prior.mean.classes)
    return loss + ((point - mean) / sd).square().sum() / 2


def as_point(fitted: Head) -> Tensor:
    return torch.cat([torch.tensor([fitted.log_temperature], dtype=torch.float64), fitted.bias])


def gains(labelled: int, prior: HeadPrior, users: int = 150) -> Tensor:
    """Fall of the NLL on each user's unlabelled utterances, shape (users,)."""
    falls = []
    for number in range(users):
        logits, labels = a_user(number, labelled + 200)
        fitted = head.fit(logits[:labelled], labels[:labelled], prior)
        rest = logits[labelled:], labels[labelled:]
        falls.append(nll(prior.mean, *rest) - nll(fitted, *rest))
    return torch.tensor(falls)


def test_identity_changes_nothing() -> None:
    logits = torch.randn(5, CLASSES, generator=seeds.torch_rng(0, "logits"))

    assert torch.equal(head.apply(head.identity(CLASSES), logits), logits)


@pytest.mark.parametrize("shape", [(CLASSES,), (0, CLASSES), (2, 3, CLASSES)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_applying_keeps_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = torch.ones(shape, dtype=dtype)
    calibrated = head.apply(tilted(), logits)

    assert (calibrated.shape, calibrated.dtype) == (logits.shape, dtype)
    expected = logits / math.exp(0.3) + tilted().bias.to(dtype)
    torch.testing.assert_close(calibrated, expected)


def test_without_labels_the_head_is_the_prior() -> None:
    prior = HeadPrior(mean=tilted())
    none = torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.int64)

    fitted = head.fit(*none, prior)

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
    point = as_point(head.fit(logits, labels, prior)).requires_grad_()

    value = cost(point, logits, labels, prior)
    (gradient,) = torch.autograd.grad(value, point)

    assert float(gradient.abs().max()) < 1e-5
    for move in torch.eye(1 + CLASSES).double():
        for step in (-1e-2, 1e-2):
            assert cost(point.detach() + step * move, logits, labels, prior) > value


def test_many_labels_find_the_truth() -> None:
    rng = seeds.torch_rng(0, "truth")
    logits = 3 * torch.randn(20_000, CLASSES, generator=rng)
    labels = torch.multinomial(torch.softmax(head.apply(tilted(), logits), 1), 1, generator=rng)

    fitted = head.fit(logits, labels.squeeze(1), PRIOR)

    assert fitted.log_temperature == pytest.approx(0.3, abs=0.05)
    centred = tilted().bias - tilted().bias.mean()
    torch.testing.assert_close(fitted.bias - fitted.bias.mean(), centred, atol=0.1, rtol=0)


def test_a_fit_repeats_bit_for_bit() -> None:
    first, second = (head.fit(*a_user(3, 10), PRIOR) for _ in range(2))

    assert head.to_bytes(first, MODEL) == head.to_bytes(second, MODEL)


def test_order_of_utterances_does_not_matter() -> None:
    logits, labels = a_user(3, 12)
    there, back = head.fit(logits, labels, PRIOR), head.fit(logits.flip(0), labels.flip(0), PRIOR)

    torch.testing.assert_close(as_point(there), as_point(back), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 50.0, 1e5])
@pytest.mark.parametrize("utterances", [1, 5, 200])
@pytest.mark.parametrize("kind", ["one class", "all wrong", "all right"])
def test_one_sided_labels_cannot_lead_it_astray(kind: str, utterances: int, scale: float) -> None:
    logits = scale * torch.randn(utterances, CLASSES, generator=seeds.torch_rng(0, "odd"))
    labels = {
        "one class": torch.zeros(utterances, dtype=torch.int64),
        "all wrong": logits.argmin(1),
        "all right": logits.argmax(1),
    }[kind]

    fitted = head.fit(logits, labels, PRIOR)

    start = cost(as_point(PRIOR.mean), logits, labels, PRIOR)
    assert cost(as_point(fitted), logits, labels, PRIOR) <= start
    # The prior's quadratic alone can cost no more than the start did.
    assert fitted.bias.abs().max() <= PRIOR.bias_sd * math.sqrt(2 * float(start)) + 1e-9


def test_wrong_labels_make_it_less_sure() -> None:
    logits, _ = a_user(2, 20)

    assert head.fit(logits, logits.argmin(1), PRIOR).log_temperature > 0.3
    assert head.fit(logits, logits.argmax(1), PRIOR).log_temperature < -0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e7])
def test_logits_that_are_none_are_refused(bad: float) -> None:
    logits, labels = a_user(1, 5)
    logits[3, 1] = bad

    with pytest.raises(ModelError, match="NaN"):
        head.fit(logits, labels, PRIOR)


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
        head.fit(torch.zeros(3, CLASSES), labels, PRIOR)


def test_other_numbers_of_classes_are_refused() -> None:
    with pytest.raises(ModelError, match="4 classes"):
        head.fit(torch.zeros(1, 5), torch.tensor([0]), PRIOR)
    with pytest.raises(ModelError, match="4 classes"):
        head.apply(tilted(), torch.zeros(1, 5))
    with pytest.raises(ModelError, match="4 classes"):
        head.apply(tilted(), torch.tensor(0.0))


@pytest.mark.parametrize("wide", [0.0, -1.0, math.nan, math.inf])
def test_widths_are_checked_at_birth(wide: float) -> None:
    with pytest.raises(SettingError, match="bias_sd"):
        HeadPrior(mean=tilted(), bias_sd=wide)
    with pytest.raises(SettingError, match="log_temperature_sd"):
        HeadPrior(mean=tilted(), log_temperature_sd=wide)


@pytest.mark.parametrize(
    ("log_temperature", "bias"),
    [
        (math.nan, [0.0, 0.0]),
        (51.0, [0.0, 0.0]),
        (0.0, [0.0, math.inf]),
        (0.0, [0.0]),
        (0.0, [[0.0, 0.0]]),
        (0.0, [0.0] * 257),
    ],
)
def test_heads_are_checked_at_birth(log_temperature: float, bias: list[float]) -> None:
    with pytest.raises(ModelError):
        Head(log_temperature=log_temperature, bias=torch.tensor(bias))


def test_more_labels_leave_less_doubt() -> None:
    few, many = a_user(4, 5), a_user(4, 100)
    doubt = [head.spread(head.fit(*some, PRIOR), *some, PRIOR) for some in (few, many)]

    assert (doubt[1] < doubt[0]).all()
    assert (doubt[0] < 1 / PRIOR.precision).all()


def test_bytes_come_back_as_the_same_head() -> None:
    data = head.to_bytes(tilted(), MODEL)
    back = head.from_bytes(data, MODEL)

    assert back.log_temperature == tilted().log_temperature
    assert torch.equal(back.bias, tilted().bias)
    largest = Head(log_temperature=0.0, bias=torch.zeros(256))
    assert len(head.to_bytes(largest, MODEL)) < head.MOST_BYTES


def test_a_head_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="fit it again"):
        head.from_bytes(head.to_bytes(tilted(), MODEL), OTHER)


def test_every_cut_of_the_bytes_is_refused() -> None:
    data = head.to_bytes(tilted(), MODEL)

    for length in range(len(data)):
        with pytest.raises(ModelError):
            head.from_bytes(data[:length], MODEL)
    with pytest.raises(ModelError):
        head.from_bytes(data + b"\x00", MODEL)


def test_a_newer_schema_is_refused() -> None:
    data = bytearray(head.to_bytes(tilted(), MODEL))
    data[4] = 2

    with pytest.raises(ModelError, match="schema 2"):
        head.from_bytes(bytes(data), MODEL)


@pytest.mark.parametrize("model_hash", ["", "ab", "xy" * 32, "ab " * 32, "ab" * 33])
def test_hashes_that_are_none_are_refused(model_hash: str) -> None:
    with pytest.raises(ModelError, match="SHA-256"):
        head.to_bytes(tilted(), model_hash)
    with pytest.raises(ModelError, match="SHA-256"):
        SealedHead(model_hash=model_hash, version=1, blob=b"")


@pytest.mark.parametrize("version", [0, -1, 1 << 63])
def test_versions_out_of_range_are_refused(version: int) -> None:
    with pytest.raises(ModelError, match="version"):
        SealedHead(model_hash=MODEL, version=version, blob=b"")


def test_a_prior_travels_as_plain_numbers() -> None:
    prior = HeadPrior(mean=tilted(), log_temperature_sd=0.4, bias_sd=0.3)
    back = head.prior_from_dict(prior.as_dict())

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
        head.prior_from_dict(PRIOR.as_dict() | change)


@pytest.mark.parametrize(
    "rubbish", [None, [], [1, None], 3, {"bias": [0.0, 0.0]}, {"bias": [[0], 1]}]
)
def test_rubbish_is_no_prior(rubbish: object) -> None:
    with pytest.raises(ModelError, match="cannot be used"):
        head.prior_from_dict(rubbish)  # type: ignore[arg-type]


def test_leaving_a_clip_out_is_nearly_what_a_fit_without_it_gives() -> None:
    rng = seeds.torch_rng(5, "left out")
    logits = 2 * torch.randn(8, 3, generator=rng, dtype=torch.float64)
    labels = torch.randint(3, (8,), generator=rng)
    prior = HeadPrior(mean=head.identity(3))
    fitted = head.fit(logits, labels, prior)
    found = head.left_out(fitted, logits, labels, prior)
    seen = torch.softmax(head.apply(fitted, logits), 1)
    others = [torch.arange(8) != place for place in range(8)]
    exact = torch.stack(
        [
            torch.softmax(head.apply(head.fit(logits[kept], labels[kept], prior), row), 0)
            for kept, row in zip(others, logits, strict=True)
        ]
    )

    off, blind = (found - exact).abs().mean(), (seen - exact).abs().mean()
    assert off < 0.2 * blind, "the fit itself has seen the labels"


def test_a_lone_clip_is_judged_by_the_prior() -> None:
    prior = HeadPrior(mean=Head(log_temperature=0.4, bias=torch.tensor([0.2, 0.0, -0.2])))
    logits, labels = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([2])
    fitted = head.fit(logits, labels, prior)

    usual = torch.softmax(head.apply(prior.mean, logits.double()), 1)
    assert torch.allclose(head.left_out(fitted, logits, labels, prior), usual)
    assert head.left_out(prior.mean, logits[:0], labels[:0], prior).shape == (0, 3)


def test_a_prior_carries_scores_through_a_message() -> None:
    known = conformal.learn([torch.tensor([0.1, 0.6]), torch.tensor([0.3])])
    prior = HeadPrior(mean=head.identity(3), scores=known)

    assert head.prior_from_dict(prior.as_dict()).scores == known
    assert head.prior_from_dict(HeadPrior(mean=head.identity(3)).as_dict()).scores is None


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
    known = conformal.learn([torch.tensor([0.1, 0.6])])
    numbers = HeadPrior(mean=head.identity(3), scores=known).as_dict()

    with pytest.raises(ModelError):
        head.prior_from_dict(numbers | spoilt)
