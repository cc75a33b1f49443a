"""Masks of a pair cancel, and nothing else does."""

import numpy as np
import pytest

from sottovoce.shared import crypto
from sottovoce.shared.secure_aggregation import masking


@pytest.mark.parametrize("bits", [8, 20, 32])
def test_masks_of_a_pair_cancel_and_nothing_else_does(bits: int) -> None:
    keys = {user: crypto.new_key() for user in ("ada", "bob")}
    public = {user: crypto.agreement_public_key(key) for user, key in keys.items()}

    def mask(user: str, other: str, session: bytes = b"s") -> np.ndarray:
        seed = masking.pair_seed(session, keys[user], public[other], users=(user, other))
        return masking.pair_mask(seed, user, other, parameters=500, bits=bits)

    one, two = mask("ada", "bob"), mask("bob", "ada")

    assert not masking.add_mask(one, two, bits).any()
    assert masking.add_mask(one, one, bits).any()
    assert masking.add_mask(one, mask("bob", "ada", b"another session"), bits).any()
    assert int(one.max()) < 2**bits
    assert not masking.add_mask(one, masking.negate_mask(one, bits), bits).any()
