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

from sottovoce.shared import validation
from sottovoce.shared.calibration.head_statistics import SENSITIVITY, CalibrationRelease
from sottovoce.shared.errors import MessageError, SettingError, SottovoceError
from sottovoce.shared.models.losses import CROSS_ENTROPY
from sottovoce.shared.models.parameters import hash_model
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind, SumMechanism
from sottovoce.shared.privacy.user_level import UserLevelPrivacy
from sottovoce.shared.protocol.local_training import (
    ExampleLevelMechanism,
    GradientMechanism,
    LocalTraining,
    NoPrivacy,
)
from sottovoce.shared.speaker.normalisation import (
    EXACT_CENTRE,
    EXACT_MEAN,
    CentreRelease,
    NormaliserRelease,
)

SCHEMA = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every device of a run does.

    Attributes:
        run: Name of the run, part of every release's name.
        labels: Emotions in the order of the model's classes.
        extractor: Name of the feature extractor.
        projection_hash: SHA-256 of the public projection.
        model: The shared model.
        rounds: Rounds of training, at least 1.
        training: Local training of one round.
        mechanism: Clip and noise of an utterance's gradient, or no privacy.
        centre: The noised sum for this population's centre; None takes the public corpora's
            centre.
        normaliser: The noised mean of the user that training uses; None trains with the centre
            alone, as for users who will enrol with little or nothing.
        count_noise: Standard deviation of the noise on the label histogram (sensitivity 1); 0 for
            no privacy of utterances.
        user: What hides a whole user in every sum over users; None where nothing does.
        calibration: Statistics for heads and prediction sets after the last round; None asks none.
    """

    run: str
    labels: tuple[str, ...]
    extractor: str
    projection_hash: str
    model: ModelSpec
    rounds: int
    training: LocalTraining
    mechanism: GradientMechanism
    centre: CentreRelease | None
    normaliser: NormaliserRelease | None
    count_noise: float
    user: UserLevelPrivacy | None = None
    calibration: CalibrationRelease | None = None

    def __post_init__(self) -> None:
        if self.utterance_level:
            self.training.loss.require_uncoupled()
        validation.require_at_least(1, rounds=self.rounds)
        validation.require_non_negative(count_noise=self.count_noise)
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

    def _check_user(self, user: UserLevelPrivacy) -> None:
        """Refuse a promise to users that the settings would not keep."""
        sums = [(user.centre, self.centre), (user.calibration, self.calibration)]
        if any((hidden is None) != (settings is None) for hidden, settings in sums):
            raise SettingError(
                "a plan hides its users in all of its sums, the centre's and the head statistics' "
                "included"
            )
        if self.utterance_level and user.secure:
            raise SettingError(
                "utterances are hidden by noise of the devices' own, which secure sums cannot "
                "count yet: hide users alone, or both without secure sums"
            )
        if self.samples_users and (self.utterance_level or user.secure):
            raise SettingError(
                f"devices join a round with a chance of {user.update.sample_rate:g}, which only "
                "noise that the server adds is accounted for: hide users alone, without secure sums"
            )
        if self.utterance_level and user.adaptive:
            raise SettingError(
                "an adaptive clip norm hides users alone; where utterances are hidden too, the sum "
                "of a user's gradients has a fixed bound"
            )
        if user.update.bands:
            self._check_bands(user.update.bands)
        bounded = self.mechanism.sum_norm
        if self.utterance_level and (bounded != user.update.clip_norm or self.training.steps != 1):
            raise SettingError(
                f"utterances and users are both hidden only in rounds of one step whose sum is "
                f"bounded as the user's update is: steps is {self.training.steps}, sum_norm "
                f"{bounded}, the update's clip_norm {user.update.clip_norm}"
            )

    def _check_bands(self, banded_noise: BandedNoise) -> None:
        """Refuse correlated noise where it would not be what is booked, or in vain."""
        if self.utterance_level:
            raise SettingError(
                "utterances are hidden by noise of the devices' own, which noise correlated across "
                "rounds cannot count: hide users alone, or leave min_separation at 1"
            )
        if banded_noise.min_separation > self.rounds:
            raise SettingError(
                f"min_separation is {banded_noise.min_separation} and rounds {self.rounds}: some "
                "users would never train; min_separation must be at most rounds"
            )

    @property
    def utterance_level(self) -> bool:
        """Whether every release is noised before it leaves, so that it hides an utterance."""
        return self.count_noise > 0

    @property
    def samples_users(self) -> bool:
        """Whether each device draws by itself whether it joins a round."""
        return self.user is not None and self.user.update.sample_rate < 1

    @property
    def banded_noise(self) -> BandedNoise | None:
        """Separation of rounds and correlation of their noise; None where all train in each."""
        return self.user.update.bands if self.user else None

    @property
    def initial_clip_norm(self) -> float:
        """The first round's clip norm on a user's update, where it is learned; else 1."""
        return self.user.adaptive.start if self.user and self.user.adaptive else 1.0

    @property
    def extra_coordinates(self) -> int:
        """How many numbers a device sends beside its update."""
        return 1 if self.user and self.user.adaptive else 0

    @property
    def privacy_unit(self) -> str:
        """What the plan protects: ``none``, ``utterance``, ``user`` or ``both``."""
        return _UNITS[self.utterance_level, self.user is not None]

    def normaliser_release(self) -> Release | None:
        """The ledger's record of the training normaliser; None where there is none to book.

        Where only users are hidden, it never leaves but inside updates that are bounded as a whole.
        """
        if self.normaliser is None or self.privacy_unit == "user":
            return None
        return self._release(
            ReleaseKind.NORMALISER, 0, self.normaliser.noise_multiplier, self.normaliser.sensitivity
        )

    def centre_release(self) -> Release | None:
        """The ledger's record of the device's share of the centre; None where none is sent."""
        if self.centre is None:
            return None
        return self._release(
            ReleaseKind.CENTRE,
            0,
            self.centre.noise_multiplier,
            self.centre.clip_norm,
            user=self.user.centre if self.user else None,
        )

    def calibration_release(self) -> Release | None:
        """The ledger's record of the head statistics; None where none are asked for."""
        if self.calibration is None:
            return None
        return self._release(
            ReleaseKind.HEAD_STATISTICS,
            0,
            self.calibration.noise_multiplier,
            SENSITIVITY,
            user=self.user.calibration if self.user else None,
        )

    def counts_release(self) -> Release:
        """The ledger's record of the label histogram."""
        user = self.user.counts if self.user else None
        return self._release(ReleaseKind.LABEL_COUNTS, 0, self.count_noise, 1.0, user=user)

    def gradient_release(self, number: int) -> Release:
        """The ledger's record of one round's update; rounds count from 1."""
        return self._release(
            ReleaseKind.GRADIENT,
            number,
            self.mechanism.noise_multiplier,
            self.mechanism.clip_norm,
            sample_rate=self.training.sample_rate,
            steps=self.training.steps,
            user=self.user.update if self.user else None,
        )

    def all_releases(self) -> Iterator[Release]:
        """Everything a device releases in its part of the run; no device releases more."""
        once = (self.centre_release(), self.normaliser_release(), self.calibration_release())
        for release in once:
            if release:
                yield release
        yield self.counts_release()
        all_rounds = self.all_rounds_release()
        if all_rounds:
            yield all_rounds
            return
        min_separation = self.banded_noise.min_separation if self.banded_noise else 1
        for round_number in range(1, self.rounds + 1, min_separation):
            yield self.gradient_release(round_number)

    def all_rounds_release(self) -> Release | None:
        """The ledger's record of all rounds where each device draws whether it joins a round.

        It pays for every round at once, those that it will not join included: whoever does not see
        the draws must take it to be in any. None where everybody joins every round.
        """
        if not self.samples_users or self.user is None:
            return None
        return replace(self.gradient_release(0), user=replace(self.user.update, sums=self.rounds))

    def _release(
        self,
        kind: ReleaseKind,
        number: int,
        noise: float,
        sensitivity: float,
        *,
        sample_rate: float = 1.0,
        steps: int = 1,
        user: SumMechanism | None = None,
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
        """The plan as it travels and as checkpoints store it."""
        record = asdict(self) | {"user": self.user.to_dict() if self.user else None}
        if self.training.loss == CROSS_ENTROPY:  # plans from before there were others keep theirs
            del record["training"]["loss"]
        if not self.utterance_level:  # infinities are not JSON
            record |= {name: bool(getattr(self, name)) for name in ("centre", "normaliser")}
            record["mechanism"] = None
        return json.dumps({"schema": SCHEMA} | record, sort_keys=True, allow_nan=False)

    def content_hash(self) -> str:
        """SHA-256 of the plan."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        """Computed once: every message asks for it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def hash_model(self, weights: Tensor) -> str:
        """SHA-256 of a model of this plan: of the plan, which names the projection, and weights."""
        return hash_model(weights, self)

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
                raise MessageError(
                    f"the plan has schema {schema}; this version reads {SCHEMA}: update the older "
                    "of server and device, or prepare the job again"
                )
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
        "mechanism": ExampleLevelMechanism(**mechanism) if mechanism else NoPrivacy(),
        "centre": centre,
        "normaliser": normaliser,
        "user": UserLevelPrivacy.from_dict(record["user"]) if record["user"] else None,
        "calibration": CalibrationRelease(**calibration) if calibration else None,
    }
