"""The device that the service works for: one thread owns it, and requests wait for their turn."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from sottovoce.client.device.consent import CONSENT_TEXTS, Purpose
from sottovoce.client.device.device import Device
from sottovoce.client.device.vault import FileVault
from sottovoce.client.service.held_moments import HeldMoments
from sottovoce.client.service.live_streams import Recognised
from sottovoce.client.service.problems import ProblemError
from sottovoce.client.service.schemas import Answer, Settings
from sottovoce.client.service.service_limits import ServiceLimits
from sottovoce.client.user_device import UserDevice
from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import PrivacyError

Result = TypeVar("Result")

_SETTINGS: Final = "service-settings"


class DeviceSession:
    """One opened device with its model, for many requests.

    Args:
        folder: The device's.
        vault: Its vault, opened.
        model: A run folder, the model in it, or an exported one.
        limits: Of the service.
        trusted_key: Public key that must have signed the model, whenever it is opened; "" asks for
            no signature.

    Raises:
        ModelError: The model is missing, damaged, or not signed by the key.
        PrivacyError: The device is damaged.
    """

    def __init__(
        self,
        folder: Path,
        vault: FileVault,
        *,
        model: str | Path,
        limits: ServiceLimits,
        trusted_key: str = "",
    ) -> None:
        self.folder: Final = folder
        self.vault: Final = vault
        self.model: Final = model
        self.limits: Final = limits
        self._trusted_key: Final = trusted_key
        self.moments: Final = HeldMoments(most=limits.max_moments)
        self.open_streams = 0
        self._is_erased = False
        self._waiting = self._uploads = 0
        self._settings = _read_settings(vault)
        self._user_device = self._open_device()
        # Opened now: who starts the service sees at once that a model is broken.
        self.labels: Final = self._user_device.recogniser.package.labels
        # One thread: neither torch's model nor what a vault reads and writes bears two at a time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")

    @contextmanager
    def reserve_upload(self) -> Iterator[None]:
        """Reserve one of the few places for a recording on its way into the device.

        Raises:
            ProblemError: All are taken.
        """
        if self._uploads >= self.limits.max_uploads:
            raise ProblemError(
                503,
                "busy",
                f"{self._uploads} recordings are uploaded already",
                limit=self.limits.max_uploads,
                retry_after_s=1.0,
                way_out="wait a second, and send it again",
            )
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    @property
    def user_device(self) -> UserDevice:
        """The device; its methods belong into :meth:`run_on_device`."""
        self._require_device()
        return self._user_device

    def _require_device(self) -> None:
        if self._is_erased:
            raise ProblemError(
                410,
                "device-erased",
                "the device was erased",
                way_out="stop the service; make a device by sottovoce device create",
            )

    def read_device(self) -> Device:
        """Open the device only to look at it, as it is on the disk now.

        Raises:
            ProblemError: It was erased.
            PrivacyError: It is damaged.
        """
        self._require_device()
        return Device.open(self.folder, read_only=True, vault=self.vault)

    @property
    def settings(self) -> Settings:
        """Settings of the service as they stand."""
        return self._settings

    async def run_on_device(self, work: Callable[[], Result], *, waits: bool = False) -> Result:
        """Run work on the device's thread, when it is free.

        Args:
            work: What may read and change the device.
            waits: Whether it may wait behind however many requests; a stream asks once at a time,
                so that streams are bounded without.

        Raises:
            ProblemError: Too many requests wait already.
        """
        if self._waiting >= self.limits.max_waiting and not waits:
            raise ProblemError(
                503,
                "busy",
                f"{self._waiting} requests wait for the device",
                limit=self.limits.max_waiting,
                retry_after_s=1.0,
                way_out="wait a second, and send it again",
            )
        self._waiting += not waits
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting -= not waits

    def recognise(self, signal: Signal) -> Recognised:
        """Recognise one recording by the device as it is now; see :meth:`Recogniser.predict`."""
        return Recognised(*self.user_device.recogniser.predict_with_features(signal))

    def change_settings(self, settings: Settings) -> None:
        """Keep new settings in the vault, and work by them from here on.

        Raises:
            PrivacyError: The vault cannot be written; the old ones count.
        """
        # Kept first: if the disk refuses, nothing has changed.
        self.vault.put(_SETTINGS, settings.model_dump_json().encode())
        self._settings = settings
        if not settings.moment_s:
            self.moments.clear()
        self._user_device = self._open_device()

    def build_answer(self, recognised: Recognised) -> Answer:
        """Build the answer to a recording; its features are held where it may be corrected."""
        prediction, features = recognised
        seconds, moment = self._settings.moment_s, None
        may_learn = seconds and self.user_device.consent.allows(Purpose.PERSONALISE)
        if features is not None and may_learn:
            moment = self.moments.hold(features, seconds=seconds)
        return Answer(**prediction.to_dict(), moment=moment)

    def correct_moment(self, name: str, emotion: str) -> str:
        """Learn what a moment was; returns the recording's name.

        Raises:
            ProblemError: It is not held any more.
            SettingError: An emotion that the model does not know.
            ConsentError: The user does not consent to personalise.
        """
        features = self.moments.find(name)
        if features is None:
            raise ProblemError(
                404,
                "moment-gone",
                "this moment is not held any more",
                value=name,
                limit=f"{self._settings.moment_s} s",
                way_out="correct answers sooner, hold moments longer, or send the recording again "
                "with its emotion to /v1/recordings",
            )
        return self.user_device.recogniser.label_features(features, emotion)

    def grant_consent(self, purpose: Purpose, text_version: int) -> None:
        """Record that the owner, shown the text of a purpose, consents.

        Raises:
            ProblemError: Another text was shown than today's.
            PrivacyError: The vault cannot be read or written.
        """
        today = CONSENT_TEXTS[purpose].version
        if text_version != today:
            raise ProblemError(
                409,
                "text-changed",
                f"text {text_version} of {purpose.value} was shown, and today's is {today}",
                value=text_version,
                limit=today,
                way_out="show today's text, and ask again",
            )
        self.user_device.consent.grant(purpose)
        device = self.read_device()
        if purpose is Purpose.CONTRIBUTE and device.profile.withdrawn:
            device.enrol_anew()

    def withdraw_consent(self, purpose: Purpose) -> None:
        """Record that the owner withdraws consent; held moments go too.

        Raises:
            PrivacyError: The vault cannot be read or written.
        """
        self.user_device.consent.withdraw(purpose)
        if purpose is not Purpose.CONTRIBUTE:
            self.moments.clear()

    def erase_device(self) -> tuple[str, ...]:
        """Erase the device; returns files in its folder that are none of the device's, by name.

        Raises:
            PrivacyError: The disk refuses.
        """
        left = self.user_device.erase()
        # From here on every request is told so, whatever the recogniser still has in memory.
        self._is_erased = True
        self.moments.clear()
        return tuple(path.name for path in left)

    def close(self) -> None:
        """Let the thread end, once what it does is done."""
        self.moments.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _open_device(self) -> UserDevice:
        risk = self._settings.risk
        return UserDevice(
            self.folder,
            self.vault,
            model=self.model,
            min_confidence=None if risk is None else 1 - risk,
            coverage=self._settings.coverage,
            trusted_key=self._trusted_key,
        )


def _read_settings(vault: FileVault) -> Settings:
    """Read the settings that were kept; those of a newer release, or damaged ones, are refused."""
    if not vault.has_blob(_SETTINGS):
        return Settings()
    try:
        return Settings(**json.loads(vault.get(_SETTINGS)))
    except (ValueError, TypeError, ValidationError) as error:
        raise PrivacyError(
            f"the service's settings in the vault cannot be read ({error}); delete "
            f"{_SETTINGS}.sealed there, and choose them again"
        ) from error
