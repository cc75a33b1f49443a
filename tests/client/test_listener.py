"""The listener: what it learns moves the mean, what it forgets was never heard, nothing leaves."""

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from sottovoce.client import listener, recordings
from sottovoce.client.device import Device
from sottovoce.client.listener import Listener
from sottovoce.client.owner import Clips, Facts
from sottovoce.client.vault import Vault
from sottovoce.shared.bundle import Bundle
from sottovoce.shared.errors import ModelError, PrivacyError, SettingError
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import Front, identity
from sottovoce.shared.heads import HeadPrior
from sottovoce.shared.heads import identity as no_head
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.normaliser import Population

LABELS = ("angry", "happy", "neutral", "sad")
WIDTH = 4
OFFSET = torch.tensor([0.0, 0.0, 3.0, 0.0])


def _bundle(*, user_mean: bool = True, front: Front | None = None) -> Bundle:
    """A model that hears the class whose coordinate is largest."""
    spec = ModelSpec(kind="linear", inputs=WIDTH, classes=len(LABELS))
    weights = torch.cat([2 * torch.eye(WIDTH).flatten(), torch.zeros(len(LABELS))])
    ones = torch.ones(WIDTH)
    return Bundle(
        labels=LABELS,
        extractor="ears",
        spec=spec,
        weights=weights,
        front=front or identity(WIDTH),
        centre=torch.full((WIDTH,), 0.1),
        population=Population(
            between=ones,
            within=ones,
            neutral_offset=OFFSET,
            neutral_within=ones,
            offset_spread=0.01 * ones,
        ),
        prior=HeadPrior(mean=no_head(len(LABELS))),
        user_mean=user_mean,
        model_hash="0" * 64,
    )


def _device(folder: Path, *, enrolled: int = 0, neutral: bool = False) -> Device:
    features = _speech(enrolled, seed=7)
    frames = torch.ones(enrolled, dtype=torch.int64)
    nobody = torch.zeros(enrolled, dtype=torch.bool)
    examples = Examples(features=features, frames=frames, labels=-frames)
    facts = Facts(
        user="ada",
        budgets=(),
        contributes=False,
        neutral_enrolment=neutral,
        labels=LABELS,
        simulated_seed=1,
    )
    clips = Clips(examples=examples, enrols=~nobody, calibrates=nobody, trains=nobody)
    return Device.create(folder, facts, clips)


def _speech(count: int, *, seed: int = 0) -> Tensor:
    """Features of utterances; four in five are neutral."""
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    calm = torch.arange(count) % 5 > 0
    return 0.5 + 0.3 * noise + torch.where(calm[:, None], OFFSET, -OFFSET / 3)


def _learned(
    folder: Path, rows: Tensor, bundle: Bundle | None = None
) -> tuple[Listener, list[str]]:
    own = Listener(folder, bundle or _bundle())
    return own, [own.learn(row) for row in rows]


# --- learning ---------------------------------------------------------------------------------


def test_unlabelled_speech_of_any_mix_gives_the_users_mean(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    own, names = _learned(device.folder, _speech(20))

    mean = own.mean()

    assert mean is not None
    assert own.heard == tuple(names)
    truth = torch.full((WIDTH,), 0.5)
    plain = _speech(20).mean(0)
    assert float((mean - truth).norm()) < 0.5 * float((plain - truth).norm())


def test_what_was_learned_survives_the_program_and_lies_sealed(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    own, names = _learned(device.folder, _speech(3))
    again = Listener(device.folder, _bundle())

    assert again.heard == tuple(names)
    assert torch.equal(_mean(again), _mean(own))
    blob = (device.folder / "vault" / "heard.sealed").read_bytes()
    assert names[0].encode() not in blob
    assert _speech(3)[0].numpy().tobytes() not in blob


def test_an_utterance_that_comes_twice_counts_once(tmp_path: Path) -> None:
    rows = _speech(4)
    once, _ = _learned(_device(tmp_path / "once").folder, rows)
    twice, names = _learned(_device(tmp_path / "twice").folder, torch.cat([rows, rows[:2]]))

    assert len(set(names)) == 4
    assert torch.equal(_mean(once), _mean(twice))


def test_neutral_enrolment_and_what_is_heard_later_go_together(tmp_path: Path) -> None:
    quiet = _device(tmp_path / "neutral", enrolled=5, neutral=True)
    loose = _device(tmp_path / "loose", enrolled=5)
    rows = _speech(2, seed=3)
    means = [_mean(_learned(device.folder, rows)[0]) for device in (quiet, loose)]
    bare = _mean(_learned(_device(tmp_path / "bare").folder, rows)[0])

    assert not torch.equal(means[0], means[1]), "five neutral clips are not five of any emotion"
    assert not torch.equal(means[0], bare)
    assert not torch.equal(means[1], bare)


def test_what_the_model_hears_of_neutral_speech_moves_the_mean(tmp_path: Path) -> None:
    rows = _speech(20)  # mostly neutral
    device = _device(tmp_path / "own")
    _learned(device.folder, rows)
    plain, heard = _bundle(), replace(_bundle(), neutral=torch.eye(WIDTH)[1])

    means = [_mean(Listener(device.folder, bundle)) for bundle in (plain, heard)]

    assert float((means[1] - means[0])[1]) < -0.01, (
        "neutral speech lies there, so the user does not"
    )


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MOST", 3)
    own, names = _learned(_device(tmp_path / "own").folder, _speech(5))
    fresh, _ = _learned(_device(tmp_path / "new").folder, _speech(5)[2:])

    assert own.heard == tuple(names[2:])
    assert torch.equal(_mean(own), _mean(fresh))


def test_nothing_heard_leaves_things_as_they_were(tmp_path: Path) -> None:
    assert Listener(_device(tmp_path / "own", enrolled=5).folder, _bundle()).mean() is None


def test_nothing_is_booked_and_nothing_goes_out(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    ledger = (device.folder / "ledger.jsonl").exists()
    before = set(Vault.open(device.folder / "vault").names())
    own, names = _learned(device.folder, _speech(3))
    own.forget(names[0])

    assert (device.folder / "ledger.jsonl").exists() == ledger
    assert set(Vault.open(device.folder / "vault").names()) - before == {"heard"}


# --- forgetting -------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 3, 9])
def test_what_is_forgotten_was_never_heard(tmp_path: Path, place: int) -> None:
    rows = _speech(10)
    without = torch.cat([rows[:place], rows[place + 1 :]])
    never, _ = _learned(_device(tmp_path / "never").folder, without)
    own, names = _learned(_device(tmp_path / "own", enrolled=0).folder, rows)
    before = _mean(own)

    own.forget(names[place])

    assert torch.equal(_mean(own), _mean(never)), "to the last bit"
    assert not torch.equal(_mean(own), before), (
        "the test can fail: the utterance had told something"
    )
    assert own.heard == never.heard
    kept = Vault.open(tmp_path / "own" / "vault").get("heard")
    assert rows[place].numpy().tobytes() not in kept
    assert kept == Vault.open(tmp_path / "never" / "vault").get("heard")


def test_forgetting_everything_leaves_a_new_device(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    own, names = _learned(device.folder, _speech(3))
    for name in names:
        listener.forget(device.folder, name)

    assert own.mean() is None
    assert listener.heard(device.folder) == ()


def test_what_was_never_heard_cannot_be_forgotten(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    own, names = _learned(device.folder, _speech(1))

    with pytest.raises(SettingError, match=names[0]):
        own.forget("abc")
    with pytest.raises(SettingError, match="holds no device"):
        listener.forget(tmp_path, names[0])
    assert own.heard == tuple(names)


# --- another model ----------------------------------------------------------------------------


def test_a_new_model_hears_the_same_speech_anew(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    _learned(device.folder, _speech(10))
    front = Front(mean=torch.ones(WIDTH), matrix=2 * torch.eye(WIDTH))
    fresh, _ = _learned(_device(tmp_path / "new").folder, _speech(10), _bundle(front=front))

    assert torch.equal(_mean(Listener(device.folder, _bundle(front=front))), _mean(fresh))


def test_another_extractors_features_tell_nothing(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    _learned(device.folder, _speech(10))
    other = Listener(device.folder, replace(_bundle(), extractor="eyes"))

    assert other.mean() is None
    assert other.heard == ()
    name = other.learn(_speech(11)[10])
    assert other.heard == (name,)
    assert len(listener.heard(device.folder)) == 11
    fresh, _ = _learned(_device(tmp_path / "new").folder, _speech(10))
    assert torch.equal(_mean(Listener(device.folder, _bundle())), _mean(fresh))
    own, names = _learned(device.folder, _speech(10))
    for gone in (*names, name):
        listener.forget(device.folder, gone)
    assert listener.heard(device.folder) == own.heard == ()


def test_what_was_kept_when_there_was_room_for_one_extractor_is_read(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    words = {"extractor": "ears", "names": ["a", "b"]}
    about = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
    device.vault.put_tensors("heard", {"rows": _speech(2), "about": about})
    fresh, _ = _learned(_device(tmp_path / "new").folder, _speech(2))
    own = Listener(device.folder, _bundle())

    assert own.heard == ("a", "b")
    assert torch.equal(_mean(own), _mean(fresh))
    own.learn(_speech(3)[2])
    own.forget("a")
    assert len(own.heard) == 2


@pytest.mark.parametrize("other", ["learns", "forgets"])
def test_what_another_program_does_meanwhile_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    rows, folder = _speech(4), _device(tmp_path / "own").folder
    own, names = _learned(folder, rows[:2])
    more = Listener(folder, _bundle())
    deed = (lambda: more.learn(rows[3])) if other == "learns" else (lambda: more.forget(names[0]))
    write, threads = recordings.write, list[Thread]()

    def slow(*kept: Any) -> None:
        if not threads:
            threads.append(Thread(target=deed))
            threads[0].start()
            threads[0].join(0.3)
        write(*kept)

    monkeypatch.setattr(recordings, "write", slow)
    name = own.learn(rows[2])
    threads[0].join()

    assert name in own.heard
    assert (names[0] in own.heard) == (other == "learns")
    assert len(own.heard) == (4 if other == "learns" else 2)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "features", [torch.ones(WIDTH + 1), torch.ones(1, WIDTH), torch.full((WIDTH,), torch.nan)]
)
def test_features_that_do_not_fit_teach_nothing(tmp_path: Path, features: Tensor) -> None:
    own = Listener(_device(tmp_path / "own").folder, _bundle())
    with pytest.raises(ModelError, match="nothing was learned"):
        own.learn(features)
    assert own.heard == ()


@pytest.mark.parametrize("size", [1.01e9, 1e38, 3e38])
def test_numbers_that_are_far_too_large_teach_nothing(tmp_path: Path, size: float) -> None:
    huge = size * torch.tensor([1.0, -1.0, 1.0, -1.0])
    device = _device(tmp_path / "own")
    own, _ = _learned(device.folder, _speech(3))
    before = _mean(own)

    with pytest.raises(ModelError, match=r"at most 1e\+09 is learned from.*nothing was learned"):
        own.learn(huge)
    (kept,) = recordings.read(device.vault, "heard")
    found, _ = kept.added(huge)  # as it was kept before there was a limit
    recordings.write(device.vault, "heard", [found])

    assert len(own.heard) == 4
    assert torch.equal(_mean(own), before)
    own.learn(torch.full((WIDTH,), recordings.LARGEST))
    assert bool(_mean(own).isfinite().all()), "the limit is low enough"


def test_an_enrolled_mean_that_is_far_too_large_is_left_alone(tmp_path: Path) -> None:
    device, front = _device(tmp_path / "own", enrolled=5), _bundle().front.digest()
    stamp = torch.frombuffer(bytearray.fromhex(front), dtype=torch.uint8)
    means = []
    for size in (1.0, 1e38):
        mean = torch.full((WIDTH,), size)
        device.vault.put_tensors("normaliser", {"mean": mean, "front": stamp})
        means.append(Listener(device.folder, _bundle()).mean())

    assert [mean is None for mean in means] == [False, True]


def test_a_model_without_users_means_learns_nothing(tmp_path: Path) -> None:
    own = Listener(_device(tmp_path / "own").folder, _bundle(user_mean=False))
    with pytest.raises(SettingError, match="nobody's mean"):
        own.learn(_speech(1)[0])
    assert own.mean() is None


def test_a_damaged_store_is_not_passed_over(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    own, _ = _learned(device.folder, _speech(1))
    Vault.open(device.folder / "vault").put_tensors("heard", {"rows": torch.ones(1, WIDTH)})
    with pytest.raises(PrivacyError, match="damaged"):
        own.mean()
    blob = device.folder / "vault" / "heard.sealed"
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(PrivacyError):
        own.learn(_speech(2)[1])


def _mean(own: Listener) -> Tensor:
    found = own.mean()
    assert found is not None
    return found
