"""Distribution of the final model, and storage of the sealed heads that come back."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sottovoce.server.consent.withdrawal_handler import UserRecords
from sottovoce.server.federation import checkpoint
from sottovoce.server.federation.device_channel import DeviceChannel
from sottovoce.server.federation.participants import Participant
from sottovoce.server.federation.training_job import Job
from sottovoce.server.personalisation.head_store import HeadStore
from sottovoce.shared.calibration import HeadPrior, SealedHead, UnverifiedHead
from sottovoce.shared.errors import PrivacyError, SottovoceError
from sottovoce.shared.printable import get_logger
from sottovoce.shared.protocol.messages import FinalModelRequest, Reply

LOG = get_logger("sottovoce.server")


class ModelDistributor:
    """Sends the final model to devices, each with its own stored head.

    Args:
        job: Names the plan and the store of heads.
        folder: Where the released model is saved; also heads, where the job names no store.
        channel: The way to the devices.
    """

    def __init__(self, job: Job, folder: Path, channel: DeviceChannel) -> None:
        self._job = job
        self._folder = folder
        self._channel = channel
        self._store_path = job.head_store_path or folder / "heads.sqlite"

    def save_model(self, weights: Tensor, centre: Tensor, prior: HeadPrior) -> FinalModelRequest:
        """Save the final model and its companions, and build the request that delivers the model.

        Args:
            weights: The model, shape (params,), float32.
            centre: The population's centre, shape (inputs,), float32.
            prior: Prior of users' heads.
        """
        request = FinalModelRequest(
            plan_hash=self._job.plan.content_hash(),
            weights=weights,
            centre=centre,
            prior=prior,
            neutral_direction=self._job.find_neutral_direction(weights),
        )
        checkpoint.save_released_model(self._folder, request.named_tensors(), prior)
        return request

    @property
    def user_records(self) -> UserRecords:
        """The heads that are stored, by user."""
        store = HeadStore(self._store_path)
        return UserRecords(
            name="calibration heads", delete=store.delete_user, list_users=store.list_users
        )

    def send_model(self, request: FinalModelRequest, devices: Iterable[Participant]) -> None:
        """Send the model to devices, each with its own stored head; store those that come back."""
        model_hash = self._job.plan.hash_model(request.weights)
        store = HeadStore(self._store_path)
        requests = {one.node: _request_with_head(request, store, one.user) for one in devices}
        for device, reply in self._channel.request(requests, size=0):
            if reply.head:
                _store_head(store, device.user, reply, model_hash)


def _request_with_head(
    request: FinalModelRequest, store: HeadStore, user: str
) -> FinalModelRequest:
    """Add the head that is stored for the user to the request, where there is one."""
    try:
        stored = store.get(user)
    except PrivacyError as error:
        LOG.warning("the head of %s is not offered: %s", user, error)
        # The device fits a head of its own; one damaged row must not keep the model from anybody.
        stored = None
    if stored is None:
        return request
    # Unverified: only the user's device can tell whether the head opens.
    head = UnverifiedHead(model_hash=stored.model_hash, version=stored.version, blob=stored.blob)
    return replace(request, stored_head=head)


def _store_head(store: HeadStore, user: str, reply: Reply, model_hash: str) -> None:
    """Store one sealed head, if it is newer than what is stored and looks sealed."""
    try:
        stored = store.get(user)
        if stored is not None and (stored.model_hash, stored.version) == (
            model_hash,
            reply.version,
        ):
            return  # a run that was resumed asks again
        store.put(user, SealedHead(model_hash=model_hash, version=reply.version, blob=reply.head))
    except SottovoceError as error:
        LOG.warning("the head of %s is not kept: %s", user, error)
