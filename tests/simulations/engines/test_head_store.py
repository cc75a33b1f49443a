"""A user's head comes back from the server by itself, and a server that lies gets nowhere.

All of it in real runs: the unmodified apps, with a wire in between that swaps what the server
says it keeps.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from sottovoce.client.app import app as product
from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import LabelledFeatures
from sottovoce.client.device.vault import FileVault, unwrap_key
from sottovoce.client.personalisation.head_calibrator import HeadCalibrator
from sottovoce.server.consent.consent_registry import REGISTRY_FILE
from sottovoce.server.federation import checkpoint
from sottovoce.server.federation.training_job import Job
from sottovoce.server.personalisation.head_store import HeadStore
from sottovoce.shared import calibration, crypto
from sottovoce.shared.calibration import (
    CalibrationHead,
    HeadPrior,
    SealedHead,
    UnverifiedHead,
    head_transfer,
)
from sottovoce.shared.protocol import flower_records, messages

DAN, NODE = "dan", 103
"""Who only receives, and has labelled clips."""

SEALED = 2048
LABELS = ("angry", "happy", "sad")


@dataclass(frozen=True)
class FirstRun:
    """A run that has ended, and the head that Dan's second device sealed since."""

    folder: Path
    model: str
    newer: SealedHead

    def calibrator(self, vault: FileVault) -> HeadCalibrator:
        """Of the run's model."""
        return _calibrator(self.folder, vault)


def _calibrator(federation: Path, vault: FileVault) -> HeadCalibrator:
    """A calibrator for the model that a federation's run released."""
    tensors, prior = checkpoint.load_released_model(federation / "server")
    model = Job.load(federation / "server").plan.hash_model(tensors["weights"])
    return HeadCalibrator(vault, model_hash=model, prior=prior, labels=LABELS)


def _vault(federation: Path) -> FileVault:
    """Dan's."""
    return FileVault.open(federation / "devices" / "000003" / "vault")


def _key(federation: Path) -> bytes:
    """Dan's, as it comes to another device: under a passphrase that Dan knows."""
    wrapped = _vault(federation).wrap_key("correct horse battery")
    return unwrap_key(wrapped, "correct horse battery", user=DAN)


@pytest.fixture(scope="module")
def first_run(make_federation_at: Any, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    folder = tmp_path_factory.mktemp("kept")
    make_federation_at(folder, rounds=1).run()
    second = FileVault.create(
        tmp_path_factory.mktemp("second") / "vault", user=DAN, key=_key(folder)
    )
    other = _calibrator(folder, second)
    other.restore_head(_calibrator(folder, _vault(folder)).seal_head())
    other.fit_head(torch.tensor([[2.0, 0.0, 0.0]] * 6), torch.tensor([1] * 6))
    sealed = other.seal_head()
    assert sealed.version == 2
    return FirstRun(folder=folder, model=sealed.model_hash, newer=sealed)


@pytest.fixture
def again(first_run: FirstRun, tmp_path: Path, make_federation_at: Any) -> Any:
    """The same run, about to be resumed: everybody is asked for their head once more."""
    shutil.copytree(first_run.folder, tmp_path / "again")
    return type(make_federation_at(tmp_path / "unused", rounds=1))(tmp_path / "again")


class Lying(ClientApp):
    """The product's client behind a wire on which the server's word about Dan's head is changed."""

    def __init__(self, said: Callable[[UnverifiedHead | None], UnverifiedHead | None]) -> None:
        super().__init__()
        self.said = said
        self.offered: list[UnverifiedHead | None] = []

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == messages.FINAL_MODEL:
            index = int(context.node_config["partition-id"])
            if index == NODE - 100:
                request = flower_records.decode_final_model_request(message.content)
                self.offered.append(request.stored_head)
                changed = replace(request, stored_head=self.said(request.stored_head))
                message.content["sottovoce"] = flower_records.encode_request(changed)["sottovoce"]
        return product(message, context)


def _word(sealed: SealedHead, **changes: Any) -> UnverifiedHead:
    """What a server says that keeps this, or pretends to."""
    true = {"model_hash": sealed.model_hash, "version": sealed.version, "blob": sealed.blob}
    return UnverifiedHead(**true | changes)


def _same(one: CalibrationHead, other: CalibrationHead) -> bool:
    return one.log_temperature == other.log_temperature and torch.equal(one.bias, other.bias)


# --- what comes back --------------------------------------------------------------------------


def _reinstall(federation: Any, key: bytes | None, *, clips: bool) -> None:
    """Dan's app anew: an empty vault, the old key or another, labelled clips or not."""
    folder = federation.folder / "devices" / "000003"
    old = Device.open(folder)
    held = old.load_features()
    held = LabelledFeatures(
        examples=held.examples,
        for_enrolment=held.for_enrolment,
        for_head=held.for_head & clips,
        for_training=held.for_training,
    )
    shutil.rmtree(folder)
    Device.create(folder, old.profile, held, key=key)


def test_a_reinstalled_app_gets_its_head_back_in_the_run_it_was_made_in(
    first_run: FirstRun, again: Any
) -> None:
    before = first_run.calibrator(_vault(first_run.folder)).current_head()
    _reinstall(again, _key(again.folder), clips=False)

    again.run()

    after = _calibrator(again.folder, _vault(again.folder))
    assert _same(after.current_head(), before)
    assert after.head_version == 1


@pytest.mark.parametrize("clips", [True, False])
def test_a_second_run_maps_the_head_to_its_own_model(
    first_run: FirstRun, make_federation: Any, tmp_path: Path, clips: bool
) -> None:
    store = tmp_path / "heads.sqlite"
    shutil.copy(first_run.folder / "server" / "heads.sqlite", store)
    federation = make_federation("second", rounds=2, head_store_path=store)
    _reinstall(federation, _key(first_run.folder), clips=clips)
    old = first_run.calibrator(_vault(first_run.folder))

    federation.run()

    new = _calibrator(federation.folder, _vault(federation.folder))
    _, prior = checkpoint.load_released_model(federation.folder / "server")
    start = head_transfer.transfer_posterior(
        head_transfer.from_bytes(old._stored_bytes(), first_run.model),
        prior,
        LABELS,
        correlation=head_transfer.HEAD_CORRELATION,
    )
    assert not _same(start.mean, prior.mean), "there is something to map"
    assert not _same(new.current_head(), old.current_head()), (
        "a head of another model is never applied"
    )
    assert _same(new.current_head(), start.mean) == (not clips), "clips refit it"
    assert new.head_version == 2
    newest = HeadStore(store).get(DAN)
    assert newest is not None
    assert (newest.version, newest.model_hash) == (2, new.seal_head().model_hash)
    assert HeadStore(store).list_users() == ["ada", "ben", "cleo", "dan"]


def test_a_device_that_kept_its_clips_refits_from_the_plain_prior(
    first_run: FirstRun, make_federation: Any, tmp_path: Path
) -> None:
    """Else clips would count twice: once here, once in the head that they made."""
    store = tmp_path / "heads.sqlite"
    shutil.copy(first_run.folder / "server" / "heads.sqlite", store)
    alone, federation = (
        make_federation("alone", rounds=2),
        make_federation("kept", rounds=2, head_store_path=store),
    )
    alone.run()
    index = Path("devices") / "000003" / "vault"
    for name in ("head", "head-scores"):  # the app lived on: the old head lies in its vault
        data = _vault(first_run.folder).get(name)
        FileVault.open(federation.folder / index).put(name, data)
    _rekey(federation, first_run)

    federation.run()

    heads = [_calibrator(one.folder, _vault(one.folder)) for one in (alone, federation)]
    assert _same(heads[0].current_head(), heads[1].current_head())
    assert [one.head_version for one in heads] == [1, 2]


def _rekey(federation: Any, first_run: FirstRun) -> None:
    """Give Dan's device of a federation the key that the stored head was sealed under."""
    folder = federation.folder / "devices" / "000003"
    old = Device.open(folder)
    held, kinds = old.load_features(), ("head", "head-scores")
    data = {name: old.vault.get(name) for name in kinds}
    shutil.rmtree(folder)
    fresh = Device.create(folder, old.profile, held, key=_key(first_run.folder))
    for name, value in data.items():
        fresh.vault.put(name, value)


def test_a_newer_head_of_another_device_is_taken(first_run: FirstRun, again: Any) -> None:
    """The lies below can fail: the same head, offered truly, replaces the old one."""
    again.run(client=Lying(lambda _: _word(first_run.newer)))

    after = _calibrator(again.folder, _vault(again.folder))
    assert after.head_version == 2
    assert after.seal_head().version == 2
    assert not _same(
        after.current_head(), first_run.calibrator(_vault(first_run.folder)).current_head()
    )


# --- what does not ----------------------------------------------------------------------------


def _flipped(index: int) -> Callable[[FirstRun], UnverifiedHead]:
    """One bit of the ciphertext is another."""

    def said(first_run: FirstRun) -> UnverifiedHead:
        blob = bytearray(first_run.newer.blob)
        blob[index] ^= 1 << (index % 8)
        return _word(first_run.newer, blob=bytes(blob))

    return said


def _cut(length: int) -> Callable[[FirstRun], UnverifiedHead]:
    """Another length."""
    return lambda first_run: _word(
        first_run.newer, blob=first_run.newer.blob.ljust(length, b"\0")[:length]
    )


def _sealed_by(user: str, key: Callable[[FirstRun], bytes]) -> Callable[[FirstRun], UnverifiedHead]:
    """A head that somebody else's vault sealed for the same model and version."""

    def said(first_run: FirstRun) -> UnverifiedHead:
        folder = first_run.folder.parent / f"vault-of-{user}-{crypto.new_key().hex()}"
        theirs = first_run.calibrator(FileVault.create(folder, user=user, key=key(first_run)))
        for _ in range(2):
            theirs.fit_head(torch.zeros(3, 3), torch.tensor([0, 1, 2]))
        return _word(theirs.seal_head())

    return said


LIES: dict[str, tuple[Callable[[FirstRun], UnverifiedHead], str]] = {
    **{
        f"a bit of the {region} flipped": (_flipped(index), "seal")
        for region, index in {
            "version": 0,
            "nonce": 5,
            "length": 14,
            "magic": 18,
            "head": 60,
            "padding": 1500,
            "tag": SEALED - 1,
        }.items()
    },
    **{f"{length} bytes of it": (_cut(length), "seal") for length in (0, 1, 512, 1024, 2047)},
    "zeros behind it": (_cut(4096), "does not open"),
    "more than a head can have": (_cut(5000), "at most 4096"),
    "a head under another key": (_sealed_by(DAN, lambda _: crypto.new_key()), "does not open"),
    "another user's head": (_sealed_by("ben", lambda _: crypto.new_key()), "does not open"),
    "another user's under the same key": (
        _sealed_by("ben", lambda first_run: _key(first_run.folder)),
        "does not open",
    ),
    "a newer version by name": (
        lambda first_run: _word(first_run.newer, version=3),
        "does not open",
    ),
    "the old head as a newer one": (
        lambda first_run: _word(
            first_run.calibrator(_vault(first_run.folder)).seal_head(), version=2
        ),
        "does not open",
    ),
    "another model by name": (
        lambda first_run: _word(first_run.newer, model_hash="0" * 64),
        "not open",
    ),
    "no model at all": (lambda first_run: _word(first_run.newer, model_hash="latest"), "SHA-256"),
    "version 0": (lambda first_run: _word(first_run.newer, version=0), "version is 0"),
    "the last version there can be": (
        lambda first_run: _word(first_run.newer, version=(1 << 63) - 1),
        "does not open",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_the_old_head_kept_and_the_run_goes_on(
    first_run: FirstRun, again: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    said, words = LIES[name]
    before, ledger = _vault(again.folder).get("head"), again.ledgers()
    client = Lying(lambda _: said(first_run))
    caplog.set_level(logging.WARNING, logger="sottovoce.client")

    again.run(client=client)

    warned = [record.getMessage() for record in caplog.records]
    assert [words in line for line in warned] == [True], warned
    assert warned[0].startswith("dan refuses the head that the server says is theirs")
    assert _vault(again.folder).get("head") == before
    assert again.ledgers() == ledger
    store = HeadStore(again.folder / "server" / "heads.sqlite")
    assert store.list_users() == ["ada", "ben", "cleo", "dan"]
    assert client.offered == [
        _word(first_run.calibrator(_vault(first_run.folder)).seal_head(), blob=_any)
    ]


class _Anything(bytes):
    """Equal to every ciphertext: sealing twice gives two."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, bytes)

    __hash__ = bytes.__hash__


_any = _Anything()


@pytest.mark.parametrize("name", LIES)
def test_a_new_device_refuses_lies_too_and_starts_at_the_prior(
    first_run: FirstRun, again: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    said, words = LIES[name]
    if name == "the old head as a newer one":
        said = _relabelled
    _reinstall(again, _key(again.folder), clips=False)
    caplog.set_level(logging.WARNING, logger="sottovoce.client")

    again.run(client=Lying(lambda _: said(first_run)))

    warned = [record.getMessage() for record in caplog.records]
    assert [words in line for line in warned] == [True], warned
    after = _calibrator(again.folder, _vault(again.folder))
    _, prior = checkpoint.load_released_model(again.folder / "server")
    assert _same(after.current_head(), prior.mean)
    assert after.head_version == 1


def _relabelled(first_run: FirstRun) -> UnverifiedHead:
    """The old head, said to be the newer one."""
    return _word(first_run.calibrator(_vault(first_run.folder)).seal_head(), version=2)


def test_an_older_head_is_a_replay_to_a_device_that_knows_the_newer_one(
    first_run: FirstRun, again: Any, caplog: pytest.LogCaptureFixture
) -> None:
    old = _word(first_run.calibrator(_vault(first_run.folder)).seal_head())
    again.run(client=Lying(lambda _: _word(first_run.newer)))
    newer = _vault(again.folder).get("head")
    caplog.set_level(logging.WARNING, logger="sottovoce.client")

    again.run(client=Lying(lambda _: old))

    assert "an old head was replayed" in caplog.text
    assert _vault(again.folder).get("head") == newer


def test_a_new_device_knows_a_replay_only_if_its_user_says_what_there_is(
    first_run: FirstRun, again: Any, caplog: pytest.LogCaptureFixture
) -> None:
    old = first_run.calibrator(_vault(first_run.folder)).seal_head()
    caplog.set_level(logging.WARNING, logger="sottovoce.client")
    key = _key(again.folder)
    for expected, replayed in ((0, False), (2, True)):
        _reinstall(again, key, clips=False)
        _calibrator(again.folder, _vault(again.folder)).require_version(expected)
        caplog.clear()

        again.run(client=Lying(lambda _: _word(old)))

        assert ("an old head was replayed" in caplog.text) == replayed
        found = _calibrator(again.folder, _vault(again.folder)).current_head()
        assert (
            _same(found, first_run.calibrator(_vault(first_run.folder)).current_head()) != replayed
        )


def test_a_device_with_another_key_neither_gets_the_head_nor_replaces_it(
    first_run: FirstRun, again: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = HeadStore(again.folder / "server" / "heads.sqlite")
    before = store.get(DAN)
    caplog.set_level(logging.WARNING)
    _reinstall(again, None, clips=True)

    again.run()

    assert "the consent of dan is not theirs" in caplog.text
    assert store.get(DAN) == before


def test_a_head_of_another_key_is_refused_by_its_device(
    first_run: FirstRun, again: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that knows nobody's key gives it out; the device finds that it does not open."""
    caplog.set_level(logging.WARNING)
    _reinstall(again, None, clips=True)
    (again.folder / "server" / REGISTRY_FILE).unlink()

    again.run()

    assert "does not open: the key is wrong" in caplog.text


def test_a_damaged_store_is_not_the_end_of_a_run(
    again: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import sqlite3

    with sqlite3.connect(again.folder / "server" / "heads.sqlite") as database:
        database.execute("UPDATE heads SET version = 0 WHERE user = 'dan'")
    caplog.set_level(logging.WARNING, logger="sottovoce.server")

    again.run()

    assert "the head of dan is not offered" in caplog.text


def test_a_kept_head_that_breaks_the_schema_breaks_the_request() -> None:
    request = messages.FinalModelRequest(
        plan_hash="0" * 64,
        weights=torch.zeros(3),
        centre=torch.zeros(2),
        prior=HeadPrior(mean=calibration.identity_head(3)),
        stored_head=UnverifiedHead(model_hash="0" * 64, version=1, blob=b"x"),
    )
    assert (
        flower_records.decode_final_model_request(
            flower_records.encode_request(request)
        ).stored_head
        == request.stored_head
    )
    plain = flower_records.encode_request(replace(request, stored_head=None))
    assert flower_records.decode_final_model_request(plain).stored_head is None
    for change in (
        {"kept": "text"},
        {"kept_version": "first"},
        {"kept_version": -1},
        {"kept_model": 7},
    ):
        record = flower_records.encode_request(request)
        record["sottovoce"] = ConfigRecord(dict(record.config_records["sottovoce"]) | change)
        with pytest.raises(messages.MessageError):
            flower_records.decode_final_model_request(record)
