"""Prediction without torch: what its installation and a process take, and whether answers agree.

``python -m sottovoce.simulations.benchmarks.runtime`` installs what is committed, without extras,
into a new environment, and writes docs/results/runtime.json and runtime.md. With ``--corpora``
exported models are compared with torch on clips of people that training never saw.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.calibration import HeadPrior, identity_head
from sottovoce.shared.errors import SottovoceError
from sottovoce.shared.exported.export import export_model
from sottovoce.shared.exported.graph_writer import WeightType
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.printable import print_error, print_lines
from sottovoce.shared.speaker.normalisation import default_statistics
from sottovoce.simulations.benchmarks.exported_answers import compare_answers
from sottovoce.simulations.benchmarks.subprocesses import capture_stdout
from sottovoce.simulations.corpora.synthetic.sample_recordings import write_sample

_HOUSE = Path(__file__).resolve().parent.parent.parent
_INPUTS, _CLASSES = 128, 8
_CORPORA = ("ravdess", "cremad", "emodb")

_PROCESS = """
import json, pathlib, sys, time
started = time.perf_counter()
from sottovoce import OnnxRecogniser
imported, cpu = time.perf_counter() - started, time.process_time()
recogniser = OnnxRecogniser.open(sys.argv[1])
recogniser.predict(sys.argv[2])
answered = time.perf_counter() - started
again = time.perf_counter()
recogniser.predict(sys.argv[2])
status = pathlib.Path("/proc/self/status").read_text()
print(json.dumps({
    "import_s": imported,
    "import_cpu_s": cpu,
    "first_prediction_s": answered,
    "first_prediction_cpu_s": time.process_time(),
    "next_prediction_s": time.perf_counter() - again,
    "peak_mb": int(status.split("VmHWM:")[1].split()[0]) / 1024,
    "has_torch": "torch" in sys.modules,
}))
"""
"""What is measured in a process; times from its own start, those of the interpreter left out. Its
most memory is Linux's VmHWM: what ``resource`` says begins with that of the process that forked."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the figures and their page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--repeats", type=int, default=9, help="processes that are started")
    parser.add_argument("--corpora", type=Path, help="a folder with ravdess, cremad and emodb")
    parser.add_argument("--tested", type=int, default=100, help="clips of a corpus to compare")
    parser.add_argument("--trained", type=int, default=300, help="clips that a model is fitted on")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = measure_runtime(Path(folder), repeats=arguments.repeats)
        result["corpora"] = {
            name: compare_answers(
                name,
                arguments.corpora / name,
                tested=arguments.tested,
                trained=arguments.trained,
            )
            for name in (_CORPORA if arguments.corpora else ())
        }
    except SottovoceError as error:
        print_error(error)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    replace_text(arguments.out / "runtime.json", json.dumps(result, indent=1) + "\n")
    replace_text(arguments.out / "runtime.md", format_page(result))
    print_lines(*format_page(result).splitlines())
    return 0


def measure_runtime(folder: Path, *, repeats: int) -> dict[str, Any]:
    """Install without extras, and measure processes that predict once.

    Args:
        folder: An empty folder.
        repeats: Processes that are started, one after the other.

    Raises:
        EngineError: The wheel cannot be built or installed, or does not predict.
    """
    venv.create(folder / "env", with_pip=True)
    python = str(folder / "env" / "bin" / "python")
    # The interpreter and pip are there on any machine that installs something.
    empty = _megabytes(folder / "env")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # Isolated below: neither this folder nor the environment may stand for the installation.
    # A copy: building a wheel leaves files beside the sources.
    copy = folder / "house"
    capture_stdout(["git", "clone", "--quiet", str(_HOUSE), str(copy)], 60, "cannot copy the house")
    capture_stdout([*pip, str(copy)], 600, "cannot install the wheel")
    write_sample(folder / "hello.wav", emotion="angry", seed=1)
    export_model(_usual_model(), folder / "exported", weights=WeightType.FLOAT32)
    words = [python, "-I", "-c", _PROCESS, str(folder / "exported"), str(folder / "hello.wav")]
    found = [
        json.loads(capture_stdout(words, 60, "the installed runtime does not predict"))
        for _ in range(repeats)
    ]
    return {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "repeats": repeats,
        "installed_mb": _megabytes(folder / "env") - empty,
        "has_torch": any(one.pop("has_torch") for one in found),
        "least": {name: min(one[name] for one in found) for name in found[0]},
        "median": {name: statistics.median(one[name] for one in found) for name in found[0]},
        "most": {name: max(one[name] for one in found) for name in found[0]},
    }


def format_page(found: Mapping[str, Any]) -> str:
    """Format the page from the content of runtime.json."""
    about = (
        "`python -m sottovoce.simulations.benchmarks.runtime --corpora DIR`, on "
        f"{found['machine']}: [an exported model](../guides/onnx.md) in an environment that holds "
        "what `pip install sottovoce` brings, and no extra."
    )
    measured = (
        f"Installed, without the interpreter and pip: **{found['installed_mb']:.0f} MB**. PyTorch "
        f"was loaded: {'yes' if found['has_torch'] else 'no'}. {found['repeats']} processes, one "
        "after the other, each predict one short recording; the clock runs from the first import. "
        "Other work went on beside it: read the least by the clock, and the CPU."
    )
    lines = ["# Prediction without PyTorch", "", about, "", measured, ""]
    lines += ["| what | median (least to most) |", "|---|---|"]
    rows = {
        "import, by the clock": ("import_s", "s"),
        "import, CPU, with the interpreter's start": ("import_cpu_s", "s"),
        "first prediction, by the clock": ("first_prediction_s", "s"),
        "everything, CPU, with the interpreter's start": ("first_prediction_cpu_s", "s"),
        "next prediction, by the clock": ("next_prediction_s", "s"),
        "most memory of the process": ("peak_mb", "MB"),
    }
    for what, (name, unit) in rows.items():
        values = (found[kind][name] for kind in ("median", "least", "most"))
        digits = 0 if unit == "MB" else 2
        middle, least, most = (f"{value:.{digits}f}" for value in values)
        lines.append(f"| {what} | {middle} {unit} ({least} to {most}) |")
    if found["corpora"]:
        lines += _corpora_lines(found["corpora"])
    return "\n".join(lines) + "\n"


def _corpora_lines(corpora: Mapping[str, Any]) -> list[str]:
    """Answers of exports beside torch's, as a table."""
    about = (
        "A linear model on 128 inputs, fitted on some clips of each corpus, and exported in each "
        "type; clips of speakers that the fit never saw, through the same detector and cut. "
        "Differences are of probabilities. Few clips: the figures compare exports, not models."
    )
    columns = ("corpus", "clips", "weights", "size", "UAR (torch)", "largest difference")
    lines = ["", "## The same answers", "", about, ""]
    lines += [f"| {' | '.join(columns)} | same emotion |", "|---" * (len(columns) + 1) + "|"]
    for corpus, one in corpora.items():
        for kind, export in one["exports"].items():
            lines.append(
                f"| {corpus} | {one['clips']} of {one['speakers']} speakers | {kind} | "
                f"{export['bytes'] / 1e6:.1f} MB | {export['uar']:.3f} ({one['uar']:.3f}) | "
                f"{export['largest_difference']:.1e} | {export['same_emotion']:.0%} |"
            )
    return lines


def _usual_model() -> ModelPackage:
    """A model of the usual size, of made-up weights: it costs what a trained one does."""
    # No trained model is asked for: the benchmark runs where no corpus is.
    spec = ModelSpec(kind="linear", inputs=_INPUTS, classes=_CLASSES)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(2_304, _INPUTS, generator=generator) / 48
    return ModelPackage(
        labels=tuple(f"emotion {index}" for index in range(_CLASSES)),
        extractor="whisper-tiny-en",
        spec=spec,
        weights=flatten_parameters(build_network(spec, seed=0)),
        projection=PublicProjection(mean=torch.zeros(2_304), matrix=matrix, row_norm=1.0),
        centre=torch.zeros(_INPUTS),
        speaker_statistics=default_statistics(_INPUTS),
        prior=HeadPrior(mean=identity_head(_CLASSES)),
        subtracts_user_mean=True,
        model_hash="0" * 64,
    )


def _megabytes(folder: Path) -> float:
    """Size of all files in a folder, a million bytes each."""
    return float(np.sum([file.lstat().st_size for file in folder.rglob("*")])) / 1e6


if __name__ == "__main__":
    sys.exit(main())
