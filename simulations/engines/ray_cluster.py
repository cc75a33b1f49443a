"""Connection to an existing Ray cluster: bounded in time, checked, and evenly used.

A run's devices are folders on disk, and a message goes to whichever worker is free. So every node
must see the run folder under one path, and be able to write there. This is tried before anything
is sent: each node reads what this process wrote, and writes what this process reads. A node that
runs other code is refused, for it would make another model of the same seed.

Two private pieces are touched: how Ray finds the address that ``auto`` means, and the class that
Flower's runtime makes its workers with. A test holds both. Import ``engines.ray`` first: it sets
what Ray and Flower read from the environment.
"""

import logging
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import ray
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.simulation.ray_transport.ray_actor import BasicActorPool, ClientAppActor
from ray._private import services
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.errors import EngineError, SettingError
from sottovoce.simulations.engines import ray_node

_ADDRESS: Final = re.compile(r"auto|(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}")
CONNECT_TIMEOUT_S: Final = 10.0
"""Longest wait for the head of a cluster to answer."""

_PROBE_TIMEOUT_S: Final = 60.0
_START_TIMEOUT_S: Final = 120.0
_WORKER_RESOURCES: Final = {"num_cpus": 1, "num_gpus": 0}
_NODE_LOST_ERRORS: Final = (
    ray.exceptions.NodeDiedError,
    ray.exceptions.TaskUnschedulableError,
    ray.exceptions.WorkerCrashedError,
)
"""What Ray raises of a node that died while Ray still lists it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterNode:
    """One machine of a Ray cluster.

    Attributes:
        node_id: Ray's identifier.
        name: Name and address, for people.
        worker_capacity: How many workers it can hold, at least 1.
    """

    node_id: str
    name: str
    worker_capacity: int


@contextmanager
def connect_cluster(address: str, *, workers: int, folder: Path) -> Iterator[Sequence[ClusterNode]]:
    """Connect to a cluster that can run the devices of ``folder``.

    Args:
        address: ``auto`` or HOST:PORT.
        workers: How many are asked for.
        folder: What every node must see; it is there.

    Yields:
        The nodes that can hold workers.

    Raises:
        SettingError: The address makes no sense, or there is no room for so many workers.
        EngineError: Nobody answers, or a node cannot take part.
    """
    where = resolve_address(address)
    try:
        ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR)
    except (Exception, SystemExit) as error:  # Ray ends the process where it gives up
        raise EngineError(
            _unreachable_message(where, str(error) or type(error).__name__)
        ) from error
    try:
        nodes = _matching_nodes(_nodes(), folder)
        capacity = sum(node.worker_capacity for node in nodes)
        if capacity < workers:
            raise SettingError(
                f"workers is {workers} and the cluster at {where} has {capacity} CPUs; it must "
                "be at most one worker a CPU: give fewer --workers, or start more nodes"
            )
        yield nodes
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Reject an address that names no cluster.

    Raises:
        SettingError: It is neither ``auto`` nor HOST:PORT.

    Example:
        >>> check_address("127.0.0.1:6379")
    """
    if not _ADDRESS.fullmatch(address):
        raise SettingError(
            f"address is {address!r}; it must be auto, or HOST:PORT of a cluster's head, such as "
            "127.0.0.1:6379"
        )


def resolve_address(address: str) -> str:
    """Find the HOST:PORT of a cluster, and make sure that its head answers.

    Ray itself would try for minutes.

    Args:
        address: ``auto`` or HOST:PORT.

    Raises:
        SettingError: It is neither.
        EngineError: No cluster is found, or nobody answers within ``CONNECT_TIMEOUT_S``.
    """
    check_address(address)
    try:
        where = services.canonicalize_bootstrap_address_or_die(address)
    except (OSError, ValueError) as error:
        raise EngineError(_unreachable_message(address, str(error).partition(". ")[0])) from error
    # A plain connection fails within seconds; ray.init itself would retry for minutes.
    with grpc.insecure_channel(where, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError as error:
            raise EngineError(
                _unreachable_message(where, f"tried for {CONNECT_TIMEOUT_S:g} s")
            ) from error
    return str(where)


def _unreachable_message(where: str, reason: str) -> str:
    """What to say of a cluster that cannot be reached."""
    return (
        f"no Ray cluster answers at {where} ({reason}); start one with: ray start --head, give its "
        "--address, or leave --address out to run on this machine alone"
    )


def _nodes() -> list[ClusterNode]:
    """Nodes that can hold workers, in the order of their names."""
    found = [
        ClusterNode(
            node_id=node["NodeID"],
            name=f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
            worker_capacity=int(node["Resources"].get("CPU", 0)),
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    return sorted(
        (node for node in found if node.worker_capacity), key=lambda node: (node.name, node.node_id)
    )


def _matching_nodes(nodes: Sequence[ClusterNode], folder: Path) -> list[ClusterNode]:
    """The nodes that are alive, once each sees the folder, writes there, and runs the same code.

    The file that they copy is replaced once, as a device replaces its files: a network file system
    that shows old files for a while would have a device answer from what it was.
    """
    folder, token = folder.resolve(), f".shared-{secrets.token_hex(8)}"
    alive = list(nodes)
    try:
        # Twice: the second round changes the file, and shows whether nodes see changes at once.
        for _ in range(2):
            secret = secrets.token_hex()
            replace_text(folder / token, secret)
            answers = {node: _submit_probe(node, folder, token) for node in alive}
            found = {node: _probe_result(node, answer) for node, answer in answers.items()}
            alive = [node for node in alive if found[node] is not None]
            for node in alive:
                wrong, theirs = found[node] or ("", {})
                copied = _read(folder / f"{token}-{node.node_id}") == secret
                _check_node(
                    node, folder, wrong or ("" if copied else "it sees other files"), theirs
                )
    finally:
        for path in folder.glob(f"{token}*"):
            path.unlink(missing_ok=True)
    return alive


def _submit_probe(node: ClusterNode, folder: Path, token: str) -> Any:  # noqa: ANN401  (Ray's)
    """Have a node look; where its answer will be."""
    there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    # No CPU asked for, or a busy node could not answer; never tried on another node.
    probe = ray.remote(ray_node.probe_node).options(
        num_cpus=0, max_retries=0, scheduling_strategy=there
    )
    return probe.remote(str(folder), token, node.node_id)


def _check_node(node: ClusterNode, folder: Path, wrong: str, theirs: Mapping[str, str]) -> None:
    """Refuse a node that cannot use the folder, or that runs other code."""
    if wrong:
        raise EngineError(
            f"node {node.name} cannot use {folder} ({wrong}); all nodes need one shared folder: "
            "give --out on a file system that every node has mounted at the same path, can write "
            "to, and sees changes of at once"
        )
    for name, own in ray_node.code_versions().items():
        if theirs.get(name) != own:
            raise EngineError(
                f"node {node.name} has another {name} ({theirs.get(name)}; here it is {own}) and "
                "would make another model; install the same there"
            )


def _probe_result(node: ClusterNode, answer: Any) -> tuple[str, Mapping[str, str]] | None:  # noqa: ANN401
    """What a node found; None where it has died."""
    try:
        wrong, theirs = ray.get(answer, timeout=_PROBE_TIMEOUT_S)
    except _NODE_LOST_ERRORS:
        return None
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EngineError(
            f"node {node.name} cannot take part ({lines[-1][:200]}); it needs Sottovoce installed "
            "in the Python that started Ray there, and to be alive: see ray status"
        ) from error
    return wrong, theirs


def _read(path: Path) -> str:
    """A file's text; empty where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


@contextmanager
def spread_workers(workers: int) -> Iterator[None]:
    """Make Flower's runtime start as many workers as asked for, spread over the nodes.

    On its own it makes one for every CPU of the cluster, and Ray packs them.
    """

    class Spread(raybackend.RayBackend):
        """Flower's backend, with workers of ours."""

        def build(self, app_fn: Callable[[], ClientApp]) -> None:
            """Make the workers, and wait for them."""
            make: Any = ClientAppActor
            pool: Any = BasicActorPool(ClientAppActor, dict(_WORKER_RESOURCES), {})
            pool.create_actor_fn = make.options(
                **_WORKER_RESOURCES, scheduling_strategy="SPREAD"
            ).remote
            pool.add_actors_to_pool(workers)
            self.pool, self.app_fn = pool, app_fn
            asked = [actor.__ray_ready__.remote() for actor in pool.pool]
            came, late = ray.wait(asked, num_returns=workers, timeout=_START_TIMEOUT_S)
            if late:
                raise EngineError(
                    f"{len(came)} of {workers} workers began within {_START_TIMEOUT_S:g} s; others "
                    "may use the cluster (see ray status): wait, or give fewer --workers"
                )
            ray.get(came)

    flower: Any = raybackend
    # Flower has no setting for it: its class is replaced for the time of the run.
    before, flower.RayBackend = flower.RayBackend, Spread
    try:
        yield
    finally:
        flower.RayBackend = before
