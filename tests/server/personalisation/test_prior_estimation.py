"""The population prior finds how public speakers differ, and never trusts few of them too far."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sottovoce.server.personalisation import prior_estimation as priors
from sottovoce.shared import calibration, seeding
from sottovoce.shared.calibration import CalibrationHead, conformal, conformal_fit
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models.losses import Loss

CLASSES = 4
TRUE_MEAN = CalibrationHead(log_temperature=0.6, bias=torch.tensor([0.5, -0.5, 0.3, -0.3]))

UNBIASED = CalibrationHead(log_temperature=0.6, bias=torch.zeros(4))


def speakers(
    count: int, *, sd: float, utterances: int = 60, mean: CalibrationHead = TRUE_MEAN
) -> list[tuple[Tensor, Tensor]]:
    """Public speakers whose true heads scatter around a mean."""
    found = []
    for number in range(count):
        rng = seeding.torch_rng(0, "speaker", number)
        logits = 3 * torch.randn(utterances, CLASSES, generator=rng, dtype=torch.float64)
        moves = sd * torch.randn(1 + CLASSES, generator=rng, dtype=torch.float64)
        true = CalibrationHead(
            log_temperature=mean.log_temperature + float(moves[0]), bias=mean.bias + moves[1:]
        )
        chances = torch.softmax(calibration.calibrate_logits(true, logits), dim=1)
        found.append((logits, torch.multinomial(chances, 1, generator=rng).squeeze(1)))
    return found


def test_many_speakers_find_the_population() -> None:
    found = priors.fit_head_prior(speakers(80, sd=0.4), classes=CLASSES)
    same = priors.fit_head_prior(speakers(80, sd=0.15, mean=UNBIASED), classes=CLASSES)

    # Of the temperature only what corpora alone would not explain.
    beyond = 0.6 - priors.CORPUS_SHIFT
    assert found.mean.log_temperature == pytest.approx(beyond, abs=0.15)
    assert not found.mean.bias.any()  # what public recordings prefer is theirs
    assert same.bias_sd == pytest.approx(0.15, abs=0.08)
    # Wider than the default is not believed.
    default = priors.default_prior(CLASSES)
    assert (found.log_temperature_sd, found.bias_sd) == (
        default.log_temperature_sd,
        default.bias_sd,
    )


def test_classes_that_no_public_speaker_has_are_not_unlearned() -> None:
    usable = [(logits, labels % 2) for logits, labels in speakers(20, sd=0.2)]

    found = priors.fit_head_prior(usable, classes=CLASSES)

    assert found.mean.classes == CLASSES
    assert not found.mean.bias.any()


def test_widths_follow_the_scatter_down_to_the_floor() -> None:
    narrow, wide = (
        priors.fit_head_prior(speakers(60, sd=sd, mean=UNBIASED), classes=CLASSES)
        for sd in (0.0, 0.8)
    )

    assert narrow.bias_sd < 0.25 < wide.bias_sd
    assert narrow.bias_sd >= priors.MIN_SD
    # Public speakers do not show how far corpora lie from each other.
    assert narrow.log_temperature_sd == wide.log_temperature_sd


def test_few_speakers_stay_near_the_default() -> None:
    default = priors.default_prior(CLASSES)
    few = priors.fit_head_prior(speakers(1, sd=0.0, mean=UNBIASED), classes=CLASSES)
    many = priors.fit_head_prior(speakers(40, sd=0.0, mean=UNBIASED), classes=CLASSES)

    assert 0 == few.mean.log_temperature < many.mean.log_temperature
    assert abs(few.bias_sd - default.bias_sd) < abs(many.bias_sd - default.bias_sd)


def test_without_a_public_corpus_the_default_changes_nothing() -> None:
    silent = (torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.int64))

    for usable in ([], [silent]):
        found = priors.fit_head_prior(usable, classes=CLASSES)
        assert found.as_dict() == priors.default_prior(CLASSES).as_dict()
    logits = torch.randn(3, CLASSES, generator=seeding.torch_rng(0, "logits"))
    assert torch.equal(calibration.calibrate_logits(found.mean, logits), logits)


def test_silent_speakers_count_for_nothing() -> None:
    silent = (torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.int64))
    usable = speakers(5, sd=0.3)

    alone = priors.fit_head_prior(usable, classes=CLASSES)
    assert priors.fit_head_prior([silent, *usable], classes=CLASSES).as_dict() == alone.as_dict()


def test_a_learned_prior_helps_new_users_without_labels() -> None:
    found = priors.fit_head_prior(speakers(30, sd=0.3), classes=CLASSES)
    before, after = [], []
    for logits, labels in speakers(60, sd=0.3)[30:]:
        before.append(torch.nn.functional.cross_entropy(logits, labels))
        calibrated = calibration.calibrate_logits(found.mean, logits)
        after.append(torch.nn.functional.cross_entropy(calibrated, labels))

    falls = torch.stack(before) - torch.stack(after)
    assert float(falls.mean()) > 3 * float(falls.std()) / len(falls) ** 0.5


def smoothed(smoothing: float, utterances: int = 400) -> tuple[Tensor, Tensor]:
    """Logits of a model that learned smoothed targets perfectly, and labels."""
    rng = seeding.torch_rng(0, "smoothed")
    true = torch.softmax(3 * torch.randn(utterances, CLASSES, generator=rng), 1).double()
    labels = torch.multinomial(true, 1, generator=rng).squeeze(1)
    return (true * (1 - smoothing) + smoothing / CLASSES).log(), labels


def test_the_temperature_of_label_smoothing_is_undone_without_labels() -> None:
    logits, labels = smoothed(0.2)
    undone = priors.undo_label_smoothing(logits, 0.2)
    sharper = calibration.calibrate_logits(
        CalibrationHead(log_temperature=undone, bias=torch.zeros(CLASSES)), logits
    )

    def loss(scores: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(scores, labels))

    assert undone < -0.1
    assert loss(sharper) < loss(logits)
    assert priors.undo_label_smoothing(logits, 0.0) == 0.0
    assert priors.undo_label_smoothing(logits[:0], 0.2) == 0.0
    found = priors.fit_head_prior([(logits, labels)] * 2, classes=CLASSES, smoothing=0.2)
    assert found.mean.log_temperature == pytest.approx(undone, abs=1e-6)


def test_what_a_focal_loss_makes_of_chances_is_undone_without_labels() -> None:
    logits, labels = smoothed(0.0)  # what a model would say that was trained on cross-entropy
    modest, focal = logits * 0.5, Loss(kind="focal", gamma=2.0)
    undone = priors.undo_label_smoothing(modest, 0.0, focal)
    sharper = calibration.calibrate_logits(
        CalibrationHead(log_temperature=undone, bias=torch.zeros(CLASSES)), modest
    )

    def loss(scores: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(scores, labels))

    assert undone < -0.1
    assert loss(sharper) < loss(modest)
    for proper in (Loss(), Loss(kind="brier"), Loss(kind="mmce"), Loss(kind="focal", gamma=0.0)):
        assert priors.undo_label_smoothing(modest, 0.0, proper) == 0.0
    assert priors.undo_label_smoothing(modest[:0], 0.0, focal) == 0.0
    found = priors.fit_head_prior([(modest, labels)] * 2, classes=CLASSES, loss=focal)
    usual = priors.fit_head_prior([(modest, labels)] * 2, classes=CLASSES)
    assert found.mean.log_temperature < usual.mean.log_temperature


def test_a_strange_corpus_does_not_make_users_heads_modest() -> None:
    slightly = replace(UNBIASED, log_temperature=0.3)  # as public corpora look to any model

    found = priors.fit_head_prior(speakers(40, sd=0.0, mean=slightly), classes=CLASSES)

    assert found.mean.log_temperature == 0


def test_sets_start_from_public_speakers_behind_the_usual_head() -> None:
    usable = speakers(12, sd=0.2)
    found = priors.fit_head_prior(usable, classes=CLASSES)
    assert found.scores is not None
    limit = conformal.find_threshold(found.scores, coverage=0.9)
    shares = [
        conformal.nonconformity(
            torch.softmax(calibration.calibrate_logits(found.mean, logits), 1), labels
        )
        <= limit
        for logits, labels in usable
    ]

    assert torch.stack(shares).double().mean() == pytest.approx(0.9, abs=0.02)
    assert calibration.prior_from_dict(found.as_dict()).as_dict() == found.as_dict()


def test_public_people_never_outweigh_a_users_own_clips_by_far() -> None:
    usable = speakers(12, sd=0.0)
    found = priors.fit_head_prior(usable, classes=CLASSES)
    rows = [conformal.nonconformity(torch.softmax(logits, 1), labels) for logits, labels in usable]

    assert conformal_fit.fit_population_scores(rows).concentration > priors.MAX_PUBLIC_WEIGHT, (
        "all alike"
    )
    assert found.scores is not None
    assert found.scores.concentration == priors.MAX_PUBLIC_WEIGHT


def test_speakers_of_one_class_or_all_wrong_stay_finite() -> None:
    logits = 5 * torch.randn(40, CLASSES, generator=seeding.torch_rng(0, "odd"))
    odd = [(logits, logits.argmin(1)), (logits, torch.zeros(40, dtype=torch.int64))]

    found = priors.fit_head_prior(odd, classes=CLASSES)

    assert found.mean.bias.abs().max() < 5
    assert found.bias_sd < 5


def test_the_prior_repeats_bit_for_bit() -> None:
    first, second = (priors.fit_head_prior(speakers(6, sd=0.3), classes=CLASSES) for _ in range(2))

    assert first.as_dict() == second.as_dict()


def test_a_speaker_that_cannot_be_used_is_named() -> None:
    usable = speakers(3, sd=0.3)
    usable[2][0][0, 0] = torch.nan

    with pytest.raises(ModelError, match="public speaker 2"):
        priors.fit_head_prior(usable, classes=CLASSES)
    with pytest.raises(ModelError, match="5 classes"):
        priors.fit_head_prior(usable[:2], classes=5)
