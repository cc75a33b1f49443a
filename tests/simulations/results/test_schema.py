"""The published JSON Schemas and the readers say the same of a run's files."""

import copy
import json
from typing import Any

import jsonschema
import pytest

from sottovoce.shared.errors import MessageError
from sottovoce.simulations.results import schema

FILES = ("run", "privacy")


@pytest.mark.parametrize("name", FILES)
def test_a_real_run_is_valid_by_the_published_schema(tiny_run: Any, name: str) -> None:
    content = json.loads((tiny_run.folder / f"{name}.json").read_text())

    jsonschema.Draft202012Validator(schema.build_schemas()[name]).validate(content)


@pytest.mark.parametrize("name", [*schema.RECORDS])
def test_every_schema_is_one_and_can_be_published(name: str) -> None:
    published = schema.build_schemas()[name]

    jsonschema.Draft202012Validator.check_schema(published)
    assert published["title"] == f"Sottovoce {name}.json"
    assert json.loads(json.dumps(published)) == published


def test_damage_is_refused_by_reader_and_schema_alike(tiny_run: Any) -> None:
    run = schema.read_run(tiny_run.folder)
    checker = jsonschema.Draft202012Validator(schema.build_schemas()["run"])

    for path, value in (
        (("accuracy", "uar"), 1.5),
        (("accuracy", "confusion"), [[-1]]),
        (("corpus", "emotions"), []),
        (("unit",), "word"),
        (("privacy", "epsilon"), "8"),
        (("timing",), None),
    ):
        damaged: Any = copy.deepcopy(run)
        inner = damaged
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        assert not checker.is_valid(damaged), path
        with pytest.raises(MessageError, match=r"\.".join(path)):
            schema.validate_run(damaged)


def test_a_reader_returns_what_was_read_with_keys_it_does_not_know(tiny_run: Any) -> None:
    run: Any = dict(schema.read_run(tiny_run.folder)) | {"note": "mine"}

    assert schema.validate_run(run) is run
