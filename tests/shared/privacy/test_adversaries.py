"""The table of adversaries: every unit says of every adversary what holds, and says it once."""

import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.guarantees.adversaries import (
    NOTHING,
    Adversary,
    make_adversary_table,
)
from sottovoce.shared.privacy.scheme import PrivacyScheme
from sottovoce.shared.privacy.schemes import scheme_for

SCHEMES = [
    scheme_for("none"),
    scheme_for("utterance"),
    scheme_for("utterance", secure=True),
    scheme_for("user"),
    scheme_for("user", secure=True),
    scheme_for("both"),
    scheme_for("both", secure=True),
]


def _holds(scheme: PrivacyScheme, adversary: Adversary) -> str:
    """What a unit says of one adversary."""
    (row,) = (one for one in scheme.adversaries() if one.adversary is adversary)
    return row.holds


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_unit_names_every_adversary_and_an_assumption(scheme: PrivacyScheme) -> None:
    table = scheme.adversaries()

    assert [row.adversary for row in table] == list(Adversary)
    assert all(row.holds and row.assumption for row in table)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_table_says_what_the_scheme_does(scheme: PrivacyScheme) -> None:
    server = _holds(scheme, Adversary.CURIOUS_SERVER)

    # Against a server: messages that are noised, or shares of noise in masked sums.
    hides_from_server = scheme.has_private_messages or scheme.secure
    assert (server == NOTHING) == (not hides_from_server)
    assert ("one utterance" in server) == scheme.has_private_messages
    recipient = _holds(scheme, Adversary.MODEL_RECIPIENT)
    for unit in scheme.promised:
        assert f"one {unit.value}" in recipient
    assert (recipient == NOTHING) == (not scheme.promised)
    assert _holds(scheme, Adversary.SUPPLIER) == NOTHING


def test_an_adversary_that_is_left_out_is_refused() -> None:
    bounds = dict.fromkeys(list(Adversary)[:5], (NOTHING, "No noise."))

    with pytest.raises(SettingError, match="Coalition"):
        make_adversary_table(bounds)


def test_what_does_not_hold_is_recorded_as_saved_runs_have_it() -> None:
    """A run's table is compared with the scheme's: another word would make old runs disagree."""
    (supplier,) = (
        row.to_record()
        for row in scheme_for("user").adversaries()
        if row.adversary is Adversary.SUPPLIER
    )
    assert supplier["holds"] == "Nothing"
