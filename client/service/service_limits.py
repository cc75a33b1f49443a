"""Limits of the service, and the rate of requests that an app may make."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from sottovoce.shared import validation

_MAX_CALLERS: Final = 256
"""Most callers whose rate is known at a time; an app that comes back later has a full bucket."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceLimits:
    """Limits within which the service answers.

    Attributes:
        max_recording_bytes: Largest recording that is uploaded.
        max_recording_s: Longest recording that is decoded, in seconds.
        max_json_bytes: Largest body of any other request.
        body_timeout_s: Longest time that the body of a request may take, in seconds.
        header_timeout_s: Longest time that its headers may take, in seconds.
        requests_per_s: Requests of one app that are answered in the long run, a second.
        burst: Requests that it may make at once.
        max_uploads: Recordings that are uploaded and decoded at a time, which bounds the memory.
        max_waiting: Requests that may wait for the device at a time.
        max_streams: Streams that are open at a time.
        max_frame_bytes: Largest message of a stream.
        max_backlog_s: Sound of a stream that waits to be looked at, in seconds; until some of it is
            done, no more is read from the app.
        idle_timeout_s: Longest time that a stream may send nothing, in seconds.
        max_moments: Moments that can still be corrected, of all streams and recordings together.

    Raises:
        SettingError: A limit that is not above 0.
    """

    max_recording_bytes: int = 32 << 20
    max_recording_s: float = 600.0
    max_json_bytes: int = 16 << 10
    body_timeout_s: float = 30.0
    header_timeout_s: float = 10.0
    requests_per_s: float = 20.0
    burst: int = 60
    max_uploads: int = 4
    max_waiting: int = 16
    max_streams: int = 8
    max_frame_bytes: int = 256 << 10
    max_backlog_s: float = 4.0
    idle_timeout_s: float = 30.0
    max_moments: int = 512

    def __post_init__(self) -> None:
        validation.require_positive(**{name: getattr(self, name) for name in self.__slots__})


class RateLimiter:
    """Token buckets, one a caller: a burst at once, then a steady rate.

    Args:
        requests_per_s: What flows back into a bucket, a second.
        burst: What a full bucket holds.

    Example:
        >>> limiter = RateLimiter(requests_per_s=1.0, burst=2)
        >>> [limiter.seconds_to_wait("diary", now) for now in (0.0, 0.0, 0.25, 1.0)]
        [0.0, 0.0, 0.75, 0.0]
    """

    def __init__(self, *, requests_per_s: float, burst: int) -> None:
        self._rate, self._burst = requests_per_s, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def seconds_to_wait(self, caller: str, now: float) -> float:
        """Count a request; 0 where it may be answered, else after how many seconds it may come.

        Args:
            caller: Whose bucket it is.
            now: Of a monotonic clock, in seconds.
        """
        level, since = self._buckets.pop(caller, (float(self._burst), now))
        level = min(float(self._burst), level + (now - since) * self._rate)
        allowed = level >= 1
        self._buckets[caller] = (level - 1 if allowed else level, now)
        # Oldest first: whoever asked last is known longest.
        while len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - level) / self._rate
