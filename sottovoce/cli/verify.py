"""The commands on a finished run: ``report``, ``verify`` and ``audit``."""

import argparse
from pathlib import Path

from sottovoce.cli.options import Commands, add_command, print_json
from sottovoce.shared.printable import print_lines


def add_run_commands(commands: Commands) -> None:
    """Add ``report``, ``verify`` and ``audit``."""
    _add_report(commands)
    _add_verify(commands)
    _add_audit(commands)


def _add_report(commands: Commands) -> None:
    parser = add_command(
        commands,
        "report",
        run_report_command,
        "Render a run's pages again from the JSON beside them.",
        "sottovoce report runs/demo",
    )
    _add_run_folder(parser)


def run_report_command(arguments: argparse.Namespace) -> int:
    """Render both pages and print their paths."""
    # Imported here, as in all commands: Matplotlib would slow down --help by a second.
    from sottovoce.shared.folder_claims import claim_folder
    from sottovoce.simulations.reports import render_pages

    with claim_folder(arguments.run_folder):
        pages = render_pages(arguments.run_folder)
    for path in pages:
        print_lines(path)
    return 0


def _add_verify(commands: Commands) -> None:
    parser = add_command(
        commands,
        "verify",
        run_verify_command,
        "Recompute every epsilon of a run from its ledgers, by two independent accountants.",
        "sottovoce verify runs/demo --statement",
    )
    _add_run_folder(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--statement",
        action="store_true",
        help="print the guarantee as one paragraph with every assumption, if all agrees",
    )
    shown.add_argument(
        "--registry",
        action="store_true",
        help="print an entry for the Differential Privacy Deployments Registry (YAML), if all "
        "agrees",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_verify_command(arguments: argparse.Namespace) -> int:
    """Recompute and compare; a run that disagrees with its ledgers is a failure."""
    from sottovoce import verify

    verification = verify(arguments.run_folder)
    # Of a run that disagrees, nothing is stated: its faults are printed in either case.
    if verification.is_consistent and (arguments.statement or arguments.registry):
        (_print_statement if arguments.statement else _print_registry_entry)(arguments)
    elif arguments.json:
        print_json(verification.to_dict())
    else:
        print_lines(*verification.report_lines())
    return 0 if verification.is_consistent else 1


def _print_statement(arguments: argparse.Namespace) -> None:
    """Print the guarantee in words, or its parts by subject."""
    from sottovoce.simulations.results.schema import read_privacy
    from sottovoce.simulations.verification import statement

    privacy = read_privacy(arguments.run_folder)
    if arguments.json:
        print_json(statement.list_statement_parts(privacy))
    else:
        print_lines(statement.write_statement(privacy))


def _print_registry_entry(arguments: argparse.Namespace) -> None:
    """Print the registry's entry, and what is left to fill in as comments above it."""
    from sottovoce.simulations.results.schema import read_privacy, read_run
    from sottovoce.simulations.verification import registry

    folder = arguments.run_folder
    entry = registry.make_registry_entry(read_privacy(folder), read_run(folder))
    if arguments.json:
        print_json(entry)
        return
    print_lines(*(f"# fill in: {name}" for name in registry.FIELDS_TO_FILL_IN))
    print_lines(*registry.format_yaml(entry).splitlines())


def _add_audit(commands: Commands) -> None:
    parser = add_command(
        commands,
        "audit",
        run_audit_command,
        "Attack a run: lower bounds on epsilon, membership, gender, speaker, features.",
        "sottovoce audit runs/demo",
    )
    _add_run_folder(parser)
    parser.add_argument("--seed", type=int, default=0, help="decides every draw (default 0)")
    parser.add_argument(
        "--trials",
        type=int,
        default=400,
        help="trials with and as many without the canary; more are tighter (default 400)",
    )
    parser.add_argument("--quiet", action="store_true", help="print the table only")
    parser.add_argument("--json", action="store_true", help="print audit.json")


def run_audit_command(arguments: argparse.Namespace) -> int:
    """Attack; a claim that an attack refutes is a failure."""
    from sottovoce.cli.progress_bar import ProgressConsole
    from sottovoce.shared.folder_claims import claim_folder

    with (
        ProgressConsole(quiet=arguments.quiet or arguments.json) as console,
        claim_folder(arguments.run_folder),
    ):
        # At once: what follows takes seconds to import, and minutes to rebuild.
        console.print_message(f"rebuilding the run in {arguments.run_folder} from its checkpoints")
        from sottovoce.simulations.audit.suite import AuditSettings, audit_run
        from sottovoce.simulations.audit.table import format_table

        audit = audit_run(
            arguments.run_folder,
            seed=arguments.seed,
            settings=AuditSettings(trials=arguments.trials),
            on_message=console.print_message,
            on_progress=console.update_progress,
        )
    print_json(audit) if arguments.json else print_lines(*format_table(audit))
    return 0 if audit["holds"] else 1


def _add_run_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the run's folder")
