"""Who calls: an app by its token, or the device's owner by the page that a one-time link opened."""

import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sottovoce.client.service.app_tokens import AppTokens, Scope, hash_token
from sottovoce.client.service.problems import ProblemError
from sottovoce.client.service.service_limits import RateLimiter, ServiceLimits

OWNER: Final = "owner"
"""Name under which the owner's page is counted; no app can have the same, whose tokens differ."""

_MAX_SESSIONS: Final = 16
_ANYBODY: Final = "anybody"


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Caller of the service, once known.

    Attributes:
        name: The app's; ``owner`` for the owner's page.
        scopes: What may be asked.
        is_owner: Whether it is the page of the device's owner, who may do all.
    """

    name: str
    scopes: frozenset[Scope]
    is_owner: bool

    def require_scope(self, scope: Scope) -> None:
        """Refuse a caller without a scope, by a problem."""
        if scope not in self.scopes:
            raise ProblemError(
                403,
                "scope-missing",
                f"{self.name} may not do this: its token lacks the scope {scope.value}",
                value=", ".join(sorted(self.scopes)),
                limit=scope.value,
                way_out="let the owner create a token with that scope, by sottovoce device token",
            )

    def require_owner(self) -> None:
        """Refuse every caller but the owner's page, by a problem."""
        if not self.is_owner:
            raise ProblemError(
                403,
                "owner-only",
                f"{self.name} may not do this: it is for the owner of the device alone",
                way_out="ask the owner to do it, on the page of the service or by command",
            )


class Access:
    """Knows callers by their tokens, and counts what they ask.

    Args:
        tokens: Of apps.
        limits: Of the service.
        clock: In seconds, monotonic.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sottovoce.client.device.vault import FileVault
        >>> vault = FileVault.create(Path(tempfile.mkdtemp()) / "vault", user="ada")
        >>> access = Access(AppTokens(vault), ServiceLimits())
        >>> session = access.open_session(access.issue_key())
        >>> access.identify(session).is_owner
        True
    """

    def __init__(
        self,
        tokens: AppTokens,
        limits: ServiceLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens: Final = tokens
        self._clock: Final = clock
        self._limiter = RateLimiter(requests_per_s=limits.requests_per_s, burst=round(limits.burst))
        # Hashes, like those of apps: a dump of the memory opens nothing.
        self._keys: set[str] = set()
        self._sessions: list[str] = []
        self._lock = threading.Lock()
        self._counting = threading.Lock()

    def issue_key(self) -> str:
        """Issue a key that opens one session of the owner's page, once."""
        key = secrets.token_urlsafe(32)
        self._keys.add(hash_token(key))
        return key

    def open_session(self, key: str) -> str:
        """Open a session of the owner's page; returns its token, which ends with the service.

        Raises:
            ProblemError: A key that was never issued, or was used before.
        """
        self._count(_ANYBODY)
        with self._lock:
            if hash_token(key) not in self._keys:
                raise ProblemError(
                    401,
                    "link-used",
                    "this link opened a page before, or is of an earlier start of the service",
                    way_out="start sottovoce device serve again, and open the link that it prints",
                )
            self._keys.discard(hash_token(key))
            token = secrets.token_urlsafe(32)
            self._sessions = [*self._sessions, hash_token(token)][-_MAX_SESSIONS:]
        return token

    def identify(self, token: str) -> Caller:
        """Identify a caller by its token, and count the request.

        Raises:
            ProblemError: Nobody has this token, or its caller asks too often.
            PrivacyError: The record of tokens is damaged.
        """
        digest = hash_token(token)
        if token and any(hmac.compare_digest(digest, one) for one in self._sessions):
            caller = Caller(name=OWNER, scopes=frozenset(Scope), is_owner=True)
        elif token and (app := self._tokens.find_app(token)):
            caller = Caller(name=app.name, scopes=frozenset(app.scopes), is_owner=False)
        else:
            # Counted together: whoever guesses tokens is nobody in particular.
            self._count(_ANYBODY)
            raise ProblemError(
                401,
                "token-unknown" if token else "token-missing",
                "the token is unknown: it was revoked, or is of an earlier start of the service"
                if token
                else "the request has no token",
                way_out="send Authorization: Bearer TOKEN; create one by sottovoce device token",
            )
        self._count("owner's page" if caller.is_owner else f"app {caller.name}")
        return caller

    def _count(self, caller: str) -> None:
        with self._counting:  # requests are identified on several threads
            wait = self._limiter.seconds_to_wait(caller, self._clock())
        if wait:
            raise ProblemError(
                429,
                "too-many-requests",
                f"{caller} asks too often",
                retry_after_s=wait,
                way_out="wait as long as Retry-After says; a stream is one request",
            )
