"""The user's word moves the head at once, later models too, and can be taken back."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from builders import make_clips, make_device, make_examples, make_plan
from torch import Tensor

from sottovoce.client.device import stored_clips
from sottovoce.client.device import vault as vaults
from sottovoce.client.device.device import Device
from sottovoce.client.device.vault import FileVault
from sottovoce.client.federation import enrolment, final_model
from sottovoce.client.personalisation import example_store, feedback
from sottovoce.client.personalisation.feedback import FeedbackStore
from sottovoce.client.personalisation.head_calibrator import HeadCalibrator
from sottovoce.shared import calibration, seeding
from sottovoce.shared.calibration import (
    AdapterBasis,
    CalibrationHead,
    HeadPrior,
    SealedHead,
    UnverifiedHead,
)
from sottovoce.shared.errors import ModelError, PrivacyError, SettingError
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.projection import identity_projection
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.privacy.release import ReleaseKind
from sottovoce.shared.protocol.local_training import LocalTraining
from sottovoce.shared.protocol.messages import FinalModelRequest
from sottovoce.shared.speaker.normalisation import EXACT_MEAN, default_statistics

LABELS = ("angry", "happy", "sad")
WIDTH = 4
SPEC = ModelSpec(kind="linear", inputs=WIDTH, classes=len(LABELS))
WEIGHTS = torch.cat([2 * torch.eye(len(LABELS), WIDTH).flatten(), torch.zeros(len(LABELS))])
NOBODY = torch.zeros(WIDTH)
PLAN = make_plan(
    labels=LABELS,
    extractor="ears",
    projection_hash=identity_projection(WIDTH).content_hash(),
    model=SPEC,
    rounds=1,
    training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=1.0, denominator=1.0),
    normaliser=EXACT_MEAN,
)


def bundle(*, bends: bool = True, extractor: str = "ears") -> ModelPackage:
    basis = AdapterBasis(centre=torch.zeros(WIDTH), matrix=torch.eye(WIDTH)[:2]) if bends else None
    return ModelPackage(
        labels=LABELS,
        extractor=extractor,
        spec=SPEC,
        weights=WEIGHTS,
        projection=identity_projection(WIDTH),
        centre=NOBODY,
        speaker_statistics=default_statistics(WIDTH),
        prior=HeadPrior(mean=calibration.identity_head(len(LABELS)), basis=basis),
        subtracts_user_mean=True,
        model_hash=PLAN.hash_model(WEIGHTS),
    )


def device(
    folder: Path,
    *,
    clips: int = 0,
    labels: tuple[str, ...] = LABELS,
    key: bytes | None = None,
) -> Device:
    """One that was set up with some labelled clips, and knows nothing of its user's mean."""
    examples = make_examples(speech(clips, seed=9), classes=len(labels))
    return make_device(
        folder,
        make_clips(examples, for_head=torch.ones(clips, dtype=torch.bool)),
        key=key,
        contributes=False,
        labels=labels,
        simulated_seed=1,
    )


def speech(clips: int, seed: int = 0) -> Tensor:
    return torch.randn(clips, WIDTH, generator=seeding.torch_rng(seed, "speech"))


def head(folder: Path, model: ModelPackage) -> CalibrationHead:
    vault = FileVault.open(folder / "vault")
    return HeadCalibrator(vault, model_hash=model.model_hash, prior=model.prior).current_head()


def fitted(model: ModelPackage, rows: Tensor, labels: list[int]) -> CalibrationHead:
    logits, coordinates = model.logits_and_coordinates(
        rows, torch.ones(len(rows), dtype=torch.int64), NOBODY
    )
    return calibration.fit_head_only(logits, torch.tensor(labels), model.prior, coordinates)


def same(one: CalibrationHead, other: CalibrationHead) -> bool:
    return calibration.to_bytes(one, "0" * 64) == calibration.to_bytes(other, "0" * 64)


@pytest.mark.parametrize("bends", [True, False])
def test_a_head_is_fitted_on_clips_and_on_what_was_labelled_since(
    tmp_path: Path, bends: bool
) -> None:
    model = bundle(bends=bends)
    folder = device(tmp_path / "ada", clips=4, labels=("sad", "angry", "happy")).folder
    labelled = ("happy", "happy", "angry")
    for row, emotion in zip(speech(3), labelled, strict=True):
        FeedbackStore(folder, model).add_label(row, emotion, NOBODY)

    expected = fitted(model, torch.cat([speech(4, seed=9), speech(3)]), [2, 0, 1, 2, 1, 1, 0])
    assert same(head(folder, model), expected)
    assert (head(folder, model).adapter is not None) == bends


def test_what_is_forgotten_was_never_said(tmp_path: Path) -> None:
    model, rows = bundle(), speech(3)
    twins = [device(tmp_path / name, clips=2).folder for name in ("ada", "eve")]
    names = [FeedbackStore(twins[0], model).add_label(row, "sad", NOBODY) for row in rows]
    for row in rows[[0, 2]]:
        FeedbackStore(twins[1], model).add_label(row, "sad", NOBODY)

    FeedbackStore(twins[0], model).forget_recording(names[1], NOBODY)

    assert same(*(head(folder, model) for folder in twins))
    assert (
        feedback.list_recordings(twins[0])
        == feedback.list_recordings(twins[1])
        == (names[0], names[2])
    )
    for name in (names[0], names[2]):
        FeedbackStore(twins[0], model).forget_recording(name, NOBODY)
    assert same(head(twins[0], model), fitted(model, speech(2, seed=9), [0, 1]))


def test_a_second_word_takes_the_place_of_the_first(tmp_path: Path) -> None:
    model, row = bundle(), speech(1)[0]
    folder = device(tmp_path / "ada").folder
    names = {FeedbackStore(folder, model).add_label(row, word, NOBODY) for word in ("sad", "happy")}

    assert FeedbackStore(folder, model).example_names == tuple(names)
    assert same(head(folder, model), fitted(model, row[None], [LABELS.index("happy")]))


def test_no_label_makes_room_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelled recordings train: one more must be one change, and not the loss of an old one."""
    monkeypatch.setattr(example_store, "MAX_EXAMPLES", 2)
    monkeypatch.setattr(example_store, "MAX_LABELLED", 3)
    own = FeedbackStore(device(tmp_path / "ada").folder, bundle())
    names = [own.add_label(row, "sad", NOBODY) for row in speech(3)]

    with pytest.raises(SettingError, match="forget some"):
        own.add_label(speech(4)[3], "sad", NOBODY)

    assert own.example_names == tuple(names)
    own.add_label(speech(1)[0], "angry", NOBODY)  # a correction needs no room
    assert set(own.example_names) == set(names)


@pytest.mark.parametrize("other", ["another extractor", "another label"])
def test_a_model_learns_only_from_what_it_can_read(tmp_path: Path, other: str) -> None:
    folder = device(tmp_path / "ada").folder
    FeedbackStore(folder, bundle()).add_label(speech(1)[0], "sad", NOBODY)
    changed = bundle(extractor="nose") if other == "another extractor" else bundle()
    labels = LABELS if other == "another extractor" else ("angry", "happy", "bored")
    model = replace(changed, labels=labels, model_hash="f" * 64)

    FeedbackStore(folder, model).add_label(speech(2)[1], "angry", NOBODY)

    assert same(head(folder, model), fitted(model, speech(2)[1:], [0]))


def test_the_next_model_is_fitted_on_what_was_labelled_too(tmp_path: Path) -> None:
    model, own = bundle(), device(tmp_path / "ada", clips=2)
    for row in speech(3):
        FeedbackStore(own.folder, model).add_label(row, "angry", NOBODY)
    enrolment.enrol_device(own, PLAN, model.projection, model.speaker_statistics)
    weights = WEIGHTS * 0.5

    final_model.finalise_model(
        own,
        FinalModelRequest(
            plan_hash=PLAN.content_hash(), weights=weights, centre=NOBODY, prior=model.prior
        ),
    )

    later = replace(model, weights=weights, model_hash=PLAN.hash_model(weights))
    expected = fitted(later, torch.cat([speech(2, seed=9), speech(3)]), [0, 1, 0, 0, 0])
    assert same(head(own.folder, later), expected)
    kinds = {one.kind for one in own.ledger.releases}
    assert kinds == {ReleaseKind.SEALED_HEAD}, "nothing else left"


def test_bad_words_change_nothing(tmp_path: Path) -> None:
    folder, model = device(tmp_path / "ada").folder, bundle()
    FeedbackStore(folder, model).add_label(speech(1)[0], "sad", NOBODY)
    before = head(folder, model), feedback.list_recordings(folder)

    with pytest.raises(SettingError, match=r"'bored'.*angry, happy, sad"):
        FeedbackStore(folder, model).add_label(speech(1)[0], "bored", NOBODY)
    huge = torch.full((WIDTH,), 1e38)
    for row in (torch.zeros(WIDTH + 1), torch.full((WIDTH,), torch.nan), speech(2), huge):
        with pytest.raises(ModelError, match="nothing was learned"):
            FeedbackStore(folder, model).add_label(row, "sad", NOBODY)
    frames = ModelSpec(kind="cnn-attention", inputs=WIDTH, classes=len(LABELS))
    reads_frames = replace(model, spec=frames, prior=replace(model.prior, basis=None))
    with pytest.raises(SettingError, match="reads frames"):
        FeedbackStore(folder, reads_frames).add_label(speech(1)[0], "sad", NOBODY)

    assert same(head(folder, model), before[0])
    assert feedback.list_recordings(folder) == before[1]
    with pytest.raises(SettingError, match="no device"):
        FeedbackStore(tmp_path / "nowhere", model)


def test_damaged_recordings_are_not_passed_over(tmp_path: Path) -> None:
    folder, model = device(tmp_path / "ada").folder, bundle()
    FeedbackStore(folder, model).add_label(speech(1)[0], "sad", NOBODY)
    vault = FileVault.open(folder / "vault")
    tensors = vault.get_tensors("labelled")
    vault.put_tensors("labelled", {**tensors, "rows.0": tensors["rows.0"][:0]})

    with pytest.raises(PrivacyError, match="delete labelled"):
        FeedbackStore(folder, model).add_label(speech(2)[1], "sad", NOBODY)


@pytest.mark.parametrize("labelled", [1, 7])
def test_what_leaves_tells_neither_that_nor_how_much_was_labelled(
    tmp_path: Path, labelled: int
) -> None:
    """Whether before the first model of a run or after it, and whether it was taken back."""

    def life(folder: Path, labels: int) -> list[tuple[int, int]]:
        one = device(folder)
        sent = []
        for weights in (WEIGHTS, WEIGHTS + 0.5, WEIGHTS + 0.5):
            labels_it = FeedbackStore(folder, bundle())
            for row in speech(labels, seed=len(sent)):
                name = labels_it.add_label(row, "sad", NOBODY)
            if labels:
                labels_it.forget_recording(name, NOBODY)
            one = Device.open(folder)
            enrolment.enrol_device(one, PLAN, identity_projection(WIDTH), default_statistics(WIDTH))
            head = final_model.finalise_model(
                one,
                FinalModelRequest(
                    plan_hash=PLAN.content_hash(),
                    weights=weights,
                    centre=torch.zeros(WIDTH),
                    prior=bundle().prior,
                ),
            )
            sent.append((head.version, len(head.blob)))
        return sent

    assert (
        life(tmp_path / "labels", labelled)
        == life(tmp_path / "silent", 0)
        == [
            (1, 2048),
            (2, 2048),
            (2, 2048),
        ]
    )


# --- two records ------------------------------------------------------------------------------


class Killed(BaseException):
    """As by the system."""


def dies_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Die before the write of this number, from 0."""
    write, written = vaults.write_file, count()

    def dying(*what: Any, **how: Any) -> None:
        if next(written) == step:
            raise Killed
        write(*what, **how)

    patch.setattr(vaults, "write_file", dying)


@pytest.mark.parametrize("deed", ["first label", "label", "forget", "forget without a model"])
def test_whatever_a_kill_cuts_short_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    model, rows = bundle(), speech(3)

    said = 0 if deed == "first label" else 2

    def done(folder: Path, name: str) -> None:
        if "label" in deed:
            FeedbackStore(folder, model).add_label(rows[said], "sad", NOBODY)
        elif deed == "forget":
            FeedbackStore(folder, model).forget_recording(name, NOBODY)
        else:
            feedback.forget_recording(folder, name)

    for step in count():
        folder = device(tmp_path / f"{step}", clips=2).folder
        names = [FeedbackStore(folder, model).add_label(row, "sad", NOBODY) for row in rows[:said]]
        with monkeypatch.context() as patch:
            dies_at(patch, step)
            try:
                done(folder, names[-1] if names else "")
                whole = True
            except Killed:
                whole = False
        if not whole and "forget" in deed:
            done(folder, names[1])
        FeedbackStore(folder, model).refit_if_stale(NOBODY)

        stored = feedback.list_recordings(folder)
        assert stored[:1] == tuple(names[:1]) if "forget" in deed else stored[:said] == tuple(names)
        assert len(stored) == 1 if "forget" in deed else len(stored) in (said, said + 1)
        labels = torch.cat([speech(2, seed=9), rows[: len(stored)]])
        started = step > 0 or said > 0  # the first record was written: there is a head
        expected = (
            fitted(model, labels, [0, 1, *[2] * len(stored)]) if started else model.prior.mean
        )
        assert same(head(folder, model), expected), step
        assert not FeedbackStore(folder, model).refit_if_stale(NOBODY)
        if whole:
            break
    assert step > 3, "the test can fail: there were writes to die before"


@pytest.mark.parametrize("kind", [ModelError, RuntimeError])
def test_a_fit_that_fails_leaves_the_recording_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    folder, model = device(tmp_path / "ada").folder, bundle()

    def fails(*_: object, **__: object) -> None:
        raise kind("no minimum")

    for row in speech(3):
        vault = FileVault.open(folder / "vault")
        before = {name: vault.get(name) for name in vault.list_names()}
        with monkeypatch.context() as patch:
            patch.setattr(HeadCalibrator, "fit_head", fails)
            with pytest.raises(kind, match="no minimum"):
                FeedbackStore(folder, model).add_label(row, "sad", NOBODY)
        now = {name: vault.get(name) for name in vault.list_names() if name != "labelled"}
        assert now == {name: before[name] for name in before if name != "labelled"}
        assert len(feedback.list_recordings(folder)) == len(
            FeedbackStore(folder, model).example_names
        )
        assert not FeedbackStore(folder, model).refit_if_stale(NOBODY)
        FeedbackStore(folder, model).add_label(row, "sad", NOBODY)
    assert len(feedback.list_recordings(folder)) == 3


def test_a_head_that_cannot_be_fitted_without_a_recording_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = device(tmp_path / "ada").folder, bundle()
    names = [FeedbackStore(folder, model).add_label(row, "sad", NOBODY) for row in speech(2)]

    def fails(*_: object, **__: object) -> None:
        raise ModelError("no minimum")

    with monkeypatch.context() as patch:
        patch.setattr(calibration, "select_usable", fails)
        FeedbackStore(folder, model).forget_recording(names[0], NOBODY)
    assert same(head(folder, model), model.prior.mean)
    assert FeedbackStore(folder, model).refit_if_stale(NOBODY)
    assert same(head(folder, model), fitted(model, speech(2)[1:], [LABELS.index("sad")]))


def test_labels_of_two_extractors_lie_side_by_side(tmp_path: Path) -> None:
    folder, rows = device(tmp_path / "ada").folder, speech(3)
    ears, nose = bundle(), replace(bundle(extractor="nose"), model_hash="f" * 64)
    names = [FeedbackStore(folder, ears).add_label(rows[0], "sad", NOBODY)]
    names.append(FeedbackStore(folder, nose).add_label(rows[1], "happy", NOBODY))
    names.append(FeedbackStore(folder, ears).add_label(rows[2], "sad", NOBODY))

    assert set(feedback.list_recordings(folder)) == set(names)
    assert same(head(folder, ears), fitted(ears, rows[[0, 2]], [2, 2]))
    FeedbackStore(folder, nose).forget_recording(names[0], NOBODY)
    assert set(feedback.list_recordings(folder)) == set(names[1:])
    assert same(head(folder, nose), fitted(nose, rows[1:2], [1]))
    assert not FeedbackStore(folder, ears).refit_if_stale(NOBODY), (
        "another model's head is left alone"
    )


@pytest.mark.parametrize("how", ["no model", "a model on frames"])
def test_where_no_model_can_fit_it_again_the_head_is_let_go(tmp_path: Path, how: str) -> None:
    folder, model, rows = device(tmp_path / "ada").folder, bundle(), speech(2)
    names = [FeedbackStore(folder, model).add_label(row, "sad", NOBODY) for row in rows]
    vault = FileVault.open(folder / "vault")
    calibrator = HeadCalibrator(
        vault, model_hash=model.model_hash, prior=model.prior, labels=LABELS
    )
    calibrator.advance_version()
    server, version = calibrator.seal_head(), calibrator.head_version

    if how == "no model":
        assert not feedback.forget_recording(folder, "abc")
        assert feedback.forget_recording(folder, names[0])
    else:
        frames = ModelSpec(kind="cnn-attention", inputs=WIDTH, classes=len(LABELS))
        prior = replace(model.prior, basis=None)
        FeedbackStore(folder, replace(model, spec=frames, prior=prior)).forget_recording(
            names[0], NOBODY
        )

    assert feedback.list_recordings(folder) == (names[1],)
    assert same(head(folder, model), model.prior.mean)
    assert (len(calibrator.nonconformity_scores()), calibrator.head_version) == (0, version)
    with pytest.raises(PrivacyError):
        calibrator.restore_head(server)  # it knows what was forgotten
    assert FeedbackStore(folder, model).refit_if_stale(NOBODY)
    assert same(head(folder, model), fitted(model, rows[1:], [2]))


def test_a_head_of_a_run_that_was_joined_before_is_fitted_again(tmp_path: Path) -> None:
    model, own, rows = bundle(), device(tmp_path / "ada"), speech(2)
    enrolment.enrol_device(own, PLAN, model.projection, model.speaker_statistics)
    for row in rows:
        FeedbackStore(own.folder, model).add_label(row, "angry", NOBODY)
    weights = WEIGHTS * 0.5
    later = replace(model, weights=weights, model_hash=PLAN.hash_model(weights))
    personalised(own, model.prior, weights)
    assert same(head(own.folder, later), model.prior.mean), "the run knew of no labels"

    FeedbackStore(own.folder, later).refit_if_stale(NOBODY)

    assert same(head(own.folder, later), fitted(later, rows, [0, 0]))


def test_what_another_program_labels_meanwhile_is_fitted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model, rows = device(tmp_path / "ada").folder, bundle(), speech(2)
    write, threads = example_store.write_stores, list[Thread]()

    def slow(*arguments: Any) -> None:
        if not threads:
            other = FeedbackStore(folder, model)
            threads.append(Thread(target=lambda: other.add_label(rows[1], "happy", NOBODY)))
            threads[0].start()
            threads[0].join(0.3)
        write(*arguments)

    monkeypatch.setattr(example_store, "write_stores", slow)
    FeedbackStore(folder, model).add_label(rows[0], "sad", NOBODY)
    threads[0].join()

    assert same(head(folder, model), fitted(model, rows, [2, 1]))


def test_rows_that_are_far_too_large_are_left_out(tmp_path: Path) -> None:
    own, model = device(tmp_path / "ada"), bundle()
    FeedbackStore(own.folder, model).add_label(speech(1)[0], "sad", NOBODY)
    (part,) = example_store.read_stores(own.vault, "labelled")
    found, _ = part.with_example(torch.full((WIDTH,), 1e38), "happy")  # as before there was a limit
    example_store.write_stores(own.vault, "labelled", [found])

    examples = feedback.load_examples(own.vault, "ears", LABELS, WIDTH)

    assert torch.equal(examples.features, speech(1))
    assert examples.labels.tolist() == [2]


def personalised(one: Device, prior: HeadPrior, weights: Tensor = WEIGHTS) -> SealedHead:
    """What a device answers to a final model."""
    return final_model.finalise_model(
        one,
        FinalModelRequest(
            plan_hash=PLAN.content_hash(), weights=weights, centre=torch.zeros(WIDTH), prior=prior
        ),
    )


def test_what_is_forgotten_under_way_is_in_no_later_head(tmp_path: Path) -> None:
    """Nor anywhere else: enrolment leaves no copy of it."""
    rows = speech(3)

    def life(folder: Path, *, says: int, forgets: bool) -> CalibrationHead:
        one = device(folder)
        own = FeedbackStore(folder, bundle())
        names = [own.add_label(row, "sad", NOBODY) for row in rows[:says]]
        enrolment.enrol_device(
            Device.open(folder), PLAN, identity_projection(WIDTH), default_statistics(WIDTH)
        )
        if forgets:
            own.forget_recording(names[-1], NOBODY)
        one = Device.open(folder)
        personalised(one, bundle().prior, WEIGHTS + 0.5)
        stored = one.vault.get_tensors("projected")
        assert not any(
            len(stored[name]) for name in stored if name.startswith(("calibration.", "training."))
        )
        return HeadCalibrator(
            one.vault,
            model_hash=PLAN.hash_model(WEIGHTS + 0.5),
            prior=bundle().prior,
            labels=LABELS,
        ).current_head()

    forgotten = life(tmp_path / "forgot", says=3, forgets=True)
    assert torch.equal(forgotten.bias, life(tmp_path / "never", says=2, forgets=False).bias)
    assert not torch.equal(forgotten.bias, life(tmp_path / "kept", says=3, forgets=False).bias)


def test_no_prior_makes_a_refusal_tell_of_clips(tmp_path: Path) -> None:
    """Of such a width that a fit breaks as soon as there is a clip that the model can read."""
    hostile = HeadPrior(mean=calibration.identity_head(len(LABELS)), bias_sd=1e100)
    outcomes = []
    for clips in (0, 6):
        one = device(tmp_path / str(clips), clips=clips)
        enrolment.enrol_device(one, PLAN, identity_projection(WIDTH), default_statistics(WIDTH))
        head = personalised(one, hostile)
        outcomes.append((head.version, len(head.blob)))

    assert outcomes == [(1, 2048), (1, 2048)]
    with pytest.raises(ModelError):
        calibration.fit_head_only(torch.randn(6, 3), torch.arange(6) % 3, hostile)


@pytest.mark.parametrize(
    "numbers",
    [
        {"bias_sd": 1e100},
        {"bias_sd": 1e-9},
        {"log_temperature_sd": 11.0},
        {"log_temperature": -12.0},
        {"bias": [0.0, 51.0, 0.0]},
    ],
)
def test_a_device_takes_no_prior_that_no_server_of_ours_sends(numbers: dict[str, Any]) -> None:
    usual = HeadPrior(mean=calibration.identity_head(3)).as_dict()

    calibration.prior_from_dict(usual)
    with pytest.raises(ModelError):
        calibration.prior_from_dict(usual | numbers)


def test_a_basis_leaves_a_sealed_head_its_length() -> None:
    """Heads fitted on clips have an adapter, others none: a longer one would tell."""
    usual = HeadPrior(mean=calibration.identity_head(16)).as_dict()
    basis = {"centre": torch.zeros(64), "matrix": torch.eye(64)}

    calibration.prior_from_dict(usual, basis | {"matrix": torch.eye(64)[:23]})
    with pytest.raises(ModelError, match="has room for 23"):
        calibration.prior_from_dict(usual, basis | {"matrix": torch.eye(64)[:24]})


def test_a_reinstalled_app_keeps_both_what_comes_back_and_what_was_labelled_since(
    tmp_path: Path,
) -> None:
    old = device(tmp_path / "old", clips=12)
    key = (old.folder / "vault" / "key").read_bytes()
    enrolment.enrol_device(old, PLAN, identity_projection(WIDTH), default_statistics(WIDTH))
    sealed = personalised(old, bundle().prior)
    stored = UnverifiedHead(model_hash=sealed.model_hash, version=sealed.version, blob=sealed.blob)

    def again(folder: Path, *, says: int, offered: UnverifiedHead | None) -> CalibrationHead:
        """The same user's new device, of the same key."""
        one = device(folder, key=key)
        for row in speech(says, seed=4):
            FeedbackStore(folder, bundle()).add_label(row, "angry", NOBODY)
        enrolment.enrol_device(
            one := Device.open(folder), PLAN, identity_projection(WIDTH), default_statistics(WIDTH)
        )
        final_model.finalise_model(
            one,
            FinalModelRequest(
                plan_hash=PLAN.content_hash(),
                weights=WEIGHTS,
                centre=torch.zeros(WIDTH),
                prior=bundle().prior,
                stored_head=offered,
            ),
        )
        return HeadCalibrator(
            one.vault, model_hash=bundle().model_hash, prior=bundle().prior, labels=LABELS
        ).current_head()

    back, both = (again(tmp_path / str(n), says=n, offered=stored) for n in (0, 2))
    alone = again(tmp_path / "alone", says=2, offered=None)
    former = HeadCalibrator(
        old.vault, model_hash=bundle().model_hash, prior=bundle().prior, labels=LABELS
    ).current_head()
    assert torch.allclose(back.bias, former.bias, atol=1e-6)
    for other in (back, alone):
        assert not torch.allclose(both.bias, other.bias, atol=1e-3)


def test_a_head_that_the_device_has_already_is_not_fitted_anew(tmp_path: Path) -> None:
    """Every fit is another version, which leaves in the clear."""
    one = device(tmp_path, clips=12)
    enrolment.enrol_device(one, PLAN, identity_projection(WIDTH), default_statistics(WIDTH))
    sealed = personalised(one, bundle().prior)

    def again(offered: UnverifiedHead | None) -> SealedHead:
        request = FinalModelRequest(
            plan_hash=PLAN.content_hash(),
            weights=WEIGHTS,
            centre=torch.zeros(WIDTH),
            prior=bundle().prior,
            stored_head=offered,
        )
        return final_model.finalise_model(one, request)

    own = UnverifiedHead(model_hash=sealed.model_hash, version=sealed.version, blob=sealed.blob)
    before = head(one.folder, bundle())
    # A fit would now come out otherwise; it waits for the user's own recogniser.
    more = make_clips(make_examples(speech(6, seed=3), classes=len(LABELS)))
    stored_clips.add_clips(one.vault, replace(more, for_head=~more.for_head, extractor="ears"))
    enrolment.enrol_device(one, PLAN, identity_projection(WIDTH), default_statistics(WIDTH))
    for offered in (own, replace(own, version=7), None):
        assert again(offered).version == sealed.version
        assert same(head(one.folder, bundle()), before)
