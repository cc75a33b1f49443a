"""A run whose devices are all known, by its server alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_job
from flwr.app import Message

from sottovoce.server.federation import checkpoint
from sottovoce.server.federation.coordinator import TrainingCoordinator
from sottovoce.server.federation.device_channel import DeviceChannel
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.simulations.engines import local


class Grid:
    """Five devices that all answer alike."""

    def get_node_ids(self) -> Iterable[int]:
        return range(5)

    def send_and_receive(self, messages: Iterable[Message], **_: object) -> list[Message]:
        return [self._answer(one) for one in messages]

    def _answer(self, message: Message) -> Message:
        kind = message.metadata.message_type
        # Of two labels and two inputs, or six weights of the model.
        value = {messages.ENROL: torch.ones(4), messages.TRAIN: torch.full((6,), 0.01)}.get(kind)
        user = f"user-{message.metadata.dst_node_id}"
        reply = messages.Reply(user=user, status=messages.Status.OK, value=value)
        return Message(flower_records.encode_reply(reply), reply_to=message)


@pytest.mark.parametrize("seed", [3, None])
def test_only_a_real_server_waits_for_the_disk_after_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int | None
) -> None:
    """A simulation makes a lost round again, to the bit; a real server cannot."""
    local.set_task_identity()
    waited: list[bool] = []
    save = checkpoint.save_state

    def noted(*arguments: Any, durable: bool = True) -> None:
        waited.append(durable)
        save(*arguments, durable=durable)

    monkeypatch.setattr(checkpoint, "save_state", noted)
    job = make_job(simulated_seed=seed)
    channel = DeviceChannel(Grid(), timeout_s=1.0, logs_failures=False)  # type: ignore[arg-type]
    state = TrainingCoordinator(job, tmp_path, channel).run()

    assert state.round == job.plan.rounds
    assert waited == [seed is None] * job.plan.rounds
