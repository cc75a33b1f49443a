"""The ClientApp: Flower's glue around ``client.federation``. One speaker is one client."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from sottovoce.client.device import withdrawal
from sottovoce.client.device.demo_device import open_demo_device
from sottovoce.client.device.device import Device, PreparedRelease
from sottovoce.client.device.vault import open_from_environment
from sottovoce.client.federation import enrolment, final_model, statistics_round, training_round
from sottovoce.shared.errors import (
    BudgetSpent,
    ConsentWithdrawn,
    PrivacyError,
    SettingError,
    SottovoceError,
)
from sottovoce.shared.printable import get_logger
from sottovoce.shared.protocol import flower_records, messages

LOG = get_logger("sottovoce.client")

app = ClientApp()


class DeviceContext(Context):
    """A node that opens its device itself, which a simulation makes when it is asked.

    Only what runs the node can make one: nothing that a server sends becomes a context.
    """

    def open_device(self) -> Device:
        """Open the node's device."""
        raise NotImplementedError


@app.query("enrol")
def enrol_device(message: Message, context: Context) -> Message:
    """Join a run; the reply carries the device's noised label counts and share of the centre."""

    def answer(device: Device) -> messages.Reply:
        request = flower_records.decode_enrol_request(message.content)
        value = enrolment.enrol_device(
            device,
            request.plan,
            request.projection,
            request.speaker_statistics,
            requests_sums=request.report_statistics,
        )
        status = messages.Status.RECEIVE_ONLY if value is None else messages.Status.OK
        statement = withdrawal.sign_consent(
            device.vault, device.profile, request.plan.content_hash()
        )
        return messages.Reply(
            user=device.profile.user,
            status=status,
            value=value,
            body=training_round.public_identity_key(device, request.plan),
            consent=statement.to_bytes(),
        )

    return _reply(message, context, answer)


@app.train()
def train_round(message: Message, context: Context) -> Message:
    """Train for one round; the reply carries the noised update."""

    def answer(device: Device) -> messages.Reply:
        request = flower_records.decode_train_request(message.content)
        update = training_round.train_round(device, request)
        return messages.Reply(user=device.profile.user, status=messages.Status.OK, value=update)

    return _reply(message, context, answer)


@app.query("sum")
def secure_sum_step(message: Message, context: Context) -> Message:
    """Take one step of a secure sum; the reply carries the step's answer."""

    def answer(device: Device) -> messages.Reply:
        request = flower_records.decode_secure_sum_request(message.content)
        body = training_round.secure_sum_step(device, request, _prepare_release(device, request))
        return messages.Reply(user=device.profile.user, status=messages.Status.OK, body=body)

    return _reply(message, context, answer)


def _prepare_release(device: Device, request: messages.SecureSumRequest) -> PreparedRelease | None:
    """Prepare what a secure sum asks for; None at enrolment, whose sum needs no request."""
    if request.statistics_request:
        return statistics_round.prepare_head_statistics(device, request.statistics_request)
    if request.train_request:
        return training_round.prepare_round(device, request.train_request)
    return None


@app.query("calibrate")
def report_head_statistics(message: Message, context: Context) -> Message:
    """Measure how right the final model is on the device's clips; the reply is their noised sum."""

    def answer(device: Device) -> messages.Reply:
        request = flower_records.decode_statistics_request(message.content)
        value = statistics_round.release_head_statistics(device, request)
        return messages.Reply(user=device.profile.user, status=messages.Status.OK, value=value)

    return _reply(message, context, answer)


@app.evaluate()
def finalise_model(message: Message, context: Context) -> Message:
    """Take the final model; the reply carries the user's head, sealed."""

    def answer(device: Device) -> messages.Reply:
        request = flower_records.decode_final_model_request(message.content)
        head = final_model.finalise_model(device, request)
        user, status = device.profile.user, messages.Status.OK
        return messages.Reply(user=user, status=status, head=head.blob, version=head.version)

    return _reply(message, context, answer)


@app.query("withdraw")
def answer_withdrawal(message: Message, context: Context) -> Message:
    """Prove to the server that consent was withdrawn, or keep its word on what it deleted."""
    device = _device_of(context)
    user, proof = device.profile.user, b""
    try:
        request = flower_records.decode_withdrawal_request(message.content)
        if request.confirmation:
            withdrawal.keep_confirmation(device.vault, device.profile, request.confirmation)
        else:
            proof = withdrawal.prove_withdrawal(
                device.vault, device.profile, request.challenge
            ).to_bytes()
        reply = messages.Reply(user=user, status=messages.Status.WITHDRAWN, consent=proof)
    except Exception as error:  # noqa: BLE001  (its kind alone leaves)
        reply = _refuse(user, error)
    return Message(flower_records.encode_reply(reply), reply_to=message)


def _reply(
    message: Message, context: Context, answer: Callable[[Device], messages.Reply]
) -> Message:
    """Answer, or say why not: a refusal is a reply, never a crash."""
    device = _device_of(context)
    user = device.profile.user
    try:
        device.require_not_withdrawn()
        reply = answer(device)
        # The owner may have withdrawn in another program, while this was computed.
        device.require_not_withdrawn()
    except ConsentWithdrawn:
        LOG.info("%s gives nothing: consent was withdrawn", user)
        reply = messages.Reply(user=user, status=messages.Status.WITHDRAWN)
    except BudgetSpent as error:
        LOG.info("%s gives no more: %s", user, error)
        reply = messages.Reply(
            user=user, status=messages.Status.RECEIVE_ONLY, reason="its budget is spent"
        )
    except Exception as error:  # noqa: BLE001  (its kind alone leaves)
        reply = _refuse(user, error)
    return Message(flower_records.encode_reply(reply), reply_to=message)


def _refuse(user: str, error: Exception) -> messages.Reply:
    """Log why a request is refused, and make the reply that says that it is."""
    LOG.warning("%s refuses: %s", user, error, exc_info=not isinstance(error, SottovoceError))
    # The text may name what the user said; only its kind leaves the device.
    return messages.Reply(user=user, status=messages.Status.REFUSED, reason=type(error).__name__)


def _device_of(context: Context) -> Device:
    """Open the node's device.

    Raises:
        PrivacyError: It cannot be opened. Flower sends the server whatever a client raises, text
            and all, so this one names the kind of what went wrong and nothing of the device.
    """
    try:
        if isinstance(context, DeviceContext):
            return context.open_device()
        return _open_device(context)
    except Exception as error:  # noqa: BLE001  (whatever it is, its text may not leave)
        LOG.error("this device cannot answer: %s", error)  # noqa: TRY400  (the text is enough)
        kind = type(error).__name__
    raise PrivacyError(f"this device cannot answer ({kind}); its own log says why")


def _open_device(context: Context) -> Device:
    """Open the device that its owner names, or a simulated one, by partition number.

    Raises:
        SettingError: The node names neither.
    """
    own = context.node_config.get("device")
    if own:
        folder = Path(str(own))
        return Device.open(folder, vault=open_from_environment(folder / "vault"))
    population = str(context.run_config.get("devices", ""))
    index = context.node_config.get("partition-id")
    # Without a job, the server runs the demo; a node of a simulation then makes its own device.
    if index is not None and not population and not context.run_config.get("job"):
        return open_demo_device(context.run_id, int(index))
    if not population or index is None:
        raise SettingError(
            "this node has no device; start it with --node-config 'device=\"FOLDER\"'"
        )
    folder = Path(population) / f"{int(index):06d}"
    # The server writes the run's configuration: it may only point to simulated devices.
    device = Device.open(folder)
    if device.profile.simulated_seed is None:
        raise SettingError(f"{folder} is a real device; its owner starts its node with device=...")
    return device
