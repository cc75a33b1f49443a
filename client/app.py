"""The ClientApp: Flower's glue around ``participant``. One speaker is one client."""

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from sottovoce.client import calibration, enrolment, participant, receiver
from sottovoce.client.device import Device, Pending
from sottovoce.client.vault import unlocked
from sottovoce.shared import wire
from sottovoce.shared.errors import BudgetSpent, PrivacyError, SettingError, SottovoceError

LOG = logging.getLogger("sottovoce.client")

app = ClientApp()


class Bringing(Context):
    """A node that brings its device itself, which a simulation makes when it is asked.

    Only what runs the node can make one: nothing that a server sends becomes a context.
    """

    def bring(self) -> Device:
        """The device."""
        raise NotImplementedError


@app.query("enrol")
def enrol(message: Message, context: Context) -> Message:
    """Join a run; the reply carries noised label counts and centre."""

    def answer(device: Device) -> wire.Reply:
        request = wire.EnrolRequest.read(message.content)
        value = enrolment.enrol(
            device, request.plan, request.front, request.population, tells=request.tells
        )
        status = wire.Status.RECEIVES if value is None else wire.Status.OK
        body = participant.identity(device, request.plan)
        return wire.Reply(user=device.facts.user, status=status, value=value, body=body)

    return _reply(message, context, answer)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round; the reply carries the noised update."""

    def answer(device: Device) -> wire.Reply:
        request = wire.TrainRequest.read(message.content)
        update = participant.train(
            device,
            plan=request.plan,
            number=request.round,
            weights=request.weights,
            class_weights=request.class_weights,
            centre=request.centre,
            denominator=request.denominator,
            clip=request.clip,
            share=request.share,
        )
        return wire.Reply(user=device.facts.user, status=wire.Status.OK, value=update)

    return _reply(message, context, answer)


@app.query("sum")
def add(message: Message, context: Context) -> Message:
    """One step of a secure sum; the reply carries the step's answer."""

    def answer(device: Device) -> wire.Reply:
        request = wire.SumRequest.read(message.content)
        body = participant.add(
            device,
            plan=request.plan,
            name=request.name,
            step=request.step,
            body=request.body,
            update=_pending(device, request),
        )
        return wire.Reply(user=device.facts.user, status=wire.Status.OK, body=body)

    return _reply(message, context, answer)


def _pending(device: Device, request: wire.SumRequest) -> Pending | None:
    """What a secure sum asks for, beside enrolment."""
    if request.calibrate:
        return calibration.answer(device, request.calibrate)
    return _round_of(device, request.train) if request.train else None


def _round_of(device: Device, request: wire.TrainRequest) -> Pending:
    """The round that a secure sum asks for."""
    return participant.round_of(
        device,
        plan=request.plan,
        number=request.round,
        weights=request.weights,
        class_weights=request.class_weights,
        centre=request.centre,
        denominator=request.denominator,
        clip=request.clip,
        share=request.share,
    )


@app.query("calibrate")
def calibrate(message: Message, context: Context) -> Message:
    """How right the final model is on the device's clips; the reply carries their noised sum."""

    def answer(device: Device) -> wire.Reply:
        request = wire.CalibrateRequest.read(message.content)
        value = calibration.calibrate(device, request)
        return wire.Reply(user=device.facts.user, status=wire.Status.OK, value=value)

    return _reply(message, context, answer)


@app.evaluate()
def personalise(message: Message, context: Context) -> Message:
    """Take the final model; the reply carries the user's head, sealed."""

    def answer(device: Device) -> wire.Reply:
        request = wire.PersonalRequest.read(message.content)
        head = receiver.personalise(
            device,
            plan=request.plan,
            weights=request.weights,
            centre=request.centre,
            prior=request.prior,
            neutral=request.neutral,
            offered=request.kept,
        )
        user, status = device.facts.user, wire.Status.OK
        return wire.Reply(user=user, status=status, head=head.blob, version=head.version)

    return _reply(message, context, answer)


def _reply(message: Message, context: Context, answer: Callable[[Device], wire.Reply]) -> Message:
    """Answer, or say why not: a refusal is a reply, never a crash."""
    device = _device(context)
    user = device.facts.user
    try:
        reply = answer(device)
    except BudgetSpent as error:
        LOG.info("%s gives no more: %s", user, error)
        reply = wire.Reply(user=user, status=wire.Status.RECEIVES, reason="its budget is spent")
    except Exception as error:
        LOG.warning("%s refuses: %s", user, error, exc_info=not isinstance(error, SottovoceError))
        # The text may name what the user said; only its kind leaves the device.
        reply = wire.Reply(user=user, status=wire.Status.REFUSED, reason=type(error).__name__)
    return Message(reply.record(), reply_to=message)


def _device(context: Context) -> Device:
    """The node's device.

    Raises:
        PrivacyError: It cannot be opened. Flower sends the server whatever a client raises, text
            and all, so this one names the kind of what went wrong and nothing of the device.
    """
    try:
        if isinstance(context, Bringing):
            return context.bring()
        return _opened(context)
    except Exception as error:  # noqa: BLE001  (whatever it is, its text may not leave)
        LOG.error("this device cannot answer: %s", error)  # noqa: TRY400  (the text is enough)
        kind = type(error).__name__
    raise PrivacyError(f"this device cannot answer ({kind}); its own log says why")


def _opened(context: Context) -> Device:
    """The device: in the folder its owner names, or at its place in a simulated population.

    Raises:
        SettingError: Neither is given.
    """
    own = context.node_config.get("device")
    if own:
        folder = Path(str(own))
        return Device(folder, vault=unlocked(folder / "vault"))
    population = str(context.run_config.get("devices", ""))
    place = context.node_config.get("partition-id")
    if not population or place is None:
        raise SettingError(
            "this node has no device; start it with --node-config 'device=\"FOLDER\"'"
        )
    folder = Path(population) / f"{int(place):06d}"
    # The server writes the run's configuration: it may only point to simulated devices.
    device = Device(folder)
    if device.facts.simulated_seed is None:
        raise SettingError(f"{folder} is a real device; its owner starts its node with device=...")
    return device
