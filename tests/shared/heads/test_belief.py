"""What a head tells of its user goes over to another model; the head itself never does."""

import math

import pytest
import torch
from torch import Tensor

from sottovoce.shared import heads, seeds
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.heads import Head, HeadPrior, basis
from sottovoce.shared.heads import belief as beliefs
from sottovoce.shared.heads.belief import Belief

MODEL, NEXT = "ab" * 32, "cd" * 32
NAMES = ("angry", "happy", "sad")
OLD = HeadPrior(mean=Head(log_temperature=-0.4, bias=torch.tensor([0.1, 0.0, -0.1])))
NEW = HeadPrior(
    mean=Head(log_temperature=0.3, bias=torch.zeros(3)), log_temperature_sd=0.2, bias_sd=0.15
)


def labelled(utterances: int = 8, seed: int = 0, *, warm: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are ``warm`` times less sure than the logits say."""
    rng = seeds.torch_rng(seed, "belief")
    logits = 3 * torch.randn(utterances, 3, generator=rng)
    labels = torch.multinomial(torch.softmax(logits / warm, 1), 1, generator=rng)[:, 0]
    return logits, labels


def believed(utterances: int = 8) -> Belief:
    logits, labels = labelled(utterances, warm=3.0)
    return beliefs.learned(heads.fitted(logits, labels, OLD), OLD, NAMES)


def alike(one: Head, other: Head) -> bool:
    return heads.to_bytes(one, MODEL) == heads.to_bytes(other, MODEL)


def test_a_belief_travels_whole() -> None:
    belief = believed()
    data = beliefs.to_bytes(belief, MODEL)
    again = beliefs.from_bytes(data, MODEL)

    assert alike(again.head, belief.head)
    assert alike(again.usual, belief.usual)
    assert torch.allclose(again.told, belief.told, atol=1e-6)
    assert again.tags == belief.tags
    with pytest.raises(ModelError, match="belongs to model"):
        beliefs.from_bytes(data, NEXT)


def test_heads_that_earlier_releases_kept_are_read_but_not_mapped() -> None:
    again = beliefs.from_bytes(heads.to_bytes(OLD.mean, MODEL), MODEL)

    assert alike(again.head, OLD.mean)
    assert beliefs.mapped(again, NEW, NAMES) is NEW


def test_damaged_bytes_are_refused_wherever_they_are_cut() -> None:
    data = beliefs.to_bytes(believed(), MODEL)

    for length in range(len(data)):
        with pytest.raises(ModelError):
            beliefs.from_bytes(data[:length], MODEL)
    with pytest.raises(ModelError):
        beliefs.from_bytes(data + b"\0", MODEL)
    with pytest.raises(ModelError, match="schema 9"):
        beliefs.from_bytes(data[:4] + b"\x09" + data[5:], MODEL)


@pytest.mark.parametrize("classes", [2, 8, 20, 32, 50, 64, 65, 256])
def test_every_belief_fits_the_wire(classes: int) -> None:
    voices = torch.randn(200, 60, generator=seeds.torch_rng(0, "voices"))
    found = basis.learn(voices, classes)
    prior = HeadPrior(mean=heads.identity(classes), basis=found)
    clips = torch.zeros(3, classes), torch.tensor([0, 1, 1])
    names = [f"emotion {number}" for number in range(classes)]
    fitted = heads.fitted(*clips, prior, prior.coordinates(voices[:3]))
    belief = beliefs.learned(fitted, prior, names)
    data = beliefs.to_bytes(belief, MODEL)

    assert bool(belief.tags) == (classes <= beliefs.MOST_MAPPED)
    assert len(data) < (2048 if classes <= 64 else heads.MOST_BYTES) - 33
    assert alike(beliefs.from_bytes(data, MODEL).head, fitted.head)


def test_who_labelled_nothing_starts_as_everybody_does() -> None:
    belief = believed(0)

    assert not bool(belief.told.any())
    assert beliefs.mapped(belief, NEW, NAMES) is NEW


def test_a_mapped_head_keeps_how_its_user_differs_and_not_its_numbers() -> None:
    belief = believed(60)
    found = beliefs.mapped(belief, NEW, NAMES, likeness=0.5)
    warmer = belief.head.log_temperature - OLD.mean.log_temperature
    moved = belief.head.bias - OLD.mean.bias

    assert warmer > 0.2, "these labels say that the model is too sure"
    assert found.mean.log_temperature == pytest.approx(0.3 + 0.5 * warmer)
    assert torch.allclose(found.mean.bias, 0.5 * moved)
    told = float(belief.told[0])
    assert found.log_temperature_sd == pytest.approx(0.2 * math.sqrt(1 - 0.25 * told))
    assert 0.15 * math.sqrt(0.75) <= found.bias_sd < 0.15, "doubt stays: it is another model"


def test_likeness_is_the_correlation_that_it_says() -> None:
    """Mean and width are those of one Gaussian given what labels told of its twin."""
    belief, likeness = believed(30), 0.7
    sd, told = NEW.log_temperature_sd, float(belief.told[0])
    shift = belief.head.log_temperature - OLD.mean.log_temperature
    rng = seeds.torch_rng(1, "twins")
    old = shift + OLD.log_temperature_sd * math.sqrt(1 - told) * torch.randn(200_000, generator=rng)
    noise = sd * math.sqrt(1 - likeness**2) * torch.randn(200_000, generator=rng)
    new = likeness * sd / OLD.log_temperature_sd * old + noise

    found = beliefs.mapped(belief, NEW, NAMES, likeness=likeness)

    assert found.log_temperature_sd == pytest.approx(float(new.std()), rel=0.01)
    found = beliefs.mapped(belief, OLD, NAMES, likeness=likeness)
    expected = OLD.mean.log_temperature + likeness * shift
    assert found.mean.log_temperature == pytest.approx(expected)


def test_emotions_are_found_by_name() -> None:
    belief = believed(60)
    turned = beliefs.mapped(belief, NEW, ("sad", "angry", "calm"), likeness=1.0)
    moved = belief.head.bias - OLD.mean.bias

    assert turned.mean.bias.tolist() == pytest.approx([float(moved[2]), float(moved[0]), 0.0])


def test_names_that_do_not_fit_the_prior_map_nothing() -> None:
    assert beliefs.mapped(believed(), NEW, ("angry", "sad")) is NEW
    assert beliefs.mapped(believed(), NEW, ()) is NEW


def test_under_the_same_model_a_fit_goes_on_where_it_ended() -> None:
    logits, labels = labelled(40, warm=3.0)
    first = heads.fitted(logits[:20], labels[:20], OLD)
    half, belief = first.head, beliefs.learned(first, OLD, NAMES)

    nothing = beliefs.mapped(belief, OLD, NAMES, likeness=1.0)
    on = heads.fit(logits[20:], labels[20:], nothing)
    whole, anew = (heads.fit(logits[at], labels[at], OLD) for at in (slice(40), slice(20, 40)))

    assert nothing.mean.log_temperature == pytest.approx(half.log_temperature)
    assert torch.allclose(nothing.mean.bias, half.bias)
    distance = [abs(one.log_temperature - whole.log_temperature) for one in (on, anew)]
    assert distance[0] < distance[1]


def test_what_was_mapped_is_not_lost_where_nothing_was_labelled_since() -> None:
    first = believed(60)
    empty = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    start = beliefs.mapped(first, NEW, NAMES, likeness=0.5)
    second = beliefs.learned(heads.fitted(*empty, start), NEW, NAMES)
    third = beliefs.mapped(second, OLD, NAMES, likeness=0.5)

    moved = first.head.log_temperature - OLD.mean.log_temperature
    assert third.mean.log_temperature - OLD.mean.log_temperature == pytest.approx(moved / 4)
    assert float(second.told[0]) == pytest.approx(0.25 * float(first.told[0]))


@pytest.mark.parametrize("likeness", [-0.1, math.nan, math.inf])
def test_a_likeness_that_is_none_is_refused(likeness: float) -> None:
    with pytest.raises(SettingError, match="likeness"):
        beliefs.mapped(believed(), NEW, NAMES, likeness=likeness)


def test_a_belief_that_cannot_be_is_refused() -> None:
    good = believed()
    with pytest.raises(ModelError, match="told"):
        Belief(head=good.head, usual=good.usual, told=good.told + 1, tags=good.tags)
    with pytest.raises(ModelError, match="classes"):
        Belief(head=good.head, usual=heads.identity(4), told=good.told, tags=good.tags)
    with pytest.raises(ModelError, match="each once"):
        Belief(head=good.head, usual=good.usual, told=good.told, tags=good.tags[:1] * 3)
