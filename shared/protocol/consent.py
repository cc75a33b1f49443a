"""Statements of consent: a user's signed word that an enrolment goes on, or that it has ended.

A user's enrolments are numbered from 1: each consent after a withdrawal begins the next one. A
statement is signed under a key that only the user's devices have, derived from the user's key. A
consent is bound to one plan and a withdrawal to one server's challenge, so neither can be repeated
by somebody who saw it.
"""

from dataclasses import dataclass
from typing import Final, Self

from sottovoce.shared import crypto
from sottovoce.shared.errors import MessageError

CHALLENGE_BYTES: Final = 32
_NUMBER_BYTES: Final = 8
STATEMENT_BYTES: Final = crypto.KEY_BYTES + _NUMBER_BYTES + crypto.SIGNATURE_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsentStatement:
    """A user's signed word on one enrolment.

    Attributes:
        public_key: The key that verifies it (Ed25519), 32 bytes; of the user, for life.
        enrolment: Number of the enrolment, from 1.
        signature: 64 bytes, over the user's name and what the statement is bound to.

    Example:
        >>> key = crypto.new_key()
        >>> word = ConsentStatement.sign_withdrawal(key, user="ada", enrolment=1, challenge=b"7")
        >>> word.is_withdrawal_of("ada", b"7"), word.is_withdrawal_of("ada", b"8")
        (True, False)
    """

    public_key: bytes
    enrolment: int
    signature: bytes

    @classmethod
    def sign_consent(cls, key: bytes, *, user: str, enrolment: int, plan_hash: str) -> Self:
        """Sign that an enrolment takes part in a plan.

        Args:
            key: The user's private signing key, 32 bytes.
            user: The pseudonym.
            enrolment: Number of the enrolment, from 1.
            plan_hash: SHA-256 of the plan.
        """
        return cls._sign(key, enrolment, _consent_text(user, enrolment, plan_hash))

    @classmethod
    def sign_withdrawal(cls, key: bytes, *, user: str, enrolment: int, challenge: bytes) -> Self:
        """Sign that an enrolment has ended.

        Args:
            key: The user's private signing key, 32 bytes.
            user: The pseudonym.
            enrolment: Number of the enrolment, from 1.
            challenge: Bytes that the server drew for this one proof.
        """
        return cls._sign(key, enrolment, _withdrawal_text(user, enrolment, challenge))

    @classmethod
    def _sign(cls, key: bytes, enrolment: int, text: bytes) -> Self:
        return cls(
            public_key=crypto.identity_public_key(key),
            enrolment=enrolment,
            signature=crypto.sign_message(key, text),
        )

    def is_consent_of(self, user: str, plan_hash: str) -> bool:
        """Whether its key signed that this enrolment of a user takes part in a plan."""
        return self._is_signed(_consent_text(user, self.enrolment, plan_hash))

    def is_withdrawal_of(self, user: str, challenge: bytes) -> bool:
        """Whether its key signed that this enrolment of a user has ended, for this challenge."""
        return self._is_signed(_withdrawal_text(user, self.enrolment, challenge))

    def _is_signed(self, text: bytes) -> bool:
        return crypto.verify_signature(self.public_key, self.signature, text)

    def to_bytes(self) -> bytes:
        """Encode it: key, number and signature, ``STATEMENT_BYTES`` in all."""
        number = self.enrolment.to_bytes(_NUMBER_BYTES, "big")
        return self.public_key + number + self.signature

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode a statement; its signature is verified by whoever knows what it must be bound to.

        Raises:
            MessageError: Another length, or no enrolment of that number.
        """
        end = crypto.KEY_BYTES + _NUMBER_BYTES
        enrolment = int.from_bytes(data[crypto.KEY_BYTES : end], "big")
        if len(data) != STATEMENT_BYTES or not 0 < enrolment < 1 << 63:
            raise MessageError(
                f"{len(data)} bytes are no statement of consent of {STATEMENT_BYTES}, or of an "
                "enrolment that there is not"
            )
        return cls(public_key=data[: crypto.KEY_BYTES], enrolment=enrolment, signature=data[end:])


def _consent_text(user: str, enrolment: int, plan_hash: str) -> bytes:
    """Bytes that a consent signs."""
    return crypto.encode_context("sottovoce consent", user, enrolment, plan_hash)


def _withdrawal_text(user: str, enrolment: int, challenge: bytes) -> bytes:
    """Bytes that a withdrawal signs."""
    return crypto.encode_context("sottovoce withdrawal", user, enrolment, challenge.hex())
