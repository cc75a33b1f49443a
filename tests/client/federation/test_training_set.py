"""What a user labels trains in the next run, once a recording, until it is forgotten."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_clips, make_device, make_examples, make_plan
from torch import Tensor

from sottovoce.client.device import stored_clips
from sottovoce.client.device.consent import Purpose
from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import UNKNOWN_LABEL, LabelledFeatures
from sottovoce.client.federation import enrolment, final_model, model_inputs
from sottovoce.client.federation.training_set import load_training_set
from sottovoce.client.personalisation import feedback
from sottovoce.client.personalisation.feedback import FeedbackStore
from sottovoce.shared import calibration, seeding
from sottovoce.shared.calibration import HeadPrior
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.projection import identity_projection
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.protocol.messages import FinalModelRequest
from sottovoce.shared.speaker.normalisation import default_statistics

LABELS = ("angry", "happy", "sad")
WIDTH = 4
SPEC = ModelSpec(kind="linear", inputs=WIDTH, classes=len(LABELS))
PROJECTION = identity_projection(WIDTH)
PLAN = make_plan(
    labels=LABELS, extractor="ears", projection_hash=PROJECTION.content_hash(), model=SPEC
)
NOBODY = torch.zeros(WIDTH)
SPEECH = torch.randn(6, WIDTH, generator=seeding.torch_rng(0, "speech"))


def model(extractor: str = "ears") -> ModelPackage:
    return ModelPackage(
        labels=LABELS,
        extractor=extractor,
        spec=SPEC,
        weights=torch.zeros(SPEC.classes * (WIDTH + 1)),
        projection=PROJECTION,
        centre=NOBODY,
        speaker_statistics=default_statistics(WIDTH),
        prior=HeadPrior(mean=calibration.identity_head(len(LABELS))),
        subtracts_user_mean=True,
        model_hash="ab" * 32,
    )


def device(folder: Path, clips: LabelledFeatures | None = None, **changes: Any) -> Device:
    """A real one, with two enrolled clips: angry and happy."""
    held = clips or make_clips(make_examples(SPEECH[:2], classes=3))
    return make_device(folder, held, **{"labels": LABELS, "simulated_seed": None} | changes)


def training_rows(one: Device) -> list[tuple[tuple[float, ...], int]]:
    """Features and labels that train."""
    held = load_training_set(one, PLAN, WIDTH)
    chosen = held.examples.select(held.for_training)
    return [
        (tuple(row.tolist()), int(label))
        for row, label in zip(chosen.features, chosen.labels, strict=True)
    ]


def label(one: Device, row: Tensor, emotion: str, extractor: str = "ears") -> str:
    return FeedbackStore(one.folder, model(extractor)).add_label(row, emotion, NOBODY)


def enrol(one: Device) -> None:
    enrolment.enrol_device(one, PLAN, PROJECTION, default_statistics(WIDTH))


def examples_of_a_round(one: Device) -> Examples:
    return model_inputs.load_training_examples(one, PLAN, PLAN.content_hash(), NOBODY)


def test_one_labelled_recording_is_one_example_more_and_changes_no_other(tmp_path: Path) -> None:
    one = device(tmp_path)
    before = training_rows(one)

    label(one, SPEECH[2], "sad")

    assert training_rows(one) == [*before, (tuple(SPEECH[2].tolist()), 2)]


def test_a_correction_replaces_the_label_of_an_enrolled_clip(tmp_path: Path) -> None:
    one = device(tmp_path, make_clips(make_examples(SPEECH[:2], classes=3)))
    angry, happy = training_rows(one)

    label(one, SPEECH[0], "sad")
    assert training_rows(one) == [happy, (angry[0], 2)]
    label(one, SPEECH[0], "happy")
    assert training_rows(one) == [happy, (angry[0], 1)]
    held = load_training_set(one, PLAN, WIDTH)
    assert held.for_enrolment.tolist() == [True, True, False], "it is the same voice still"


def test_a_corrected_clip_counts_once_for_the_head_too(tmp_path: Path) -> None:
    clips = make_clips(make_examples(SPEECH[:2], classes=3), for_head=torch.tensor([True, True]))
    one = device(tmp_path / "one", clips)
    other = device(tmp_path / "other", clips.select(torch.tensor([False, True])))
    for each in (one, other):
        label(each, SPEECH[0], "sad")

    heads = [
        feedback.HeadCalibrator(
            each.vault, model_hash=model().model_hash, prior=model().prior, labels=LABELS
        ).current_head()
        for each in (one, other)
    ]
    assert torch.equal(heads[0].bias, heads[1].bias)


def test_what_no_model_of_the_plan_can_read_trains_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sottovoce.client")
    one = device(tmp_path)
    before = training_rows(one)
    assert not caplog.messages, "every label is known"
    label(one, SPEECH[2], "sad", extractor="nose")
    assert training_rows(one) == before

    other = replace(PLAN, extractor="nose", labels=("angry", "bored", "happy"))
    held = load_training_set(one, other, WIDTH)
    assert held.examples.labels[held.for_training].tolist() == [0, 2]
    load_training_set(one, replace(PLAN, labels=("angry", "bored", "sad")), WIDTH)
    (said,) = caplog.messages
    assert "without a label of this plan" in said, "to the owner alone"
    for kind, shape in (("linear", (0, WIDTH + 1)), ("tcn", (0, 1, WIDTH + 1))):
        plan = replace(PLAN, model=replace(SPEC, kind=kind))
        assert load_training_set(one, plan, WIDTH + 1).examples.features.shape == shape


def test_a_device_without_clips_joins_a_run(tmp_path: Path) -> None:
    one = device(tmp_path, LabelledFeatures.without_recordings(width=1))

    enrol(one)
    assert len(examples_of_a_round(one)) == 0
    label(one, SPEECH[0], "sad")
    enrol(one)
    assert examples_of_a_round(one).labels.tolist() == [2]


@pytest.mark.parametrize("where", ["enrolled", "labelled"])
def test_a_forgotten_recording_leaves_the_run_under_way(tmp_path: Path, where: str) -> None:
    one = device(tmp_path)
    names = [label(one, SPEECH[2], "sad"), label(one, SPEECH[3], "angry")]
    enrol(one)
    assert examples_of_a_round(one).labels.tolist() == [0, 1, 2, 0]
    name = names[0] if where == "labelled" else stored_clips.name_recording(SPEECH[0])

    feedback.forget_recording(tmp_path, name)

    left = [0, 1, 0] if where == "labelled" else [1, 2, 0]
    assert examples_of_a_round(one).labels.tolist() == left, "in a program that is running, too"
    assert [row[1] for row in training_rows(Device.open(tmp_path))] == left
    row = SPEECH[2] if where == "labelled" else SPEECH[0]
    for blob in one.vault.list_names():
        assert row.numpy().tobytes() not in one.vault.get(blob), blob


def test_without_consent_to_contribute_nothing_that_was_labelled_is_prepared(
    tmp_path: Path,
) -> None:
    one = device(tmp_path)
    label(one, SPEECH[2], "sad")
    one.consent.withdraw(Purpose.CONTRIBUTE)

    assert [row[1] for row in training_rows(one)] == [0, 1]


def test_clips_are_enrolled_later_and_again(tmp_path: Path) -> None:
    one = device(tmp_path, LabelledFeatures.without_recordings(width=1))
    first = replace(make_clips(make_examples(SPEECH[:3], classes=3)), extractor="ears")
    names = feedback.enrol_labelled(one.vault, first)
    label(one, SPEECH[0], "sad")
    again = first.select(torch.tensor([True, True, False]))
    unknown = replace(again.examples, labels=torch.tensor([1, UNKNOWN_LABEL]))

    assert feedback.enrol_labelled(one.vault, replace(again, examples=unknown)) == names[:2]

    assert training_rows(one) == [(tuple(SPEECH[2].tolist()), 2), (tuple(SPEECH[0].tolist()), 1)]
    assert len(one.load_features().examples) == 3
    other = replace(make_clips(make_examples(SPEECH[5:], classes=3)), extractor="nose")
    with pytest.raises(SettingError, match=r"of ears.* of nose"):
        feedback.enrol_labelled(one.vault, other)


def test_neutral_clips_enrol_the_user_alone_until_they_are_forgotten(tmp_path: Path) -> None:
    one = device(tmp_path, LabelledFeatures.without_recordings(width=1))
    clips = replace(make_clips(make_examples(SPEECH[:3], classes=3)), extractor="ears")
    neutral = torch.tensor([False, True, False])
    names = stored_clips.add_clips(one.vault, replace(clips, neutral=neutral))

    rows, is_neutral = stored_clips.load_enrolment_features(tmp_path, one.vault)
    assert (rows.tolist(), is_neutral) == ([SPEECH[1].tolist()], True)
    more = replace(make_clips(make_examples(SPEECH[3:4], classes=3)), extractor="ears")
    (other,) = stored_clips.add_clips(one.vault, more)
    rows, is_neutral = stored_clips.load_enrolment_features(tmp_path, one.vault)
    assert (rows.tolist(), is_neutral) == ([SPEECH[1].tolist()], True), "of others it is not known"
    assert stored_clips.forget_clip(one.vault, other)

    assert stored_clips.forget_clip(one.vault, names[1])
    assert not stored_clips.forget_clip(one.vault, names[1])
    rows, is_neutral = stored_clips.load_enrolment_features(tmp_path, one.vault)
    assert (len(rows), is_neutral) == (2, False)


def test_a_head_is_fitted_on_the_clips_that_are_for_it_alone(tmp_path: Path) -> None:
    examples = make_examples(SPEECH, classes=3)
    one = device(tmp_path, make_clips(examples, for_head=torch.arange(len(SPEECH)) < 4))

    found = stored_clips.load_head_examples(tmp_path, one.vault, ("happy", "angry"))

    assert torch.equal(found.features, SPEECH[[0, 1, 3]]), "the third one's emotion is not known"
    assert found.labels.tolist() == [1, 0, 1]


def test_what_was_labelled_is_read_by_the_newest_run_s_model(tmp_path: Path) -> None:
    one = device(tmp_path)
    label(one, SPEECH[2], "sad")
    first = feedback.prepare_examples(one.vault, PLAN, NOBODY)
    assert len(first) == 0, "no run has given its projection yet"

    enrol(one)

    found = feedback.prepare_examples(one.vault, PLAN, NOBODY)
    wanted = PROJECTION.prepare_inputs(SPEECH[2:3], NOBODY, torch.ones(1, dtype=torch.int64))
    assert torch.equal(found.features, wanted)
    assert found.labels.tolist() == [2]


def test_without_consent_to_personalise_the_answer_knows_no_clip(tmp_path: Path) -> None:
    clips = make_clips(make_examples(SPEECH, classes=3), for_head=torch.arange(len(SPEECH)) < 4)
    refuses = device(tmp_path / "refuses", clips)
    refuses.consent.withdraw(Purpose.PERSONALISE)
    nothing = device(tmp_path / "nothing", LabelledFeatures.without_recordings(width=WIDTH))
    agrees = device(tmp_path / "agrees", clips)
    means = []
    for one in (refuses, nothing, agrees):
        enrol(one)
        request = FinalModelRequest(
            plan_hash=PLAN.content_hash(),
            weights=model().weights,
            centre=NOBODY,
            prior=model().prior,
        )
        final_model.finalise_model(one, request)
        means.append(one.vault.get_tensors("normaliser")["mean"])

    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])


def voted_device(folder: Path, votes: Tensor, *, rows: int = 3) -> Device:
    examples = replace(make_examples(SPEECH[:rows], classes=3), votes=votes)
    return device(folder, make_clips(examples))


VOTES = torch.tensor([[0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]])
SOFT = replace(PLAN, training=replace(PLAN.training, targets="soft"))


def test_votes_train_where_the_plan_asks_for_them(tmp_path: Path) -> None:
    one = voted_device(tmp_path / "ada", VOTES)

    assert load_training_set(one, PLAN, WIDTH).examples.votes is None
    votes = load_training_set(one, SOFT, WIDTH).examples.votes
    assert votes is not None
    assert torch.equal(votes, VOTES)
    enrolment.enrol_device(one, SOFT, PROJECTION, default_statistics(WIDTH))
    held = model_inputs.load_training_examples(one, SOFT, SOFT.content_hash(), NOBODY)
    assert held.votes is not None
    assert torch.equal(held.votes, VOTES)


def test_what_a_user_labels_anew_has_one_vote(tmp_path: Path) -> None:
    one = voted_device(tmp_path / "ada", VOTES)
    label(one, SPEECH[0], "sad")

    held = load_training_set(one, SOFT, WIDTH)

    assert held.examples.votes is not None
    assert held.examples.votes[held.for_training].tolist()[-1] == [0.0, 0.0, 1.0]


def test_votes_go_with_their_classes_and_those_of_others_are_left_out(tmp_path: Path) -> None:
    plan = replace(
        SOFT,
        labels=("sad", "angry"),
        model=replace(SPEC, classes=2),
    )
    one = voted_device(tmp_path / "ada", VOTES)

    held = load_training_set(one, plan, WIDTH)

    assert held.examples.votes is not None
    # The second clip is happy, which the plan does not know: it trains nothing.
    assert held.for_training.tolist() == [True, False, True]
    torch.testing.assert_close(
        held.examples.votes[held.for_training], torch.tensor([[0.0, 1.0], [0.75, 0.25]])
    )


@pytest.mark.parametrize("broken", [math.nan, math.inf, -1.0, 0.0])
def test_broken_votes_leave_their_clip_its_label_and_others_theirs(
    tmp_path: Path, broken: float
) -> None:
    votes = VOTES.clone()
    votes[2] = broken

    held = load_training_set(voted_device(tmp_path / "ada", votes), SOFT, WIDTH)

    assert held.examples.votes is not None
    assert held.examples.votes.tolist() == [*VOTES[:2].tolist(), [0.0, 0.0, 1.0]]


def test_votes_of_one_clip_move_its_counts_by_one_and_no_other_s(tmp_path: Path) -> None:
    """The noise on counts is scaled to 1: the majority counts, whatever the votes are."""
    sums = []
    for number, count in enumerate((3, 2)):
        one = voted_device(tmp_path / str(number), VOTES[:count], rows=count)
        sums.append(enrolment.enrol_device(one, SOFT, PROJECTION, default_statistics(WIDTH)))
    moved = (sums[0] - sums[1])[: len(LABELS)]

    assert moved.tolist() == [0.0, 0.0, 1.0]
    assert float(torch.linalg.vector_norm(moved)) <= 1
