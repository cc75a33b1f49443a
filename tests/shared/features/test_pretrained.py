"""Contracts of the pipelines, on small models of torchaudio's own classes."""

import dataclasses
import hashlib
import io
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio

from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import AudioError, FeatureError, ModelError, SettingError
from sottovoce.shared.features import encoder_store, pretrained, registry

WAV2VEC2: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(16, 10, 5), (16, 8, 8), (16, 4, 4), (16, 2, 2)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 32,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 3,
    "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 64,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.1,
    "aux_num_out": None,
}
WAVLM = {**WAV2VEC2, "encoder_num_buckets": 32, "encoder_max_distance": 80}
KINDS = {"wav2vec2": WAV2VEC2, "wavlm": WAVLM}
BUILD = {"wav2vec2": torchaudio.models.wav2vec2_model, "wavlm": torchaudio.models.wavlm_model}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    pretrained.load_pipeline.cache_clear()
    yield
    pretrained.load_pipeline.cache_clear()


def noise(samples: int, *, rate: int = 16_000) -> Signal:
    rng = torch.Generator().manual_seed(0)
    return Signal(0.1 * torch.randn(1, samples, generator=rng), rate)


def saved(path: Path, kind: str = "wav2vec2", *, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = BUILD[kind](**KINDS[kind])
    pretrained.save_pipeline(path, kind=kind, settings=KINDS[kind], model=model, rate=16_000)
    return model.eval()


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm"])
@pytest.mark.parametrize(("suffix", "layer"), [("", 2), ("@1", 1), ("@3", 3)])
def test_statistics_are_those_of_the_layer(
    tmp_path: Path, kind: str, suffix: str, layer: int
) -> None:
    model = saved(tmp_path / "m.pt", kind)
    signal = noise(8_000)

    found = pretrained.parse_name(f"pipeline:{tmp_path}/m.pt{suffix}")(signal)

    with torch.no_grad():
        hidden = model.extract_features(signal.samples)[0][layer - 1][0]
    torch.testing.assert_close(found, torch.cat([hidden.mean(0), hidden.std(0)]))
    assert not found.requires_grad


@pytest.mark.parametrize("samples", [1, 400, 16_000, 31 * 16_000])
def test_any_length_is_heard(tmp_path: Path, samples: int) -> None:
    saved(tmp_path / "m.pt")

    assert pretrained.parse_name(f"pipeline:{tmp_path}/m.pt")(noise(samples)).isfinite().all()


def test_fingerprints_follow_weights_and_layer(tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("a.pt", "b.pt", "c.pt"))
    for path, seed in ((first, 0), (again, 0), (other, 1)):
        saved(path, seed=seed)

    loaded = [pretrained.load_pipeline(f"pipeline:{path}").sha256 for path in (first, again, other)]
    prints = {pretrained.parse_name(f"pipeline:{first}{at}").fingerprint for at in ("", "@1", "@3")}

    assert loaded[0] == loaded[1] != loaded[2]
    assert len(prints) == 3


@pytest.fixture
def encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where encoders are installed in this test."""
    folder = tmp_path / "encoders"
    monkeypatch.setenv(encoder_store.FOLDER_VARIABLE, str(folder))
    return folder


@pytest.fixture
def small_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets hubert-base be a small network, so that its checkpoint can be made here."""
    bundle = dataclasses.replace(torchaudio.pipelines.HUBERT_BASE, _params=WAV2VEC2)
    monkeypatch.setattr(torchaudio.pipelines, "HUBERT_BASE", bundle)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every connection that is tried, and every name that is looked up."""
    tried: list[object] = []

    def refuse(*words: object, **_: object) -> None:
        tried.append(words)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return tried


@pytest.mark.parametrize("name", ["hubert-base", "wav2vec2-base@3", "descriptors+wavlm-large"])
def test_a_name_downloads_nothing_and_reads_no_cache_of_torch(
    name: str,
    tmp_path: Path,
    encoders: Path,
    connections: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark, cache = tmp_path / "ran", tmp_path / "torch" / "hub" / "checkpoints"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cache.mkdir(parents=True)
    for pipeline in pretrained.PIPELINES.values():
        path = cache / getattr(torchaudio.pipelines, pipeline)._path
        torch.save({"bomb": Bomb(mark)}, path)

    with pytest.raises(FeatureError, match=r"not installed here.*sottovoce encoder add"):
        registry.require_installed_encoders(name)
    with pytest.raises(FeatureError, match="not installed here"):
        registry.create_extractor(name)(noise(8_000))
    assert (connections, mark.exists(), encoders.exists()) == ([], False, False)


def test_an_installed_encoder_is_tensors_under_a_pinned_hash(
    tmp_path: Path, encoders: Path, small_bundle: None
) -> None:
    model, path = saved(tmp_path / "m.pt"), tmp_path / "hubert.pth"
    torch.save(model.state_dict(), path)
    with pytest.raises(SettingError, match=r"have SHA-256 .*, not 00"):
        pretrained.install_encoder("hubert-base", file=path, sha256="00" * 32)

    pretrained.install_encoder("hubert-base", file=path)
    registry.require_installed_encoders("hubert-base")
    found = pretrained.parse_name("hubert-base@1")(noise(8_000))

    own = pretrained.parse_name(f"pipeline:{tmp_path}/m.pt@1")(noise(8_000))
    torch.testing.assert_close(found, own)
    stored = encoders / "hubert-base.safetensors"
    stored.write_bytes(stored.read_bytes()[:-1] + b"\x01")
    pretrained.load_pipeline.cache_clear()
    with pytest.raises(ModelError, match="not the ones that were installed"):
        pretrained.parse_name("hubert-base@1")(noise(8_000))
    stored.unlink()
    with pytest.raises(FeatureError, match="are gone"):
        pretrained.parse_name("hubert-base@1")(noise(8_000))


def test_a_download_is_taken_only_under_its_hash(
    encoders: Path, small_bundle: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved(tmp_path / "m.pt")
    checkpoint = io.BytesIO()
    torch.save(torchaudio.models.wav2vec2_model(**WAV2VEC2).state_dict(), checkpoint)
    digest = hashlib.sha256(checkpoint.getvalue()).hexdigest()
    asked: list[str] = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(checkpoint.getvalue())

    monkeypatch.setattr(encoder_store, "urlopen", answer)
    with pytest.raises(SettingError, match=rf"have SHA-256 {digest}.*give that as --sha256"):
        pretrained.install_encoder("hubert-base")
    assert not encoder_store.read_pins()

    pretrained.install_encoder("hubert-base", sha256=digest)

    assert set(encoder_store.read_pins()) == {"hubert-base"}
    assert asked[0].startswith("https://download.pytorch.org/")


def test_a_checkpoint_that_is_more_than_tensors_is_not_installed(
    tmp_path: Path, encoders: Path, small_bundle: None
) -> None:
    mark, path = tmp_path / "ran", tmp_path / "c.pth"
    for content in ({"a": Bomb(mark)}, {"a": 1}, [torch.zeros(1)], {"a": torch.zeros(1)}):
        torch.save(content, path)
        with pytest.raises(ModelError):
            pretrained.install_encoder("hubert-base", file=path)
    assert not mark.exists()


def test_a_file_that_a_model_names_is_read_only_once_it_was_added(
    tmp_path: Path, encoders: Path
) -> None:
    path = tmp_path / "m.pt"
    name = f"pipeline:{path}"
    saved(path)
    with pytest.raises(FeatureError, match="is not installed here"):
        registry.require_installed_encoders(f"descriptors+{name}@2")

    pretrained.install_encoder(name)
    registry.require_installed_encoders(f"descriptors+{name}@2")

    saved(path, seed=1)
    with pytest.raises(ModelError, match="not the file that was added"):
        pretrained.load_pipeline(name)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_embed_dim": 10**9},
        {"encoder_num_layers": 10**9},
        {"encoder_num_layers": 8_000},
        {"encoder_ff_interm_features": 8_000},
        {"extractor_conv_layer_config": [(16, 10, 5)] * 100_000},
        {"encoder_num_heads": 0},
        {"unknown": 1},
    ],
    ids=lambda one: str(one)[:50],
)
def test_settings_that_ask_for_more_than_the_file_holds_are_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = BUILD["wav2vec2"](**WAV2VEC2)
    settings = WAV2VEC2 | changes
    path = tmp_path / "m.pt"
    pretrained.save_pipeline(path, kind="wav2vec2", settings=settings, model=model, rate=16_000)

    with pytest.raises(ModelError, match=r"m\.pt"):
        pretrained.load_pipeline(f"pipeline:{path}")


@pytest.mark.parametrize("name", pretrained.PIPELINES)
def test_every_name_is_a_pipeline_of_torchaudio(name: str) -> None:
    bundle = getattr(torchaudio.pipelines, pretrained.PIPELINES[name])

    assert bundle.sample_rate == 16_000
    assert pretrained.parse_name(name).source == name


def test_damaged_files_are_refused_and_nothing_in_them_is_run(
    tmp_path: Path,
) -> None:
    path, mark = tmp_path / "m.pt", tmp_path / "ran"
    saved(path)
    whole = path.read_bytes()
    torch.save({"kind": "wav2vec2"}, tmp_path / "half.pt")
    for content in (
        b"",
        b"not a model",
        whole[: len(whole) // 2],
        (tmp_path / "half.pt").read_bytes(),
        pickle.dumps(Bomb(mark), protocol=2),
    ):
        path.write_bytes(content)
        pretrained.load_pipeline.cache_clear()
        with pytest.raises(ModelError, match=r"m\.pt"):
            pretrained.load_pipeline(f"pipeline:{path}")
    assert not mark.exists()


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "m.pt")
    with pytest.raises(FeatureError, match="is not a file"):
        pretrained.load_pipeline(f"pipeline:{tmp_path}/none.pt")
    with pytest.raises(SettingError, match="layers 1 to 3"):
        pretrained.parse_name(f"pipeline:{tmp_path}/m.pt@4")(noise(8_000))
    with pytest.raises(AudioError, match="8000 Hz"):
        pretrained.parse_name(f"pipeline:{tmp_path}/m.pt")(noise(8_000, rate=8_000))
    for name in ("hubert-base@", "hubert-base@0", "hubert-base@x", "hubert-tiny"):
        with pytest.raises(SettingError):
            pretrained.parse_name(name)
    with pytest.raises(SettingError, match="kind"):
        pretrained.save_pipeline(
            tmp_path / "x", kind="x", settings={}, model=torch.nn.Identity(), rate=1
        )
