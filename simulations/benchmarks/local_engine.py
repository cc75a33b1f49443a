"""The local engine on a workload, timed.

Its devices read and write messages, keep ledgers and answer each round once; its server validates,
bounds again, and stores every round.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sottovoce.shared.protocol.events import Event, RoundEnded
from sottovoce.simulations.benchmarks.workloads import HEAVY, Workload, prepare_workload
from sottovoce.simulations.devices.device_pool import DevicePoolHost
from sottovoce.simulations.engines import local


class RoundTimer:
    """Listener that records when rounds end, and how many clients trained.

    Args:
        cpu: Seconds of processor time so far.
    """

    def __init__(self, cpu: Callable[[], float] = time.process_time) -> None:
        self._cpu = cpu
        self.rounds: list[tuple[float, float]] = []
        self.clients: list[int] = []

    def handle_event(self, event: Event, /) -> None:
        """Record the time of a round's end."""
        if isinstance(event, RoundEnded):
            self.rounds.append((self._cpu(), time.perf_counter()))
            self.clients.append(event.cohort_size or 0)

    def ms_per_client(self, which: int) -> list[float]:
        """Compute milliseconds per client, of every round but the first; 0 for CPU, 1 for wall."""
        return [
            1e3 * (self.rounds[n][which] - self.rounds[n - 1][which]) / clients
            for n in range(1, len(self.rounds))
            if (clients := self.clients[n])
        ]


def run_on_engine(work: Workload, *, workers: int) -> RoundTimer:
    """Make one run on the local engine and return its times."""
    from sottovoce.client.app import app as client
    from sottovoce.server.app import app as server

    clock = RoundTimer()
    with tempfile.TemporaryDirectory() as folder:
        config = prepare_workload(Path(folder), work)
        host = partial(
            DevicePoolHost, Path(config["device_database"]), Path(config["job"]), shared=workers > 1
        )
        local.run_server_and_client(
            local.with_listener(server, clock),
            client,
            devices=work.users,
            config=config,
            workers=workers,
            host=host,
        )
    return clock


def compare_workers(repeats: int) -> dict[str, float]:
    """Measure the speed of two workers against one on the heavier client, by the clock.

    Args:
        repeats: Runs with one worker and with two, alternating.
    """
    one, two = [], []
    for _ in range(repeats):
        one.append(statistics.median(run_on_engine(HEAVY, workers=1).ms_per_client(1)))
        two.append(statistics.median(run_on_engine(HEAVY, workers=2).ms_per_client(1)))
    return {
        "one_worker_wall_ms_a_client": statistics.median(one),
        "two_workers_wall_ms_a_client": statistics.median(two),
        "two_workers_speed": statistics.median(a / b for a, b in zip(one, two, strict=True)),
    }
