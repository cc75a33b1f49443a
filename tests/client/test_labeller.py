"""The user's word moves the head at once, later models too, and can be taken back."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from sottovoce.client import enrolment, labeller, receiver, recordings
from sottovoce.client import vault as vaults
from sottovoce.client.calibrator import Calibrator
from sottovoce.client.device import Device
from sottovoce.client.labeller import Labeller
from sottovoce.client.owner import Clips, Facts
from sottovoce.client.vault import Vault
from sottovoce.shared import heads, seeds
from sottovoce.shared.bundle import Bundle
from sottovoce.shared.errors import ModelError, PrivacyError, SettingError
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import identity
from sottovoce.shared.heads import Basis, Head, HeadPrior, KeptHead, SealedHead
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.normaliser import EXACT_CENTRE, EXACT_MEAN, unknown
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.release import Kind
from sottovoce.shared.training import LocalTraining, NoPrivacy

LABELS = ("angry", "happy", "sad")
WIDTH = 4
SPEC = ModelSpec(kind="linear", inputs=WIDTH, classes=len(LABELS))
WEIGHTS = torch.cat([2 * torch.eye(len(LABELS), WIDTH).flatten(), torch.zeros(len(LABELS))])
NOBODY = torch.zeros(WIDTH)
PLAN = Plan(
    run="r",
    labels=LABELS,
    extractor="ears",
    front=identity(WIDTH).digest(),
    model=SPEC,
    rounds=1,
    training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=1.0, denominator=1.0),
    mechanism=NoPrivacy(),
    centre=EXACT_CENTRE,
    normaliser=EXACT_MEAN,
    count_noise=0.0,
)


def bundle(*, bends: bool = True, extractor: str = "ears") -> Bundle:
    basis = Basis(centre=torch.zeros(WIDTH), matrix=torch.eye(WIDTH)[:2]) if bends else None
    return Bundle(
        labels=LABELS,
        extractor=extractor,
        spec=SPEC,
        weights=WEIGHTS,
        front=identity(WIDTH),
        centre=NOBODY,
        population=unknown(WIDTH),
        prior=HeadPrior(mean=heads.identity(len(LABELS)), basis=basis),
        user_mean=True,
        model_hash=PLAN.model_hash(WEIGHTS),
    )


def device(
    folder: Path,
    *,
    clips: int = 0,
    labels: tuple[str, ...] = LABELS,
    key: bytes | None = None,
) -> Device:
    """One that was set up with some labelled clips, and knows nothing of its user's mean."""
    none = torch.zeros(clips, dtype=torch.bool)
    examples = Examples(
        features=speech(clips, seed=9),
        frames=torch.ones(clips, dtype=torch.int64),
        labels=torch.arange(clips) % len(labels),
    )
    facts = Facts(user="ada", budgets=(), contributes=False, labels=labels, simulated_seed=1)
    return Device.create(
        folder, facts, Clips(examples=examples, enrols=none, calibrates=~none, trains=none), key=key
    )


def speech(clips: int, seed: int = 0) -> Tensor:
    return torch.randn(clips, WIDTH, generator=seeds.torch_rng(seed, "speech"))


def head(folder: Path, model: Bundle) -> Head:
    vault = Vault.open(folder / "vault")
    return Calibrator(vault, model_hash=model.model_hash, prior=model.prior).head()


def fitted(model: Bundle, rows: Tensor, labels: list[int]) -> Head:
    logits, places = model.heard(rows, torch.ones(len(rows), dtype=torch.int64), NOBODY)
    return heads.fit(logits, torch.tensor(labels), model.prior, places)


def same(one: Head, other: Head) -> bool:
    return heads.to_bytes(one, "0" * 64) == heads.to_bytes(other, "0" * 64)


@pytest.mark.parametrize("bends", [True, False])
def test_a_head_is_fitted_on_clips_and_on_what_was_labelled_since(
    tmp_path: Path, bends: bool
) -> None:
    model = bundle(bends=bends)
    folder = device(tmp_path / "ada", clips=4, labels=("sad", "angry", "happy")).folder
    told = ("happy", "happy", "angry")
    for row, emotion in zip(speech(3), told, strict=True):
        Labeller(folder, model).label(row, emotion, NOBODY)

    expected = fitted(model, torch.cat([speech(4, seed=9), speech(3)]), [2, 0, 1, 2, 1, 1, 0])
    assert same(head(folder, model), expected)
    assert (head(folder, model).adapter is not None) == bends


def test_what_is_forgotten_was_never_said(tmp_path: Path) -> None:
    model, rows = bundle(), speech(3)
    twins = [device(tmp_path / name, clips=2).folder for name in ("ada", "eve")]
    names = [Labeller(twins[0], model).label(row, "sad", NOBODY) for row in rows]
    for row in rows[[0, 2]]:
        Labeller(twins[1], model).label(row, "sad", NOBODY)

    Labeller(twins[0], model).forget(names[1], NOBODY)

    assert same(*(head(folder, model) for folder in twins))
    assert labeller.labelled(twins[0]) == labeller.labelled(twins[1]) == (names[0], names[2])
    for name in (names[0], names[2]):
        Labeller(twins[0], model).forget(name, NOBODY)
    assert same(head(twins[0], model), fitted(model, speech(2, seed=9), [0, 1]))


def test_a_second_word_takes_the_place_of_the_first(tmp_path: Path) -> None:
    model, row = bundle(), speech(1)[0]
    folder = device(tmp_path / "ada").folder
    names = {Labeller(folder, model).label(row, word, NOBODY) for word in ("sad", "happy")}

    assert Labeller(folder, model).heard == tuple(names)
    assert same(head(folder, model), fitted(model, row[None], [LABELS.index("happy")]))


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MOST", 3)
    folder = device(tmp_path / "ada").folder
    names = [Labeller(folder, bundle()).label(row, "sad", NOBODY) for row in speech(5)]

    assert labeller.labelled(folder) == tuple(names[2:])


@pytest.mark.parametrize("other", ["another extractor", "another label"])
def test_a_model_learns_only_from_what_it_can_read(tmp_path: Path, other: str) -> None:
    folder = device(tmp_path / "ada").folder
    Labeller(folder, bundle()).label(speech(1)[0], "sad", NOBODY)
    changed = bundle(extractor="nose") if other == "another extractor" else bundle()
    labels = LABELS if other == "another extractor" else ("angry", "happy", "bored")
    model = replace(changed, labels=labels, model_hash="f" * 64)

    Labeller(folder, model).label(speech(2)[1], "angry", NOBODY)

    assert same(head(folder, model), fitted(model, speech(2)[1:], [0]))


def test_the_next_model_is_fitted_on_what_was_labelled_too(tmp_path: Path) -> None:
    model, own = bundle(), device(tmp_path / "ada", clips=2)
    for row in speech(3):
        Labeller(own.folder, model).label(row, "angry", NOBODY)
    enrolment.enrol(own, PLAN, model.front, model.population)
    weights = WEIGHTS * 0.5

    receiver.personalise(own, plan=PLAN.digest(), weights=weights, centre=NOBODY, prior=model.prior)

    later = replace(model, weights=weights, model_hash=PLAN.model_hash(weights))
    expected = fitted(later, torch.cat([speech(2, seed=9), speech(3)]), [0, 1, 0, 0, 0])
    assert same(head(own.folder, later), expected)
    kinds = {one.kind for one in own.ledger.releases}
    assert kinds == {Kind.SEALED_HEAD}, "nothing else left"


def test_bad_words_change_nothing(tmp_path: Path) -> None:
    folder, model = device(tmp_path / "ada").folder, bundle()
    Labeller(folder, model).label(speech(1)[0], "sad", NOBODY)
    before = head(folder, model), labeller.labelled(folder)

    with pytest.raises(SettingError, match=r"'bored'.*angry, happy, sad"):
        Labeller(folder, model).label(speech(1)[0], "bored", NOBODY)
    huge = torch.full((WIDTH,), 1e38)
    for row in (torch.zeros(WIDTH + 1), torch.full((WIDTH,), torch.nan), speech(2), huge):
        with pytest.raises(ModelError, match="nothing was learned"):
            Labeller(folder, model).label(row, "sad", NOBODY)
    frames = ModelSpec(kind="cnn-attention", inputs=WIDTH, classes=len(LABELS))
    reads_frames = replace(model, spec=frames, prior=replace(model.prior, basis=None))
    with pytest.raises(SettingError, match="reads frames"):
        Labeller(folder, reads_frames).label(speech(1)[0], "sad", NOBODY)

    assert same(head(folder, model), before[0])
    assert labeller.labelled(folder) == before[1]
    with pytest.raises(SettingError, match="no device"):
        Labeller(tmp_path / "nowhere", model)


def test_damaged_recordings_are_not_passed_over(tmp_path: Path) -> None:
    folder, model = device(tmp_path / "ada").folder, bundle()
    Labeller(folder, model).label(speech(1)[0], "sad", NOBODY)
    vault = Vault.open(folder / "vault")
    kept = vault.get_tensors("labelled")
    vault.put_tensors("labelled", {**kept, "rows.0": kept["rows.0"][:0]})

    with pytest.raises(PrivacyError, match="delete labelled"):
        Labeller(folder, model).label(speech(2)[1], "sad", NOBODY)


@pytest.mark.parametrize("given", [1, 7])
def test_what_leaves_tells_neither_that_nor_how_much_was_labelled(
    tmp_path: Path, given: int
) -> None:
    """Whether before the first model of a run or after it, and whether it was taken back."""

    def life(folder: Path, labels: int) -> list[tuple[int, int]]:
        one = device(folder)
        sent = []
        for weights in (WEIGHTS, WEIGHTS + 0.5, WEIGHTS + 0.5):
            labels_it = Labeller(folder, bundle())
            for row in speech(labels, seed=len(sent)):
                name = labels_it.label(row, "sad", NOBODY)
            if labels:
                labels_it.forget(name, NOBODY)
            one = Device(folder)
            enrolment.enrol(one, PLAN, identity(WIDTH), unknown(WIDTH))
            head = receiver.personalise(
                one,
                plan=PLAN.digest(),
                weights=weights,
                centre=torch.zeros(WIDTH),
                prior=bundle().prior,
            )
            sent.append((head.version, len(head.blob)))
        return sent

    assert (
        life(tmp_path / "labels", given)
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


def dies_at(patch: pytest.MonkeyPatch, place: int) -> None:
    """Die before the write of this number, from 0."""
    write, written = vaults.write_file, count()

    def dying(*what: Any, **how: Any) -> None:
        if next(written) == place:
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
            Labeller(folder, model).label(rows[said], "sad", NOBODY)
        elif deed == "forget":
            Labeller(folder, model).forget(name, NOBODY)
        else:
            labeller.forget(folder, name)

    for place in count():
        folder = device(tmp_path / f"{place}", clips=2).folder
        names = [Labeller(folder, model).label(row, "sad", NOBODY) for row in rows[:said]]
        with monkeypatch.context() as patch:
            dies_at(patch, place)
            try:
                done(folder, names[-1] if names else "")
                whole = True
            except Killed:
                whole = False
        if not whole and "forget" in deed:
            done(folder, names[1])
        Labeller(folder, model).heal(NOBODY)

        kept = labeller.labelled(folder)
        assert kept[:1] == tuple(names[:1]) if "forget" in deed else kept[:said] == tuple(names)
        assert len(kept) == 1 if "forget" in deed else len(kept) in (said, said + 1)
        given = torch.cat([speech(2, seed=9), rows[: len(kept)]])
        started = place > 0 or said > 0  # the first record was written: there is a head
        expected = fitted(model, given, [0, 1, *[2] * len(kept)]) if started else model.prior.mean
        assert same(head(folder, model), expected), place
        assert not Labeller(folder, model).heal(NOBODY)
        if whole:
            break
    assert place > 3, "the test can fail: there were writes to die before"


@pytest.mark.parametrize("kind", [ModelError, RuntimeError])
def test_a_fit_that_fails_leaves_the_recording_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    folder, model = device(tmp_path / "ada").folder, bundle()

    def fails(*_: object, **__: object) -> None:
        raise kind("no minimum")

    for row in speech(3):
        vault = Vault.open(folder / "vault")
        before = {name: vault.get(name) for name in vault.names()}
        with monkeypatch.context() as patch:
            patch.setattr(Calibrator, "fit", fails)
            with pytest.raises(kind, match="no minimum"):
                Labeller(folder, model).label(row, "sad", NOBODY)
        now = {name: vault.get(name) for name in vault.names() if name != "labelled"}
        assert now == {name: before[name] for name in before if name != "labelled"}
        assert len(labeller.labelled(folder)) == len(Labeller(folder, model).heard)
        assert not Labeller(folder, model).heal(NOBODY)
        Labeller(folder, model).label(row, "sad", NOBODY)
    assert len(labeller.labelled(folder)) == 3


def test_a_head_that_cannot_be_fitted_without_a_recording_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = device(tmp_path / "ada").folder, bundle()
    names = [Labeller(folder, model).label(row, "sad", NOBODY) for row in speech(2)]

    def fails(*_: object, **__: object) -> None:
        raise ModelError("no minimum")

    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "_fit", fails)
        Labeller(folder, model).forget(names[0], NOBODY)
    assert same(head(folder, model), model.prior.mean)
    assert Labeller(folder, model).heal(NOBODY)
    assert same(head(folder, model), fitted(model, speech(2)[1:], [LABELS.index("sad")]))


def test_labels_of_two_extractors_lie_side_by_side(tmp_path: Path) -> None:
    folder, rows = device(tmp_path / "ada").folder, speech(3)
    ears, nose = bundle(), replace(bundle(extractor="nose"), model_hash="f" * 64)
    names = [Labeller(folder, ears).label(rows[0], "sad", NOBODY)]
    names.append(Labeller(folder, nose).label(rows[1], "happy", NOBODY))
    names.append(Labeller(folder, ears).label(rows[2], "sad", NOBODY))

    assert set(labeller.labelled(folder)) == set(names)
    assert same(head(folder, ears), fitted(ears, rows[[0, 2]], [2, 2]))
    Labeller(folder, nose).forget(names[0], NOBODY)
    assert set(labeller.labelled(folder)) == set(names[1:])
    assert same(head(folder, nose), fitted(nose, rows[1:2], [1]))
    assert not Labeller(folder, ears).heal(NOBODY), "another model's head is left alone"


@pytest.mark.parametrize("how", ["no model", "a model on frames"])
def test_where_no_model_can_fit_it_again_the_head_is_let_go(tmp_path: Path, how: str) -> None:
    folder, model, rows = device(tmp_path / "ada").folder, bundle(), speech(2)
    names = [Labeller(folder, model).label(row, "sad", NOBODY) for row in rows]
    vault = Vault.open(folder / "vault")
    calibrator = Calibrator(vault, model_hash=model.model_hash, prior=model.prior, labels=LABELS)
    calibrator.renew()
    server, version = calibrator.sealed(), calibrator.version

    if how == "no model":
        assert not labeller.forget(folder, "abc")
        assert labeller.forget(folder, names[0])
    else:
        frames = ModelSpec(kind="cnn-attention", inputs=WIDTH, classes=len(LABELS))
        prior = replace(model.prior, basis=None)
        Labeller(folder, replace(model, spec=frames, prior=prior)).forget(names[0], NOBODY)

    assert labeller.labelled(folder) == (names[1],)
    assert same(head(folder, model), model.prior.mean)
    assert (len(calibrator.scores()), calibrator.version) == (0, version)
    with pytest.raises(PrivacyError):
        calibrator.restore(server)  # it knows what was forgotten
    assert Labeller(folder, model).heal(NOBODY)
    assert same(head(folder, model), fitted(model, rows[1:], [2]))


def test_a_head_of_a_run_that_was_joined_before_is_fitted_again(tmp_path: Path) -> None:
    model, own, rows = bundle(), device(tmp_path / "ada"), speech(2)
    enrolment.enrol(own, PLAN, model.front, model.population)
    for row in rows:
        Labeller(own.folder, model).label(row, "angry", NOBODY)
    weights = WEIGHTS * 0.5
    later = replace(model, weights=weights, model_hash=PLAN.model_hash(weights))
    personalised(own, model.prior, weights)
    assert same(head(own.folder, later), model.prior.mean), "the run knew of no labels"

    Labeller(own.folder, later).heal(NOBODY)

    assert same(head(own.folder, later), fitted(later, rows, [0, 0]))


def test_what_another_program_labels_meanwhile_is_fitted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model, rows = device(tmp_path / "ada").folder, bundle(), speech(2)
    write, threads = recordings.write, list[Thread]()

    def slow(*kept: Any) -> None:
        if not threads:
            other = Labeller(folder, model)
            threads.append(Thread(target=lambda: other.label(rows[1], "happy", NOBODY)))
            threads[0].start()
            threads[0].join(0.3)
        write(*kept)

    monkeypatch.setattr(recordings, "write", slow)
    Labeller(folder, model).label(rows[0], "sad", NOBODY)
    threads[0].join()

    assert same(head(folder, model), fitted(model, rows, [2, 1]))


def test_rows_that_are_far_too_large_are_left_out(tmp_path: Path) -> None:
    own, model = device(tmp_path / "ada"), bundle()
    Labeller(own.folder, model).label(speech(1)[0], "sad", NOBODY)
    (part,) = recordings.read(own.vault, "labelled")
    found, _ = part.added(torch.full((WIDTH,), 1e38), "happy")  # as before there was a limit
    recordings.write(own.vault, "labelled", [found])

    given = labeller.kept(own.vault, "ears", LABELS, WIDTH)

    assert torch.equal(given.features, speech(1))
    assert given.labels.tolist() == [2]


def personalised(one: Device, prior: HeadPrior, weights: Tensor = WEIGHTS) -> SealedHead:
    """What a device answers to a final model."""
    return receiver.personalise(
        one, plan=PLAN.digest(), weights=weights, centre=torch.zeros(WIDTH), prior=prior
    )


def test_what_is_forgotten_under_way_is_in_no_later_head(tmp_path: Path) -> None:
    """Nor anywhere else: enrolment leaves no copy of it."""
    rows = speech(3)

    def life(folder: Path, *, says: int, forgets: bool) -> Head:
        one = device(folder)
        own = Labeller(folder, bundle())
        names = [own.label(row, "sad", NOBODY) for row in rows[:says]]
        enrolment.enrol(Device(folder), PLAN, identity(WIDTH), unknown(WIDTH))
        if forgets:
            own.forget(names[-1], NOBODY)
        one = Device(folder)
        personalised(one, bundle().prior, WEIGHTS + 0.5)
        kept = one.vault.get_tensors("projected")
        assert not any(len(kept[name]) for name in kept if name.startswith("calibration."))
        return Calibrator(
            one.vault,
            model_hash=PLAN.model_hash(WEIGHTS + 0.5),
            prior=bundle().prior,
            labels=LABELS,
        ).head()

    forgotten = life(tmp_path / "forgot", says=3, forgets=True)
    assert torch.equal(forgotten.bias, life(tmp_path / "never", says=2, forgets=False).bias)
    assert not torch.equal(forgotten.bias, life(tmp_path / "kept", says=3, forgets=False).bias)


def test_no_prior_makes_a_refusal_tell_of_clips(tmp_path: Path) -> None:
    """Of such a width that a fit breaks as soon as there is a clip that the model can read."""
    hostile = HeadPrior(mean=heads.identity(len(LABELS)), bias_sd=1e100)
    told = []
    for clips in (0, 6):
        one = device(tmp_path / str(clips), clips=clips)
        enrolment.enrol(one, PLAN, identity(WIDTH), unknown(WIDTH))
        head = personalised(one, hostile)
        told.append((head.version, len(head.blob)))

    assert told == [(1, 2048), (1, 2048)]
    with pytest.raises(ModelError):
        heads.fit(torch.randn(6, 3), torch.arange(6) % 3, hostile)


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
    usual = HeadPrior(mean=heads.identity(3)).as_dict()

    heads.prior_from_dict(usual)
    with pytest.raises(ModelError):
        heads.prior_from_dict(usual | numbers)


def test_a_basis_leaves_a_sealed_head_its_length() -> None:
    """Heads fitted on clips have an adapter, others none: a longer one would tell."""
    usual = HeadPrior(mean=heads.identity(16)).as_dict()
    basis = {"centre": torch.zeros(64), "matrix": torch.eye(64)}

    heads.prior_from_dict(usual, basis | {"matrix": torch.eye(64)[:23]})
    with pytest.raises(ModelError, match="has room for 23"):
        heads.prior_from_dict(usual, basis | {"matrix": torch.eye(64)[:24]})


def test_a_reinstalled_app_keeps_both_what_comes_back_and_what_was_labelled_since(
    tmp_path: Path,
) -> None:
    old = device(tmp_path / "old", clips=12)
    key = (old.folder / "vault" / "key").read_bytes()
    enrolment.enrol(old, PLAN, identity(WIDTH), unknown(WIDTH))
    sealed = personalised(old, bundle().prior)
    kept = KeptHead(model_hash=sealed.model_hash, version=sealed.version, blob=sealed.blob)

    def again(folder: Path, *, says: int, offered: KeptHead | None) -> Head:
        """The same user's new device, of the same key."""
        one = device(folder, key=key)
        for row in speech(says, seed=4):
            Labeller(folder, bundle()).label(row, "angry", NOBODY)
        enrolment.enrol(one := Device(folder), PLAN, identity(WIDTH), unknown(WIDTH))
        receiver.personalise(
            one,
            plan=PLAN.digest(),
            weights=WEIGHTS,
            centre=torch.zeros(WIDTH),
            prior=bundle().prior,
            offered=offered,
        )
        return Calibrator(
            one.vault, model_hash=bundle().model_hash, prior=bundle().prior, labels=LABELS
        ).head()

    back, both = (again(tmp_path / str(n), says=n, offered=kept) for n in (0, 2))
    alone = again(tmp_path / "alone", says=2, offered=None)
    former = Calibrator(
        old.vault, model_hash=bundle().model_hash, prior=bundle().prior, labels=LABELS
    ).head()
    assert torch.allclose(back.bias, former.bias, atol=1e-6)
    for other in (back, alone):
        assert not torch.allclose(both.bias, other.bias, atol=1e-3)
