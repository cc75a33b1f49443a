"""The ServerApp: Flower's glue around ``strategy.Training``."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from sottovoce.server.crowd import CrowdTraining
from sottovoce.server.job import Job
from sottovoce.server.strategy import Training
from sottovoce.shared.errors import SettingError

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run's configuration names.

    Raises:
        SettingError: The configuration names no job.
    """
    folder = str(context.run_config.get("job", ""))
    if not folder:
        raise SettingError("the run's configuration lacks job=FOLDER, the folder of a prepared job")
    job = Job.load(Path(folder))
    training = CrowdTraining if job.crowd else Training
    training(job, Path(folder), grid).run()
