"""The ServerApp: Flower's glue around the coordinators of ``server.federation``."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from sottovoce.server.consent.consent_registry import REGISTRY_FILE, ConsentRegistry
from sottovoce.server.federation.coordinator import TrainingCoordinator
from sottovoce.server.federation.device_channel import DeviceChannel
from sottovoce.server.federation.sampled_coordinator import SampledTrainingCoordinator
from sottovoce.server.federation.training_job import Job
from sottovoce.server.planning.demo_job import prepare_demo_job
from sottovoce.shared.errors import SettingError
from sottovoce.shared.printable import get_logger
from sottovoce.shared.protocol.events import Event, EventListener, RoundEnded

LOG = get_logger("sottovoce.server")

app = ServerApp()


class ListenedContext(Context):
    """A context with a listener for the run's events, of an engine in this process.

    Only what runs the app can make one: no run configuration becomes a listener.

    Args:
        context: What Flower made.
        listener: Takes the run's events, instead of the log.
    """

    def __init__(self, context: Context, listener: EventListener) -> None:
        super().__init__(
            context.run_id,
            context.node_id,
            context.node_config,
            context.state,
            context.run_config,
        )
        self.listener = listener


class LoggedEvents:
    """The listener of a server that nobody watches: it logs each round."""

    def handle_event(self, event: Event, /) -> None:
        """Log the end of a round; ignore other events."""
        if isinstance(event, RoundEnded):
            LOG.info("round %d of %d", event.round, event.total_rounds)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the training job that the run's configuration names; without any, a small demo.

    Raises:
        SettingError: The configuration names devices and no job.
    """
    name = str(context.run_config.get("job", ""))
    if not name:
        if context.run_config.get("devices"):
            raise SettingError(
                "the run's configuration lacks job=FOLDER, the folder of a prepared job"
            )
        LOG.warning("the run names no job=FOLDER: this is a demo on made-up features, not speech")
    folder = Path(name) if name else prepare_demo_job(context.run_id)
    listener = context.listener if isinstance(context, ListenedContext) else LoggedEvents()
    coordinator = open_job(folder, grid, listener)
    coordinator.run()
    LOG.info("the model and its checkpoints are in %s", folder)


def open_job(
    folder: Path, grid: Grid, listener: EventListener
) -> TrainingCoordinator | SampledTrainingCoordinator:
    """Build the coordinator of a prepared job.

    Args:
        folder: The job's.
        grid: Flower's way to the devices.
        listener: Takes the run's events.

    Raises:
        ModelError: The folder holds no usable job.
        SettingError: The job's plan cannot be kept over a sampled population.
    """
    job = Job.load(folder)
    # Beside the heads: whoever withdraws from one run of an operator withdraws from all.
    heads = job.head_store_path or folder / "heads.sqlite"
    consents = ConsentRegistry(heads.with_name(REGISTRY_FILE))
    if job.cohort_sampler is None:
        channel = DeviceChannel(grid, timeout_s=job.timeout_s, consents=consents)
        return TrainingCoordinator(job, folder, channel, listener=listener)
    # Of a large population many are asleep: they are counted, and do not fill the log.
    channel = DeviceChannel(grid, timeout_s=job.timeout_s, logs_failures=False, consents=consents)
    return SampledTrainingCoordinator(job, folder, channel, listener=listener)
