"""A parcel opens for its receiver only, and only if it holds what it commits to."""

from dataclasses import replace

import pytest

from sottovoce.shared import crypto
from sottovoce.shared.errors import AggregationError
from sottovoce.shared.secure_aggregation import encrypted_shares, transcript
from sottovoce.shared.secure_aggregation.messages import KEY_SHARE, SEED_SHARE, EncryptedShares

SESSION, NAMES = b"s" * 32, ("ada", "bob")
SHARES = b"1" * 32, b"2" * 32
PRIVATE = {name: crypto.new_key() for name in (*NAMES, "eve")}
PUBLIC = {name: crypto.agreement_public_key(key) for name, key in PRIVATE.items()}


def sealed() -> EncryptedShares:
    return encrypted_shares.encrypt_shares(
        SESSION, PRIVATE["ada"], PUBLIC["bob"], names=NAMES, seed=SHARES[0], key=SHARES[1]
    )


def test_it_opens_for_its_receiver_and_for_nobody_else() -> None:
    parcel = sealed()

    assert encrypted_shares.decrypt_shares(SESSION, PRIVATE["bob"], PUBLIC["ada"], parcel) == SHARES
    assert not any(share in parcel.to_bytes() for share in SHARES)
    with pytest.raises(AggregationError, match="do not open"):
        encrypted_shares.decrypt_shares(SESSION, PRIVATE["eve"], PUBLIC["ada"], parcel)
    with pytest.raises(AggregationError, match="do not open"):
        encrypted_shares.decrypt_shares(SESSION, PRIVATE["bob"], PUBLIC["eve"], parcel)
    with pytest.raises(AggregationError, match="do not open"):
        encrypted_shares.decrypt_shares(b"t" * 32, PRIVATE["bob"], PUBLIC["ada"], parcel)


def test_it_does_not_go_back_the_way_it_came() -> None:
    """The key is the same in both directions; the seal is not."""
    back = replace(sealed(), sender="bob", receiver="ada")

    with pytest.raises(AggregationError, match="do not open"):
        encrypted_shares.decrypt_shares(SESSION, PRIVATE["ada"], PUBLIC["bob"], back)


@pytest.mark.parametrize("wrong", [SEED_SHARE, KEY_SHARE])
def test_a_sender_who_commits_to_other_shares_is_named(
    wrong: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = transcript.commit_to_share

    def lying(*names: object, kind: bytes, share: bytes) -> bytes:
        return honest(*names, kind=kind, share=b"x" * 32 if kind == wrong else share)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(transcript, "commit_to_share", lying)
        parcel = sealed()

    with pytest.raises(AggregationError, match="'ada' committed to other shares"):
        encrypted_shares.decrypt_shares(SESSION, PRIVATE["bob"], PUBLIC["ada"], parcel)
