"""The user's calibration head on the device: fitted, stored, sealed for the server, restored.

A head belongs to one model. When the model changes, the old head is never applied: the user has
the prior's mean until the head is fitted again on logits of the new model. Where the clips of the
old head are on this device, they are all that this fit needs. Where the head came from the server,
its clips are elsewhere: then the fit starts from what the head says of the user, its *posterior*
(:mod:`sottovoce.shared.calibration.head_transfer`).

Beside the head are stored the nonconformity scores of the clips it was fitted on, each behind a
head that had not seen it: prediction sets become the user's own by them
(:mod:`sottovoce.shared.calibration.conformal`). They stay on the device; a head that comes back
from the server comes without them.

Versions count up over the life of a user, whatever the model, so that the server can refuse an
older head and the device notices when it is offered one. They leave in the clear, so they count
what everybody has, one for each model, and never what the user labelled
(:meth:`HeadCalibrator.fit_head`, ``keep_version``). A device that never had a head knows no
version: to it the server can offer any that was ever sealed, unless the user says which one there
is (:meth:`HeadCalibrator.require_version`).
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from sottovoce.client.device.vault import Vault
from sottovoce.shared import calibration
from sottovoce.shared.calibration import (
    CalibrationHead,
    HeadPrior,
    SealedHead,
    conformal,
    head_transfer,
)
from sottovoce.shared.calibration.head_transfer import HeadPosterior
from sottovoce.shared.errors import ModelError, PrivacyError

_NAME: Final = "head"
_SCORES: Final = "head-scores"
_RESTORED: Final = "head-elsewhere"
_PURPOSE: Final = "calibration head"
_SEALED_BYTES: Final = 2048
"""Every sealed head is this long: its length does not tell what kind of head a user needs."""

_HEADER: Final = struct.Struct("<Q32s")
"""Before the stored head: its version, and SHA-256 of the model that was last counted in it."""

_OWN: Final = "head-own"
_SENT: Final = "head-sent"
_MAX_OWN_HEADS: Final = 256
_EXPECTED: Final = "head-expected"
_MAX_VERSION: Final = 2**63 - 1
_STAMP_BYTES: Final = 32
_ORIGIN: Final = struct.Struct("<Q32s")
_NO_MODEL: Final = bytes(32)


class HeadCalibrator:
    """Fits and stores one user's head for one model.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from sottovoce.client.device.vault import FileVault
        >>> from sottovoce.shared.calibration import identity_head
        >>> vault = FileVault.create(Path(tempfile.mkdtemp()) / "vault", user="ada")
        >>> prior = HeadPrior(mean=identity_head(2))
        >>> calibrator = HeadCalibrator(vault, model_hash="0" * 64, prior=prior)
        >>> _ = calibrator.fit_head(torch.tensor([[3.0, 0.0]]), torch.tensor([1]))
        >>> calibrator.head_version, len(calibrator.seal_head().blob)
        (1, 2048)
    """

    def __init__(
        self, vault: Vault, *, model_hash: str, prior: HeadPrior, labels: Sequence[str] = ()
    ) -> None:
        """Work for one model.

        Args:
            vault: The user's vault; the head lies in it under ``head``.
            model_hash: SHA-256 of the model whose logits are calibrated, 64 hexadecimal digits.
            prior: Where users of this model start.
            labels: The model's emotions in the order of its classes. Without them a head cannot be
                mapped to another model.

        Raises:
            ModelError: A hash that is none.
        """
        # Raises for a malformed hash, before anything is stored under it.
        calibration.to_bytes(prior.mean, model_hash)
        self._vault: Final = vault
        self._model_hash: Final = model_hash
        self._prior: Final = prior
        self._labels: Final = tuple(labels)

    @property
    def head_version(self) -> int:
        """Version of the newest head known here; 0 before the first."""
        return self._stored_head()[0]

    @property
    def is_fitted(self) -> bool:
        """Whether a head for this model is stored."""
        return self._stored_head()[1] is not None

    @property
    def is_model_counted(self) -> bool:
        """Whether the version counts a head for this model already."""
        return self._read_record()[1] == bytes.fromhex(self._model_hash)

    def current_head(self) -> CalibrationHead:
        """Read the head to apply now: this user's for this model, or else the prior's mean.

        Raises:
            PrivacyError: The stored head is damaged. Nothing takes its place unasked: delete
                ``head`` from the vault, then restore the server's copy.
        """
        stored = self._stored_head()[1]
        return self._prior.mean if stored is None else stored

    def calibrate_logits(self, logits: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Calibrate logits, in and out (..., classes); errors as in :meth:`current_head`.

        Args:
            logits: This model's.
            coordinates: Of the utterances in the prior's basis; None where it has none.
        """
        return calibration.calibrate_logits(self.current_head(), logits, coordinates)

    def fit_head(
        self,
        logits: Tensor,
        labels: Tensor,
        coordinates: Tensor | None = None,
        *,
        keep_version: bool = False,
    ) -> CalibrationHead:
        """Fit the head on all labelled enrolment of this user and store it as the next version.

        Where a head was restored from the server, the fit starts from what that one says of the
        user; its own clips must not be among these.

        Args:
            logits: This model's for the labelled utterances, shape (utterances, classes).
            labels: What the user said they were, shape (utterances,), integer.
            coordinates: Theirs in the prior's basis, shape (utterances, rank); None where it has
                none.
            keep_version: Whether the version stays: where the user labelled or forgot something,
                for it leaves in the clear, and would tell how often.

        Returns:
            The head; with no utterances exactly the prior's mean, or what the restored head makes
            of it.

        Raises:
            ModelError: Logits or labels that cannot be used; the old head stays.
            PrivacyError: The vault cannot be read or written; the old head stays.
        """
        start = self._fit_prior()
        found = calibration.fit_head(logits, labels, start, coordinates)
        posterior = head_transfer.posterior_from_fit(found, self._prior, self._labels)
        data = head_transfer.to_bytes(posterior, self._model_hash)
        # First the scores: without their head they are another's and count for nothing.
        self._vault.put_tensors(
            _SCORES,
            {
                "scores": conformal.nonconformity(found.held_out_probabilities, labels),
                "head": _stamp(data),
            },
        )
        # Only heads of clips here: an empty fit is the prior and tells nothing of the user.
        if len(labels):
            self._record_own_head(data)
        version, counted, _ = self._read_record()
        if keep_version:
            self._store_head(version, data, counted_model=counted)
        else:
            self._store_head(
                self._next_version, data, counted_model=bytes.fromhex(self._model_hash)
            )
        return found.head

    def advance_version(self) -> None:
        """Count the stored head, which must be for this model, as the next version."""
        self._store_head(
            self._next_version, self._stored_bytes(), counted_model=bytes.fromhex(self._model_hash)
        )

    @property
    def is_restored(self) -> bool:
        """Whether the stored head was restored as it is: it knows nothing of clips here."""
        if not self._vault.has_blob(_RESTORED) or not self._stored_bytes():
            return False
        return self._vault.get(_RESTORED)[_ORIGIN.size :] == self._stored_bytes()

    def _record_own_head(self, data: bytes) -> None:
        """Note that a head was made of clips here, before it is stored.

        If it comes back it is no news of the user, and must not count beside those clips.
        """
        own = self._vault.get(_OWN) if self._vault.has_blob(_OWN) else b""
        stamp = hashlib.sha256(data).digest()
        if not self._is_own_head(data):
            # The newest stamps stay: a server returns recent heads.
            self._vault.put(_OWN, (own + stamp)[-_MAX_OWN_HEADS * _STAMP_BYTES :])

    def _is_own_head(self, data: bytes) -> bool:
        """Whether a head was made here, one of the last ``_MAX_OWN_HEADS``."""
        own = self._vault.get(_OWN) if self._vault.has_blob(_OWN) else b""
        stamps = {own[at : at + _STAMP_BYTES] for at in range(0, len(own), _STAMP_BYTES)}
        return hashlib.sha256(data).digest() in stamps

    @property
    def _least_version(self) -> int:
        """Newest version that is known of: none below it is taken."""
        expected = self._vault.get(_EXPECTED) if self._vault.has_blob(_EXPECTED) else b""
        return max(self.head_version, int.from_bytes(expected, "little"))

    @property
    def _next_version(self) -> int:
        """Version of the next head."""
        return self._least_version + 1

    def nonconformity_scores(self) -> Tensor:
        """Read the scores of the clips that the head was fitted on, shape (clips,), float64.

        Empty where the head is the prior's mean, came from the server, or is another model's.

        Raises:
            PrivacyError: What is stored is damaged.
        """
        _, head = self._stored_head()
        if head is not None and self._vault.has_blob(_SCORES):
            stored = self._vault.get_tensors(_SCORES)
            # Scores count only with the head that they were computed for.
            if "head" in stored and torch.equal(stored["head"], _stamp(self._stored_bytes())):
                return stored["scores"]
        return torch.zeros(0, dtype=torch.float64)

    def seal_head(self) -> SealedHead:
        """Seal the stored head for the server, which learns model, version and nothing else.

        Raises:
            PrivacyError: There is no head for this model yet.
        """
        version, head = self._stored_head()
        if head is None:
            raise PrivacyError(
                f"{self._vault.user!r} has no head for model {self._model_hash[:12]}; fit one first"
            )
        if version == 0:  # it was fitted with keep_version, before anything was ever sealed
            self.advance_version()
            version = self.head_version
        if self._is_own_head(self._stored_bytes()):
            self._vault.put(_SENT, b"")
        blob = self._vault.seal(
            self._stored_bytes(),
            *_binding(self._model_hash, version),
            size=_SEALED_BYTES,
        )
        return SealedHead(model_hash=self._model_hash, version=version, blob=blob)

    @property
    def is_empty(self) -> bool:
        """Whether no head was ever fitted or restored here, for whatever model."""
        return not self._stored_bytes() and not self._vault.has_blob(_RESTORED)

    def require_version(self, version: int) -> None:
        """Refuse heads older than this version from now on, also on a device that never had one.

        Args:
            version: The newest that the user knows of, as another device of theirs shows it.

        Raises:
            PrivacyError: A version that no head has.
        """
        if not 0 <= version < _MAX_VERSION:
            raise PrivacyError(f"version {version}; a head's is from 1 to {_MAX_VERSION - 1}")
        if version > self._least_version:
            self._vault.put(_EXPECTED, version.to_bytes(8, "little"))

    def restore_head(self, sealed: SealedHead) -> CalibrationHead:
        """Restore what the server kept, for a new device or a reinstalled app.

        A head of another model is not applied; its version is remembered, so that the next fit
        counts on from there. Until this device has sealed a head of clips of its own, what comes
        from elsewhere is where fits start; one must follow at once where clips lie here, for the
        head that came knows nothing of them (:attr:`is_restored`).

        Args:
            sealed: The server's answer; nothing in it is trusted.

        Returns:
            The head to apply now.

        Raises:
            PrivacyError: Another user's head, another key, an altered head, one whose model or
                version was relabelled, one older than what this device knows, or its own of before
                something was labelled or forgotten. The old head stays.
            ModelError: It opened, but holds no head for this model's classes. The old head stays.
        """
        version = self.head_version
        # Before opening: an old head is refused whatever it holds.
        if sealed.version < self._least_version:
            raise PrivacyError(
                f"the server offers head version {sealed.version}, this device knows "
                f"{self._least_version}: an old head was replayed; what is here stays"
            )
        data = self._vault.unseal(sealed.blob, *_binding(sealed.model_hash, sealed.version))
        if sealed.version == version and self._stored_bytes() not in (b"", data):
            raise PrivacyError(
                f"the server's copy has version {version}, as the head here, which was moved by "
                "what was labelled here since: it stays"
            )
        restored = head_transfer.from_bytes(data, sealed.model_hash).head
        same = sealed.model_hash.lower() == self._model_hash.lower()
        if same:
            self._check_head(restored)
        whose = bytes.fromhex(sealed.model_hash)
        # What was sealed here may be part of all heads since: then its clips would count twice.
        if not (self._is_own_head(data) or self._vault.has_blob(_SENT)):
            self._vault.put(_RESTORED, _ORIGIN.pack(sealed.version, whose) + data)
        self._store_head(
            sealed.version, data if same else self._stored_bytes(), counted_model=whose
        )
        return self.current_head()

    def _restored_posterior(self) -> tuple[HeadPosterior, str] | None:
        """Read the posterior of a restored head, and its model.

        Raises:
            PrivacyError: It is damaged.
        """
        if not self._vault.has_blob(_RESTORED):
            return None
        record = self._vault.get(_RESTORED)
        if len(record) < _ORIGIN.size:
            raise PrivacyError(f"the restored head has {len(record)} bytes; delete {_RESTORED}")
        _, model = _ORIGIN.unpack_from(record)
        return head_transfer.from_bytes(record[_ORIGIN.size :], model.hex()), model.hex()

    def _fit_prior(self) -> HeadPrior:
        """Prior that a fit starts from, with what a restored head makes of it."""
        found = self._restored_posterior()
        if found is None:
            return self._prior
        posterior, model = found
        # The same model: the restored head is known exactly. Another: only as far as heads agree.
        correlation = 1.0 if model == self._model_hash.lower() else head_transfer.HEAD_CORRELATION
        return head_transfer.transfer_posterior(
            posterior, self._prior, self._labels, correlation=correlation
        )

    def _stored_head(self) -> tuple[int, CalibrationHead | None]:
        """Read the newest version known, and the head if it is one for this model."""
        version, _, data = self._read_record()
        if not data:
            return version, None
        try:
            head = head_transfer.from_bytes(data, self._model_hash).head
            self._check_head(head)
        except ModelError:
            return version, None
        return version, head

    def _stored_bytes(self) -> bytes:
        """Read the stored head's bytes, empty where there is none."""
        return self._read_record()[2]

    def _read_record(self) -> tuple[int, bytes, bytes]:
        """Read version, model last counted in it, and head, empty where there is none."""
        if not self._vault.has_blob(_NAME):
            return 0, _NO_MODEL, b""
        # A record this short cannot be a header: it was damaged.
        record = self._vault.get(_NAME)
        if len(record) < _HEADER.size:
            raise PrivacyError(f"the stored head has {len(record)} bytes; delete it and fit again")
        return *_HEADER.unpack_from(record), record[_HEADER.size :]

    def _store_head(self, version: int, data: bytes, *, counted_model: bytes) -> None:
        """Store a version, the model it counts, and the head together, in one atomic write."""
        self._vault.put(_NAME, _HEADER.pack(version, counted_model) + data)

    def _check_head(self, head: CalibrationHead) -> None:
        """Raise unless the head is for as many classes as the prior, and for its basis."""
        if head.classes != self._prior.mean.classes:
            raise ModelError(
                f"the head is for {head.classes} classes, the model has {self._prior.mean.classes};"
                " fit it again"
            )
        if not self._prior.is_compatible(head):
            raise ModelError("the head bends the last layer in another basis; fit it again")


def _binding(model_hash: str, version: int) -> tuple[str | int, ...]:
    """Facts that a sealed head is bound to, besides the user."""
    return _PURPOSE, model_hash.lower(), version


def _stamp(data: bytes) -> Tensor:
    """Hash of the head that scores belong to (SHA-256), shape (32,), uint8."""
    return torch.frombuffer(bytearray(hashlib.sha256(data).digest()), dtype=torch.uint8)
