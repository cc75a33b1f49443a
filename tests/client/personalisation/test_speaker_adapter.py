"""Speaker adaptation: what it learns moves the mean, what it forgets is gone, nothing leaves."""

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from builders import make_clips, make_device
from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.client.device.vault import FileVault
from sottovoce.client.personalisation import example_store, speaker_adapter
from sottovoce.client.personalisation.speaker_adapter import SpeakerAdapter
from sottovoce.shared.calibration import HeadPrior
from sottovoce.shared.calibration import identity_head as no_head
from sottovoce.shared.errors import ModelError, PrivacyError, SettingError
from sottovoce.shared.features.version import FEATURE_VERSION
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.projection import PublicProjection, identity_projection
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.speaker.normalisation import SpeakerStatistics

LABELS = ("angry", "happy", "neutral", "sad")
WIDTH = 4
OFFSET = torch.tensor([0.0, 0.0, 3.0, 0.0])


def _bundle(*, user_mean: bool = True, front: PublicProjection | None = None) -> ModelPackage:
    """A model that hears the class whose coordinate is largest."""
    spec = ModelSpec(kind="linear", inputs=WIDTH, classes=len(LABELS))
    weights = torch.cat([2 * torch.eye(WIDTH).flatten(), torch.zeros(len(LABELS))])
    ones = torch.ones(WIDTH)
    return ModelPackage(
        labels=LABELS,
        extractor="ears",
        spec=spec,
        weights=weights,
        projection=front or identity_projection(WIDTH),
        centre=torch.full((WIDTH,), 0.1),
        speaker_statistics=SpeakerStatistics(
            between=ones,
            within=ones,
            neutral_offset=OFFSET,
            neutral_within=ones,
            offset_variance=0.01 * ones,
        ),
        prior=HeadPrior(mean=no_head(len(LABELS))),
        subtracts_user_mean=user_mean,
        model_hash="0" * 64,
    )


def _device(folder: Path, *, enrolled: int = 0, neutral: bool = False) -> Device:
    features = _speech(enrolled, seed=7)
    frames = torch.ones(enrolled, dtype=torch.int64)
    examples = Examples(features=features, frames=frames, labels=-frames)
    return make_device(
        folder,
        make_clips(examples, trains=False),
        contributes=False,
        neutral_enrolment=neutral,
        labels=LABELS,
        simulated_seed=1,
    )


def _speech(count: int, *, seed: int = 0) -> Tensor:
    """Features of utterances; four in five are neutral."""
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    calm = torch.arange(count) % 5 > 0
    return 0.5 + 0.3 * noise + torch.where(calm[:, None], OFFSET, -OFFSET / 3)


def _learned(
    folder: Path, rows: Tensor, bundle: ModelPackage | None = None
) -> tuple[SpeakerAdapter, list[str]]:
    own = SpeakerAdapter(folder, bundle or _bundle())
    return own, [own.add(row) for row in rows]


# --- learning ---------------------------------------------------------------------------------


def test_unlabelled_speech_of_any_mix_gives_the_users_mean(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    own, names = _learned(device.folder, _speech(20))

    mean = own.speaker_mean()

    assert mean is not None
    assert own.example_names == tuple(names)
    truth = torch.full((WIDTH,), 0.5)
    plain = _speech(20).mean(0)
    assert float((mean - truth).norm()) < 0.5 * float((plain - truth).norm())


def test_what_was_learned_survives_the_program_and_lies_sealed(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    own, names = _learned(device.folder, _speech(3))
    again = SpeakerAdapter(device.folder, _bundle())

    assert again.example_names == tuple(names)
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
    plain, directed = _bundle(), replace(_bundle(), neutral_direction=torch.eye(WIDTH)[1])

    means = [_mean(SpeakerAdapter(device.folder, bundle)) for bundle in (plain, directed)]

    assert float((means[1] - means[0])[1]) < -0.01, (
        "neutral speech lies there, so the user does not"
    )


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_store, "MAX_EXAMPLES", 3)
    own, names = _learned(_device(tmp_path / "own").folder, _speech(5))
    fresh, _ = _learned(_device(tmp_path / "new").folder, _speech(5)[2:])

    assert own.example_names == tuple(names[2:])
    assert torch.equal(_mean(own), _mean(fresh))


def test_nothing_heard_leaves_things_as_they_were(tmp_path: Path) -> None:
    assert (
        SpeakerAdapter(_device(tmp_path / "own", enrolled=5).folder, _bundle()).speaker_mean()
        is None
    )


def test_nothing_is_booked_and_nothing_goes_out(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    ledger = (device.folder / "ledger.jsonl").exists()
    before = set(FileVault.open(device.folder / "vault").list_names())
    own, names = _learned(device.folder, _speech(3))
    own.forget_utterance(names[0])

    assert (device.folder / "ledger.jsonl").exists() == ledger
    assert set(FileVault.open(device.folder / "vault").list_names()) - before == {"heard"}


# --- forgetting -------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 3, 9])
def test_what_is_forgotten_was_never_heard(tmp_path: Path, index: int) -> None:
    rows = _speech(10)
    without = torch.cat([rows[:index], rows[index + 1 :]])
    never, _ = _learned(_device(tmp_path / "never").folder, without)
    own, names = _learned(_device(tmp_path / "own", enrolled=0).folder, rows)
    before = _mean(own)

    own.forget_utterance(names[index])

    assert torch.equal(_mean(own), _mean(never)), "to the last bit"
    assert not torch.equal(_mean(own), before), (
        "the test can fail: the utterance had told something"
    )
    assert own.example_names == never.example_names
    stored = FileVault.open(tmp_path / "own" / "vault").get("heard")
    assert rows[index].numpy().tobytes() not in stored
    assert stored == FileVault.open(tmp_path / "never" / "vault").get("heard")


def test_forgetting_everything_leaves_a_new_device(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    own, names = _learned(device.folder, _speech(3))
    for name in names:
        speaker_adapter.forget_utterance(device.folder, name)

    assert own.speaker_mean() is None
    assert speaker_adapter.list_utterances(device.folder) == ()


def test_what_was_never_heard_cannot_be_forgotten(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    own, names = _learned(device.folder, _speech(1))

    with pytest.raises(SettingError, match=names[0]):
        own.forget_utterance("abc")
    with pytest.raises(SettingError, match="holds no device"):
        speaker_adapter.forget_utterance(tmp_path, names[0])
    assert own.example_names == tuple(names)


# --- another model ----------------------------------------------------------------------------


def test_a_new_model_hears_the_same_speech_anew(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    _learned(device.folder, _speech(10))
    front = PublicProjection(mean=torch.ones(WIDTH), matrix=2 * torch.eye(WIDTH))
    fresh, _ = _learned(_device(tmp_path / "new").folder, _speech(10), _bundle(front=front))

    assert torch.equal(_mean(SpeakerAdapter(device.folder, _bundle(front=front))), _mean(fresh))


def test_another_extractors_features_tell_nothing(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    _learned(device.folder, _speech(10))
    other = SpeakerAdapter(device.folder, replace(_bundle(), extractor="eyes"))

    assert other.speaker_mean() is None
    assert other.example_names == ()
    name = other.add(_speech(11)[10])
    assert other.example_names == (name,)
    assert len(speaker_adapter.list_utterances(device.folder)) == 11
    fresh, _ = _learned(_device(tmp_path / "new").folder, _speech(10))
    assert torch.equal(_mean(SpeakerAdapter(device.folder, _bundle())), _mean(fresh))
    own, names = _learned(device.folder, _speech(10))
    for gone in (*names, name):
        speaker_adapter.forget_utterance(device.folder, gone)
    assert speaker_adapter.list_utterances(device.folder) == own.example_names == ()


def test_features_of_another_version_tell_nothing_and_can_be_forgotten(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    words = [{"extractor": "ears", "names": ["a", "b"]}]  # as releases wrote it before versions
    about = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
    device.vault.put_tensors("heard", {"rows.0": _speech(2), "about": about})
    own = SpeakerAdapter(device.folder, _bundle())

    assert own.speaker_mean() is None
    name = own.add(_speech(3)[2])
    assert own.example_names == (name,)
    assert set(speaker_adapter.list_utterances(device.folder)) == {"a", "b", name}
    speaker_adapter.forget_utterance(device.folder, "a")
    assert set(speaker_adapter.list_utterances(device.folder)) == {"b", name}


def test_what_was_kept_when_there_was_room_for_one_extractor_is_read(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    words = {"extractor": "ears", "names": ["a", "b"], "feature_version": FEATURE_VERSION}
    about = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
    device.vault.put_tensors("heard", {"rows": _speech(2), "about": about})
    fresh, _ = _learned(_device(tmp_path / "new").folder, _speech(2))
    own = SpeakerAdapter(device.folder, _bundle())

    assert own.example_names == ("a", "b")
    assert torch.equal(_mean(own), _mean(fresh))
    own.add(_speech(3)[2])
    own.forget_utterance("a")
    assert len(own.example_names) == 2


@pytest.mark.parametrize("other", ["learns", "forgets"])
def test_what_another_program_does_meanwhile_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    rows, folder = _speech(4), _device(tmp_path / "own").folder
    own, names = _learned(folder, rows[:2])
    more = SpeakerAdapter(folder, _bundle())
    deed = (
        (lambda: more.add(rows[3]))
        if other == "learns"
        else (lambda: more.forget_utterance(names[0]))
    )
    write, threads = example_store.write_stores, list[Thread]()

    def slow(*arguments: Any) -> None:
        if not threads:
            threads.append(Thread(target=deed))
            threads[0].start()
            threads[0].join(0.3)
        write(*arguments)

    monkeypatch.setattr(example_store, "write_stores", slow)
    name = own.add(rows[2])
    threads[0].join()

    assert name in own.example_names
    assert (names[0] in own.example_names) == (other == "learns")
    assert len(own.example_names) == (4 if other == "learns" else 2)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "features", [torch.ones(WIDTH + 1), torch.ones(1, WIDTH), torch.full((WIDTH,), torch.nan)]
)
def test_features_that_do_not_fit_teach_nothing(tmp_path: Path, features: Tensor) -> None:
    own = SpeakerAdapter(_device(tmp_path / "own").folder, _bundle())
    with pytest.raises(ModelError, match="nothing was learned"):
        own.add(features)
    assert own.example_names == ()


@pytest.mark.parametrize("size", [1.01e9, 1e38, 3e38])
def test_numbers_that_are_far_too_large_teach_nothing(tmp_path: Path, size: float) -> None:
    huge = size * torch.tensor([1.0, -1.0, 1.0, -1.0])
    device = _device(tmp_path / "own")
    own, _ = _learned(device.folder, _speech(3))
    before = _mean(own)

    with pytest.raises(ModelError, match=r"at most 1e\+09 is learned from.*nothing was learned"):
        own.add(huge)
    (stored,) = example_store.read_stores(device.vault, "heard")
    found, _ = stored.with_example(huge)  # as it was kept before there was a limit
    example_store.write_stores(device.vault, "heard", [found])

    assert len(own.example_names) == 4
    assert torch.equal(_mean(own), before)
    own.add(torch.full((WIDTH,), example_store.MAX_FEATURE_VALUE))
    assert bool(_mean(own).isfinite().all()), "the limit is low enough"


def test_an_enrolled_mean_that_is_far_too_large_is_left_alone(tmp_path: Path) -> None:
    device, front = _device(tmp_path / "own", enrolled=5), _bundle().projection.content_hash()
    stamp = torch.frombuffer(bytearray.fromhex(front), dtype=torch.uint8)
    means = []
    for size in (1.0, 1e38):
        mean = torch.full((WIDTH,), size)
        device.vault.put_tensors("normaliser", {"mean": mean, "front": stamp})
        means.append(SpeakerAdapter(device.folder, _bundle()).speaker_mean())

    assert [mean is None for mean in means] == [False, True]


def test_a_model_without_users_means_learns_nothing(tmp_path: Path) -> None:
    own = SpeakerAdapter(_device(tmp_path / "own").folder, _bundle(user_mean=False))
    with pytest.raises(SettingError, match="no user's mean"):
        own.add(_speech(1)[0])
    assert own.speaker_mean() is None


def test_a_damaged_store_is_not_passed_over(tmp_path: Path) -> None:
    device = _device(tmp_path / "own")
    own, _ = _learned(device.folder, _speech(1))
    FileVault.open(device.folder / "vault").put_tensors("heard", {"rows": torch.ones(1, WIDTH)})
    with pytest.raises(PrivacyError, match="damaged"):
        own.speaker_mean()
    blob = device.folder / "vault" / "heard.sealed"
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(PrivacyError):
        own.add(_speech(2)[1])


def _mean(own: SpeakerAdapter) -> Tensor:
    found = own.speaker_mean()
    assert found is not None
    return found
