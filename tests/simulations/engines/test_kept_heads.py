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
from sottovoce.client.calibrator import Calibrator
from sottovoce.client.device import Device
from sottovoce.client.owner import Clips
from sottovoce.client.vault import Vault, unwrap_key
from sottovoce.server import checkpoint
from sottovoce.server.heads import HeadStore
from sottovoce.server.job import Job
from sottovoce.shared import crypto, heads, wire
from sottovoce.shared.heads import Head, HeadPrior, KeptHead, SealedHead, belief

DAN, NODE = "dan", 103
"""Who only receives, and has labelled clips."""

SEALED = 2048
LABELS = ("angry", "happy", "sad")


@dataclass(frozen=True)
class Kept:
    """A run that has ended, and the head that Dan's second device sealed since."""

    folder: Path
    model: str
    newer: SealedHead

    def calibrator(self, vault: Vault) -> Calibrator:
        """Of the run's model."""
        return _calibrator(self.folder, vault)


def _calibrator(world: Path, vault: Vault) -> Calibrator:
    """A calibrator for the model that a world's run released."""
    tensors, prior = checkpoint.released(world / "server")
    model = Job.load(world / "server").plan.model_hash(tensors["weights"])
    return Calibrator(vault, model_hash=model, prior=prior, labels=LABELS)


def _vault(world: Path) -> Vault:
    """Dan's."""
    return Vault.open(world / "devices" / "000003" / "vault")


def _key(world: Path) -> bytes:
    """Dan's, as it comes to another device: under a passphrase that Dan knows."""
    wrapped = _vault(world).wrap_key("correct horse battery")
    return unwrap_key(wrapped, "correct horse battery", user=DAN)


@pytest.fixture(scope="module")
def kept(make_world_at: Any, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("kept")
    make_world_at(folder, rounds=1).run()
    second = Vault.create(tmp_path_factory.mktemp("second") / "vault", user=DAN, key=_key(folder))
    other = _calibrator(folder, second)
    other.restore(_calibrator(folder, _vault(folder)).sealed())
    other.fit(torch.tensor([[2.0, 0.0, 0.0]] * 6), torch.tensor([1] * 6))
    sealed = other.sealed()
    assert sealed.version == 2
    return Kept(folder=folder, model=sealed.model_hash, newer=sealed)


@pytest.fixture
def again(kept: Kept, tmp_path: Path, make_world_at: Any) -> Any:
    """The same run, about to be resumed: everybody is asked for their head once more."""
    shutil.copytree(kept.folder, tmp_path / "again")
    return type(make_world_at(tmp_path / "unused", rounds=1))(tmp_path / "again")


class Lying(ClientApp):
    """The product's client behind a wire on which the server's word about Dan's head is changed."""

    def __init__(self, said: Callable[[KeptHead | None], KeptHead | None]) -> None:
        super().__init__()
        self.said = said
        self.offered: list[KeptHead | None] = []

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == wire.PERSONAL:
            place = int(context.node_config["partition-id"])
            if place == NODE - 100:
                request = wire.PersonalRequest.read(message.content)
                self.offered.append(request.kept)
                changed = replace(request, kept=self.said(request.kept))
                message.content["sottovoce"] = changed.record()["sottovoce"]
        return product(message, context)


def _word(sealed: SealedHead, **changes: Any) -> KeptHead:
    """What a server says that keeps this, or pretends to."""
    true = {"model_hash": sealed.model_hash, "version": sealed.version, "blob": sealed.blob}
    return KeptHead(**true | changes)


def _same(one: Head, other: Head) -> bool:
    return one.log_temperature == other.log_temperature and torch.equal(one.bias, other.bias)


# --- what comes back --------------------------------------------------------------------------


def _reinstall(world: Any, key: bytes | None, *, clips: bool) -> None:
    """Dan's app anew: an empty vault, the old key or another, labelled clips or not."""
    folder = world.folder / "devices" / "000003"
    old = Device(folder)
    held = old.clips()
    held = Clips(
        examples=held.examples,
        enrols=held.enrols,
        calibrates=held.calibrates & clips,
        trains=held.trains,
    )
    shutil.rmtree(folder)
    Device.create(folder, old.facts, held, key=key)


def test_a_reinstalled_app_gets_its_head_back_in_the_run_it_was_made_in(
    kept: Kept, again: Any
) -> None:
    before = kept.calibrator(_vault(kept.folder)).head()
    _reinstall(again, _key(again.folder), clips=False)

    again.run()

    after = _calibrator(again.folder, _vault(again.folder))
    assert _same(after.head(), before)
    assert after.version == 1


@pytest.mark.parametrize("clips", [True, False])
def test_a_second_run_maps_the_head_to_its_own_model(
    kept: Kept, make_world: Any, tmp_path: Path, clips: bool
) -> None:
    store = tmp_path / "heads.sqlite"
    shutil.copy(kept.folder / "server" / "heads.sqlite", store)
    world = make_world("second", rounds=2, heads=store)
    _reinstall(world, _key(kept.folder), clips=clips)
    old = kept.calibrator(_vault(kept.folder))

    world.run()

    new = _calibrator(world.folder, _vault(world.folder))
    _, prior = checkpoint.released(world.folder / "server")
    start = belief.mapped(
        belief.from_bytes(old._bytes(), kept.model), prior, LABELS, likeness=belief.LIKENESS
    )
    assert not _same(start.mean, prior.mean), "there is something to map"
    assert not _same(new.head(), old.head()), "a head of another model is never applied"
    assert _same(new.head(), start.mean) == (not clips), "clips refit it"
    assert new.version == 2
    newest = HeadStore(store).get(DAN)
    assert newest is not None
    assert (newest.version, newest.model_hash) == (2, new.sealed().model_hash)
    assert HeadStore(store).users() == ["ada", "ben", "cleo", "dan"]


def test_a_device_that_kept_its_clips_refits_from_the_plain_prior(
    kept: Kept, make_world: Any, tmp_path: Path
) -> None:
    """Else clips would count twice: once here, once in the head that they made."""
    store = tmp_path / "heads.sqlite"
    shutil.copy(kept.folder / "server" / "heads.sqlite", store)
    alone, world = make_world("alone", rounds=2), make_world("kept", rounds=2, heads=store)
    alone.run()
    place = Path("devices") / "000003" / "vault"
    for name in ("head", "head-scores"):  # the app lived on: the old head lies in its vault
        data = _vault(kept.folder).get(name)
        Vault.open(world.folder / place).put(name, data)
    _rekey(world, kept)

    world.run()

    heads = [_calibrator(one.folder, _vault(one.folder)) for one in (alone, world)]
    assert _same(heads[0].head(), heads[1].head())
    assert [one.version for one in heads] == [1, 2]


def _rekey(world: Any, kept: Kept) -> None:
    """Give Dan's device of a world the key that the kept head was sealed under."""
    folder = world.folder / "devices" / "000003"
    old = Device(folder)
    held, kinds = old.clips(), ("head", "head-scores")
    data = {name: old.vault.get(name) for name in kinds}
    shutil.rmtree(folder)
    fresh = Device.create(folder, old.facts, held, key=_key(kept.folder))
    for name, value in data.items():
        fresh.vault.put(name, value)


def test_a_newer_head_of_another_device_is_taken(kept: Kept, again: Any) -> None:
    """The lies below can fail: the same head, told truly, replaces the old one."""
    again.run(client=Lying(lambda _: _word(kept.newer)))

    after = _calibrator(again.folder, _vault(again.folder))
    assert after.version == 2
    assert after.sealed().version == 2
    assert not _same(after.head(), kept.calibrator(_vault(kept.folder)).head())


# --- what does not ----------------------------------------------------------------------------


def _flipped(place: int) -> Callable[[Kept], KeptHead]:
    """One bit of the ciphertext is another."""

    def said(kept: Kept) -> KeptHead:
        blob = bytearray(kept.newer.blob)
        blob[place] ^= 1 << (place % 8)
        return _word(kept.newer, blob=bytes(blob))

    return said


def _cut(length: int) -> Callable[[Kept], KeptHead]:
    """Another length."""
    return lambda kept: _word(kept.newer, blob=kept.newer.blob.ljust(length, b"\0")[:length])


def _sealed_by(user: str, key: Callable[[Kept], bytes]) -> Callable[[Kept], KeptHead]:
    """A head that somebody else's vault sealed for the same model and version."""

    def said(kept: Kept) -> KeptHead:
        folder = kept.folder.parent / f"vault-of-{user}-{crypto.new_key().hex()}"
        theirs = kept.calibrator(Vault.create(folder, user=user, key=key(kept)))
        for _ in range(2):
            theirs.fit(torch.zeros(3, 3), torch.tensor([0, 1, 2]))
        return _word(theirs.sealed())

    return said


LIES: dict[str, tuple[Callable[[Kept], KeptHead], str]] = {
    **{
        f"a bit of the {region} flipped": (_flipped(place), "seal")
        for region, place in {
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
        _sealed_by("ben", lambda kept: _key(kept.folder)),
        "does not open",
    ),
    "a newer version by name": (lambda kept: _word(kept.newer, version=3), "does not open"),
    "the old head as a newer one": (
        lambda kept: _word(kept.calibrator(_vault(kept.folder)).sealed(), version=2),
        "does not open",
    ),
    "another model by name": (lambda kept: _word(kept.newer, model_hash="0" * 64), "not open"),
    "no model at all": (lambda kept: _word(kept.newer, model_hash="latest"), "SHA-256"),
    "version 0": (lambda kept: _word(kept.newer, version=0), "version is 0"),
    "a negative version": (lambda kept: _word(kept.newer, version=-1), "version is -1"),
    "the last version there can be": (
        lambda kept: _word(kept.newer, version=(1 << 63) - 1),
        "does not open",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_the_old_head_kept_and_the_run_goes_on(
    kept: Kept, again: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    said, words = LIES[name]
    before, ledger = _vault(again.folder).get("head"), again.ledgers()
    client = Lying(lambda _: said(kept))
    caplog.set_level(logging.WARNING, logger="sottovoce.client")

    again.run(client=client)

    warned = [record.getMessage() for record in caplog.records]
    assert [words in line for line in warned] == [True], warned
    assert warned[0].startswith("dan refuses the head that the server says is theirs")
    assert _vault(again.folder).get("head") == before
    assert again.ledgers() == ledger
    store = HeadStore(again.folder / "server" / "heads.sqlite")
    assert store.users() == ["ada", "ben", "cleo", "dan"]
    assert client.offered == [_word(kept.calibrator(_vault(kept.folder)).sealed(), blob=_any)]


class _Anything(bytes):
    """Equal to every ciphertext: sealing twice gives two."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, bytes)

    __hash__ = bytes.__hash__


_any = _Anything()


@pytest.mark.parametrize("name", LIES)
def test_a_new_device_refuses_lies_too_and_starts_at_the_prior(
    kept: Kept, again: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    said, words = LIES[name]
    if name == "the old head as a newer one":
        said = _relabelled
    _reinstall(again, _key(again.folder), clips=False)
    caplog.set_level(logging.WARNING, logger="sottovoce.client")

    again.run(client=Lying(lambda _: said(kept)))

    warned = [record.getMessage() for record in caplog.records]
    assert [words in line for line in warned] == [True], warned
    after = _calibrator(again.folder, _vault(again.folder))
    _, prior = checkpoint.released(again.folder / "server")
    assert _same(after.head(), prior.mean)
    assert after.version == 1


def _relabelled(kept: Kept) -> KeptHead:
    """The old head, said to be the newer one."""
    return _word(kept.calibrator(_vault(kept.folder)).sealed(), version=2)


def test_an_older_head_is_a_replay_to_a_device_that_knows_the_newer_one(
    kept: Kept, again: Any, caplog: pytest.LogCaptureFixture
) -> None:
    old = _word(kept.calibrator(_vault(kept.folder)).sealed())
    again.run(client=Lying(lambda _: _word(kept.newer)))
    newer = _vault(again.folder).get("head")
    caplog.set_level(logging.WARNING, logger="sottovoce.client")

    again.run(client=Lying(lambda _: old))

    assert "an old head was replayed" in caplog.text
    assert _vault(again.folder).get("head") == newer


def test_a_new_device_knows_a_replay_only_if_its_user_says_what_there_is(
    kept: Kept, again: Any, caplog: pytest.LogCaptureFixture
) -> None:
    old = kept.calibrator(_vault(kept.folder)).sealed()
    caplog.set_level(logging.WARNING, logger="sottovoce.client")
    key = _key(again.folder)
    for expected, replayed in ((0, False), (2, True)):
        _reinstall(again, key, clips=False)
        _calibrator(again.folder, _vault(again.folder)).expect(expected)
        caplog.clear()

        again.run(client=Lying(lambda _: _word(old)))

        assert ("an old head was replayed" in caplog.text) == replayed
        found = _calibrator(again.folder, _vault(again.folder)).head()
        assert _same(found, kept.calibrator(_vault(kept.folder)).head()) != replayed


def test_a_device_with_another_key_neither_gets_the_head_nor_replaces_it(
    kept: Kept, again: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = HeadStore(again.folder / "server" / "heads.sqlite")
    before = store.get(DAN)
    caplog.set_level(logging.WARNING)
    _reinstall(again, None, clips=True)

    again.run()

    assert "does not open: the key is wrong" in caplog.text
    assert store.get(DAN) == before


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
    request = wire.PersonalRequest(
        plan="0" * 64,
        weights=torch.zeros(3),
        centre=torch.zeros(2),
        prior=HeadPrior(mean=heads.identity(3)),
        kept=KeptHead(model_hash="0" * 64, version=1, blob=b"x"),
    )
    assert wire.PersonalRequest.read(request.record()).kept == request.kept
    plain = replace(request, kept=None).record()
    assert wire.PersonalRequest.read(plain).kept is None
    for change in ({"kept": "text"}, {"kept_version": "first"}, {"kept_model": 7}):
        record = request.record()
        record["sottovoce"] = ConfigRecord(dict(record.config_records["sottovoce"]) | change)
        with pytest.raises(wire.MessageError):
            wire.PersonalRequest.read(record)
