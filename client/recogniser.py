"""The recogniser on a device: a signal in, a prediction out, and nothing leaves.

signal -> quality gate -> features -> front -> the user's mean -> shared model -> the user's head ->
probabilities. A recording that the gate refuses gets no answer; a model that is not sure enough
says so. Without a device, or with one that knows nothing of this model, population's centre and
prior stand in for the user.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from sottovoce.client import labeller, listener, recordings
from sottovoce.client.calibrator import Calibrator
from sottovoce.client.labeller import Labeller
from sottovoce.client.listener import Listener
from sottovoce.client.vault import Vault
from sottovoce.shared import audio, check, conformal, heads, quality
from sottovoce.shared.audio import Signal
from sottovoce.shared.bundle import Bundle
from sottovoce.shared.errors import AudioError, ModelError, SettingError
from sottovoce.shared.examples import LONGEST_FRAMES, stack
from sottovoce.shared.features import extract
from sottovoce.shared.features.extract import Extractor
from sottovoce.shared.heads import Head
from sottovoce.shared.heads.head import alike
from sottovoce.shared.models.network import Network
from sottovoce.shared.prediction import Prediction
from sottovoce.shared.quality import Flag, Quality

_TWICE_CHANCE = 2.0
_COIN_TOSS = 0.5
_STEPS = {
    Flag.SILENT: "check that the microphone is on and speak again",
    Flag.TOO_SHORT: f"record at least {quality.SHORTEST_S:g} s of speech",
    Flag.CLIPPED: "hold the microphone further away, or lower its gain",
    Flag.NOISY: "record where it is quieter",
    Flag.QUIET: "speak closer to the microphone",
}
"""What helps against each flaw, the worst flaw first."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Person:
    """What is personal in a prediction.

    Attributes:
        mean: Taken off what the front gives, shape (inputs,), float32.
        head: Applied to the logits.
        own_mean: Whether the mean is this user's; if not, it is the population's.
        own_head: Whether the head is this user's and this model's; if not, it is the prior's mean.
        scores: Of the user's labelled clips, shape (clips,), float64; None has none. They move the
            threshold of prediction sets.
    """

    mean: Tensor
    head: Head
    own_mean: bool
    own_head: bool
    scores: Tensor | None = None


class Recogniser:
    """Recognises emotions for one user, or for anybody.

    Args:
        bundle: The model.
        person: Whom it listens to; None stands for anybody.
        least_confidence: Below it the recogniser abstains; None takes twice chance, at most a
            coin toss. An app that bears a risk r of a wrong answer takes 1 - r: it holds as far as
            confidences are calibrated.
        coverage: How often a prediction's set shall hold the true emotion, in (0, 1).
        device: The user's device folder, which keeps what is learned; None learns nothing.
        vault: The device's, opened; None opens it, which a passphrase forbids.

    Raises:
        SettingError: A confidence outside [0, 1], or a coverage outside (0, 1).
        ModelError: Weights that are not the model's, or an extractor that this release has not.
    """

    def __init__(
        self,
        bundle: Bundle,
        person: Person | None = None,
        *,
        least_confidence: float | None = None,
        coverage: float = conformal.COVERAGE,
        device: Path | None = None,
        vault: Vault | None = None,
    ) -> None:
        if least_confidence is None:
            least_confidence = min(_TWICE_CHANCE / len(bundle.labels), _COIN_TOSS)
        check.not_negative(least_confidence=least_confidence)
        if least_confidence > 1:
            raise SettingError(f"least_confidence is {least_confidence}; it must be at most 1")
        self.bundle = bundle
        self.person = person or anybody(bundle)
        check.inside(0, 1, coverage=coverage)
        self._least = least_confidence
        self._coverage = coverage
        self._limit = _limit(bundle, self.person, coverage)
        self._extractor: Extractor = _extractor(bundle)
        self._network: Network = bundle.network()
        self._device = device
        self._vault = vault

    @classmethod
    def open(
        cls,
        model: Path,
        device: Path | None = None,
        *,
        least_confidence: float | None = None,
        coverage: float = conformal.COVERAGE,
        vault: Vault | None = None,
    ) -> Self:
        """A recogniser from a model folder and, if there is one, the user's device folder.

        Args:
            model: What a run wrote as ``model/``.
            device: A folder that :meth:`Device.create` made. Only its vault is read, and written
                to where the head must be fitted again (:meth:`Labeller.heal`); its ledger is not
                touched, because nothing leaves.
            least_confidence: As in the constructor.
            coverage: Likewise.
            vault: Likewise.

        Raises:
            ModelError: The model is missing or damaged.
            SettingError: There is no such device.
            PrivacyError: The vault is damaged, or its key is not its owner's alone.
        """
        bundle = Bundle.load(model)
        limits: dict[str, Any] = {"least_confidence": least_confidence, "coverage": coverage}
        if device is None:
            return cls(bundle, **limits)
        vault = recordings.vault_of(device, vault)
        person = of_device(bundle, device, vault=vault)
        if Labeller(device, bundle, vault=vault).heal(person.mean):
            person = of_device(bundle, device, vault=vault)
        return cls(bundle, person, device=device, vault=vault, **limits)

    def predict(self, signal: Signal) -> Prediction:
        """Recognise one recording.

        Args:
            signal: Any length, any rate.

        Returns:
            An emotion, or an abstention: silence, too short, samples or features that are no
            numbers, or a confidence below the limit.

        Raises:
            ModelError: The extractor's features are not what the model reads.
        """
        if not bool(signal.samples.isfinite().all()):
            step = "export the recording again as 16-bit PCM"
            return self._fallback("the recording holds NaN or infinite samples", ("broken",), step)
        measured = quality.gate(signal)
        if not measured.usable:
            reason = f"the recording is {measured.reason}"
            return self._fallback(reason, _names(measured), _step(measured))
        features = self._extractor(audio.resample(signal, audio.RATE))
        if not bool(features.isfinite().all()):
            reason = f"{self._extractor.name} gave values that are not finite"
            return self._fallback(reason, _names(measured), "record again")
        return self._judged(self.probabilities(features), measured)

    def learn(self, signal: Signal) -> str:
        """Learn the user's voice from one recording, whatever its emotion; nothing leaves.

        What is kept is its features, sealed in the device's vault, not its sound. Predictions
        from here on take it into account.

        Args:
            signal: The user speaking, and nobody else.

        Returns:
            The recording's name, for :meth:`forget`.

        Raises:
            SettingError: There is no device, or a model that takes nobody's mean off.
            AudioError: A recording that the quality gate refuses: nothing is learned from silence.
            ModelError: Features that are not what the model reads.
            PrivacyError: The vault cannot be read or written.
        """
        own = Listener(self._folder(), self.bundle, vault=self._vault)
        name = own.learn(self._features(signal))
        self._refresh()
        return name

    def label(self, signal: Signal, emotion: str) -> str:
        """Take the user's word for what a recording was; the head is fitted on it at once.

        Label random moments, right answers as well as wrong ones: a head that is told of wrong
        ones alone learns that the model is wrong. What is kept is the recording's features, sealed
        in the device's vault; nothing leaves but the head, sealed, when a run next asks for it.

        Args:
            signal: The user speaking, and nobody else.
            emotion: One of the model's labels.

        Returns:
            The recording's name, for :meth:`forget`.

        Raises:
            SettingError: There is no device, an emotion that the model does not know, or a model
                that reads frames.
            AudioError: A recording that the quality gate refuses: nothing is learned from silence.
            ModelError: Features that are not what the model reads, or a head that cannot be fitted
                on them.
            PrivacyError: The vault cannot be read or written.
        """
        own = Labeller(self._folder(), self.bundle, vault=self._vault)
        name = own.label(self._features(signal), emotion, self.person.mean)
        self._refresh()
        return name

    def forget(self, name: str) -> None:
        """Forget a recording, its label too: afterwards it has never been heard.

        It may be of another model; the head is fitted again for this one. It may be repeated:
        killed on the way, a second call finishes the first, even where it then finds no recording.

        Raises:
            SettingError: There is no device, or it keeps no recording of that name.
            PrivacyError: The vault cannot be read or written.
        """
        folder, vault = self._folder(), self._vault
        labelled = labeller.labelled(folder, vault=vault)
        heard = listener.heard(folder, vault=vault)
        if name in heard:
            listener.forget(folder, name, vault=vault)
            self._refresh()
        Labeller(folder, self.bundle, vault=vault).forget(name, self.person.mean)
        self._refresh()
        if name not in (*heard, *labelled):
            held = ", ".join(dict.fromkeys((*heard, *labelled))) or "none"
            raise SettingError(f"{folder} keeps no recording {name!r}; it keeps {held}")

    def _folder(self) -> Path:
        """The device that keeps what is learned."""
        if self._device is None:
            raise SettingError("there is no device to keep what is learned; open one with device=")
        return self._device

    def _refresh(self) -> None:
        """Know what the device knows now."""
        self.person = of_device(self.bundle, self._folder(), vault=self._vault)
        self._limit = _limit(self.bundle, self.person, self._coverage)

    def _features(self, signal: Signal) -> Tensor:
        """What the model's extractor gives for a recording that something can be learned from."""
        if not bool(signal.samples.isfinite().all()):
            raise AudioError("the recording holds NaN or infinite samples; nothing was learned")
        measured = quality.gate(signal)
        if not measured.usable:
            raise AudioError(f"the recording is {measured.reason}; nothing was learned from it")
        return self._extractor(audio.resample(signal, audio.RATE))

    def probabilities(self, features: Tensor) -> Tensor:
        """Chance of each emotion, shape (classes,), float64, from one recording's features.

        Args:
            features: Shape (features,) or (frames, features), as the model's extractor gives them.

        Raises:
            ModelError: Features of another width.
        """
        one = stack([features], [0], longest=LONGEST_FRAMES)
        logits, coordinates = self.bundle.heard(
            one.features, one.frames, self.person.mean, network=self._network
        )
        return torch.softmax(heads.apply(self.person.head, logits, coordinates)[0].double(), 0)

    def _judged(self, chances: Tensor, measured: Quality) -> Prediction:
        """An answer, or an abstention where the model is not sure enough."""
        best = int(chances.argmax())
        confidence = float(chances[best])
        if not confidence >= 0:  # NaN: weights or a head that no check could foresee
            return self._fallback(
                "the model gave no numbers", _names(measured), "get the model again"
            )
        inside = [] if self._limit is None else conformal.members(chances, self._limit)
        sure = confidence >= self._least
        reason = "" if sure else f"confidence {confidence:.0%} is below {self._least:.0%}"
        return self._prediction(
            emotion=self.bundle.labels[best] if sure else None,
            probabilities=dict(zip(self.bundle.labels, chances.tolist(), strict=True)),
            confidence=confidence,
            emotions=tuple(self.bundle.labels[place] for place in inside),
            reason=reason,
            quality_words=_names(measured),
            next_step=_step(measured) or ("" if sure else self._doubt()),
        )

    def _fallback(self, reason: str, quality_words: tuple[str, ...], step: str) -> Prediction:
        """No guess at all."""
        return self._prediction(
            emotion=None,
            probabilities={},
            confidence=0.0,
            emotions=(),
            reason=reason,
            quality_words=quality_words,
            next_step=step,
        )

    def _prediction(
        self,
        *,
        emotion: str | None,
        probabilities: dict[str, float],
        confidence: float,
        emotions: tuple[str, ...],
        reason: str,
        quality_words: tuple[str, ...],
        next_step: str,
    ) -> Prediction:
        """A prediction of this model for this user."""
        return Prediction(
            emotion=emotion,
            probabilities=probabilities,
            confidence=confidence,
            emotions=emotions,
            coverage=self._coverage if emotions else None,
            abstained=emotion is None,
            reason=reason,
            quality=quality_words,
            next_step=next_step,
            model_hash=self.bundle.model_hash,
            own_normaliser=self.person.own_mean,
            own_head=self.person.own_head,
            own_set=bool(emotions) and self.person.scores is not None,
        )

    def _doubt(self) -> str:
        """What makes a model surer that heard a clear recording."""
        if self.bundle.user_mean and not self.person.own_mean:
            return "enrol this user's voice with a few clips"
        if not self.person.own_head:
            return "label a few clips, so that the device can fit this user's head"
        return "ask the speaker, or record a longer utterance"


def _extractor(bundle: Bundle) -> Extractor:
    """What computes the features that the model reads."""
    try:
        return extract.extractor(bundle.extractor)
    except SettingError as error:
        raise ModelError(
            f"the model reads features that this release cannot compute ({error}); install the "
            "release that trained it, or copy the model folder again"
        ) from error


def anybody(bundle: Bundle) -> Person:
    """The population's centre and the prior's mean head."""
    return Person(mean=bundle.centre, head=bundle.prior.mean, own_mean=False, own_head=False)


def of_device(bundle: Bundle, device: Path, *, vault: Vault | None = None) -> Person:
    """What a device's vault knows of its user under this model.

    A mean learned behind another front, and a head fitted for another model, would be wrong here:
    centre and prior stand in for them.

    Args:
        bundle: The model.
        device: The user's device folder.
        vault: The device's, opened; None opens it, which a passphrase forbids.

    Raises:
        SettingError: There is no device in the folder.
        PrivacyError: The vault, or what it holds, is damaged.
    """
    vault = recordings.vault_of(device, vault)
    mean = Listener(device, bundle, vault=vault).mean()
    calibrator = Calibrator(vault, model_hash=bundle.model_hash, prior=bundle.prior)
    head, scores = calibrator.head(), calibrator.scores()
    return Person(
        mean=bundle.centre if mean is None else mean,
        head=head,
        own_mean=mean is not None,
        own_head=not alike(head, bundle.prior.mean),
        scores=scores if len(scores) else None,
    )


def _limit(bundle: Bundle, person: Person, coverage: float) -> float | None:
    """The largest score in a set; None where nobody's scores are known."""
    if bundle.prior.scores is None:
        return None
    return conformal.threshold(bundle.prior.scores, person.scores, coverage=coverage)


def _names(measured: Quality) -> tuple[str, ...]:
    """The flags in plain words."""
    return tuple(
        str(flag.name).lower().replace("_", " ") for flag in Flag if flag in measured.flags
    )


def _step(measured: Quality) -> str:
    """What helps against the worst flaw; "" where there is none."""
    return next((step for flag, step in _STEPS.items() if flag in measured.flags), "")
