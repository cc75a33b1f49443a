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
older head and the device notices when it is given one. A device that never had a head knows no
version: to it the server can give any that was ever sealed, unless the user says which one there is
(:meth:`Calibrator.expect`).
"""

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

_VERSION: Final = struct.Struct("<Q")
_ORIGIN: Final = struct.Struct("<Q32s")


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

    def fit(self, logits: Tensor, labels: Tensor, coordinates: Tensor | None = None) -> Head:
        """Fit the head on all labelled enrolment of this user and keep it as the next version.

        Where a head was taken back from the server, the fit starts from what that one tells of the
        user; its own clips must not be among those given here.

        Args:
            logits: This model's for the labelled utterances, shape (utterances, classes).
            labels: What the user said they were, shape (utterances,), integer.
            coordinates: Where they lie in the prior's basis, shape (utterances, rank); None where
                it has none.

        Returns:
            The head; with no utterances exactly the prior's mean, or what was taken back makes of
            it.

        Raises:
            ModelError: Logits or labels that cannot be used; the old head stays.
            PrivacyError: The vault cannot be read or written; the old head stays.
        """
        start = self._start()
        found = heads.fitted(logits, labels, start, coordinates)
        version = self.version + 1
        belief = beliefs.learned(found, self._prior, self._labels)
        # First the scores: without their head they are another version's and count for nothing.
        self._vault.put_tensors(
            _SCORES,
            {
                "scores": conformal.scores(found.blind, labels),
                "version": torch.tensor([version]),
                "model": torch.frombuffer(bytearray.fromhex(self._model_hash), dtype=torch.uint8),
            },
        )
        self._keep(version, beliefs.to_bytes(belief, self._model_hash))
        return found.head

    def scores(self) -> Tensor:
        """Scores of the clips that the kept head was fitted on, shape (clips,), float64.

        Empty where the head is the prior's mean, came from the server, or is another model's.

        Raises:
            PrivacyError: What is kept is damaged.
        """
        version, head = self._kept()
        if head is not None and self._vault.has(_SCORES):
            kept = self._vault.get_tensors(_SCORES)
            whose = bytes(kept["model"].tolist()).hex()
            if whose == self._model_hash.lower() and int(kept["version"]) == version:
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
        """
        if version > self.version:
            self._keep(version, self._bytes())

    def restore(self, sealed: SealedHead) -> Head:
        """Take back what the server kept, for a new device or a reinstalled app.

        A head of another model is not applied; its version is remembered, so that the next fit
        counts on from there, and what it tells of the user is where that fit starts, unless clips
        were labelled here.

        Args:
            sealed: The server's answer; nothing in it is trusted.

        Returns:
            The head to apply now.

        Raises:
            PrivacyError: Another user's head, another key, an altered head, one whose model or
                version was relabelled, or one older than what this device knows. The old head
                stays.
            ModelError: It opened, but holds no head for this model's classes. The old head stays.
        """
        version, _ = self._kept()
        if sealed.version < version:
            raise PrivacyError(
                f"the server offers head version {sealed.version}, this device knows {version}:"
                " an old head was replayed; the newer one stays"
            )
        data = self._vault.unseal(sealed.blob, *_binding(sealed.model_hash, sealed.version))
        restored = beliefs.from_bytes(data, sealed.model_hash).head
        same = sealed.model_hash.lower() == self._model_hash.lower()
        if same:
            self._check(restored)
        if not self._bytes() or self._elsewhere(version):  # nothing was fitted here since
            origin = _ORIGIN.pack(sealed.version, bytes.fromhex(sealed.model_hash))
            self._vault.put(_ELSEWHERE, origin + data)
        self._keep(sealed.version, data if same else self._bytes())
        return self.head()

    def _elsewhere(self, version: int | None = None) -> tuple[Belief, str] | None:
        """What was taken back from the server and of which model, if it has this version or any.

        Raises:
            PrivacyError: It is damaged.
        """
        if not self._vault.has(_ELSEWHERE):
            return None
        record = self._vault.get(_ELSEWHERE)
        if len(record) < _ORIGIN.size:
            raise PrivacyError(f"the head from elsewhere has {len(record)} bytes; delete it")
        kept, model = _ORIGIN.unpack_from(record)
        if version not in (None, kept):
            return None
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
        if not self._vault.has(_NAME):
            return 0, None
        version, data = _split(self._vault.get(_NAME))
        try:
            head = beliefs.from_bytes(data, self._model_hash).head
            self._check(head)
        except ModelError:
            return version, None
        return version, head

    def _bytes(self) -> bytes:
        """The kept head as it lies, empty where there is none."""
        return _split(self._vault.get(_NAME))[1] if self._vault.has(_NAME) else b""

    def _keep(self, version: int, data: bytes) -> None:
        """Keep a version and its head together, in one atomic write."""
        self._vault.put(_NAME, _VERSION.pack(version) + data)

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


def _split(record: bytes) -> tuple[int, bytes]:
    """Version and head of a kept record."""
    if len(record) < _VERSION.size:
        raise PrivacyError(f"the kept head has {len(record)} bytes; delete it and fit again")
    return int(_VERSION.unpack_from(record)[0]), record[_VERSION.size :]
