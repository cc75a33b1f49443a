"""Contracts of the pipelines, on small models of torchaudio's own classes."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchaudio

from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import AudioError, FeatureError, ModelError, SettingError
from sottovoce.shared.features import pretrained

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


class Offline:
    """A pipeline whose weights cannot be downloaded."""

    sample_rate = 16_000

    def get_model(self) -> None:
        raise URLError("no route to host")


def test_no_network_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchaudio.pipelines, "HUBERT_BASE", Offline())

    with pytest.raises(FeatureError, match=r"hubert-base.*no route to host.*network"):
        pretrained.parse_name("hubert-base")(noise(8_000))


@pytest.mark.parametrize("name", pretrained.PIPELINES)
def test_every_name_is_a_pipeline_of_torchaudio(name: str) -> None:
    bundle = getattr(torchaudio.pipelines, pretrained.PIPELINES[name])

    assert bundle.sample_rate == 16_000
    assert pretrained.parse_name(name).source == name


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("boom",)


def test_damaged_files_are_refused_and_nothing_in_them_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.pt"
    saved(path)
    whole = path.read_bytes()
    torch.save({"kind": "wav2vec2"}, tmp_path / "half.pt")
    for content in (
        b"",
        b"not a model",
        whole[: len(whole) // 2],
        (tmp_path / "half.pt").read_bytes(),
        pickle.dumps(Bomb(), protocol=2),
    ):
        path.write_bytes(content)
        pretrained.load_pipeline.cache_clear()
        with pytest.raises(ModelError, match=r"m\.pt"):
            pretrained.load_pipeline(f"pipeline:{path}")
    assert "boom" not in capsys.readouterr().out


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
