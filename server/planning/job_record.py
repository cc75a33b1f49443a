"""The file ``job.json``: what an operator decided, as plain values."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save
from torch import Tensor

from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.federation.cohort_sampling import CohortSampler
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.codec import convert_settings, decode_json
from sottovoce.shared.errors import ModelError
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.validation import format_value

SCHEMA: Final = 4
"""Version of ``job.json`` and ``public.safetensors``; no other is read."""

_OLD_KEYS: Final = {"cohort_sampler": "crowd"}
"""Fields whose key is that of earlier releases, whose runs go on."""


class OtherSchemaError(ModelError):
    """A job of another schema than this version reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord:
    """Everything of a job that is no tensor.

    Attributes:
        plan: The plan, as devices get it.
        aggregation: How updates become a model.
        length: Norm that projected rows are scaled to.
        devices: As in ``training_job.Job``, like all below.
        quorum: In (0, 1].
        timeout_s: In seconds.
        class_exponent: From 0 to 1.
        budgets: What sums may cost one user.
        simulated_seed: Seed of a simulated server; None on a real one.
        held_out: File of the held-out public speakers.
        groups: Number of groups for cross-fitting.
        cohort_sampler: How cohorts are drawn; None asks all devices.
        heads: The store of users' sealed heads.
        schema: Version of the format.
    """

    plan: str
    aggregation: AggregationSettings
    length: float
    devices: int
    quorum: float
    timeout_s: float
    class_exponent: float
    budgets: tuple[PrivacyBudget, ...]
    simulated_seed: int | None
    held_out: str | None
    groups: int
    cohort_sampler: CohortSampler | None = None
    heads: str | None = None
    schema: int = SCHEMA

    def to_json(self) -> bytes:
        """Encode the record as the content of the file; what is not there is left out."""
        facts = {
            _OLD_KEYS.get(name, name): value
            for name, value in asdict(self).items()
            if value is not None or name not in ("cohort_sampler", "heads")
        }
        facts["budgets"] = [budget.to_dict() for budget in self.budgets]
        return json.dumps(facts, sort_keys=True, indent=1).encode()


def write_job(folder: Path, record: JobRecord, tensors: Mapping[str, Tensor]) -> None:
    """Write a job's two files, each whole or not at all.

    Args:
        folder: The job's.
        record: Everything that is no tensor.
        tensors: Everything else, by name.
    """
    # Copies: safetensors refuses tensors that share memory, as an unknown population's do.
    copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    # Tensors first: a job is there once its JSON is.
    replace_file(folder / "public.safetensors", save(copies))
    replace_file(folder / "job.json", record.to_json())


def read_job_record(path: Path) -> JobRecord:
    """Read a job's record from its file.

    Args:
        path: The file ``job.json``.

    Raises:
        ModelError: It is damaged; the message names the path of the value.
        OtherSchemaError: It is of another schema.
    """
    content = decode_json(path.read_bytes(), dict[str, Any], name=path.name, error=ModelError)
    schema = content.get("schema")
    if schema != SCHEMA:
        raise OtherSchemaError(
            f"schema {format_value(schema)}, this version reads {SCHEMA}; prepare it again with "
            "this version, or go on with the version that prepared it"
        )
    for name, key in _OLD_KEYS.items():
        if key in content:
            content[name] = content.pop(key)
    return convert_settings(content, JobRecord, name=path.name, error=ModelError)
