"""Events of a server in another process, read from the checkpoints that it saves."""

from pathlib import Path

from sottovoce.server.federation import checkpoint
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.protocol.events import EventListener, RoundEnded


class CheckpointEvents:
    """Emits the rounds that were saved since the last call.

    Args:
        folder: Folder of the job; rounds that are saved there already are not emitted.
        listener: Takes the events.

    Raises:
        ModelError: The folder holds no usable job.
    """

    def __init__(self, folder: Path, listener: EventListener) -> None:
        self._folder = folder
        self._listener = listener
        self._plan = Job.load(folder).plan
        self._emitted = checkpoint.read_newest_round(folder)

    def emit_saved_rounds(self) -> None:
        """Emit each new round, in order."""
        newest = checkpoint.read_newest_round(self._folder)
        # Polling may find several new rounds: each gets an event of its own.
        while self._emitted < newest:
            self._emitted += 1
            self._listener.handle_event(
                RoundEnded(run=self._plan.run, round=self._emitted, total_rounds=self._plan.rounds)
            )
