"""The user's key: what it seals is bound to the user, and to what it is."""

from sottovoce.shared import crypto
from sottovoce.shared.errors import SettingError


class UserKey:
    """One user's symmetric key.

    Args:
        key: 32 bytes.
        user: Whose it is; part of what everything sealed is bound to.

    Raises:
        SettingError: A key of another length, or no user.

    Example:
        >>> key = UserKey(bytes(32), user="ada")
        >>> key.open_blob("note", key.seal_blob("note", b"mine"))
        b'mine'
    """

    def __init__(self, key: bytes, *, user: str) -> None:
        if len(key) != crypto.KEY_BYTES:
            raise SettingError(f"the key has {len(key)} bytes; it must have {crypto.KEY_BYTES}")
        if not user:
            raise SettingError("user is empty; a vault belongs to somebody")
        self.key = key
        self.user = user

    def __repr__(self) -> str:
        return f"UserKey(user={self.user!r})"  # never the key

    def seal_blob(self, name: str, data: bytes) -> bytes:
        """Seal bytes of a vault, bound to the user and to a name."""
        return crypto.seal(self.key, data, context=self._context("blob", name))

    def open_blob(self, name: str, blob: bytes) -> bytes:
        """Open what :meth:`seal_blob` made; ``PrivacyError`` where anything does not match."""
        return crypto.open_sealed(self.key, blob, context=self._context("blob", name))

    def seal(self, data: bytes, *binding: str | int, size: int = crypto.MIN_SEALED_BYTES) -> bytes:
        """Seal bytes that are stored elsewhere, bound to the user and to ``binding``.

        Args:
            data: What to hide.
            binding: What the blob belongs to: purpose, model, version.
            size: Least length of the blob, a power of two.
        """
        return crypto.seal(self.key, data, context=self._context("out", *binding), min_size=size)

    def unseal(self, blob: bytes, *binding: str | int) -> bytes:
        """Open what :meth:`seal` made; ``PrivacyError`` where anything does not match."""
        return crypto.open_sealed(self.key, blob, context=self._context("out", *binding))

    def derive_consent_key(self) -> bytes:
        """Derive the private key that signs the user's consent, 32 bytes; see ``consent``.

        All devices that share the user's key have the same.
        """
        return crypto.derive_signing_key(
            self.key, context=crypto.encode_context("sottovoce consent key", self.user)
        )

    def wrap(self, passphrase: str) -> bytes:
        """Wrap the key under a passphrase, for a second device; see :func:`unwrap_key`."""
        return crypto.wrap_key(self.key, passphrase, context=_wrapping_context(self.user))

    def _context(self, *parts: str | int) -> bytes:
        """Associated data: this product, the user, the parts."""
        return crypto.encode_context("sottovoce vault", self.user, *parts)


def unwrap_key(wrapped: bytes, passphrase: str, *, user: str) -> bytes:
    """Unwrap a key that :meth:`UserKey.wrap` wrapped, 32 bytes.

    Args:
        wrapped: The wrapped key.
        passphrase: What it was wrapped under.
        user: Whose it is.

    Raises:
        PrivacyError: A wrong passphrase, another user, or damaged bytes.
    """
    return crypto.unwrap_key(wrapped, passphrase, context=_wrapping_context(user))


def _wrapping_context(user: str) -> bytes:
    """What a wrapped key is bound to."""
    return crypto.encode_context("sottovoce vault key", user)
