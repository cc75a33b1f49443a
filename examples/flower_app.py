"""Run the two apps as Flower's users do: ``python examples/flower_app.py [CONNECTION]``.

The same as ``flwr run .`` in the checkout, and then the run's status: ``flwr run --stream`` exits
with 0 even when the run failed, so it is asked for. Needs ``pip install 'sottovoce[ray]'``, and
takes a few minutes, most of them to start Ray.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
FLWR = Path(sys.executable).parent / "flwr"


def ask_flwr(*words: str) -> dict[str, Any]:
    """Run a command of Flower's and read its answer."""
    command = [str(FLWR), *words, "--format", "json"]
    said = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout
    answer: dict[str, Any] = json.loads(said[said.index("{") :])  # it may greet first
    return answer


if __name__ == "__main__":
    connection = sys.argv[1:]  # a name in Flower's config.toml; none is the local simulation
    run_id = ask_flwr("run", ".", *connection)["run-id"]
    status = "started"
    while not status.startswith("finished"):
        time.sleep(2)
        status = ask_flwr("ls", *connection, "--run-id", run_id)["runs"][0]["status"]
    print(f"run {run_id}: {status}")
    sys.exit(0 if status == "finished:completed" else 1)
