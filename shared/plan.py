"""The plan of a training run: the public facts on which server and devices agree.

Sampler, clip, noise and ledger record all come from the plan, so they cannot disagree: a device
books ``plan.gradient_release(round)`` and trains with ``plan.mechanism``, which are one setting.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from sottovoce.shared import check
from sottovoce.shared.calibration import SENSITIVITY, CalibrationRelease
from sottovoce.shared.errors import MessageError, SettingError, SottovoceError
from sottovoce.shared.models.flat import digest
from sottovoce.shared.models.loss import CROSS_ENTROPY
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.normaliser import (
    EXACT_CENTRE,
    EXACT_MEAN,
    CentreRelease,
    NormaliserRelease,
)
from sottovoce.shared.privacy.bands import Bands
from sottovoce.shared.privacy.release import Kind, Mechanism, Release, UserNoise
from sottovoce.shared.privacy.users import UserPromise
from sottovoce.shared.training import LocalTraining, NoPrivacy, UtteranceNoise
from sottovoce.shared.training import Mechanism as Protection

SCHEMA = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every device of a run does.

    Attributes:
        run: Name of the run, part of every release's name.
        labels: Emotions in the order of the model's classes.
        extractor: Name of the feature extractor.
        front: SHA-256 of the public front.
        model: The shared model.
        rounds: Rounds of training, at least 1.
        training: Local training of one round.
        mechanism: Clip and noise of an utterance's gradient, or no privacy.
        centre: The noised sum that tells where this population's voices lie; None takes the
            public corpora's centre.
        normaliser: The noised mean of the user that training uses; None trains with the centre
            alone, as for users who will enrol with little or nothing.
        count_noise: Standard deviation of the noise on the label histogram (sensitivity 1); 0 for
            no privacy of utterances.
        user: What hides a whole user in every sum over users; None where nothing does.
        calibration: What devices tell of heads and scores after the last round; None asks nothing.
    """

    run: str
    labels: tuple[str, ...]
    extractor: str
    front: str
    model: ModelSpec
    rounds: int
    training: LocalTraining
    mechanism: Protection
    centre: CentreRelease | None
    normaliser: NormaliserRelease | None
    count_noise: float
    user: UserPromise | None = None
    calibration: CalibrationRelease | None = None

    def __post_init__(self) -> None:
        if self.private:
            self.training.loss.check_alone()
        check.at_least(1, rounds=self.rounds)
        check.not_negative(count_noise=self.count_noise)
        if len(self.labels) != self.model.classes or len(set(self.labels)) != len(self.labels):
            raise SettingError(
                f"labels {self.labels} do not name the model's {self.model.classes} classes, "
                "each once"
            )
        noises = [self.mechanism.noise_multiplier, self.count_noise]
        parts = (self.centre, self.normaliser, self.calibration)
        noises += [part.noise_multiplier for part in parts if part]
        if len({noise > 0 for noise in noises}) != 1:
            raise SettingError(
                "a plan noises all of its releases or none: an epsilon that covers only some of "
                "gradients, centre, normaliser, label counts and head statistics would promise "
                "nothing"
            )
        if self.user:
            self._check_user(self.user)

    def _check_user(self, user: UserPromise) -> None:
        """Refuse a promise to users that the settings would not keep."""
        given = [(user.centre, self.centre), (user.calibration, self.calibration)]
        if any((hidden is None) != (told is None) for hidden, told in given):
            raise SettingError(
                "a plan hides its users in all of its sums, the centre's and the head statistics' "
                "included"
            )
        if self.private and user.secure:
            raise SettingError(
                "utterances are hidden by noise of the devices' own, which secure sums cannot "
                "count yet: hide users alone, or both without secure sums"
            )
        if self.sampled and (self.private or user.secure):
            raise SettingError(
                f"devices join a round with a chance of {user.update.sample_rate:g}, which only "
                "noise that the server adds is priced for: hide users alone, without secure sums"
            )
        if self.private and user.adaptive:
            raise SettingError(
                "an adaptive clip norm hides users alone; where utterances are hidden too, the sum "
                "of a user's gradients has a fixed bound"
            )
        if user.update.bands:
            self._check_bands(user.update.bands)
        bounded = self.mechanism.sum_norm
        if self.private and (bounded != user.update.clip_norm or self.training.steps != 1):
            raise SettingError(
                f"utterances and users are both hidden only in rounds of one step whose sum is "
                f"bounded as the user's update is: steps is {self.training.steps}, sum_norm "
                f"{bounded}, the update's clip_norm {user.update.clip_norm}"
            )

    def _check_bands(self, bands: Bands) -> None:
        """Refuse rounds that lie apart where they would not be noised as booked, or in vain."""
        if self.private:
            raise SettingError(
                "utterances are hidden by noise of the devices' own, which noise that hangs "
                "together over rounds cannot count: hide users alone, or leave spacing at 1"
            )
        if bands.spacing > self.rounds:
            raise SettingError(
                f"spacing is {bands.spacing} and rounds {self.rounds}: some users would never "
                "train; spacing must be at most rounds"
            )

    @property
    def private(self) -> bool:
        """Whether every release is noised before it leaves, so that it hides an utterance."""
        return self.count_noise > 0

    @property
    def sampled(self) -> bool:
        """Whether each device joins a round by its own coin."""
        return self.user is not None and self.user.update.sample_rate < 1

    @property
    def bands(self) -> Bands | None:
        """How rounds lie apart, and their noise hangs together; None where all train in each."""
        return self.user.update.bands if self.user else None

    @property
    def clip(self) -> float:
        """The first round's clip norm on a user's update, where it is learned; else 1."""
        return self.user.adaptive.start if self.user and self.user.adaptive else 1.0

    @property
    def told(self) -> int:
        """How many numbers a device tells beside its update."""
        return 1 if self.user and self.user.adaptive else 0

    @property
    def unit(self) -> str:
        """What the plan protects: ``none``, ``utterance``, ``user`` or ``both``."""
        return _UNITS[self.private, self.user is not None]

    def normaliser_release(self) -> Release | None:
        """The ledger's record of the training normaliser; None where there is none to book.

        Where only users are hidden, it never leaves but inside updates that are bounded as a whole.
        """
        if self.normaliser is None or self.unit == "user":
            return None
        return self._release(
            Kind.NORMALISER, 0, self.normaliser.noise_multiplier, self.normaliser.sensitivity
        )

    def centre_release(self) -> Release | None:
        """The ledger's record of the device's share of the centre; None where none is sent."""
        if self.centre is None:
            return None
        return self._release(
            Kind.CENTRE,
            0,
            self.centre.noise_multiplier,
            self.centre.radius,
            user=self.user.centre if self.user else None,
        )

    def calibration_release(self) -> Release | None:
        """The ledger's record of what is told of heads and scores; None where nothing is asked."""
        if self.calibration is None:
            return None
        return self._release(
            Kind.HEAD_STATISTICS,
            0,
            self.calibration.noise_multiplier,
            SENSITIVITY,
            user=self.user.calibration if self.user else None,
        )

    def counts_release(self) -> Release:
        """The ledger's record of the label histogram."""
        user = self.user.counts if self.user else None
        return self._release(Kind.LABEL_COUNTS, 0, self.count_noise, 1.0, user=user)

    def gradient_release(self, number: int) -> Release:
        """The ledger's record of one round's update; rounds count from 1."""
        return self._release(
            Kind.GRADIENT,
            number,
            self.mechanism.noise_multiplier,
            self.mechanism.clip_norm,
            sample_rate=self.training.sample_rate,
            steps=self.training.steps,
            user=self.user.update if self.user else None,
        )

    def releases(self) -> Iterator[Release]:
        """Everything a device lets out in its part of the run; no device lets out more."""
        once = (self.centre_release(), self.normaliser_release(), self.calibration_release())
        for release in once:
            if release:
                yield release
        yield self.counts_release()
        schedule = self.schedule_release()
        if schedule:
            yield schedule
            return
        apart = self.bands.spacing if self.bands else 1
        for number in range(1, self.rounds + 1, apart):
            yield self.gradient_release(number)

    def schedule_release(self) -> Release | None:
        """The ledger's record of all rounds where each device joins a round by its own coin.

        It pays for every round at once, those that it will not join included: whoever does not see
        the coins must take it to be in any. None where everybody joins every round.
        """
        if not self.sampled or self.user is None:
            return None
        return replace(self.gradient_release(0), user=replace(self.user.update, sums=self.rounds))

    def _release(
        self,
        kind: Kind,
        number: int,
        noise: float,
        sensitivity: float,
        *,
        sample_rate: float = 1.0,
        steps: int = 1,
        user: UserNoise | None = None,
    ) -> Release:
        """One record; without any noise it says that nothing protects it."""
        return Release(
            kind=kind,
            mechanism=Mechanism.GAUSSIAN if noise > 0 or user else Mechanism.NONE,
            run=self.run,
            round=number,
            noise_multiplier=noise,
            sample_rate=sample_rate,
            steps=steps,
            sensitivity=sensitivity if noise > 0 else 0.0,
            user=user,
        )

    def to_json(self) -> str:
        """The plan as it travels and as checkpoints keep it."""
        record = asdict(self) | {"user": self.user.to_dict() if self.user else None}
        if self.training.loss == CROSS_ENTROPY:  # plans from before there were others keep theirs
            del record["training"]["loss"]
        if not self.private:  # infinities are not JSON
            record |= {name: bool(getattr(self, name)) for name in ("centre", "normaliser")}
            record["mechanism"] = None
        return json.dumps({"schema": SCHEMA} | record, sort_keys=True, allow_nan=False)

    def digest(self) -> str:
        """SHA-256 of the plan."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        """Found once: every message asks for it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def model_hash(self, weights: Tensor) -> str:
        """SHA-256 of a model of this plan: of the plan, which names the front, and the weights."""
        return digest(weights, self)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan.

        Raises:
            MessageError: Not a plan, or one of another schema.
        """
        try:
            record: dict[str, Any] = json.loads(text)
            schema = record.pop("schema")
            if schema != SCHEMA:
                raise MessageError(f"the plan has schema {schema}; this version reads {SCHEMA}")
            return cls(**_settings(record))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise MessageError(f"the plan cannot be read: {error}") from error
        except MessageError:
            raise
        except SottovoceError as error:
            raise MessageError(f"the plan makes no sense: {error}") from error


_UNITS = {
    (False, False): "none",
    (True, False): "utterance",
    (False, True): "user",
    (True, True): "both",
}


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild the nested settings."""
    mechanism = record["mechanism"]
    if mechanism is None:
        centre = EXACT_CENTRE if record["centre"] else None
        normaliser = EXACT_MEAN if record["normaliser"] else None
    else:
        centre = CentreRelease(**record["centre"]) if record["centre"] else None
        normaliser = NormaliserRelease(**record["normaliser"]) if record["normaliser"] else None
    calibration = record["calibration"]
    return dict(record) | {
        "labels": tuple(record["labels"]),
        "model": ModelSpec.from_dict(record["model"]),
        "training": LocalTraining.from_dict(record["training"]),
        "mechanism": UtteranceNoise(**mechanism) if mechanism else NoPrivacy(),
        "centre": centre,
        "normaliser": normaliser,
        "user": UserPromise.from_dict(record["user"]) if record["user"] else None,
        "calibration": CalibrationRelease(**calibration) if calibration else None,
    }
