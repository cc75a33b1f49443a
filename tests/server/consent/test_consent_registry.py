"""Who has withdrawn: signed by the user's key, for this server, of the newest enrolment."""

from pathlib import Path

import pytest

from sottovoce.server.consent.consent_registry import ConsentRegistry
from sottovoce.shared.errors import MessageError
from sottovoce.shared.protocol.consent import STATEMENT_BYTES, ConsentStatement

ADA, EVE = bytes(32), b"\x01" * 32
"""Signing keys."""
PLAN, CHALLENGE = "0" * 64, b"c" * 32


@pytest.fixture
def registry(tmp_path: Path) -> ConsentRegistry:
    """An empty register."""
    return ConsentRegistry(tmp_path / "consents.sqlite")


def consent(key: bytes, enrolment: int = 1, plan: str = PLAN, user: str = "ada") -> bytes:
    """A statement of consent."""
    return ConsentStatement.sign_consent(
        key, user=user, enrolment=enrolment, plan_hash=plan
    ).to_bytes()


def withdrawal(key: bytes, enrolment: int = 1, challenge: bytes = CHALLENGE) -> ConsentStatement:
    """A proof of withdrawal."""
    return ConsentStatement.sign_withdrawal(
        key, user="ada", enrolment=enrolment, challenge=challenge
    )


def admits(registry: ConsentRegistry, data: bytes, user: str = "ada") -> bool:
    """Whether an enrolment counts."""
    return registry.admit_enrolments({user: data}, PLAN) == {user}


def test_a_withdrawal_is_remembered_by_every_server_of_the_operator(
    registry: ConsentRegistry, tmp_path: Path
) -> None:
    assert admits(registry, consent(ADA))
    assert not registry.is_withdrawn("ada")

    assert registry.record_withdrawal("ada", withdrawal(ADA), challenge=CHALLENGE)

    again = ConsentRegistry(tmp_path / "consents.sqlite")
    assert again.is_withdrawn("ada")
    assert again.select_withdrawn(["ada", "ben"]) == {"ada"}
    assert not admits(again, consent(ADA)), "a device from before the withdrawal"
    assert not admits(again, b""), "and one that states nothing"


@pytest.mark.parametrize(
    "proof",
    [
        withdrawal(EVE),
        withdrawal(ADA, challenge=b"d" * 32),
        ConsentStatement.from_bytes(consent(ADA)),
        ConsentStatement.sign_withdrawal(ADA, user="ben", enrolment=1, challenge=CHALLENGE),
    ],
    ids=["another key", "recorded for another challenge", "a consent", "another user's"],
)
def test_a_withdrawal_by_somebody_else_is_refused(
    registry: ConsentRegistry, proof: ConsentStatement
) -> None:
    assert admits(registry, consent(ADA))

    assert not registry.record_withdrawal("ada", proof, challenge=CHALLENGE)
    assert not registry.has_withdrawals


def test_only_the_user_comes_back_and_as_a_new_enrolment(registry: ConsentRegistry) -> None:
    assert admits(registry, consent(ADA))
    registry.record_withdrawal("ada", withdrawal(ADA), challenge=CHALLENGE)

    assert not admits(registry, consent(EVE, 2))
    assert not admits(registry, consent(ADA, 2, plan="1" * 64)), "recorded in another run"
    assert admits(registry, consent(ADA, 2))
    assert not registry.is_withdrawn("ada")
    # The proof of the first enrolment, made anew for a challenge by an old device, ends no other.
    assert not registry.record_withdrawal("ada", withdrawal(ADA), challenge=CHALLENGE)
    assert registry.record_withdrawal("ada", withdrawal(ADA, 2), challenge=CHALLENGE)


def test_a_user_whom_nobody_knows_is_believed(registry: ConsentRegistry) -> None:
    assert registry.record_withdrawal("ada", withdrawal(ADA), challenge=CHALLENGE)
    assert registry.is_withdrawn("ada")
    assert registry.is_withdrawn("\u0410da") is False, "another name"


def test_an_operator_forgets_a_key_but_no_withdrawal(registry: ConsentRegistry) -> None:
    assert admits(registry, consent(ADA))
    assert not admits(registry, consent(EVE))
    assert registry.forget_user("ada")
    assert admits(registry, consent(EVE))

    registry.record_withdrawal("ada", withdrawal(EVE), challenge=CHALLENGE)
    assert not registry.forget_user("ada")
    assert registry.is_withdrawn("ada")


def test_the_register_holds_no_pseudonym(registry: ConsentRegistry, tmp_path: Path) -> None:
    name = "ada-lovelace-of-ockham"
    assert admits(registry, consent(ADA, user=name), user=name)

    assert name.encode() not in (tmp_path / "consents.sqlite").read_bytes()


@pytest.mark.parametrize(
    "data", [b"", b"x", bytes(STATEMENT_BYTES), bytes(STATEMENT_BYTES + 1), b"\xff" * 104]
)
def test_bytes_that_are_no_statement_are_refused(registry: ConsentRegistry, data: bytes) -> None:
    with pytest.raises(MessageError):
        ConsentStatement.from_bytes(data)
    assert admits(registry, consent(ADA))
    assert not admits(registry, data)
