"""Whisper tiny.en's audio encoder, cut to its useful layers, without padding to 30 s.

Architecture and log-mel after Radford et al., Robust Speech Recognition via Large-Scale Weak
Supervision (2022), https://arxiv.org/abs/2212.04356. The weights come with an installed package
(``whisper_weights.py``); nothing is downloaded. Only layers 1 to 3 of 4 are loaded and run: the
first layers carry the emotion, the last ones the words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
import torchaudio.functional
from torch import Tensor

from sottovoce.shared import audio
from sottovoce.shared.audio import Signal, voice_activity
from sottovoce.shared.errors import ModelError
from sottovoce.shared.features import whisper_weights
from sottovoce.shared.features.fingerprint import compute_fingerprint

LAYERS = (1, 2, 3)
"""Layers whose statistics are features, counted from 1; 0 would be the convolutional stem."""

FRAME_LAYERS = (2, 3)
"""Layers whose frames are features."""

HIDDEN_SIZE = 384
_HEADS, _BANDS = 6, 80
_WINDOW, _HOP = 400, 160
FRAME_HOP = 2 * _HOP
"""Samples between the encoder's frames: 20 ms, 50 frames a second."""

_MAX_MEL_FRAMES = 3_000  # mel frames, 30 s: as many positions as the encoder learned
_MIN_SAMPLES = 800  # samples, 50 ms: three frames, so that a standard deviation over time exists


class WhisperEncoder:
    """Whisper's audio encoder: the convolutional stem and the first layers.

    Args:
        variables: Weights by CTranslate2 name, float32.
        depth: Number of layers to run.

    Attributes:
        mel_filters: Weights of the mel bands, shape (80, 201), float32.

    Raises:
        ModelError: A weight is missing, has another shape, or is not finite.
    """

    def __init__(self, variables: Mapping[str, Tensor], *, depth: int = max(LAYERS)) -> None:
        self._depth = depth
        self._weights = {
            name: _validated_weight(variables, name, shape) for name, shape in _shapes(depth)
        }
        self.mel_filters = torchaudio.functional.melscale_fbanks(
            _WINDOW // 2 + 1,
            0.0,
            8_000.0,
            _BANDS,
            audio.SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        ).T.contiguous()
        self._hann = torch.hann_window(_WINDOW)

    def __call__(self, signal: Signal) -> list[Tensor]:
        """Compute the outputs of the stem and of every layer.

        Signals over 30 s are cut into windows of equal length, at most 30 s each, encoded one by
        one and joined; signals below 50 ms are padded with silence.

        Args:
            signal: At 16 kHz.

        Returns:
            Output of the stem and of each layer, each (frames, 384), float32, at 50 Hz.

        Raises:
            AudioError: The signal has another rate.
        """
        audio.require_sample_rate(signal, audio.SAMPLE_RATE, reader="the Whisper encoder")
        with torch.no_grad():
            mel = self.log_mel(signal.samples[0])
            windows = [
                self._hidden(part) for part in torch.split(mel, _window(mel.shape[1]), dim=1)
            ]
        return [torch.cat(parts) for parts in zip(*windows, strict=True)]

    def weight(self, name: str) -> Tensor:
        """Look up a weight by its CTranslate2 name, float32."""
        return self._weights[name]

    def log_mel(self, samples: Tensor) -> Tensor:
        """Compute Whisper's scaled log-mel spectrogram: (samples,) -> (80, frames at 100 Hz)."""
        samples = F.pad(samples, (0, max(0, _MIN_SAMPLES - len(samples))))
        spectrum = torch.stft(samples, _WINDOW, _HOP, window=self._hann, return_complex=True)
        # The last frame is dropped, as in Whisper's own log-mel code.
        power = torch.view_as_real(spectrum[:, :-1]).square().sum(-1)
        log = (self.mel_filters @ power).clamp_min(1e-10).log10()
        # Whisper's own scaling: 8 decades below the loudest, then to about [-1, 1].
        return (torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0

    def _hidden(self, mel: Tensor) -> list[Tensor]:
        """Stem and layers of one window, (80, mel frames) -> each (frames, 384)."""
        weights = self._weights
        wave = F.conv1d(mel[None], weights["conv1/weight"], weights["conv1/bias"], padding=1)
        kernel, bias = weights["conv2/weight"], weights["conv2/bias"]
        wave = F.conv1d(F.gelu(wave), kernel, bias, stride=2, padding=1)
        hidden = F.gelu(wave)[0].T  # (384, frames) -> (frames, 384)
        hidden = hidden + weights["position_encodings/encodings"][: len(hidden)]
        outputs = [hidden]
        for index in range(self._depth):
            hidden = self._layer(hidden, f"layer_{index}/")
            outputs.append(hidden)
        return outputs

    def _layer(self, hidden: Tensor, name: str) -> Tensor:
        """One pre-norm transformer layer, (frames, 384) -> (frames, 384)."""
        attention, feed = name + "self_attention/", name + "ffn/"
        projected = self._linear(self._norm(hidden, attention), attention + "linear_0")
        split = (-1, _HEADS, HIDDEN_SIZE // _HEADS)
        queries, keys, values = (
            part.view(split).transpose(0, 1)[None]  # (1, heads, frames, 64)
            for part in projected.chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(queries, keys, values)[0]
        hidden = hidden + self._linear(attended.transpose(0, 1).flatten(1), attention + "linear_1")
        inner = F.gelu(self._linear(self._norm(hidden, feed), feed + "linear_0"))
        return hidden + self._linear(inner, feed + "linear_1")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        """One linear map by name."""
        return F.linear(x, self._weights[name + "/weight"], self._weights[name + "/bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """One layer normalisation by name."""
        scale, shift = (self._weights[f"{name}layer_norm/{kind}"] for kind in ("gamma", "beta"))
        return F.layer_norm(x, (HIDDEN_SIZE,), scale, shift)


@cache
def load_encoder() -> WhisperEncoder:
    """Load the encoder from the installed package's verified weights; once per process.

    Raises:
        ModelError: The weights are missing, damaged or not the ones expected.
    """
    variables = whisper_weights.read_variables(whisper_weights.load_packaged(), prefix="encoder/")
    return WhisperEncoder(
        {name.removeprefix("encoder/"): value for name, value in variables.items()}
    )


@dataclass(frozen=True, slots=True)
class WhisperStatistics:
    """``whisper-tiny-en``: mean and standard deviation over the speech of layers 1 to 3.

    Returns (2304,), float32: means of layers 1, 2 and 3, then their standard deviations (n - 1);
    384 numbers each. What lies around the speech is cut before the encoder, whose positions are
    absolute; frames in pauses are not pooled.
    """

    name: str = "whisper-tiny-en"
    is_framewise: bool = False

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the values."""
        return _fingerprint(self.name, {"layers": LAYERS, "statistics": ["mean", "std"]})

    def __call__(self, signal: Signal) -> Tensor:
        """Compute the statistics of one signal at 16 kHz, shape (2304,), float32."""
        audio.require_sample_rate(signal, audio.SAMPLE_RATE, reader=self.name)
        cut = voice_activity.cut_to_speech(signal)
        outputs = load_encoder()(cut.signal)
        return pool_statistics(
            outputs, torch.from_numpy(cut.mask_frames(len(outputs[0]), FRAME_HOP))
        )


@dataclass(frozen=True, slots=True)
class WhisperFrames:
    """``whisper-tiny-en-frames``: layers 2 and 3 side by side, averaged to 10 frames a second.

    Returns (frames, 768), float32. What lies around the speech is cut; pauses stay. The last frame
    averages the rest of its tenth of a second.
    """

    name: str = "whisper-tiny-en-frames"
    is_framewise: bool = True
    pooled: int = 5

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the values."""
        return _fingerprint(self.name, {"layers": FRAME_LAYERS, "pooled": self.pooled})

    def __call__(self, signal: Signal) -> Tensor:
        """Compute the frames of one signal at 16 kHz, shape (frames, 768), float32."""
        audio.require_sample_rate(signal, audio.SAMPLE_RATE, reader=self.name)
        outputs = load_encoder()(voice_activity.cut_to_speech(signal).signal)
        joined = torch.cat([outputs[layer] for layer in FRAME_LAYERS], dim=1)
        pooled = F.avg_pool1d(joined.T[None], self.pooled, ceil_mode=True)
        return pooled[0].T.contiguous()


def pool_statistics(outputs: Sequence[Tensor], spoken: Tensor) -> Tensor:
    """Pool layers 1 to 3 over the frames of speech: means, then standard deviations, (2304,).

    Args:
        outputs: Of the stem and of every layer, each (frames, 384).
        spoken: Which frames are speech, shape (frames,), bool; at least two.
    """
    layers = [outputs[layer][spoken] for layer in LAYERS]
    return torch.cat([h.mean(0) for h in layers] + [h.std(0) for h in layers])


def _fingerprint(name: str, settings: Mapping[str, object]) -> str:
    """The fingerprint of an extractor of this file."""
    return compute_fingerprint(
        name, module=__name__, settings=settings, weights=whisper_weights.WHISPER_SHA256
    )


def _window(frames: int) -> int:
    """Mel frames of each window: equal parts, even, none above 30 s."""
    parts = -(-frames // _MAX_MEL_FRAMES)
    length = -(-frames // parts)
    # Even, because the stem's stride of 2 must not leave half a frame between windows.
    return length + length % 2


def _shapes(depth: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights that ``depth`` layers need."""
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("conv1/weight", (HIDDEN_SIZE, _BANDS, 3)),
        ("conv1/bias", (HIDDEN_SIZE,)),
        ("conv2/weight", (HIDDEN_SIZE, HIDDEN_SIZE, 3)),
        ("conv2/bias", (HIDDEN_SIZE,)),
        ("position_encodings/encodings", (_MAX_MEL_FRAMES // 2, HIDDEN_SIZE)),
    ]
    maps = {
        "self_attention/linear_0": (3 * HIDDEN_SIZE, HIDDEN_SIZE),
        "self_attention/linear_1": (HIDDEN_SIZE, HIDDEN_SIZE),
        "ffn/linear_0": (4 * HIDDEN_SIZE, HIDDEN_SIZE),
        "ffn/linear_1": (HIDDEN_SIZE, 4 * HIDDEN_SIZE),
    }
    for index in range(depth):
        for name, shape in maps.items():
            shapes.append((f"layer_{index}/{name}/weight", shape))
            shapes.append((f"layer_{index}/{name}/bias", shape[:1]))
        for name in ("self_attention", "ffn"):
            shapes.append((f"layer_{index}/{name}/layer_norm/gamma", (HIDDEN_SIZE,)))
            shapes.append((f"layer_{index}/{name}/layer_norm/beta", (HIDDEN_SIZE,)))
    return shapes


def _validated_weight(variables: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """One weight, if it is there, has its shape and is finite."""
    value = variables.get(name)
    if value is None or tuple(value.shape) != shape:
        found = "missing" if value is None else f"of shape {tuple(value.shape)}"
        raise ModelError(
            f"weight {name} is {found}, need {shape}; {whisper_weights.INSTALL_COMMAND}"
        )
    if not bool(value.isfinite().all()):
        raise ModelError(f"weight {name} holds NaN or infinity; {whisper_weights.INSTALL_COMMAND}")
    return value
