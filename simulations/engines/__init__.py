"""Three ways to run the same two apps: in this process, on Ray, deployed."""

from typing import Protocol

from sottovoce.shared.errors import SettingError


class Engine(Protocol):
    """Runs the product's ServerApp and ClientApp to their end."""

    def __call__(self, *, devices: int, config: dict[str, str], workers: int) -> None:
        """Run them.

        Args:
            devices: How many nodes there are.
            config: The run's configuration, as both apps see it.
            workers: Processes that run clients.
        """


def engine(name: str) -> Engine:
    """The engine of a name; what it needs is imported only here.

    Raises:
        SettingError: There is none of this name, or its extra is not installed.
    """
    if name == "local":
        from sottovoce.simulations.engines.local import run_apps

        return run_apps
    if name == "ray":
        try:
            from sottovoce.simulations.engines.ray import run_apps as on_ray
        except ImportError as error:
            raise SettingError(
                "engine 'ray' needs Ray: pip install 'sottovoce[ray]', or use --engine local"
            ) from error
        return on_ray
    raise SettingError(f"engine is {name!r}; it must be local or ray")
