"""A server that is killed at any exchange goes on to the result it would have had."""

from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from sottovoce.client.app import app as product
from sottovoce.server.aggregation import server_anchor
from sottovoce.shared.errors import ModelError
from sottovoce.shared.protocol import flower_records, messages


class Killed(BaseException):
    """The operator pulled the plug."""


def kill_at(exchange: int) -> Any:
    """Kills the server after the devices answered an exchange, before it heard them."""
    count = iter(range(1, 100))

    def tamper(_kind: str, replies: list[Message]) -> list[Message]:
        if next(count) == exchange:
            raise Killed
        return replies

    return tamper


@pytest.mark.parametrize("exchange", [1, 2, 3, 4, 5])
def test_a_killed_run_goes_on_to_the_same_end(make_federation: Any, exchange: int) -> None:
    whole, killed = make_federation("whole"), make_federation("killed")
    whole.run()
    with pytest.raises(Killed):
        killed.run(tamper=kill_at(exchange))  # enrol, three rounds, personal

    killed.run()

    assert torch.equal(whole.released(), killed.released())
    assert whole.ledgers() == killed.ledgers()


def test_a_run_killed_twice_still_books_everything_once(make_federation: Any) -> None:
    whole, killed = make_federation("whole"), make_federation("killed")
    whole.run()
    for exchange in (2, 3):
        with pytest.raises(Killed):
            killed.run(tamper=kill_at(exchange))

    killed.run()

    assert whole.ledgers() == killed.ledgers()


def test_a_device_that_lost_its_outbox_makes_the_same_release_again(make_federation: Any) -> None:
    whole, killed = make_federation("whole"), make_federation("killed")
    whole.run()
    with pytest.raises(Killed):
        killed.run(tamper=kill_at(3))
    for path in (killed.folder / "devices").glob("*/vault/*outbox*"):
        path.unlink()

    killed.run()

    assert torch.equal(whole.released(), killed.released())
    assert whole.ledgers() == killed.ledgers()


class Real(ClientApp):
    """Starts every node as its owner would: with the device's folder."""

    def __init__(self, devices: str) -> None:
        super().__init__()
        self.devices = devices

    def __call__(self, message: Message, context: Context) -> Message:
        index = context.node_config["partition-id"]
        context.node_config["device"] = f"{self.devices}/{index:06d}"
        return product(message, context)


def test_a_real_device_answers_again_from_its_outbox(make_federation: Any) -> None:
    federation = make_federation("a", seed=None)
    client = Real(federation.config["devices"])
    before: list[torch.Tensor] = []
    with pytest.raises(Killed):
        federation.run(client=client, tamper=_remember(before, kill_at(2)))
    booked = federation.ledgers()
    after: list[torch.Tensor] = []

    federation.run(client=client, tamper=_remember(after, lambda _kind, replies: replies))

    assert all(federation.ledgers()[user].startswith(booked[user]) for user in booked)
    assert len(federation.device("ada").ledger.releases) == 7
    assert torch.equal(before[0], after[0])  # the first round's update, not a fresh draw


def test_a_real_device_without_its_outbox_pays_again(make_federation: Any) -> None:
    federation = make_federation("a", seed=None)
    client = Real(federation.config["devices"])
    with pytest.raises(Killed):
        federation.run(client=client, tamper=kill_at(2))
    for path in (federation.folder / "devices").glob("*/vault/*outbox-gradient*"):
        path.unlink()

    federation.run(client=client)

    assert len(federation.device("ada").ledger.releases) == 8


def test_a_damaged_checkpoint_is_refused(make_federation: Any) -> None:
    federation = make_federation("a")
    with pytest.raises(Killed):
        federation.run(tamper=kill_at(3))
    path = federation.folder / "server" / server_anchor.STATE_FILE
    path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(ModelError, match=r"damaged.*remove .*state"):
        federation.run()


def _remember(values: list[torch.Tensor], inner: Any) -> Any:
    """Keeps the updates of the first node before they go on."""

    def tamper(kind: str, replies: list[Message]) -> list[Message]:
        if kind == messages.TRAIN:
            values.append(flower_records.read_tensor(replies[0].content, "release", "value", 1))
        return list(inner(kind, replies))

    return tamper
