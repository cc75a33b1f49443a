"""A release is a frozen record: what makes no sense is no record, and none is read from rubbish."""

import json
import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from sottovoce.shared.errors import LedgerError, SettingError
from sottovoce.shared.privacy.release import (
    Mechanism,
    NoiseSource,
    Release,
    ReleaseKind,
    SumMechanism,
)

GOOD = Release(
    kind=ReleaseKind.GRADIENT,
    mechanism=Mechanism.GAUSSIAN,
    run="r",
    round=3,
    noise_multiplier=1.5,
    sample_rate=0.25,
    steps=4,
    sensitivity=0.5,
)


def test_a_record_survives_json() -> None:
    assert Release.from_dict(json.loads(json.dumps(GOOD.to_dict()))) == GOOD


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        GOOD.noise_multiplier = 9.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_multiplier", 0.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", math.inf),
        ("sensitivity", 0.0),
        ("sensitivity", math.nan),
        ("sample_rate", 0.0),
        ("sample_rate", 1.5),
        ("sample_rate", math.nan),
        ("steps", 0),
        ("steps", math.nan),
        ("round", -1),
    ],
)
def test_a_release_that_makes_no_sense_is_refused(field: str, value: float) -> None:
    with pytest.raises(SettingError, match=field):
        replace(GOOD, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("mechanism", Mechanism)
@pytest.mark.parametrize("noise", [1e-31, 1e13])
def test_noise_that_nothing_can_be_computed_with_is_refused_of_every_mechanism(
    mechanism: Mechanism, noise: float
) -> None:
    with pytest.raises(SettingError, match="noise_multiplier"):
        replace(GOOD, mechanism=mechanism, noise_multiplier=noise)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "gossip"},
        {"mechanism": "hope"},
        {"steps": "4"},
        {"noise_multiplier": None},
        {"noise_multiplier": "lots"},
        {"extra": 1},
    ],
)
def test_a_record_with_a_foreign_field_or_value_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(LedgerError):
        Release.from_dict(GOOD.to_dict() | change)


def test_a_record_that_lacks_a_field_is_refused() -> None:
    for name in set(GOOD.to_dict()) - {"user"}:
        record = {key: value for key, value in GOOD.to_dict().items() if key != name}
        with pytest.raises(LedgerError, match=name):
            Release.from_dict(record)


@pytest.mark.parametrize("value", [0.0, -2.0, math.nan])
def test_a_record_of_noise_that_is_none_is_refused(value: float) -> None:
    """A ledger on the disk is no more trusted than an argument."""
    with pytest.raises(LedgerError):
        Release.from_dict(GOOD.to_dict() | {"noise_multiplier": value})


# --- what hides a whole user ------------------------------------------------------------------

HIDDEN = SumMechanism(noise_multiplier=2.0, clip_norm=1.0, noised_by=NoiseSource.SERVER)


@pytest.mark.parametrize("flag", ["discrete", "fine"])
@pytest.mark.parametrize("value", ["false", 0, 1, None])
def test_a_flag_that_is_no_truth_value_is_refused(flag: str, value: object) -> None:
    """Any text is true: "false" would book noise that costs less than what was added."""
    record = replace(GOOD, user=replace(HIDDEN, discrete=True, near_gaussian=True)).to_dict()
    with pytest.raises(LedgerError, match="discrete and fine"):
        Release.from_dict(record | {"user": record["user"] | {flag: value}})


@pytest.mark.parametrize("noised_by", NoiseSource)
@pytest.mark.parametrize("near_gaussian", [False, True])
def test_the_noise_that_hides_a_user_survives_json(
    noised_by: NoiseSource, near_gaussian: bool
) -> None:
    user = replace(HIDDEN, noised_by=noised_by, discrete=True, near_gaussian=near_gaussian)
    record = replace(GOOD, user=user)
    written = record.to_dict()

    assert Release.from_dict(json.loads(json.dumps(written))) == record
    assert ("fine" in written["user"]) is near_gaussian, "as every ledger's lines have it"
    assert "near_gaussian" not in written["user"]


@pytest.mark.parametrize("change", [{"discrete": False}, {"sample_rate": 0.5}])
def test_only_discrete_noise_in_sums_of_everybody_is_near_gaussian(change: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="near_gaussian is for discrete noise"):
        replace(HIDDEN, **({"discrete": True, "near_gaussian": True} | change))


def test_records_from_before_there_was_a_second_unit_are_read() -> None:
    old = {key: value for key, value in GOOD.to_dict().items() if key != "user"}

    assert Release.from_dict(old) == GOOD


def test_a_release_may_hide_the_user_alone() -> None:
    assert replace(GOOD, user=HIDDEN, noise_multiplier=0.0, sensitivity=0.0).user == HIDDEN


@pytest.mark.parametrize("mechanism", [Mechanism.NONE, Mechanism.ENCRYPTION])
def test_only_a_noised_release_hides_a_user(mechanism: Mechanism) -> None:
    with pytest.raises(SettingError, match="hides its user"):
        replace(GOOD, mechanism=mechanism, noise_multiplier=0.0, user=HIDDEN)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("field", ["noise_multiplier", "clip_norm"])
def test_noise_that_hides_no_user_is_refused(field: str, value: float) -> None:
    with pytest.raises(SettingError, match=field):
        replace(HIDDEN, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("user", [{}, "server", {"noise_multiplier": 1.0}, 7])
def test_a_user_record_that_makes_no_sense_is_refused(user: Any) -> None:
    with pytest.raises(LedgerError):
        Release.from_dict(GOOD.to_dict() | {"user": user})
