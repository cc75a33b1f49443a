"""Exported model: a folder with one ONNX graph and its record, read and run without torch.

The folder is a model folder like any other (``model_folder.py``): a manifest hashes every file, and
a signature may seal the manifest. It holds ``model.onnx`` instead of ``model.safetensors``. What is
a user's own (mean, head, scores) is in neither: it is applied to what the graph computes.

A graph is a program, though one without files or network. Whoever needs to know whose it is pins
its signer's key.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sottovoce.shared import codec
from sottovoce.shared.calibration import conformal
from sottovoce.shared.calibration.conformal import NonconformityScores
from sottovoce.shared.calibration.portable_head import PortableHead
from sottovoce.shared.codec import LongName, Name, Sha256
from sottovoce.shared.errors import ModelError, SottovoceError
from sottovoce.shared.models.model_folder import (
    MANIFEST_FILE,
    METADATA_FILE,
    ONNX_FILE,
    read_model_folder,
)
from sottovoce.shared.speaker.familiarity import measure_unfamiliarity

FRAME_HOP: Final = 320
"""Samples between the encoder's frames: 20 ms at 16 kHz."""

_MEL_HOP, _SHORTEST = 160, 800  # samples
_INPUTS: Final = ("samples", "spoken", "mean")
_OUTPUTS: Final = ("features", "projected", "logits")
_COORDINATES: Final = "coordinates"
_TAG = re.compile("(?:[0-9a-f]{16})?")
_WAY_OUT: Final = "copy the folder again, or export the model anew"

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class FamiliarRecord:
    """Where public speech lies in projected space.

    Attributes:
        mean: Shape (inputs,).
        scale: Deviation of each input, shape (inputs,), above 0.
        limit: Distance within which speech is familiar, above 0.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    limit: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedRecord:
    """Record of an exported model's ``model.json``.

    Attributes:
        schema: Always 1.
        format: Always ``onnx``; no other model folder has this key.
        labels: Emotions in the order of the classes.
        extractor: Name of the feature extractor that the graph computes.
        feature_version: Version of its features: how recordings are cut to their speech.
        weights: Type in which weights are kept: ``float32``, ``float16`` or ``int8``.
        subtracts_user_mean: Whether the model expects the user's mean to be subtracted.
        centre: Mean of the training population, which stands for unknown users, (inputs,).
        prior: Numbers of the head for unknown users, and scores for prediction sets.
        basis_tag: Tag of the basis whose coordinates the graph computes, 16 hexadecimal digits; ""
            where heads have none.
        familiar_speech: Where public speech lies; null where the model does not say.
        model_hash: SHA-256 to which heads are bound.
        unknown_voice_temperature: What log probabilities are divided by while nothing is known of a
            voice, at least 1.
        voice_prior_utterances: How many utterances of a voice weigh as much as the population's
            mean in the estimate of its own, above 0.
    """

    schema: Literal[1] = 1
    format: Literal["onnx"] = "onnx"
    labels: tuple[Name, ...]
    extractor: LongName
    feature_version: int
    weights: Literal["float32", "float16", "int8"]
    subtracts_user_mean: bool
    centre: tuple[float, ...]
    prior: dict[str, float | list[float]]
    basis_tag: str = ""
    familiar_speech: FamiliarRecord | None = None
    model_hash: Sha256
    unknown_voice_temperature: float = 1.0
    voice_prior_utterances: float = 5.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelOutput:
    """Output of the graph for one recording.

    Attributes:
        features: What the extractor gives, shape (features,), float32.
        projected: The same behind the projection, before a mean is subtracted, shape (inputs,).
        logits: The shared model's, before the user's head, shape (classes,).
        coordinates: What a head's adapter weighs, shape (rank,); None where heads have no basis.
    """

    features: Floats
    projected: Floats
    logits: Floats
    coordinates: Floats | None


class ExportedModel:
    """A verified exported model, ready to run on one thread.

    Args:
        record: Content of ``model.json``.
        graph: Content of ``model.onnx``.

    Attributes:
        record: As above.
        centre: Mean of the training population, shape (inputs,), float32.
        head: Head of a user without labels.
        scores: Scores from which prediction sets start; None where the model has none.

    Raises:
        ModelError: A graph that onnxruntime cannot run, or one that is not of this record.
    """

    def __init__(self, record: ExportedRecord, graph: bytes) -> None:
        self.record = record
        self.centre: Floats = np.array(record.centre, dtype=np.float32)
        self.head, self.scores = _read_prior(record)
        sizes = {len(record.centre)}
        if known := record.familiar_speech:
            sizes |= {len(known.mean), len(known.scale)}
        positive = known is None or min(known.limit, *known.scale) > 0
        positive &= record.voice_prior_utterances > 0 and record.unknown_voice_temperature >= 1
        if not (positive and len(sizes) == 1 and _TAG.fullmatch(record.basis_tag)):
            raise ModelError(f"the record of the exported model is damaged; {_WAY_OUT}")
        options = onnxruntime.SessionOptions()
        # One thread: phones have others to run, and sums are always in the same order.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors, which are raised as well
        try:
            self._session = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ModelError(
                f"{ONNX_FILE} cannot be run ({str(error)[:200]}); {_WAY_OUT}"
            ) from error
        self._require_fit()

    @classmethod
    def load(cls, folder: Path, *, trusted_key: str = "") -> "ExportedModel":
        """Read and verify the folder that ``sottovoce export`` wrote.

        Args:
            folder: The exported model.
            trusted_key: Public key that must have signed it, 64 hexadecimal digits; "" asks for no
                signature.

        Raises:
            ModelError: None there, damaged, altered, of another release, or not signed by the key.
        """
        try:
            content = read_model_folder(folder, trusted_key=trusted_key)
            if not content.digest:
                raise ModelError(f"its {MANIFEST_FILE} is missing")
            if ONNX_FILE not in content.files:
                raise ModelError(f"no {ONNX_FILE} in it; write one with 'sottovoce export'")
            record = codec.decode_json(
                content.files[METADATA_FILE], ExportedRecord, name=METADATA_FILE, error=ModelError
            )
            return cls(record, content.files[ONNX_FILE])
        except FileNotFoundError as error:
            name = Path(error.filename or "").name
            raise ModelError(f"{folder} holds no exported model: no {name}; {_WAY_OUT}") from error
        except (OSError, SottovoceError) as error:
            raise ModelError(f"{folder} holds no usable exported model: {error}") from error

    def run(self, samples: Floats, spoken: NDArray[np.bool_], mean: Floats) -> ModelOutput:
        """Run the graph on one recording.

        Args:
            samples: Mono at 16 kHz, cut to its speech, shape (samples,), float32. Any length; what
                is longer than 30 s is encoded in parts, at 60 MB of memory each.
            spoken: Which frames are speech, shape (``count_frames(len(samples))``,).
            mean: The user's mean, or ``centre``, shape (inputs,), float32.

        Raises:
            ModelError: Arguments of other shapes, or without two frames of speech.
        """
        frames = count_frames(len(samples))
        if spoken.shape != (frames,) or int(spoken.sum()) < 2 or mean.shape != self.centre.shape:
            raise ModelError(
                f"{int(spoken.sum())} of {spoken.shape} frames are speech and the mean is of shape "
                f"{mean.shape}; {len(samples)} samples have {frames} frames, of which at least 2 "
                f"must be speech, and the mean of this model has shape {self.centre.shape}"
            )
        values = self._session.run(None, {"samples": samples, "spoken": spoken, "mean": mean})
        found = dict(zip(self._outputs, values, strict=True))
        return ModelOutput(
            **{name: found[name] for name in _OUTPUTS}, coordinates=found.get(_COORDINATES)
        )

    def measure_unfamiliarity(self, projected: Floats, mean: Floats) -> float:
        """Measure how far a recording lies from the speech that the model knows.

        Args:
            projected: Of the recording, shape (inputs,).
            mean: The user's mean, or ``centre``, shape (inputs,).

        Returns:
            In units of the limit; 0 where the model does not say.
        """
        known = self.record.familiar_speech
        if known is None:
            return 0.0
        return measure_unfamiliarity(
            projected, (known.mean, mean), scale=known.scale, limit=known.limit
        )

    def _require_fit(self) -> None:
        """Refuse a graph whose inputs and outputs are not those of the record."""
        record = self.record
        inputs = {one.name: one.shape for one in self._session.get_inputs()}
        outputs = {one.name: one.shape for one in self._session.get_outputs()}
        needed = {*_OUTPUTS, *((_COORDINATES,) if record.basis_tag else ())}
        sizes = {
            "mean": (inputs.get("mean"), len(record.centre)),
            "projected": (outputs.get("projected"), len(record.centre)),
            "logits": (outputs.get("logits"), len(set(record.labels))),
        }
        unfit = [name for name, (shape, size) in sizes.items() if shape != [size]]
        if set(inputs) != set(_INPUTS) or set(outputs) != needed or unfit:
            raise ModelError(
                f"{ONNX_FILE} is not of this {METADATA_FILE}: inputs {inputs}, outputs {outputs}; "
                f"{_WAY_OUT}"
            )
        self._outputs = tuple(outputs)


def _read_prior(record: ExportedRecord) -> tuple[PortableHead, NonconformityScores | None]:
    """Head and scores of unknown users."""
    numbers = record.prior
    try:
        head = PortableHead(
            log_temperature=conformal.parse_number(numbers["log_temperature"]),
            bias=np.array(numbers["bias"], dtype=np.float64),
        )
        scores = conformal.parse_scores(numbers) if "scores" in numbers else None
    except (KeyError, TypeError, ValueError, SottovoceError) as error:
        raise ModelError(f"the prior of the exported model is damaged ({error})") from error
    if len(head.bias) != len(record.labels):
        raise ModelError(f"the prior is for {len(head.bias)} classes, not {len(record.labels)}")
    return head, scores


def count_frames(samples: int) -> int:
    """Count the encoder's frames of so many samples at 16 kHz.

    Example:
        >>> count_frames(16_000), count_frames(1)  # nothing is shorter than 50 ms
        (50, 3)
    """
    return -(-(max(samples, _SHORTEST) // _MEL_HOP) // 2)


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported model, sound or not.

    Example:
        >>> is_exported(Path("."))
        False
    """
    return (folder / ONNX_FILE).is_file()


def encode_record(record: ExportedRecord) -> bytes:
    """Encode the record of an exported model as JSON."""
    return (json.dumps(codec.to_plain(record), indent=1, sort_keys=True) + "\n").encode()
