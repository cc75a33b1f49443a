"""A head is kept for its user and model, and survives servers that lie."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sottovoce.client.device.vault import FileVault
from sottovoce.client.personalisation.head_calibrator import HeadCalibrator
from sottovoce.shared import calibration, crypto, seeding
from sottovoce.shared.calibration import (
    AdapterBasis,
    CalibrationHead,
    HeadPrior,
    SealedHead,
    conformal,
)
from sottovoce.shared.errors import ModelError, PrivacyError

MODEL, NEXT = "ab" * 32, "cd" * 32
PRIOR = HeadPrior(mean=CalibrationHead(log_temperature=0.2, bias=torch.tensor([0.1, 0.0, -0.1])))


@pytest.fixture
def vault(tmp_path: Path) -> FileVault:
    return FileVault.create(tmp_path / "ada", user="ada")


def calibrator(vault: FileVault, model_hash: str = MODEL) -> HeadCalibrator:
    return HeadCalibrator(vault, model_hash=model_hash, prior=PRIOR)


def enrolment(utterances: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = seeding.torch_rng(seed, "enrolment")
    logits = 2 * torch.randn(utterances, 3, generator=rng)
    return logits, torch.randint(3, (utterances,), generator=rng)


def same(one: CalibrationHead, other: CalibrationHead) -> bool:
    return calibration.to_bytes(one, MODEL) == calibration.to_bytes(other, MODEL)


def second_device(vault: FileVault, folder: Path, user: str = "ada") -> FileVault:
    key = (vault.folder / "key").read_bytes()
    return FileVault.create(folder, user=user, key=key)


def test_without_a_head_the_prior_is_applied(vault: FileVault) -> None:
    logits, _ = enrolment()

    assert calibrator(vault).head_version == 0
    assert not calibrator(vault).is_fitted
    assert torch.equal(
        calibrator(vault).calibrate_logits(logits), calibration.calibrate_logits(PRIOR.mean, logits)
    )


def test_a_fit_without_labels_is_the_prior(vault: FileVault) -> None:
    fitted = calibrator(vault).fit_head(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))

    assert same(fitted, PRIOR.mean)
    assert same(calibrator(vault).current_head(), PRIOR.mean)


def test_a_fitted_head_is_kept(vault: FileVault) -> None:
    fitted = calibrator(vault).fit_head(*enrolment())
    later = calibrator(FileVault.open(vault.folder))

    assert not same(fitted, PRIOR.mean)
    assert same(later.current_head(), fitted)
    assert later.is_fitted
    assert later.head_version == 1


def test_a_head_of_another_model_is_never_applied(vault: FileVault) -> None:
    calibrator(vault).fit_head(*enrolment())
    after = calibrator(vault, NEXT)

    assert same(after.current_head(), PRIOR.mean)
    assert not after.is_fitted
    with pytest.raises(PrivacyError, match="no head for model"):
        after.seal_head()
    after.fit_head(*enrolment(seed=1))
    assert after.head_version == 2
    assert not same(after.current_head(), PRIOR.mean)
    assert same(calibrator(vault).current_head(), PRIOR.mean)


def test_a_quiet_fit_moves_the_head_and_not_its_version(vault: FileVault) -> None:
    own = calibrator(vault)
    fitted = own.fit_head(*enrolment())
    sealed = own.seal_head()
    again = own.fit_head(*enrolment(seed=1), keep_version=True)

    assert not same(again, fitted)
    assert (own.head_version, own.is_model_counted) == (1, True)
    assert len(own.nonconformity_scores()) > 0
    with pytest.raises(PrivacyError, match="labelled here since"):
        own.restore_head(sealed)
    assert same(own.current_head(), again), (
        "what the server has is older, though its version is not"
    )


def test_a_head_that_was_fitted_quietly_is_counted_once(vault: FileVault) -> None:
    own = calibrator(vault)
    fitted = own.fit_head(*enrolment(), keep_version=True)

    assert (own.head_version, own.is_model_counted, own.is_fitted) == (0, False, True)
    own.advance_version()
    assert (own.head_version, own.is_model_counted) == (1, True)
    assert same(own.current_head(), fitted)
    assert len(own.nonconformity_scores()) > 0


def test_bad_logits_leave_the_old_head(vault: FileVault) -> None:
    fitted = calibrator(vault).fit_head(*enrolment())

    with pytest.raises(ModelError, match="NaN"):
        calibrator(vault).fit_head(torch.full((1, 3), torch.nan), torch.tensor([0]))
    assert same(calibrator(vault).current_head(), fitted)
    assert calibrator(vault).head_version == 1


def test_a_damaged_head_is_not_passed_over(vault: FileVault) -> None:
    calibrator(vault).fit_head(*enrolment())
    (vault.folder / "head.sealed").write_bytes(b"\x01" * 512)

    with pytest.raises(PrivacyError, match="'head' in the vault"):
        calibrator(vault).current_head()
    with pytest.raises(PrivacyError):
        calibrator(vault).fit_head(*enrolment())


def test_a_hash_that_is_none_is_refused(vault: FileVault) -> None:
    with pytest.raises(ModelError, match="SHA-256"):
        calibrator(vault, "latest")


def test_a_second_device_gets_the_head_back(vault: FileVault, tmp_path: Path) -> None:
    fitted = calibrator(vault).fit_head(*enrolment())
    second = calibrator(second_device(vault, tmp_path / "second"))

    assert same(second.restore_head(calibrator(vault).seal_head()), fitted)
    assert same(second.current_head(), fitted)
    second.fit_head(*enrolment(seed=1))
    assert second.head_version == 2


def test_the_server_gets_one_length_and_no_numbers(vault: FileVault) -> None:
    small, large = enrolment(1), enrolment(50)
    blobs = []
    for labelled in (small, large):
        fitted = calibrator(vault).fit_head(*labelled)
        blobs.append(calibrator(vault).seal_head().blob)
        assert fitted.bias.numpy().tobytes() not in blobs[-1]

    assert {len(blob) for blob in blobs} == {2048}
    assert all(crypto.looks_sealed(blob) for blob in blobs)


def refused(vault: FileVault, sealed: SealedHead, reason: str) -> None:
    """The device refuses, and keeps its head and version."""
    before = calibrator(vault).current_head(), calibrator(vault).head_version
    with pytest.raises(PrivacyError, match=reason):
        calibrator(vault).restore_head(sealed)
    assert same(calibrator(vault).current_head(), before[0])
    assert calibrator(vault).head_version == before[1]


def test_a_replayed_head_is_refused(vault: FileVault) -> None:
    calibrator(vault).fit_head(*enrolment())
    old = calibrator(vault).seal_head()
    calibrator(vault).fit_head(*enrolment(seed=1))

    refused(vault, old, "replayed")
    refused(vault, dataclasses.replace(old, version=3), "does not open")


def test_a_relabelled_head_is_refused(vault: FileVault) -> None:
    calibrator(vault).fit_head(*enrolment())
    sealed = calibrator(vault).seal_head()

    refused(vault, dataclasses.replace(sealed, model_hash=NEXT), "does not open")
    refused(vault, dataclasses.replace(sealed, version=2), "does not open")


def test_swapped_users_are_refused(vault: FileVault, tmp_path: Path) -> None:
    other = FileVault.create(tmp_path / "bob", user="bob")
    under_one_key = second_device(vault, tmp_path / "eve", user="eve")
    for theirs in (other, under_one_key):
        calibrator(theirs).fit_head(*enrolment())
        refused(vault, calibrator(theirs).seal_head(), "does not open")


@pytest.mark.parametrize("index", [0, 1, 13, 500, 2047])
def test_an_altered_head_is_refused(vault: FileVault, index: int) -> None:
    calibrator(vault).fit_head(*enrolment())
    sealed = calibrator(vault).seal_head()
    blob = bytearray(sealed.blob)
    blob[index] ^= 128

    refused(vault, dataclasses.replace(sealed, blob=bytes(blob)), "seal")
    refused(vault, dataclasses.replace(sealed, blob=sealed.blob[:index]), "not a sealed blob")


def test_a_restored_head_of_another_model_only_counts(vault: FileVault, tmp_path: Path) -> None:
    calibrator(vault).fit_head(*enrolment())
    calibrator(vault).fit_head(*enrolment())
    second = second_device(vault, tmp_path / "second")
    mine = calibrator(second, NEXT).fit_head(*enrolment(seed=1))

    assert same(calibrator(second, NEXT).restore_head(calibrator(vault).seal_head()), mine)
    assert calibrator(second, NEXT).head_version == 2
    calibrator(second, NEXT).fit_head(*enrolment())
    assert calibrator(second, NEXT).seal_head().version == 3


def test_a_head_for_other_classes_is_refused(vault: FileVault, tmp_path: Path) -> None:
    second = second_device(vault, tmp_path / "second")
    wider = HeadCalibrator(
        second, model_hash=MODEL, prior=HeadPrior(mean=calibration.identity_head(4))
    )
    wider.fit_head(torch.zeros(1, 4), torch.tensor([3]))

    with pytest.raises(ModelError, match="4 classes"):
        calibrator(vault).restore_head(wider.seal_head())
    assert calibrator(vault).head_version == 0


def test_scores_belong_to_the_head_that_is_kept(vault: FileVault, tmp_path: Path) -> None:
    own = calibrator(vault)
    assert len(own.nonconformity_scores()) == 0
    logits, labels = enrolment()
    own.fit_head(logits, labels)

    blind = calibration.fit_head(logits, labels, PRIOR).held_out_probabilities
    assert torch.equal(own.nonconformity_scores(), conformal.nonconformity(blind, labels))
    assert len(calibrator(vault, NEXT).nonconformity_scores()) == 0, "another model's"
    other = calibrator(second_device(vault, tmp_path / "new"))
    other.restore_head(own.seal_head())
    assert len(other.nonconformity_scores()) == 0, "the server never had them"


def test_scores_of_a_fit_that_was_cut_off_count_for_nothing(
    vault: FileVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = calibrator(vault)
    own.fit_head(*enrolment())

    put = FileVault.put

    def refuse(self: FileVault, name: str, data: bytes, **how: bool) -> None:
        if name == "head":
            raise PrivacyError("cut off")
        put(self, name, data, **how)

    monkeypatch.setattr(FileVault, "put", refuse)
    with pytest.raises(PrivacyError):
        own.fit_head(*enrolment(seed=1))

    assert own.head_version == 1
    assert len(own.nonconformity_scores()) == 0


# --- adapters of the last layer ---------------------------------------------------------------


def basis(seed: int = 0) -> AdapterBasis:
    rng = seeding.torch_rng(seed, "basis")
    return AdapterBasis(centre=torch.zeros(5), matrix=torch.randn(2, 5, generator=rng))


def bending(vault: FileVault, seed: int = 0, model_hash: str = MODEL) -> HeadCalibrator:
    prior = dataclasses.replace(PRIOR, basis=basis(seed))
    return HeadCalibrator(vault, model_hash=model_hash, prior=prior, labels=("a", "b", "c"))


def bent_enrolment(utterances: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    logits, labels = enrolment(utterances, seed)
    vectors = torch.randn(utterances, 5, generator=seeding.torch_rng(seed, "vectors"))
    return logits, labels, basis().project_vectors(vectors)


def test_an_adapter_is_kept_sealed_and_comes_back(vault: FileVault, tmp_path: Path) -> None:
    logits, labels, coordinates = bent_enrolment()
    fitted = bending(vault).fit_head(logits, labels, coordinates)
    second = bending(second_device(vault, tmp_path / "second"))

    assert fitted.adapter is not None
    assert len(bending(vault).seal_head().blob) == 2048
    assert same(second.restore_head(bending(vault).seal_head()), fitted)
    calibrated = second.calibrate_logits(logits, coordinates)
    assert torch.equal(calibrated, calibration.calibrate_logits(fitted, logits, coordinates))
    assert not torch.equal(calibrated, calibrator(vault).calibrate_logits(logits))


def test_a_head_is_never_applied_behind_another_basis(vault: FileVault) -> None:
    """The server could hand out the same weights with other directions."""
    logits, labels, coordinates = bent_enrolment()
    bending(vault).fit_head(logits, labels, coordinates)

    for other in (bending(vault, seed=1), calibrator(vault)):
        assert not other.is_fitted
        assert same(other.current_head(), PRIOR.mean)
        assert len(other.nonconformity_scores()) == 0
        assert other.head_version == 1
    with pytest.raises(ModelError, match="another basis"):
        bending(vault, seed=1).restore_head(bending(vault).seal_head())
    assert bending(vault).is_fitted


def test_a_fit_goes_on_from_a_restored_adapter_under_the_same_model_alone(
    vault: FileVault, tmp_path: Path
) -> None:
    fitted = bending(vault).fit_head(*bent_enrolment(30))
    second = second_device(vault, tmp_path / "second")
    bending(second).restore_head(bending(vault).seal_head())
    no_clips = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2)

    on = bending(second).fit_head(*no_clips)
    anew = bending(second, seed=1, model_hash=NEXT).fit_head(*no_clips)

    assert on.adapter is not None
    assert fitted.adapter is not None
    assert torch.equal(on.adapter.weights, fitted.adapter.weights)
    assert anew.adapter is None, "another model has other directions"


def test_a_head_that_was_made_here_and_comes_back_counts_no_clip_twice(vault: FileVault) -> None:
    """As after its file was damaged and deleted."""
    own = calibrator(vault)
    fitted = own.fit_head(*enrolment())
    sealed = own.seal_head()
    vault.delete("head")

    own.restore_head(sealed)
    assert same(own.current_head(), fitted)
    assert same(own.fit_head(*enrolment(), keep_version=True), fitted)


def test_the_version_that_a_user_expects_does_not_keep_its_head_out(vault: FileVault) -> None:
    other = second_device(vault, vault.folder.parent / "other")
    for seed in range(5):
        calibrator(other).fit_head(*enrolment(seed=seed))
    newest = calibrator(other).seal_head()
    own = calibrator(vault)
    own.fit_head(*enrolment(seed=9))

    own.require_version(newest.version)
    assert own.head_version == 1
    old = dataclasses.replace(newest, version=3)
    with pytest.raises(PrivacyError, match="this device knows 5"):
        own.restore_head(old)
    own.restore_head(newest)
    assert own.head_version == newest.version == 5
    for impossible in (-1, 2**63 - 1, 2**64):
        with pytest.raises(PrivacyError, match="a head's is from"):
            own.require_version(impossible)
