"""Taking the final model on a device: the user's mean, and the user's head."""

import torch
from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.client.federation.agreed_plan import check_centre, read_agreed_plan
from sottovoce.client.federation.model_inputs import (
    load_speaker_statistics,
    model_with_weights,
    prepare_examples,
)
from sottovoce.client.personalisation import feedback
from sottovoce.client.personalisation.head_calibrator import HeadCalibrator
from sottovoce.shared import calibration
from sottovoce.shared.calibration import HeadPrior, SealedHead, UnverifiedHead
from sottovoce.shared.errors import MessageError, ModelError, SottovoceError
from sottovoce.shared.models.examples import Examples, concatenate_examples
from sottovoce.shared.models.network import Network
from sottovoce.shared.printable import get_logger
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind
from sottovoce.shared.protocol.messages import FinalModelRequest
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker import normalisation
from sottovoce.shared.speaker.neutral_direction import validate_direction

LOG = get_logger("sottovoce.client")


def finalise_model(device: Device, request: FinalModelRequest) -> SealedHead:
    """Take the final model; learn the user's normaliser and head.

    Args:
        device: The user's device, enrolled.
        request: The model, the prior of heads, and what the server says is the user's newest head;
            nothing in that head is trusted.

    Returns:
        The head sealed for the server.

    Guarantees:
        - An offered head that does not open under the user's key for the model and version that it
          is said to have, or that is older than what this device knows, is refused with a warning,
          and what is here stays. One of another model is never applied: a fit starts from it.
        - The version that leaves counts models, whatever the user labelled or forgot, and when.
        - A head comes whatever the user has: without labelled clips it is the prior's mean, which
          nobody can tell from another by its ciphertext.
        - A user who does not consent to personalise gets the population's mean and a head fitted on
          no clips; the answer does not tell.
        - A clip that is no number to the model, or far too large a one, is left out, and a fit
          that fails leaves the prior's mean: a refusal would tell that there is such a clip.

    Raises:
        MessageError: A centre or a direction that does not fit.
    """
    agreed = read_agreed_plan(device, request.plan_hash)
    model = model_with_weights(agreed, request.weights).eval()
    check_centre(agreed, request.centre)
    projected = device.vault.get_tensors("projected")
    learns = device.personalises
    try:
        validate_direction(request.neutral_direction, agreed.model.inputs)
    except ModelError as error:
        raise MessageError(f"{error}: nothing was learned") from error
    enrolled = projected["enrolled"] if learns else projected["enrolled"][:0]
    own = _speaker_mean(device, agreed, enrolled, request.centre, request.neutral_direction)
    # Bound to its projection: behind another one the same numbers would mean nothing.
    projection_hash = torch.frombuffer(bytearray.fromhex(agreed.projection_hash), dtype=torch.uint8)
    device.vault.put_tensors("normaliser", {"mean": own, "front": projection_hash})
    calibrator = HeadCalibrator(
        device.vault,
        model_hash=agreed.hash_model(request.weights),
        prior=request.prior,
        labels=agreed.labels,
    )
    with feedback.lock_labels(device.vault):  # nothing is labelled or forgotten meanwhile
        has_restored = request.stored_head is not None and _restore_offered(
            calibrator, request.stored_head, device.profile.user
        )
        if has_restored or not calibrator.is_fitted:
            labelled = _labelled_examples(device, agreed, projected, own)
            labelled = labelled if learns else labelled.select(slice(0))
            _fit(calibrator, _head_inputs(model, labelled, request.prior))
        elif not calibrator.is_model_counted:
            calibrator.advance_version()
        _book_head(device, agreed, calibrator.head_version)
        return calibrator.seal_head()


def _labelled_examples(
    device: Device, agreed: Plan, projected: dict[str, Tensor], own: Tensor
) -> Examples:
    """Everything that the user has labelled, less a mean: at enrolment, and since."""
    enrolled = prepare_examples(projected, "calibration", own)
    labelled_since = feedback.prepare_examples(device.vault, agreed, own)
    return concatenate_examples([enrolled, labelled_since]) if len(labelled_since) else enrolled


def _restore_offered(calibrator: HeadCalibrator, offered_head: UnverifiedHead, user: str) -> bool:
    """Restore the head that the server offers where it is newer than this one; refuse all else.

    Returns:
        Whether a head from elsewhere came, which the clips that lie here know nothing of yet.
    """
    try:
        if offered_head.version != calibrator.head_version or calibrator.is_empty:
            calibrator.restore_head(offered_head.to_sealed_head())
            return calibrator.is_restored
    except SottovoceError as error:
        LOG.warning("%s refuses the head that the server says is theirs: %s", user, error)
    return False


def _fit(calibrator: HeadCalibrator, head_inputs: tuple[Tensor, Tensor, Tensor | None]) -> None:
    """Fit the head on logits, labels and coordinates; where that cannot be done, on nothing.

    Whether it can must not show, and depends on the clips: a server can send a model and a prior
    between which just some clips make a fit fail.
    """
    quietly = calibrator.is_model_counted
    try:
        calibrator.fit_head(*head_inputs, keep_version=quietly)
    except (ModelError, RuntimeError, ArithmeticError, ValueError) as error:
        LOG.warning("the head is not fitted: %s", error)
        logits, labels, coordinates = head_inputs
        no_coordinates = None if coordinates is None else coordinates[:0]
        calibrator.fit_head(logits[:0], labels[:0], no_coordinates, keep_version=quietly)


def _head_inputs(
    model: Network, examples: Examples, prior: HeadPrior
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute logits, labels and coordinates of the utterances that a head can be fitted on."""
    logits, coordinates = prior.logits_and_coordinates(model, examples.features, examples.frames)
    return calibration.select_usable(logits, examples.labels, coordinates)


def _book_head(device: Device, plan: Plan, version: int) -> None:
    """Book the sealed head: ciphertext costs nothing, but the ledger names all that left."""
    name = f"{plan.run}/head-{version}"
    if not device.ledger.is_booked(name):
        release = Release(
            kind=ReleaseKind.SEALED_HEAD,
            mechanism=Mechanism.ENCRYPTION,
            run=plan.run,
            round=plan.rounds,
        )
        device.ledger.book_release(name, release, device.profile.budgets)


def _speaker_mean(
    device: Device, plan: Plan, rows: Tensor, centre: Tensor, direction: Tensor | None
) -> Tensor:
    """Estimate the user's mean for prediction, shape (inputs,): it never leaves the device."""
    if plan.centre is None:  # a model that reads voices as they are
        return centre
    own = (rows - centre)[rows.isfinite().all(1)]
    return centre + normalisation.estimate_mean(
        own,
        load_speaker_statistics(device),
        is_neutral=device.profile.neutral_enrolment,
        direction=direction,
    )
