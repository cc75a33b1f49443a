"""Pretraining: a projection on useful directions, how speakers differ, initial weights."""

import pytest
import torch
from torch import Tensor

from sottovoce.server.planning import public_pretraining
from sottovoce.server.planning.public_pretraining import ProjectionSettings, PublicSpeech
from sottovoce.shared.errors import CorpusError, SettingError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.spec import ModelSpec, build_network

SPEAKERS, EACH, FEATURES, CLASSES = 8, 30, 10, 3


def speech(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in which feature 0 tells speakers apart, 1 and 2 emotions, and the rest is noise."""
    generator = torch.Generator().manual_seed(seed)
    speakers = torch.arange(SPEAKERS).repeat_interleave(EACH)
    labels = torch.arange(SPEAKERS * EACH) % CLASSES
    rows = torch.randn(SPEAKERS * EACH, FEATURES, generator=generator)
    rows[:, 0] += 50.0 * torch.randn(SPEAKERS, generator=generator)[speakers]
    rows[:, 1] += 2.0 * labels
    rows[:, 2] -= 2.0 * (labels == 1)
    return rows, speakers, labels


def examples(rows: Tensor, labels: Tensor) -> Examples:
    """Rows as examples."""
    return Examples(features=rows, frames=torch.ones(len(rows), dtype=torch.int64), labels=labels)


# --- the front --------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [0, 2, 5])
@pytest.mark.parametrize("whitening", [0.0, 1.0])
def test_utterances_lie_one_from_their_speakers_mean(dims: int, whitening: float) -> None:
    rows, speakers, labels = speech()
    front = public_pretraining.fit_projection(
        rows, speakers, labels, ProjectionSettings(dims=dims, whitening=whitening)
    )

    projected = front.project_features(rows)
    within = projected - public_pretraining.group_means(projected, speakers)[speakers]

    assert front.output_size == (dims or FEATURES)
    assert float(within.square().sum(1).mean()) == pytest.approx(1.0, rel=1e-3)


def test_what_tells_speakers_apart_decides_nothing() -> None:
    rows, speakers, labels = speech()
    moved = rows + 1e3 * torch.randn(SPEAKERS, FEATURES)[speakers]
    settings = ProjectionSettings(dims=4, whitening=0.5, discriminant_weight=1.0)

    one, other = (
        public_pretraining.fit_projection(r, speakers, labels, settings) for r in (rows, moved)
    )

    assert torch.allclose(one.matrix, other.matrix, atol=1e-3)


def test_emphasis_lengthens_what_tells_emotions_apart() -> None:
    rows, speakers, labels = speech()

    def contrast(emphasis: float) -> float:
        settings = ProjectionSettings(dims=6, whitening=1.0, discriminant_weight=emphasis)
        front = public_pretraining.fit_projection(rows, speakers, labels, settings)
        projected = front.project_features(rows)
        projected = projected - public_pretraining.group_means(projected, speakers)[speakers]
        return float(public_pretraining.group_means(projected, labels).square().sum())

    assert contrast(2.0) > 1.5 * contrast(0.0)


def test_labels_of_other_emotions_and_none_at_all_are_no_trouble() -> None:
    rows, speakers, labels = speech()
    settings = ProjectionSettings(dims=4, discriminant_weight=1.0)
    nothing = public_pretraining.fit_projection(
        rows, speakers, torch.full_like(labels, -1), settings
    )
    plain = public_pretraining.fit_projection(rows, speakers, labels, ProjectionSettings(dims=4))
    assert torch.allclose(nothing.matrix, plain.matrix)


def test_a_feature_that_never_changes_is_no_trouble() -> None:
    rows, speakers, labels = speech()
    rows[:, 5] = 3.0
    front = public_pretraining.fit_projection(rows, speakers, labels, ProjectionSettings(dims=4))
    assert front.project_features(rows).isfinite().all()


def test_the_front_is_the_same_every_time() -> None:
    settings = ProjectionSettings(dims=6, whitening=0.5, discriminant_weight=1.0)
    digests = {
        public_pretraining.fit_projection(*speech(), settings).content_hash() for _ in range(3)
    }
    assert len(digests) == 1


def test_too_few_utterances_for_a_front_are_refused() -> None:
    rows, speakers, labels = speech()
    with pytest.raises(CorpusError, match=r"6 utterances, too few .* 6 inputs"):
        public_pretraining.fit_projection(
            rows[:6], speakers[:6], labels[:6], ProjectionSettings(dims=6)
        )


@pytest.mark.parametrize("name", ["dims", "whitening", "discriminant_weight", "row_norm"])
def test_settings_below_zero_are_refused(name: str) -> None:
    with pytest.raises(SettingError, match=name):
        ProjectionSettings(**{name: -1})


# --- how people differ ------------------------------------------------------------------------


def test_variances_are_those_of_the_speech() -> None:
    generator = torch.Generator().manual_seed(0)
    speakers = torch.arange(200).repeat_interleave(50)
    means = 2.0 * torch.randn(200, 3, generator=generator)
    rows = means[speakers] + 0.5 * torch.randn(len(speakers), 3, generator=generator)
    neutral = torch.arange(len(rows)) % 5 == 0
    rows[neutral] += 0.8

    people = public_pretraining.estimate_speaker_statistics(rows, speakers, neutral)

    assert torch.allclose(people.between, torch.full((3,), 4.0), rtol=0.25)
    assert torch.allclose(people.neutral_within, torch.full((3,), 0.25), rtol=0.15)
    assert torch.allclose(people.neutral_offset, torch.full((3,), 0.8 * 0.8), rtol=0.1)
    assert (people.offset_variance < 0.02).all()


def test_without_neutral_speech_nothing_is_assumed_of_it() -> None:
    rows, speakers, _ = speech()
    people = public_pretraining.estimate_speaker_statistics(
        rows, speakers, torch.zeros(len(rows), dtype=torch.bool)
    )
    assert people.neutral_offset.count_nonzero() == 0
    assert torch.equal(people.neutral_within, people.within)


def test_one_speaker_alone_still_gives_numbers() -> None:
    rows, _, _ = speech()
    people = public_pretraining.estimate_speaker_statistics(
        rows[:20], torch.zeros(20, dtype=torch.int64), torch.arange(20) % 2 == 0
    )
    for name in type(people).__dataclass_fields__:
        assert getattr(people, name).isfinite().all(), name
    assert (people.between > 0).all()


# --- the start --------------------------------------------------------------------------------


@pytest.mark.parametrize("user_mean", [False, True])
def test_a_speakers_own_mean_comes_off_where_users_will_have_theirs(user_mean: bool) -> None:
    rows, speakers, labels = speech()
    front = public_pretraining.fit_projection(
        rows, speakers, labels, ProjectionSettings(dims=4, row_norm=0.0)
    )

    spoken = PublicSpeech(examples=examples(rows, labels), speakers=speakers, emotions=labels)

    ready = public_pretraining.normalise_public_speech(front, spoken, user_mean=user_mean)

    left = public_pretraining.group_means(ready.features, speakers).abs().max()
    assert (float(left) < 1e-4) == user_mean


def _learnt(labels: Tensor, similar: dict[int, dict[int, float]], kind: str = "linear") -> Tensor:
    """Logits of the warm model on its own speech, shape (utterances, classes)."""
    rows, _, truth = speech()
    model = build_network(ModelSpec(kind=kind, inputs=FEATURES - 1, classes=CLASSES, hidden=8), 0)
    pretrained = examples(rows[:, 1:], labels)
    load_parameters(
        model,
        public_pretraining.pretrain_weights(
            model, pretrained, weight_decay=1e-3, similar_classes=similar
        ),
    )
    with torch.no_grad():
        logits: Tensor = model.eval()(pretrained.features, pretrained.frames)
    del truth
    return logits


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_warm_start_knows_the_public_emotions(kind: str) -> None:
    labels = speech()[2]
    guesses = _learnt(labels, {}, kind).argmax(1)
    assert float((guesses == labels).float().mean()) > 0.7


def test_a_class_without_public_speech_starts_where_its_likes_do() -> None:
    labels = speech()[2]
    unheard = torch.where(labels == 2, -1, labels)

    logits = _learnt(unheard, {2: {1: 1.0}})
    assert torch.allclose(logits[:, 2], logits[:, 1])

    nothing = _learnt(unheard, {})
    assert nothing[:, 2].abs().max() < 1e-6


def test_with_one_emotion_or_none_there_is_no_warm_start() -> None:
    rows, _, labels = speech()
    model = build_network(ModelSpec(kind="linear", inputs=FEATURES, classes=CLASSES), 0)
    for labelled in (torch.full_like(labels, -1), torch.where(labels == 0, 0, -1)):
        start = public_pretraining.pretrain_weights(
            model, examples(rows, labelled), weight_decay=1e-3, similar_classes={}
        )
        assert start.count_nonzero() == 0
