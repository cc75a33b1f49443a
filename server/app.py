"""The ServerApp: Flower's glue around ``coordinator.TrainingCoordinator``."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from sottovoce.server.federation.coordinator import TrainingCoordinator
from sottovoce.server.federation.sampled_coordinator import SampledTrainingCoordinator
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.errors import SettingError

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the training job that the run's configuration names.

    Raises:
        SettingError: The configuration names no job.
    """
    folder = str(context.run_config.get("job", ""))
    if not folder:
        raise SettingError("the run's configuration lacks job=FOLDER, the folder of a prepared job")
    job = Job.load(Path(folder))
    training = SampledTrainingCoordinator if job.cohort_sampler else TrainingCoordinator
    training(job, Path(folder), grid).run()
