"""The local engine gives one result whoever runs the clients, and survives those who do not."""

import inspect
import logging
import platform
import resource
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from sottovoce.client.app import app as product
from sottovoce.shared.errors import EngineError, PrivacyError, SettingError
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.simulations.engines import load_engine, local
from sottovoce.simulations.engines.worker_process import retain_freed_memory


@pytest.mark.parametrize(("workers", "in_database"), [(2, True), (2, False), (4, True)])
def test_workers_change_no_bit(make_federation: Any, workers: int, in_database: bool) -> None:
    alone, together = make_federation("alone"), make_federation("together", in_database=in_database)

    alone.run()
    load_engine("local")(devices=4, config=together.config, workers=workers)

    assert torch.equal(alone.released(), together.released())
    assert alone.ledgers() == together.ledgers()
    assert alone.ledgers()["ada"].count(b"\n") == 7  # three rounds, head, three before


def test_another_seed_gives_another_model(make_federation: Any) -> None:
    one, other = make_federation("one"), make_federation("other", seed=8)

    one.run()
    other.run()

    assert not torch.equal(one.released(), other.released())


def test_clients_and_server_run_on_one_torch_thread(make_federation: Any) -> None:
    seen = []

    class Nosy(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            seen.append(torch.get_num_threads())
            return product(message, context)

    torch.set_num_threads(2)
    try:
        make_federation("a").run(client=Nosy())
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries stay as they are")
def test_memory_that_is_freed_stays() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(2**21)  # 8 MiB, 2,048 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    retain_freed_memory()
    faults()

    assert faults() < 2_048, "a page that is handed back is cleared anew each time: 20,480"


def test_a_lost_device_misses_its_round_only(make_federation: Any) -> None:
    whole, broken = make_federation("whole"), make_federation("broken")

    whole.run()
    broken.run(is_lost=_in_round(2, node=100))

    assert not torch.equal(whole.released(), broken.released())
    assert whole.ledgers()["ada"].count(b"\n") == 7
    assert broken.ledgers()["ada"].count(b"\n") == 6
    assert b"round-2/" not in broken.ledgers()["ada"]
    assert b"round-3/" in broken.ledgers()["ada"]


def test_below_the_quorum_the_run_stops_and_can_go_on(make_federation: Any) -> None:
    federation = make_federation("a", quorum=0.9)
    with pytest.raises(EngineError, match=r"round 2: 2 of 3 .* quorum of 0\.9.*--resume"):
        federation.run(is_lost=_in_round(2, node=100))

    federation.run()

    assert federation.ledgers()["ada"].count(b"\n") == 7
    assert federation.ledgers()["ben"].count(b"\n") == 7  # asked twice for round 2, booked once


def test_a_client_that_raises_is_an_error_reply(
    make_federation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Clumsy(ClientApp):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == messages.TRAIN and context.node_id == 101:
                raise self.error
            return product(message, context)

    caplog.set_level(logging.WARNING, logger="sottovoce.server")
    for error in (ZeroDivisionError("one over none"), PrivacyError("the vault is locked")):
        federation = make_federation(type(error).__name__)
        federation.run(client=Clumsy(error))
        assert str(error) in caplog.text
        assert federation.ledgers()["ben"].count(b"\n") == 3  # never trained
        assert federation.ledgers()["ada"].count(b"\n") == 7


def test_what_the_server_raises_comes_out_as_it_is(make_federation: Any) -> None:
    federation = make_federation("a")

    with pytest.raises(SettingError, match="lacks job=FOLDER"):
        federation.run(config={"devices": federation.config["devices"]})


def test_a_dead_worker_ends_the_run() -> None:
    future: Future[list[Message]] = Future()
    future.set_exception(BrokenProcessPool("killed"))

    with pytest.raises(EngineError, match=r"worker of the local engine died.*--resume"):
        local._result(future)


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(SettingError, match="engine is 'abacus'"):
        load_engine("abacus")


def test_the_private_pieces_of_flower_are_where_they_were() -> None:
    local.set_task_identity()
    message = Message(
        flower_records.encode_reply(messages.Reply(user="a", status=messages.Status.OK)), 7, "train"
    )

    assert {"_message_id"} <= set(message.metadata.__dict__)
    assert {"_content"} <= set(message.__dict__)
    assert message.metadata.run_id == local.RUN_ID
    assert message.metadata.src_node_id == local.SERVER_NODE_ID
    assert list(inspect.signature(Context).parameters)[:5] == [
        "run_id",
        "node_id",
        "node_config",
        "state",
        "run_config",
    ]


def _in_round(number: int, *, node: int) -> Any:
    """Loses one node's message of one round."""

    def lost(message: Message) -> bool:
        if message.metadata.message_type != messages.TRAIN or message.metadata.dst_node_id != node:
            return False
        return bool(flower_records.decode_train_request(message.content).round == number)

    return lost
