"""torchaudio's wav2vec 2.0, HuBERT and WavLM encoders: by name, or from your own file.

``wav2vec2-base``, ``hubert-base``, ... read weights that this machine's owner installed (see
``encoder_store``); nothing is downloaded. ``pipeline:/folder/file.pt`` reads a model that
``save_pipeline`` wrote. Either takes ``@layer``, as in ``hubert-base@6``; layers count from 1.

Baevski et al. 2020 (arXiv:2006.11477), Hsu et al. 2021 (arXiv:2106.07447), Chen et al. 2022
(arXiv:2110.13900), Conneau et al. 2020 (arXiv:2006.13979).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from sottovoce.shared import audio
from sottovoce.shared.audio import Signal, voice_activity
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.features import encoder_store
from sottovoce.shared.features.fingerprint import compute_fingerprint

PIPELINES: Mapping[str, str] = {
    "wav2vec2-base": "WAV2VEC2_BASE",
    "wav2vec2-large": "WAV2VEC2_LARGE",
    "wav2vec2-large-lv60k": "WAV2VEC2_LARGE_LV60K",
    "wav2vec2-xlsr53": "WAV2VEC2_XLSR53",
    "wav2vec2-xlsr-300m": "WAV2VEC2_XLSR_300M",
    "hubert-base": "HUBERT_BASE",
    "hubert-large": "HUBERT_LARGE",
    "wavlm-base": "WAVLM_BASE",
    "wavlm-base-plus": "WAVLM_BASE_PLUS",
    "wavlm-large": "WAVLM_LARGE",
}
"""Names of torchaudio's pipelines in this project."""

FILE_PREFIX = "pipeline:"
_BUILDERS = {
    "wav2vec2": torchaudio.models.wav2vec2_model,  # HuBERT is the same network
    "wavlm": torchaudio.models.wavlm_model,
}
_MIN_SAMPLES = 1_600  # samples; the stem of convolutions needs 400 for one frame, 720 for two
_MAX_PART_S = 30
_RATE, _MIN_RATE, _MAX_RATE = 16_000, 1_000, 384_000
_MAX_SETTINGS, _MAX_SETTING, _MAX_LAYERS = 200, 1 << 13, 100
"""Most numbers of a network's settings, and their bound: far beyond any encoder that there is."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PretrainedEncoder:
    """Pretrained speech encoder, loaded and frozen.

    Attributes:
        model: A torchaudio Wav2Vec2Model (the class of all three), in evaluation mode.
        rate: Sampling rate of its input, in Hz.
        layers: Number of transformer layers.
        sha256: SHA-256 of its weights, 64 hexadecimal digits.
    """

    model: nn.Module
    rate: int
    layers: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PipelineStatistics:
    """Mean and standard deviation (n - 1) over the speech of one layer of a pipeline.

    Attributes:
        name: Name under which it was created.
        source: Name of the pipeline, or ``pipeline:`` and a path.
        layer: Layer from 1, or 0 for the one at two thirds of the depth: the last layers encode
            words more than voice.
    """

    name: str
    source: str
    layer: int = 0
    is_framewise: bool = False

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise SettingError(f"layer of {self.name} is {self.layer}; layers count from 1")

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the values, including the weights, which are loaded.

        Raises:
            FeatureError: The weights are not installed.
        """
        settings = {"source": self.source, "layer": self._depth()}
        weights = load_pipeline(self.source).sha256
        return compute_fingerprint(self.name, module=__name__, settings=settings, weights=weights)

    def __call__(self, signal: Signal) -> Tensor:
        """Compute the statistics of one signal, shape (2 x width of the layer,), float32.

        Signals over 30 s are encoded in equal parts; signals below 0.1 s are padded with silence.

        Raises:
            AudioError: The signal has another rate than the model.
            FeatureError: The weights are not installed.
        """
        loaded = load_pipeline(self.source)
        audio.require_sample_rate(signal, loaded.rate, reader=self.name)
        depth = self._depth()
        cut = voice_activity.cut_to_speech(signal)
        spoken = cut.signal.samples
        samples = F.pad(spoken, (0, max(0, _MIN_SAMPLES - spoken.shape[1])))
        with torch.no_grad():
            hidden = torch.cat(
                [_layer(loaded.model, part, depth) for part in _parts(samples, loaded.rate)]
            )
        # A model of one's own may have another stride than the usual 320 samples.
        hop = max(1, samples.shape[1] // len(hidden))
        hidden = hidden[torch.from_numpy(cut.mask_frames(len(hidden), hop))]
        return torch.cat([hidden.mean(0), hidden.std(0)])

    def _depth(self) -> int:
        """The layer that is read."""
        layers = load_pipeline(self.source).layers
        if self.layer > layers:
            raise SettingError(f"layer of {self.name} is {self.layer}; it has layers 1 to {layers}")
        return self.layer or max(1, round(2 * layers / 3))


def parse_name(name: str) -> PipelineStatistics:
    """Parse a name: ``hubert-base``, ``hubert-base@6``, ``pipeline:f.pt``.

    Raises:
        SettingError: The pipeline is not known, or the layer is not a whole number from 1.

    Example:
        >>> parse_name("hubert-base@6").layer
        6
        >>> parse_name("hubert-base").layer  # 0: at two thirds of the depth
        0
    """
    source, mark, layer = name.partition("@")
    if not source.startswith(FILE_PREFIX) and source not in PIPELINES:
        raise SettingError(f"pipeline is {source!r}; it must be one of {', '.join(PIPELINES)}")
    if mark and not (layer.isascii() and layer.isdigit() and int(layer) > 0):
        raise SettingError(f"layer in {name!r} is {layer!r}; write a whole number from 1 behind @")
    return PipelineStatistics(name=name, source=source, layer=int(layer) if mark else 0)


@cache
def load_pipeline(source: str) -> PretrainedEncoder:
    """Load the model of a pipeline's name or file; once per process.

    Raises:
        FeatureError: The weights are not installed, or the file is not there.
        ModelError: The file is damaged or holds something else.
    """
    if source.startswith(FILE_PREFIX):
        return _from_file(Path(source.removeprefix(FILE_PREFIX)))
    pipeline: Any = getattr(torchaudio.pipelines, PIPELINES[source])
    weights = encoder_store.load_weights(source)
    build = _BUILDERS["wavlm" if source.startswith("wavlm") else "wav2vec2"]
    model = _build(build, pipeline._params, weights, name=source)
    return _loaded(_Normalised(model) if pipeline._normalize_waveform else model, rate=_RATE)


def install_encoder(source: str, *, file: Path | None = None, sha256: str = "") -> str:
    """Install an encoder on the owner's word: the only way in which one is downloaded.

    Args:
        source: Name of a pipeline, or ``pipeline:`` and the path of the owner's own file.
        file: A checkpoint of the pipeline that is here already; None downloads it.
        sha256: The checkpoint's hash, from its publisher; "" trusts a ``file`` as it is, and
            refuses a download, naming the hash that it has.

    Returns:
        SHA-256 that is compared from now on.

    Raises:
        SettingError: No such pipeline, or another hash.
        FeatureError: It cannot be downloaded, or there is no such file.
        ModelError: It holds anything but the tensors of that encoder.
    """
    if source.startswith(FILE_PREFIX):
        path = Path(source.removeprefix(FILE_PREFIX))
        _from_file(path)
        return encoder_store.pin_file(source, path)
    parse_name(source)
    pipeline: Any = getattr(torchaudio.pipelines, PIPELINES[source])
    if file is None:
        data = encoder_store.download_weights(pipeline._path)
    else:
        data = encoder_store.read_own_file(file)
        sha256 = sha256 or hashlib.sha256(data).hexdigest()
    digest = encoder_store.install_weights(source, data, sha256=sha256)
    load_pipeline.cache_clear()
    load_pipeline(source)  # refuses the tensors of another encoder now, and not at first use
    return digest


class _Normalised(nn.Module):
    """A model that normalises the waveform first, as torchaudio's large pipelines do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def extract_features(
        self, samples: Tensor, *, num_layers: int
    ) -> tuple[list[Tensor], Tensor | None]:
        """Compute the layers' outputs, as ``Wav2Vec2Model.extract_features`` does."""
        normal = F.layer_norm(samples, samples.shape)
        found: tuple[list[Tensor], Tensor | None] = self.model.extract_features(
            normal, num_layers=num_layers
        )
        return found


def save_pipeline(
    path: str | Path, *, kind: str, settings: Mapping[str, Any], model: nn.Module, rate: int
) -> None:
    """Write a model to a file that ``pipeline:path`` reads.

    Args:
        path: The file to write.
        kind: ``wav2vec2`` (HuBERT, too) or ``wavlm``.
        settings: Arguments of ``torchaudio.models.wav2vec2_model`` or ``wavlm_model``.
        model: The model that this function built from them, trained.
        rate: Sampling rate of its input, in Hz.

    Raises:
        SettingError: The kind is not known.
    """
    if kind not in _BUILDERS:
        raise SettingError(f"kind is {kind!r}; it must be one of {', '.join(_BUILDERS)}")
    state = model.state_dict()
    torch.save({"kind": kind, "settings": dict(settings), "rate": rate, "state": state}, path)


def _from_file(path: Path) -> PretrainedEncoder:
    """Read the owner's file, which ``save_pipeline`` wrote; nothing in it is run."""
    data = encoder_store.read_own_file(path, pinned_as=f"{FILE_PREFIX}{path}")
    stored = encoder_store.unpickle_tensors(data, str(path))
    settings, weights, rate = stored.get("settings"), stored.get("state"), stored.get("rate")
    build = _BUILDERS.get(str(stored.get("kind")))
    if not (
        build
        and isinstance(settings, dict)
        and isinstance(weights, dict)
        and isinstance(rate, int)
        and _MIN_RATE <= rate <= _MAX_RATE
    ):
        raise ModelError(f"{path} is no pipeline; write it with save_pipeline")
    return _loaded(_build(build, settings, weights, name=str(path)), rate=rate)


def _build(
    build: Callable[..., nn.Module],
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    name: str,
) -> nn.Module:
    """Build a network for these weights, once its shapes were compared without any memory."""
    way_out = "write it with save_pipeline, or add the encoder again"
    numbers, layers = list(_numbers(settings)), settings.get("encoder_num_layers")
    within = len(numbers) <= _MAX_SETTINGS and all(abs(one) <= _MAX_SETTING for one in numbers)
    # Layers are built one by one: thousands of them would take minutes.
    if not (within and isinstance(layers, int) and layers <= _MAX_LAYERS):
        raise ModelError(f"{name} is damaged: its settings are those of no encoder; {way_out}")
    try:
        with torch.device("meta"):
            needed = {key: one.shape for key, one in build(**settings).state_dict().items()}
        if needed != {key: one.shape for key, one in weights.items()}:
            raise ModelError(f"{name} holds the weights of another network; {way_out}")
        model = build(**settings)
        model.load_state_dict(weights)
    except ModelError:
        raise
    except Exception as error:  # torchaudio raises anything for settings that cannot be
        raise ModelError(f"{name} is damaged ({error}); {way_out}") from error
    return model


def _numbers(value: object) -> Iterator[float]:
    """All numbers of nested settings."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)


def _loaded(model: nn.Module, *, rate: int) -> PretrainedEncoder:
    """Freeze, hash and count the layers of a model."""
    model.eval().requires_grad_(requires_grad=False)
    digest = hashlib.sha256()
    # Sorted: the order in which modules were registered is not part of the weights.
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy())
    # A large pipeline comes wrapped in a module that normalises the waveform first.
    network: Any = getattr(model, "model", model)
    layers = len(network.encoder.transformer.layers)
    return PretrainedEncoder(model=model, rate=rate, layers=layers, sha256=digest.hexdigest())


def _layer(model: Any, samples: Tensor, depth: int) -> Tensor:  # noqa: ANN401
    """Output of one layer, (1, samples) -> (frames, width)."""
    outputs, _ = model.extract_features(samples, num_layers=depth)
    hidden: Tensor = outputs[-1][0]
    return hidden


def _parts(samples: Tensor, rate: int) -> tuple[Tensor, ...]:
    """Equal parts of at most 30 s."""
    count = -(-samples.shape[1] // (_MAX_PART_S * rate))
    return torch.split(samples, -(-samples.shape[1] // count), dim=1)
