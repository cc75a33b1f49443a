"""Contracts of the encoder: torch's own layers agree with it, and any length is heard."""

import pytest
import torch
import torchaudio
from torch import Tensor, nn

from sottovoce.shared.audio import Signal, voice_activity
from sottovoce.shared.errors import AudioError, ModelError
from sottovoce.shared.features import whisper, whisper_weights
from sottovoce.shared.features.whisper import WhisperEncoder, WhisperFrames, WhisperStatistics
from sottovoce.simulations.corpora import open_corpus


def noise(samples: int, *, seed: int = 0) -> Signal:
    rng = torch.Generator().manual_seed(seed)
    return Signal(0.1 * torch.randn(1, samples, generator=rng), 16_000)


def voice() -> Tensor:
    clip = open_corpus("synthetic", "speakers=1,clips=1,seed=99").clips[0]
    return clip.load_signal().samples


@pytest.fixture(scope="module")
def held() -> dict[str, Tensor]:
    read = whisper_weights.read_variables(whisper_weights.load_packaged(), prefix="encoder/")
    return {name.removeprefix("encoder/"): value for name, value in read.items()}


def torch_layer(held: dict[str, Tensor], index: int) -> nn.TransformerEncoderLayer:
    """The same layer as torch builds it."""
    layer = nn.TransformerEncoderLayer(
        384, 6, 1536, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    attention, feed = f"layer_{index}/self_attention/", f"layer_{index}/ffn/"
    names = {
        "self_attn.in_proj_": attention + "linear_0/",
        "self_attn.out_proj.": attention + "linear_1/",
        "linear1.": feed + "linear_0/",
        "linear2.": feed + "linear_1/",
    }
    state = {
        ours + kind: held[ct2 + kind] for ours, ct2 in names.items() for kind in ("weight", "bias")
    }
    for ours, ct2 in (("norm1.", attention), ("norm2.", feed)):
        state[ours + "weight"] = held[ct2 + "layer_norm/gamma"]
        state[ours + "bias"] = held[ct2 + "layer_norm/beta"]
    layer.load_state_dict(state)
    return layer


def test_layers_are_torchs_own_transformer_layers(held: dict[str, Tensor]) -> None:
    stem, *layers = whisper.load_encoder()(noise(20_000))
    assert len(layers) == 3

    expected = stem
    for index, layer in enumerate(layers):
        with torch.no_grad():
            expected = torch_layer(held, index)(expected[None])[0]
        torch.testing.assert_close(layer, expected, atol=2e-4, rtol=1e-4)


def test_the_spectrogram_is_whispers() -> None:
    signal = noise(16_000)
    mel = torchaudio.transforms.MelSpectrogram(
        16_000, n_fft=400, hop_length=160, n_mels=80, f_max=8_000, norm="slaney", mel_scale="slaney"
    )(signal.samples[0])[:, :-1]
    log = mel.clamp_min(1e-10).log10()
    expected = (torch.maximum(log, log.max() - 8) + 4) / 4

    found = whisper.load_encoder().log_mel(signal.samples[0])

    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("samples", [1, 399, 400, 800, 16_000, 16_160, 40_001])
def test_any_length_gives_finite_features(samples: int) -> None:
    signal = noise(samples)

    statistics, frames = WhisperStatistics()(signal), WhisperFrames()(signal)

    assert statistics.shape == (2304,)
    assert statistics.dtype == frames.dtype == torch.float32
    assert frames.shape[1] == 768
    assert frames.shape[0] == pytest.approx(max(samples, 800) / 1_600, abs=1.01)
    assert statistics.isfinite().all()
    assert frames.isfinite().all()
    assert not statistics.requires_grad


@pytest.mark.parametrize("level", [0.0, 1e-6, 1.0, 100.0])
def test_silence_and_full_scale_are_finite(level: float) -> None:
    signal = Signal(level * torch.ones(1, 8_000), 16_000)

    assert WhisperStatistics()(signal).isfinite().all()


def test_statistics_are_mean_and_spread_of_three_layers_over_speech() -> None:
    paused = torch.cat([voice(), torch.zeros(1, 16_000), voice()], dim=1)
    cut = voice_activity.cut_to_speech(Signal(paused, 16_000))
    _, *layers = whisper.load_encoder()(cut.signal)
    spoken = cut.mask_frames(len(layers[0]), whisper.FRAME_HOP)

    pooled = [layer[spoken] for layer in layers]
    expected = [layer.mean(0) for layer in pooled] + [layer.std(0) for layer in pooled]

    assert 0 < spoken.sum() < len(spoken)
    torch.testing.assert_close(WhisperStatistics()(Signal(paused, 16_000)), torch.cat(expected))


@pytest.mark.parametrize("extractor", [WhisperStatistics(), WhisperFrames()])
def test_silence_around_speech_changes_no_bit(
    extractor: WhisperStatistics | WhisperFrames,
) -> None:
    padded = torch.nn.functional.pad(voice(), (8_123, 16_000))

    plain = extractor(Signal(voice(), 16_000))

    assert torch.equal(extractor(Signal(padded, 16_000)), plain)


def test_frames_average_tenths_of_a_second_and_what_is_left() -> None:
    signal = noise(16_000 + 640)  # 52 frames at 50 Hz, and no speech that could be cut
    _, _, second, _ = whisper.load_encoder()(signal)

    frames = WhisperFrames()(signal)

    assert len(second) == 52
    assert len(frames) == 11
    torch.testing.assert_close(frames[0, :384], second[:5].mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(frames[10, :384], second[50:].mean(0), atol=1e-5, rtol=1e-5)


def test_long_signals_are_heard_in_equal_windows() -> None:
    half = noise(31 * 8_000)
    twice = Signal(half.samples.repeat(1, 2), 16_000)  # 31 s: two windows of 15.5 s

    first, second = whisper.load_encoder()(twice)[-1].chunk(2)

    assert len(first) == len(second) == 775
    inner = slice(100, 600)  # the seam is heard at both ends
    torch.testing.assert_close(first[inner], second[inner], atol=0.2, rtol=0.1)


def test_another_rate_is_refused() -> None:
    with pytest.raises(AudioError, match="8000 Hz"):
        WhisperStatistics()(Signal(torch.zeros(1, 8_000), 8_000))


def test_weights_that_do_not_fit_are_refused(held: dict[str, Tensor]) -> None:
    name = "layer_1/ffn/linear_0/bias"
    wrong = [torch.zeros(3), torch.full((1536,), torch.nan)]
    for value in wrong:
        with pytest.raises(ModelError, match=name):
            WhisperEncoder(held | {name: value})
    with pytest.raises(ModelError, match="missing"):
        WhisperEncoder({key: value for key, value in held.items() if key != name})
