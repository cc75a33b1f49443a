"""Readers of ledgers raise only ``LedgerError``, and no ledger that they take breaks accounting."""

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import EXTREME_NUMBERS, FUZZ, mutated_bytes, mutated_json

from sottovoce.shared.errors import LedgerError, SettingError
from sottovoce.shared.privacy import accounting, hash_chain
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import (
    MAX_NOISE,
    MAX_STEPS,
    MIN_NOISE,
    MIN_RATE,
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)
from sottovoce.simulations.verification.second_accountant import opacus_epsilon

BANDS = BandedNoise(min_separation=3, coefficients=(1.0, 0.5))
USERS: Sequence[SumMechanism | None] = (
    None,
    SumMechanism(noise_multiplier=4.0, clip_norm=1.0, noised_by=NoiseSource.SERVER, bands=BANDS),
    SumMechanism(
        noise_multiplier=4.0,
        clip_norm=1.0,
        noised_by=NoiseSource.DISTRIBUTED,
        discrete=True,
        near_gaussian=True,
    ),
)


def make_release(user: SumMechanism | None, **changes: Any) -> Release:
    fields: dict[str, Any] = {
        "kind": ReleaseKind.GRADIENT,
        "mechanism": Mechanism.GAUSSIAN,
        "run": "r",
        "round": 1,
        "noise_multiplier": 4.0,
        "sensitivity": 1.0,
        "user": user,
    }
    return Release(**fields | changes)


RECORDS = [make_release(user).to_dict() for user in USERS]


def chain_lines(records: Sequence[Any], **keys: Any) -> bytes:
    """A ledger of whatever records, its chain whole: whoever has the file can make one."""
    head, data = hash_chain.GENESIS, b""
    for number, record in enumerate(records):
        line = {"n": number, "prev": head, "id": f"one-{number}", "release": record} | keys
        raw = (json.dumps(line, sort_keys=True) + "\n").encode()
        head, data = hash_chain.sha256_hex(raw), data + raw
    return data


def read_and_account(data: bytes) -> list[float]:
    """What every reader of a ledger does with it; ``LedgerError`` is its only refusal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        path.write_bytes(data)
        try:
            ledger = Ledger(path, read_only=True)
        except LedgerError:
            return []
        found = [
            epsilon
            for unit in PrivacyUnit
            for epsilon in (
                accounting.compute_epsilon(ledger.releases, 1e-5, unit=unit, fast=True),
                opacus_epsilon(ledger.releases, 1e-5, unit=unit),
                ledger.charged_epsilon(PrivacyBudget(epsilon=1.0, delta=1e-5, unit=unit)),
            )
        ]
    assert all(epsilon >= 0 for epsilon in found)  # never NaN
    return found


VALID = chain_lines(RECORDS)


def test_the_valid_ledger_is_read() -> None:
    assert all(map(math.isfinite, read_and_account(chain_lines(RECORDS[1:2]))[2:]))
    assert read_and_account(VALID)


@FUZZ
@given(mutated_bytes(VALID))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    read_and_account(data)


@FUZZ
@given(st.data(), st.sampled_from(RECORDS))
def test_any_rechained_record_is_read_or_refused(data: st.DataObject, record: Any) -> None:
    read_and_account(chain_lines([data.draw(mutated_json(record))]))


@FUZZ
@given(mutated_json({"utterance": 4.0, "user": 2.25}))
def test_any_orders_of_filters_are_read_or_refused(orders: Any) -> None:
    read_and_account(chain_lines(RECORDS[1:], renyi_orders=orders))


@pytest.mark.parametrize("order", [10**400, 1e-320, 1e308, -1, 1, "1", [], None, math.nan, True])
def test_an_order_out_of_bounds_is_refused(order: Any) -> None:
    assert read_and_account(chain_lines(RECORDS[1:], renyi_orders={"user": order})) == []


@pytest.mark.parametrize("name", ["noise_multiplier", "sample_rate", "steps", "round"])
@pytest.mark.parametrize(
    "value", [10**400, 1e-320, 1e308, -1, 2**63, "1", "", [], None, False, math.nan, math.inf]
)
def test_a_number_out_of_bounds_is_refused(name: str, value: Any) -> None:
    data = chain_lines([RECORDS[0] | {name: value}])

    assert read_and_account(data) == []


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("value", ["", "0", [], {}, None, False])
def test_noise_that_only_seems_to_be_none_is_refused(record: Any, value: Any) -> None:
    assert read_and_account(chain_lines([record | {"noise_multiplier": value}])) == []


@pytest.mark.parametrize("name", ["discrete", "fine"])
@pytest.mark.parametrize("value", ["", "no", [], None, 0, 1])
def test_a_flag_that_is_none_is_refused(name: str, value: Any) -> None:
    """What is false costs less: it must be written as false."""
    (record, *_) = [one for one in RECORDS if one["user"]]
    data = chain_lines([record | {"user": record["user"] | {name: value}}])

    assert read_and_account(data) == []


@pytest.mark.parametrize(
    "data", [b"[" * 200_000, b"9" * 5_000 + b"\n", b'{"salt": 1}\n', b"null\n"]
)
def test_what_is_no_record_is_refused(data: bytes) -> None:
    assert read_and_account(data + b"\n") == []


def test_the_refusal_names_line_value_and_limit(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(chain_lines([RECORDS[0], RECORDS[0] | {"steps": 10**400}]))

    with pytest.raises(LedgerError, match=r"line 2 .*steps is about 1e400.*from 1 to 1,000,000"):
        Ledger(path, read_only=True)


@FUZZ
@given(
    st.lists(
        st.builds(
            make_release,
            st.just(None),
            noise_multiplier=st.sampled_from([MIN_NOISE, 1e-3, 0.5, 1.0, MAX_NOISE]),
            sample_rate=st.sampled_from([MIN_RATE, 0.1, 1.0]),
            steps=st.sampled_from([1, 1_000, MAX_STEPS]),
        ),
        max_size=1,
    )
)
def test_releases_at_the_ends_of_their_bounds_have_an_epsilon(releases: list[Release]) -> None:
    assert accounting.compute_epsilon(releases, 1e-5, fast=True) >= 0


@pytest.mark.parametrize("value", EXTREME_NUMBERS)
@pytest.mark.parametrize("name", ["epsilon", "delta", "per_run"])
def test_a_budget_of_extremes_is_refused_or_can_be_asked(name: str, value: Any) -> None:
    terms = {"epsilon": 8.0, "delta": 1e-5, "unit": "utterance", "per_run": None} | {name: value}
    try:
        budget = PrivacyBudget.from_dict(terms)
    except (LedgerError, SettingError, TypeError, ValueError, KeyError):
        return
    assert budget.epsilon > 0


def test_a_file_that_is_no_file_or_cannot_be_read_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ledger.jsonl"
    folder.mkdir()

    with pytest.raises(LedgerError, match="no regular file"):
        Ledger(folder, read_only=True)
