"""The command ``export``: one ONNX file of a trained model, for prediction without torch."""

import argparse
from pathlib import Path

from sottovoce.cli.model import add_trusted_key, read_trusted_key
from sottovoce.cli.options import Commands, add_command, print_json
from sottovoce.shared.printable import print_lines


def add_export_command(commands: Commands) -> None:
    """Add ``export`` to the commands."""
    parser = add_command(
        commands,
        "export",
        run_export_command,
        "Export a model as one ONNX file, from waveform to logits, for prediction without torch.",
        "sottovoce export runs/demo --out demo-onnx",
    )
    parser.add_argument("model", type=Path, metavar="RUN", help="a run folder, or the model in it")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where the exported model goes"
    )
    sizes = parser.add_mutually_exclusive_group()
    for name, text in (
        ("float16", "keep all weights in 16 bits (default: the encoder's, which are published so)"),
        ("int8", "keep matrices in 8 bits: half the size, answers a little different"),
    ):
        sizes.add_argument(f"--{name}", dest="weights", action="store_const", const=name, help=text)
    add_trusted_key(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_export_command(arguments: argparse.Namespace) -> int:
    """Export, and print the size and how far probabilities are from torch's."""
    from sottovoce.shared.exported.export import CARD_FILE, export_model
    from sottovoce.shared.exported.graph_writer import WeightType
    from sottovoce.shared.models.model_folder import find_model, read_model_folder
    from sottovoce.shared.models.model_package import ModelPackage

    folder, key = find_model(arguments.model), read_trusted_key(arguments)
    package = ModelPackage.load(folder, trusted_key=key)
    card = read_model_folder(folder, trusted_key=key).files.get(CARD_FILE, b"")
    weights = WeightType(arguments.weights or WeightType.FLOAT32)
    report = export_model(package, arguments.out, weights=weights, card=card)
    if arguments.json:
        print_json(
            {
                "folder": report.digest,
                "weights": weights.value,
                "graph_bytes": report.graph_bytes,
                "largest_difference": report.largest_difference,
            }
        )
    else:
        print_lines(
            f"exported to {arguments.out}: {report.graph_bytes / 1e6:.1f} MB; probabilities "
            f"within {report.largest_difference:.1e} of torch's"
        )
    return 0
