"""The command ``export``: one ONNX file of a trained model, for prediction without torch."""

import argparse
from pathlib import Path

from sottovoce.cli.model import add_trusted_key, read_trusted_key
from sottovoce.cli.options import Commands, add_command, print_json
from sottovoce.shared.errors import SettingError
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
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        metavar="RUN",
        help="a run folder, or the model in it; with --web also an exported model, without one "
        "that of the package",
    )
    places = parser.add_mutually_exclusive_group(required=True)
    places.add_argument("--out", type=Path, metavar="DIR", help="where the exported model goes")
    places.add_argument(
        "--web",
        type=Path,
        metavar="DIR",
        help="write a static site: a page, the model in 8 bits, the detector and the JavaScript",
    )
    parser.add_argument(
        "--runtime",
        type=Path,
        default=Path("node_modules/onnxruntime-web/dist"),
        metavar="DIR",
        help="with --web: the files of the npm package onnxruntime-web (default: %(default)s)",
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
    if arguments.web is not None:
        return _export_site(arguments)
    if arguments.model is None:
        raise SettingError("export got no model; name a run folder, or the model in it")
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


def _export_site(arguments: argparse.Namespace) -> int:
    """Write the static site; what is exported already needs no torch."""
    from sottovoce.client.web.site import write_site
    from sottovoce.shared.exported.exported_model import is_exported
    from sottovoce.shared.models.default_model import DEFAULT_MODEL
    from sottovoce.shared.models.model_folder import find_model

    folder, site = find_model(arguments.model or DEFAULT_MODEL), arguments.web
    key = read_trusted_key(arguments)
    # A trained model is exported into the site itself, whose manifest then seals it.
    if not is_exported(folder):
        words = {"model": folder, "out": site / "model", "web": None}
        words |= {"weights": arguments.weights or "int8", "json": False}
        run_export_command(argparse.Namespace(**{**vars(arguments), **words}))
        folder, key = site / "model", ""
    written = write_site(site, model=folder, runtime=arguments.runtime, trusted_key=key)
    if arguments.json:
        print_json({"site": str(site), "bytes": written})
    else:
        print_lines(f"written to {site}: {written / 1e6:.1f} MB; serve it from any static server")
    return 0
