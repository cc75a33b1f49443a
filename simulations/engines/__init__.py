"""Engines that run the same two apps: in this process, on Ray (here or a cluster), deployed."""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from sottovoce.shared.errors import SettingError
from sottovoce.shared.protocol.events import EventListener

__all__ = ["Engine", "check_address", "check_cluster", "load_engine"]


class Engine(Protocol):
    """Runs the product's ServerApp and ClientApp to their end."""

    def __call__(
        self,
        *,
        devices: int,
        config: dict[str, str],
        workers: int,
        listener: EventListener | None = None,
    ) -> None:
        """Run both apps to their end.

        Args:
            devices: How many nodes there are.
            config: The run's configuration, as both apps see it.
            workers: Processes that run clients.
            listener: Takes the run's events, in this process; None leaves them to the log.
        """


def load_engine(name: str, *, address: str | None = None) -> Engine:
    """Load the engine of a name; what it needs is imported only here.

    Args:
        name: ``local`` or ``ray``.
        address: Address of the Ray cluster to run on; None runs on this machine.

    Raises:
        SettingError: There is none of this name, its extra is not installed, or an address is
            given to one that has no cluster.
    """
    if name not in ("local", "ray"):
        raise SettingError(f"engine is {name!r}; it must be local or ray")
    check_address(name, address)
    # Ray is an extra: importing it here keeps the local engine free of it.
    if name == "ray":
        return partial(_ray_engine().run_apps, address=address)
    from sottovoce.simulations.engines.local import run_apps

    return run_apps


def check_address(name: str, address: str | None) -> None:
    """Reject an address for an engine that has no cluster.

    Raises:
        SettingError: The engine has no cluster.

    Example:
        >>> check_address("ray", "auto")  # a cluster may have an address
    """
    if address is not None and name != "ray":
        raise SettingError(
            f"address is {address!r} and engine is {name!r}; only the ray engine runs on a "
            "cluster: give --engine ray, or leave --address out"
        )


def check_cluster(address: str, *, workers: int, folder: Path) -> str:
    """Test a Ray cluster before any work is done; see ``ray.check_cluster``."""
    return str(_ray_engine().check_cluster(address, workers=workers, folder=folder))


def _ray_engine() -> Any:  # noqa: ANN401  (a module)
    """The Ray engine's module."""
    try:
        return import_module("sottovoce.simulations.engines.ray")
    except ImportError as error:
        raise SettingError(
            "engine 'ray' needs Ray: pip install 'sottovoce[ray]', or use --engine local"
        ) from error
