"""What a device does with the final model: the user's mean, and the user's head."""

import logging

import torch
from torch import Tensor

from sottovoce.client import labeller, participant
from sottovoce.client.calibrator import Calibrator
from sottovoce.client.device import Device
from sottovoce.shared import heads, normaliser
from sottovoce.shared.errors import MessageError, ModelError, SottovoceError
from sottovoce.shared.examples import Examples, join
from sottovoce.shared.heads import HeadPrior, KeptHead, SealedHead
from sottovoce.shared.models.network import Network
from sottovoce.shared.neutral import check
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.release import Kind, Mechanism, Release

LOG = logging.getLogger("sottovoce.client")


def personalise(
    device: Device,
    *,
    plan: str,
    weights: Tensor,
    centre: Tensor,
    prior: HeadPrior,
    neutral: Tensor | None = None,
    offered: KeptHead | None = None,
) -> SealedHead:
    """Take the final model; learn the user's normaliser and head.

    Args:
        device: The user's device, enrolled.
        plan: SHA-256 of the plan it enrolled for.
        weights: The final model, shape (params,), float32.
        centre: Where this population's voices lie, shape (inputs,), float32.
        prior: Where heads start from.
        neutral: Where the model hears neutral speech, a unit vector, shape (inputs,); None where it
            cannot say.
        offered: What the server says is the user's newest head; nothing in it is trusted.

    Returns:
        The head sealed for the server.

    Guarantees:
        - An offered head that does not open under the user's key for the model and version that it
          is said to have, or that is older than what this device knows, is refused with a warning,
          and what is here stays. One of another model is never applied: a fit starts from it.
        - The version that leaves counts models, whatever the user labelled or forgot, and when.
        - A head comes whatever the user has: without labelled clips it is the prior's mean, which
          nobody can tell from another by its ciphertext.
        - A clip that is no number to the model, or far too large a one, is left out, and a fit
          that fails leaves the prior's mean: a refusal would tell that there is such a clip.

    Raises:
        MessageError: A centre or a direction that does not fit.
    """
    agreed = participant.plan_of(device, plan)
    model = participant.model_of(agreed, weights).eval()
    participant.check_centre(agreed, centre)
    kept = device.vault.get_tensors("projected")
    try:
        check(neutral, agreed.model.inputs)
    except ModelError as error:
        raise MessageError(f"{error}: nothing was learned") from error
    own = _own_mean(device, agreed, kept["enrolled"], centre, neutral)
    # Bound to its front: behind another one the same numbers would mean nothing.
    front = torch.frombuffer(bytearray.fromhex(agreed.front), dtype=torch.uint8)
    device.vault.put_tensors("normaliser", {"mean": own, "front": front})
    calibrator = Calibrator(
        device.vault, model_hash=agreed.model_hash(weights), prior=prior, labels=agreed.labels
    )
    with labeller.alone(device.vault):  # nothing is labelled or forgotten meanwhile
        taken = _take_back(calibrator, offered, device.facts.user) if offered else False
        if taken or not calibrator.fitted:
            given = participant.finished(kept, "calibration", own)
            since = labeller.ready(device.vault, agreed, own)
            labelled = join([given, since]) if len(since) else given
            _fit(calibrator, _heard(model, labelled, prior))
        elif not calibrator.counted:
            calibrator.renew()
        _book_head(device, agreed, calibrator.version)
        return calibrator.sealed()


def _take_back(calibrator: Calibrator, offered: KeptHead, user: str) -> bool:
    """Take what the server keeps where it is newer than what is here; refuse all else.

    Returns:
        Whether a head from elsewhere came, which the clips that lie here know nothing of yet.
    """
    try:
        if offered.version != calibrator.version or calibrator.empty:
            calibrator.restore(offered.sealed())
            return calibrator.foreign
    except SottovoceError as error:
        LOG.warning("%s refuses the head that the server says is theirs: %s", user, error)
    return False


def _fit(calibrator: Calibrator, heard: tuple[Tensor, Tensor, Tensor | None]) -> None:
    """Fit the head on what was heard; where that cannot be done, on nothing.

    Whether it can must not show, and hangs on the clips: a server can send a model and a prior
    between which just some clips make a fit fail.
    """
    quietly = calibrator.counted
    try:
        calibrator.fit(*heard, quietly=quietly)
    except (ModelError, RuntimeError, ArithmeticError, ValueError) as error:
        LOG.warning("the head is not fitted: %s", error)
        logits, labels, places = heard
        none = None if places is None else places[:0]
        calibrator.fit(logits[:0], labels[:0], none, quietly=quietly)


def _heard(
    model: Network, examples: Examples, prior: HeadPrior
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits, labels and coordinates of those utterances that a head can be fitted on."""
    logits, places = prior.heard(model, examples.features, examples.frames)
    return heads.usable(logits, examples.labels, places)


def _book_head(device: Device, plan: Plan, version: int) -> None:
    """Ciphertext costs nothing, and is booked all the same: the ledger tells all that left."""
    name = f"{plan.run}/head-{version}"
    if not device.ledger.holds(name):
        release = Release(
            kind=Kind.SEALED_HEAD, mechanism=Mechanism.ENCRYPTION, run=plan.run, round=plan.rounds
        )
        device.ledger.book(name, release, device.facts.budgets)


def _own_mean(
    device: Device, plan: Plan, rows: Tensor, centre: Tensor, direction: Tensor | None
) -> Tensor:
    """The user's mean for prediction, shape (inputs,): it never leaves the device."""
    if plan.centre is None:  # a model that reads voices as they are
        return centre
    own = (rows - centre)[rows.isfinite().all(1)]
    return centre + normaliser.estimate(
        own,
        participant.population_of(device),
        neutral=device.facts.neutral_enrolment,
        direction=direction,
    )
