"""The finished model of a fold, from its run folder alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sottovoce.server.federation import checkpoint
from sottovoce.shared.calibration import HeadPrior
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.speaker.normalisation import SpeakerStatistics
from sottovoce.simulations.corpora.speaker_splits import Fold
from sottovoce.simulations.evaluation import personalisation
from sottovoce.simulations.results.path_names import folder_name


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FoldModel:
    """One fold's finished model.

    Attributes:
        labels: Emotions in the order of the classes.
        network: The shared model, ready to predict.
        projection: The public projection.
        centre: Mean of the training users' projected rows, shape (inputs,).
        speaker_statistics: Statistics of how public speakers differ.
        prior: Prior of users' heads.
        neutral_direction: Direction of neutral speech, shape (inputs,); None where the model has
            none.
    """

    labels: tuple[str, ...]
    network: Network
    projection: PublicProjection
    centre: Tensor
    speaker_statistics: SpeakerStatistics
    prior: HeadPrior
    neutral_direction: Tensor | None

    def predict_logits(self, rows: Tensor, mean: Tensor) -> Tensor:
        """Compute logits (utterances, classes), float64, of centred rows less a speaker mean."""
        return self.logits_and_coordinates(rows, mean)[0]

    def logits_and_coordinates(self, rows: Tensor, mean: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the logits, and the coordinates in the prior's basis where it has one."""
        # Rows are pooled already: each is an utterance of one frame.
        single = torch.ones(len(rows), dtype=torch.int64)
        inputs = self.projection.normalise_rows(rows, mean, single)
        logits, coordinates = self.prior.logits_and_coordinates(self.network, inputs, single)
        return logits.double(), coordinates


def load_fold_model(run: Path, fold: Fold) -> FoldModel:
    """Load the model that a fold released.

    Args:
        run: The run folder.
        fold: Which fold.

    Raises:
        ModelError: What the run stored is damaged.
    """
    return _load_model(run, run / "checkpoints" / folder_name(fold.name))


def load_all_models(run: Path) -> list[FoldModel]:
    """Load the models of all folds, in the order of their folders' names.

    The corpus that the run was made from is not needed.

    Args:
        run: The run folder.

    Raises:
        SettingError: The folder holds no finished run of a simulation.
        ModelError: What the run stored is damaged.
    """
    folders = sorted(path.parent.parent for path in run.glob("checkpoints/*/server/job.json"))
    if not folders or not (run / "run.json").is_file():
        raise SettingError(
            f"{run} holds no finished run; make one with: sottovoce simulate ... --out {run}"
        )
    return [_load_model(run, folder) for folder in folders]


def _load_model(run: Path, folder: Path) -> FoldModel:
    """The model released into a fold's folder."""
    # Read by hand: the plan of an older release has another schema, but the same model.
    job: dict[str, Any] = json.loads((folder / "server" / "job.json").read_text())
    plan = json.loads(job["plan"])
    public = load_file(folder / "server" / "public.safetensors")
    released = checkpoint.load_released_model(folder / "server")[0]
    network = build_network(ModelSpec.from_dict(plan["model"]), seed=0).eval()
    load_parameters(network, released["weights"])
    labels = tuple(plan["labels"])
    return FoldModel(
        labels=labels,
        network=network,
        projection=PublicProjection(
            mean=public["mean"], matrix=public["matrix"], row_norm=float(job["length"])
        ),
        centre=released["centre"],
        speaker_statistics=SpeakerStatistics.from_tensors(public),
        prior=personalisation.load_head_prior(run, folder, len(labels))[0],
        neutral_direction=released.get("neutral"),
    )
