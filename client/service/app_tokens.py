"""Tokens by which apps use a device's service: one an app, with scopes, kept as hashes alone."""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypedDict

from sottovoce.client.device.vault import Vault
from sottovoce.shared import codec, validation
from sottovoce.shared.codec import Count, Name, Sha256
from sottovoce.shared.errors import PrivacyError, SettingError
from sottovoce.shared.validation import suggest_name

MAX_APPS: Final = 50
"""Most apps that have a token at a time."""

_BLOB: Final = "app-tokens"
_SCHEMA: Final = 1
_PREFIX: Final = "svt_"
"""How every token begins, so that one that was pasted into a wrong file is recognised."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Scope(StrEnum):
    """Scope of what an app may ask of the service."""

    RECOGNISE = "recognise"
    PERSONALISE = "personalise"
    CONTRIBUTE = "contribute"


@dataclass(frozen=True, kw_only=True, slots=True)
class AppToken:
    """Record of an app's token; the token itself is nowhere.

    Attributes:
        name: The app's.
        scopes: What it may ask, in alphabetical order.
        created_at: When, in UTC, by the device's clock.
        sha256: Of the token, 64 hexadecimal digits.
    """

    name: str
    scopes: tuple[Scope, ...]
    created_at: str
    sha256: str


class AppTokens:
    """Tokens of a device's apps, in its vault: sealed, mode 0600, and erased with its key.

    Args:
        vault: The device's.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sottovoce.client.device.vault import FileVault
        >>> tokens = AppTokens(FileVault.create(Path(tempfile.mkdtemp()) / "vault", user="ada"))
        >>> token = tokens.create_token("diary", ["recognise"])
        >>> tokens.find_app(token).name, tokens.find_app("svt_guess")
        ('diary', None)
        >>> tokens.revoke_token("diary")
        >>> tokens.find_app(token)
    """

    def __init__(self, vault: Vault) -> None:
        self._vault: Final = vault

    def create_token(self, name: str, scopes: Iterable[Scope | str]) -> str:
        """Create the token of an app; it cannot be shown again.

        Args:
            name: Of the app: letters, digits, '.', '_' and '-', at most 64.
            scopes: At least one, as such or by name.

        Raises:
            SettingError: A name that cannot be or is taken, no scope or an unknown one, or too many
                apps; nothing was created.
            PrivacyError: The vault cannot be read or written.
        """
        if not _NAME.fullmatch(name):
            raise SettingError(
                f"the app's name is {name!r}; it must be 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'"
            )
        chosen = tuple(sorted({parse_scope(scope) for scope in scopes}))
        if not chosen:
            raise SettingError(f"{name} has no scope; give at least one of {_known_scopes()}")
        token = _PREFIX + secrets.token_urlsafe(32)
        with self._vault.lock_blob(_BLOB):
            apps = self.list_apps()
            if name in {app.name for app in apps}:
                raise SettingError(f"{name} has a token already; revoke it first, or choose a name")
            if len(apps) >= MAX_APPS:
                raise SettingError(f"{len(apps)} apps have tokens, the most that may; revoke some")
            made = AppToken(
                name=name,
                scopes=chosen,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                sha256=hash_token(token),
            )
            self._write((*apps, made))
        return token

    def list_apps(self) -> tuple[AppToken, ...]:
        """List the apps that have a token, the oldest first.

        Raises:
            PrivacyError: The record is damaged.
        """
        if not self._vault.has_blob(_BLOB):
            return ()
        content = codec.decode_json(
            self._vault.get(_BLOB), _TokenFile, name="the record of tokens", error=PrivacyError
        )
        return tuple(
            AppToken(**{**app, "scopes": tuple(app["scopes"])})  # type: ignore[arg-type]
            for app in content["apps"]
        )

    def find_app(self, token: str) -> AppToken | None:
        """Find the app of a token; None for a token that nobody has.

        Raises:
            PrivacyError: The record is damaged.
        """
        # Tokens are 256 random bits, so one round of SHA-256 hides them as well as a slow hash.
        digest, found = hash_token(token), None
        for app in self.list_apps():
            # All are compared, in constant time: how long it takes tells nothing of the hashes.
            if hmac.compare_digest(app.sha256, digest):
                found = app
        return found

    def revoke_token(self, name: str) -> None:
        """Revoke the token of an app; it counts no more from when this returns.

        Raises:
            SettingError: No app of that name has one.
            PrivacyError: The vault cannot be read or written.
        """
        with self._vault.lock_blob(_BLOB):
            apps = self.list_apps()
            names = [app.name for app in apps]
            if name not in names:
                known = ", ".join(names) or "nobody"
                raise SettingError(
                    f"{name!r} has no token{suggest_name(name, names)}; tokens have: {known}"
                )
            self._write(tuple(app for app in apps if app.name != name))

    def _write(self, apps: tuple[AppToken, ...]) -> None:
        content = {"schema": _SCHEMA, "apps": [asdict(app) for app in apps]}
        self._vault.put(_BLOB, json.dumps(content).encode())


def parse_scope(name: str) -> Scope:
    """Read a scope by its name.

    Raises:
        SettingError: There is no such scope.

    Example:
        >>> parse_scope("recognise").name
        'RECOGNISE'
    """
    validation.require_one_of([scope.value for scope in Scope], scope=name)
    return Scope(name)


def _known_scopes() -> str:
    return ", ".join(Scope)


def hash_token(token: str) -> str:
    """Hash a token, which is 256 random bits, with SHA-256: 64 hexadecimal digits.

    Example:
        >>> len(hash_token("svt_guess"))
        64
    """
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


class _TokenRecord(TypedDict):
    name: Name
    scopes: list[Scope]
    created_at: Name
    sha256: Sha256


class _TokenFile(TypedDict):
    schema: Count
    apps: list[_TokenRecord]
