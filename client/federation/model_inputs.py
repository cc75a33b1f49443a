"""The model of a request, and a device's clips as that model reads them."""

import hashlib

from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.client.device.stored_clips import run_set_version
from sottovoce.client.federation.agreed_plan import check_centre
from sottovoce.client.training.per_example_gradients import rebind_weights
from sottovoce.shared.memo import LastValueCache
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.parameters import check_finite, unflatten_parameters
from sottovoce.shared.models.projection import normalise_and_mask
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker import normalisation
from sottovoce.shared.speaker.normalisation import SpeakerStatistics

_MODEL, _TEMPLATE = LastValueCache[Network](), LastValueCache[Network]()
"""Of the newest request: where one process answers for many devices, all are asked the same."""


def load_model_and_examples(
    device: Device, plan: Plan, weights: Tensor, centre: Tensor
) -> tuple[Network, Examples]:
    """Build a model of these weights, and normalise the training clips as training did.

    Raises:
        MessageError: A centre of another width.
        BudgetSpent: The mean was not released yet, and would pass the budget.
    """
    model = model_with_weights(plan, weights).eval()
    check_centre(plan, centre)
    return model, load_training_examples(device, plan, plan.content_hash(), centre)


def model_with_weights(plan: Plan, weights: Tensor) -> Network:
    """Return the shared model with these weights; it is cached and must not be modified."""
    return _MODEL.get((plan.model, weights), lambda: _build_model(plan, weights))


def _build_model(plan: Plan, weights: Tensor) -> Network:
    """Build a model that reads these very weights."""
    spec = plan.model
    check_finite(weights)
    template = _TEMPLATE.get((spec,), lambda: build_network(spec, seed=0))
    return rebind_weights(template, unflatten_parameters(template, weights))


def load_training_examples(device: Device, plan: Plan, digest: str, centre: Tensor) -> Examples:
    """Load the training clips as the model reads them: less a mean that is a booked release.

    Args:
        device: The user's device, enrolled.
        plan: What it enrolled for.
        digest: The plan's hash.
        centre: The released centre, shape (inputs,), checked.

    Raises:
        BudgetSpent: The mean was not released yet, and would pass the budget.
    """
    key = (digest, centre.numpy().tobytes(), run_set_version(device.vault))
    return device.training_cache.get(
        key, lambda: _normalised_examples(device, plan, digest, centre)
    )


def _normalised_examples(device: Device, plan: Plan, digest: str, centre: Tensor) -> Examples:
    """Normalise the training clips."""
    tensors = device.vault.get_tensors("projected")
    settings, release = plan.normaliser, plan.normaliser_release()
    if settings is None:
        return prepare_examples(tensors, "training", centre)
    projected, frames = tensors["training.projected"], tensors["training.frames"]
    # Less the released centre: what remains is short, so that less of it is clipped.
    rows = normalisation.average_frames(projected, frames) - centre
    if release is None:  # the whole update is bounded, whatever mean shaped it
        return prepare_examples(tensors, "training", centre + (rows.mean(0) if len(rows) else 0))
    mean = device.book_and_release(
        "normaliser",
        hashlib.sha256(digest.encode() + centre.numpy().tobytes()).hexdigest(),
        release,
        lambda random: normalisation.release_mean(
            rows, settings, load_speaker_statistics(device), random.noise_source
        ),
    )
    return prepare_examples(tensors, "training", centre + mean)


def load_speaker_statistics(device: Device) -> SpeakerStatistics:
    """Load the speaker statistics of public corpora that enrolment stored."""
    return SpeakerStatistics.from_tensors(device.vault.get_tensors("population"))


def prepare_examples(tensors: dict[str, Tensor], name: str, mean: Tensor) -> Examples:
    """Prepare projected clips as the model's input: subtract a mean, scale and mask."""
    frames, row_norm = tensors[f"{name}.frames"], float(tensors["length"])
    inputs = normalise_and_mask(tensors[f"{name}.projected"], mean, frames, row_norm=row_norm)
    return Examples(
        features=inputs,
        frames=frames,
        labels=tensors[f"{name}.labels"],
        votes=tensors.get(f"{name}.votes"),
    )
