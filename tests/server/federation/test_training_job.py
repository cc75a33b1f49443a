"""A job: all that the operator decided, found again after a kill; weights of classes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import make_plan
from safetensors.torch import save_file

from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.protocol.local_training import LocalTraining
from sottovoce.shared.speaker.normalisation import default_statistics

INPUTS, CLASSES = 4, 3
FRONT = PublicProjection(mean=torch.zeros(6), matrix=torch.ones(6, INPUTS), row_norm=2.0)
PLAN = make_plan(
    labels=("a", "b", "c"),
    projection_hash=FRONT.content_hash(),
    model=ModelSpec(kind="linear", inputs=INPUTS, classes=CLASSES),
    rounds=2,
    training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=1.0, denominator=1.0),
    centre=None,
)


@pytest.fixture
def job() -> Job:
    """A job whose population shares memory, as an unknown one does."""
    return Job(
        plan=PLAN,
        aggregation=AggregationSettings(optimiser="adam", momentum=0.9, averaged_rounds=3),
        weights=torch.randn_like(flatten_parameters(build_network(PLAN.model, 0))),
        projection=FRONT,
        speaker_statistics=default_statistics(INPUTS),
        devices=5,
        quorum=0.75,
        timeout_s=9.0,
        class_exponent=0.5,
    )


def test_a_job_is_found_again_as_it_was(tmp_path: Path, job: Job) -> None:
    job.save(tmp_path)
    again = Job.load(tmp_path)

    for name in ("plan", "aggregation", "devices", "quorum", "timeout_s", "class_exponent"):
        assert getattr(again, name) == getattr(job, name)
    assert torch.equal(again.weights, job.weights)
    assert again.projection.content_hash() == FRONT.content_hash()
    assert torch.equal(again.speaker_statistics.within, job.speaker_statistics.within)
    assert again.held_out_path is None
    assert again.head_store_path is None
    replace(job, head_store_path=tmp_path / "heads.sqlite").save(tmp_path)
    assert Job.load(tmp_path).head_store_path == tmp_path / "heads.sqlite"


@pytest.mark.parametrize("file", ["job.json", "public.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"junk" * 9])
def test_a_damaged_job_is_refused(
    tmp_path: Path, job: Job, file: str, content: bytes | None
) -> None:
    job.save(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match="no usable job"):
        Job.load(tmp_path)


@pytest.mark.parametrize("schema", [3, 5, "4"])
def test_a_job_of_another_schema_is_refused_with_the_way_out(
    tmp_path: Path, job: Job, schema: object
) -> None:
    job.save(tmp_path)
    facts = json.loads((tmp_path / "job.json").read_text())
    (tmp_path / "job.json").write_text(json.dumps(facts | {"schema": schema}))
    with pytest.raises(
        ModelError, match=rf"schema {schema!r}, this version reads 4; prepare it again"
    ):
        Job.load(tmp_path)


def test_a_job_that_lacks_a_setting_is_refused(tmp_path: Path, job: Job) -> None:
    job.save(tmp_path)
    facts = json.loads((tmp_path / "job.json").read_text())
    for name in facts:
        rest = {key: value for key, value in facts.items() if key != name}
        (tmp_path / "job.json").write_text(json.dumps(rest))
        with pytest.raises(ModelError, match=name):
            Job.load(tmp_path)


# --- class weights ----------------------------------------------------------------------------


def test_weights_turn_frequencies_round_and_average_one(job: Job) -> None:
    counts = torch.tensor([10.0, 20.0, 40.0])
    weights = replace(job, class_exponent=1.0).compute_class_weights(counts)

    assert weights.dtype == torch.float32
    assert torch.allclose(weights * counts.float(), (weights * counts.float()).mean())
    share = counts / counts.sum()
    assert float((weights * share).sum()) == pytest.approx(1.0)
    assert replace(job, class_exponent=0.0).compute_class_weights(counts).tolist() == [
        1.0,
        1.0,
        1.0,
    ]


@pytest.mark.parametrize(
    "counts", [[-30.0, 20.0, 40.0], [0.0, 0.0, 0.0], [-5.0, -5.0, -5.0], [1e9, 1.0, 1.0]]
)
def test_noise_cannot_make_one_class_everything(job: Job, counts: list[float]) -> None:
    weights = replace(job, class_exponent=1.0).compute_class_weights(torch.tensor(counts))
    assert weights.isfinite().all()
    assert (weights > 0).all()
    assert float(weights.max() / weights.min()) <= 12.0 + 1e-3


# --- where heads start ------------------------------------------------------------------------


def test_without_public_speakers_heads_start_at_nothing(job: Job) -> None:
    prior = job.estimate_head_prior(job.weights)
    assert (prior.mean.log_temperature, prior.mean.bias.count_nonzero()) == (0.0, 0)


def _held_out(folder: Path) -> Path:
    """Eight public speakers, of noise."""
    count = 8 * 40
    generator = torch.Generator().manual_seed(0)
    path = folder / "held_out.safetensors"
    save_file(
        {
            "features": torch.randn(count, INPUTS, generator=generator),
            "frames": torch.ones(count, dtype=torch.int64),
            "labels": torch.randint(CLASSES, (count,), generator=generator),
            "speakers": torch.arange(8).repeat_interleave(40),
        },
        path,
    )
    return path


def test_where_neutral_speech_lies_is_asked_of_the_model_that_is_handed_out(
    job: Job, tmp_path: Path
) -> None:
    """Public speech is white here, so that the weights themselves point there."""
    calm = replace(job, plan=replace(PLAN, labels=("a", "b", "neutral")))
    informed = replace(calm, held_out_path=_held_out(tmp_path))
    weights = job.weights[: INPUTS * CLASSES].view(CLASSES, INPUTS)

    found = informed.find_neutral_direction(job.weights)

    assert found is not None
    towards = weights[2] - weights.mean(0)
    assert float(torch.nn.functional.cosine_similarity(found, towards, dim=0)) > 0.97
    assert calm.find_neutral_direction(job.weights) is None, "there is no public speech"
    assert (
        replace(job, held_out_path=informed.held_out_path).find_neutral_direction(job.weights)
        is None
    ), "nor a class"


def test_public_speakers_who_hear_a_boastful_model_make_heads_modest(
    job: Job, tmp_path: Path
) -> None:
    prior = replace(job, held_out_path=_held_out(tmp_path)).estimate_head_prior(5 * job.weights)

    assert prior.mean.log_temperature > 0.5, "its answers are no better than chance"


def test_held_out_speakers_that_are_gone_are_told(job: Job, tmp_path: Path) -> None:
    for content in (None, b"junk"):
        path = tmp_path / "held_out.safetensors"
        if content:
            path.write_bytes(content)
        with pytest.raises(ModelError, match="held_out"):
            replace(job, held_out_path=path).estimate_head_prior(job.weights)
