"""The user's calibration head on the device: fitted, kept, sealed for the server, restored.

A head belongs to one model. When the model changes, the old head is never applied: the user has
the prior's mean until the head is fitted again on logits of the new model. Where the clips of the
old head lie here, they are all that this fit needs. Where the head came from the server, its clips
are elsewhere: then the fit starts from what the head tells of the user, its *belief*
(:mod:`sottovoce.shared.heads.belief`).

Beside the head lie the scores of the clips it was fitted on, each behind a head that had not seen
it: prediction sets become the user's own by them (:mod:`sottovoce.shared.conformal`). They stay on
the device; a head that comes back from the server comes without them.

Versions count up over the life of a user, whatever the model, so that the server can refuse an
older head and the device notices when it is given one. They leave in the clear, so they count what
everybody has, one for each model, and never what the user labelled (:meth:`Calibrator.fit`,
*quietly*). A device that never had a head knows no
version: to it the server can give any that was ever sealed, unless the user says which one there is
(:meth:`Calibrator.expect`).
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from sottovoce.client.vault import Vault
from sottovoce.shared import conformal, heads
from sottovoce.shared.errors import ModelError, PrivacyError
from sottovoce.shared.heads import Head, HeadPrior, SealedHead
from sottovoce.shared.heads import belief as beliefs
from sottovoce.shared.heads.belief import Belief

_NAME: Final = "head"
_SCORES: Final = "head-scores"
_ELSEWHERE: Final = "head-elsewhere"
_PURPOSE: Final = "calibration head"
_SEALED_BYTES: Final = 2048
"""Every sealed head is this long: its length does not tell what kind of head a user needs."""

_COUNTED: Final = struct.Struct("<Q32s")
"""Before the kept head: its version, and SHA-256 of the model that was last counted in it."""

_OWN: Final = "head-own"
_SENT: Final = "head-sent"
_MOST_OWN: Final = 256
_EXPECTED: Final = "head-expected"
_MOST_VERSION: Final = 2**63 - 1
_STAMP_BYTES: Final = 32
_ORIGIN: Final = struct.Struct("<Q32s")
_NO_MODEL: Final = bytes(32)


class Calibrator:
    """Fits and keeps one user's head for one model.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from sottovoce.shared.heads import identity
        >>> vault = Vault.create(Path(tempfile.mkdtemp()) / "vault", user="ada")
        >>> calibrator = Calibrator(vault, model_hash="0" * 64, prior=HeadPrior(mean=identity(2)))
        >>> _ = calibrator.fit(torch.tensor([[3.0, 0.0]]), torch.tensor([1]))
        >>> calibrator.version, len(calibrator.sealed().blob)
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
        heads.to_bytes(prior.mean, model_hash)
        self._vault: Final = vault
        self._model_hash: Final = model_hash
        self._prior: Final = prior
        self._labels: Final = tuple(labels)

    @property
    def version(self) -> int:
        """Version of the newest head known here; 0 before the first."""
        return self._kept()[0]

    @property
    def fitted(self) -> bool:
        """Whether a head for this model is kept."""
        return self._kept()[1] is not None

    @property
    def counted(self) -> bool:
        """Whether the version counts a head for this model already."""
        return self._record()[1] == bytes.fromhex(self._model_hash)

    def head(self) -> Head:
        """The head to apply now: this user's for this model, or else the prior's mean.

        Raises:
            PrivacyError: The kept head is damaged. Nothing takes its place unasked: delete
                ``head`` from the vault, then restore the server's copy.
        """
        kept = self._kept()[1]
        return self._prior.mean if kept is None else kept

    def calibrate(self, logits: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Calibrated logits, shape (..., classes) as given; errors as in :meth:`head`.

        Args:
            logits: This model's.
            coordinates: Where the utterances lie in the prior's basis; None where it has none.
        """
        return heads.apply(self.head(), logits, coordinates)

    def fit(
        self,
        logits: Tensor,
        labels: Tensor,
        coordinates: Tensor | None = None,
        *,
        quietly: bool = False,
    ) -> Head:
        """Fit the head on all labelled enrolment of this user and keep it as the next version.

        Where a head was taken back from the server, the fit starts from what that one tells of the
        user; its own clips must not be among those given here.

        Args:
            logits: This model's for the labelled utterances, shape (utterances, classes).
            labels: What the user said they were, shape (utterances,), integer.
            coordinates: Where they lie in the prior's basis, shape (utterances, rank); None where
                it has none.
            quietly: Whether the version stays: where the user labelled or forgot something, for it
                leaves in the clear, and would tell how often.

        Returns:
            The head; with no utterances exactly the prior's mean, or what was taken back makes of
            it.

        Raises:
            ModelError: Logits or labels that cannot be used; the old head stays.
            PrivacyError: The vault cannot be read or written; the old head stays.
        """
        start = self._start()
        found = heads.fitted(logits, labels, start, coordinates)
        belief = beliefs.learned(found, self._prior, self._labels)
        data = beliefs.to_bytes(belief, self._model_hash)
        # First the scores: without their head they are another's and count for nothing.
        self._vault.put_tensors(
            _SCORES, {"scores": conformal.scores(found.blind, labels), "head": _stamp(data)}
        )
        if len(labels):
            self._remember(data)
        version, counted, _ = self._record()
        if quietly:
            self._keep(version, data, counted=counted)
        else:
            self._keep(self._next, data, counted=bytes.fromhex(self._model_hash))
        return found.head

    def renew(self) -> None:
        """Count the kept head, which must be for this model, as the next version."""
        self._keep(self._next, self._bytes(), counted=bytes.fromhex(self._model_hash))

    @property
    def foreign(self) -> bool:
        """Whether the kept head came from elsewhere as it is: it knows nothing of clips here."""
        if not self._vault.has(_ELSEWHERE) or not self._bytes():
            return False
        return self._vault.get(_ELSEWHERE)[_ORIGIN.size :] == self._bytes()

    def _remember(self, data: bytes) -> None:
        """Note that a head was made of clips here, before it is kept.

        If it comes back it is no news of the user, and must not count beside those clips.
        """
        made = self._vault.get(_OWN) if self._vault.has(_OWN) else b""
        stamp = hashlib.sha256(data).digest()
        if not self._made(data):
            self._vault.put(_OWN, (made + stamp)[-_MOST_OWN * _STAMP_BYTES :])

    def _made(self, data: bytes) -> bool:
        """Whether a head was made here, one of the last ``_MOST_OWN``."""
        made = self._vault.get(_OWN) if self._vault.has(_OWN) else b""
        stamps = {made[at : at + _STAMP_BYTES] for at in range(0, len(made), _STAMP_BYTES)}
        return hashlib.sha256(data).digest() in stamps

    @property
    def _floor(self) -> int:
        """The newest version that is known of: none below it is taken."""
        expected = self._vault.get(_EXPECTED) if self._vault.has(_EXPECTED) else b""
        return max(self.version, int.from_bytes(expected, "little"))

    @property
    def _next(self) -> int:
        """The version of the next head."""
        return self._floor + 1

    def scores(self) -> Tensor:
        """Scores of the clips that the kept head was fitted on, shape (clips,), float64.

        Empty where the head is the prior's mean, came from the server, or is another model's.

        Raises:
            PrivacyError: What is kept is damaged.
        """
        _, head = self._kept()
        if head is not None and self._vault.has(_SCORES):
            kept = self._vault.get_tensors(_SCORES)
            if "head" in kept and torch.equal(kept["head"], _stamp(self._bytes())):
                return kept["scores"]
        return torch.zeros(0, dtype=torch.float64)

    def sealed(self) -> SealedHead:
        """The kept head for the server, which learns model, version and nothing else.

        Raises:
            PrivacyError: There is no head for this model yet.
        """
        version, head = self._kept()
        if head is None:
            raise PrivacyError(
                f"{self._vault.user!r} has no head for model {self._model_hash[:12]}; fit one first"
            )
        if version == 0:  # it was fitted quietly, before anything was ever sealed
            self.renew()
            version = self.version
        if self._made(self._bytes()):
            self._vault.put(_SENT, b"")
        blob = self._vault.seal(
            self._bytes(),
            *_binding(self._model_hash, version),
            size=_SEALED_BYTES,
        )
        return SealedHead(model_hash=self._model_hash, version=version, blob=blob)

    @property
    def empty(self) -> bool:
        """Whether no head was ever fitted or taken back here, for whatever model."""
        return not self._bytes() and not self._vault.has(_ELSEWHERE)

    def expect(self, version: int) -> None:
        """Refuse heads older than this version from now on, also on a device that never had one.

        Args:
            version: The newest that the user knows of, as another device of theirs shows it.

        Raises:
            PrivacyError: A version that no head has.
        """
        if not 0 <= version < _MOST_VERSION:
            raise PrivacyError(f"version {version}; a head's is from 1 to {_MOST_VERSION - 1}")
        if version > self._floor:
            self._vault.put(_EXPECTED, version.to_bytes(8, "little"))

    def restore(self, sealed: SealedHead) -> Head:
        """Take back what the server kept, for a new device or a reinstalled app.

        A head of another model is not applied; its version is remembered, so that the next fit
        counts on from there. Until this device has sealed a head of clips of its own, what comes
        from elsewhere is where fits start; one must follow at once where clips lie here, for the
        head that came knows nothing of them (:attr:`foreign`).

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
        version = self.version
        if sealed.version < self._floor:
            raise PrivacyError(
                f"the server offers head version {sealed.version}, this device knows {self._floor}:"
                " an old head was replayed; what is here stays"
            )
        data = self._vault.unseal(sealed.blob, *_binding(sealed.model_hash, sealed.version))
        if sealed.version == version and self._bytes() not in (b"", data):
            raise PrivacyError(
                f"the server's copy has version {version}, as the head here, which was moved by "
                "what was labelled here since: it stays"
            )
        restored = beliefs.from_bytes(data, sealed.model_hash).head
        same = sealed.model_hash.lower() == self._model_hash.lower()
        if same:
            self._check(restored)
        whose = bytes.fromhex(sealed.model_hash)
        # What was sealed here may be part of all heads since: then its clips would count twice.
        if not (self._made(data) or self._vault.has(_SENT)):
            self._vault.put(_ELSEWHERE, _ORIGIN.pack(sealed.version, whose) + data)
        self._keep(sealed.version, data if same else self._bytes(), counted=whose)
        return self.head()

    def _elsewhere(self) -> tuple[Belief, str] | None:
        """What was taken back from the server, and of which model.

        Raises:
            PrivacyError: It is damaged.
        """
        if not self._vault.has(_ELSEWHERE):
            return None
        record = self._vault.get(_ELSEWHERE)
        if len(record) < _ORIGIN.size:
            raise PrivacyError(f"the head from elsewhere has {len(record)} bytes; delete it")
        _, model = _ORIGIN.unpack_from(record)
        return beliefs.from_bytes(record[_ORIGIN.size :], model.hex()), model.hex()

    def _start(self) -> HeadPrior:
        """Where a fit starts: at the prior, or at what a head from elsewhere makes of it."""
        found = self._elsewhere()
        if found is None:
            return self._prior
        belief, model = found
        likeness = 1.0 if model == self._model_hash.lower() else beliefs.LIKENESS
        return beliefs.mapped(belief, self._prior, self._labels, likeness=likeness)

    def _kept(self) -> tuple[int, Head | None]:
        """The newest version known, and the head if it is one for this model."""
        version, _, data = self._record()
        if not data:
            return version, None
        try:
            head = beliefs.from_bytes(data, self._model_hash).head
            self._check(head)
        except ModelError:
            return version, None
        return version, head

    def _bytes(self) -> bytes:
        """The kept head as it lies, empty where there is none."""
        return self._record()[2]

    def _record(self) -> tuple[int, bytes, bytes]:
        """Version, the model last counted in it, and the kept head, empty where there is none."""
        if not self._vault.has(_NAME):
            return 0, _NO_MODEL, b""
        record = self._vault.get(_NAME)
        if len(record) < _COUNTED.size:
            raise PrivacyError(f"the kept head has {len(record)} bytes; delete it and fit again")
        return *_COUNTED.unpack_from(record), record[_COUNTED.size :]

    def _keep(self, version: int, data: bytes, *, counted: bytes) -> None:
        """Keep a version, whose model it counts, and the head together, in one atomic write."""
        self._vault.put(_NAME, _COUNTED.pack(version, counted) + data)

    def _check(self, head: Head) -> None:
        """Raise unless the head is for as many classes as the prior, and for its basis."""
        if head.classes != self._prior.mean.classes:
            raise ModelError(
                f"the head is for {head.classes} classes, the model has {self._prior.mean.classes};"
                " fit it again"
            )
        if not self._prior.knows(head):
            raise ModelError("the head bends the last layer in another basis; fit it again")


def _binding(model_hash: str, version: int) -> tuple[str | int, ...]:
    """What a sealed head is bound to, besides the user."""
    return _PURPOSE, model_hash.lower(), version


def _stamp(data: bytes) -> Tensor:
    """Which head scores belong to: its SHA-256, shape (32,), uint8."""
    return torch.frombuffer(bytearray(hashlib.sha256(data).digest()), dtype=torch.uint8)
