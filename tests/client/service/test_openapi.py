"""Whatever the description allows, and much that it does not, is answered as it says."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

HOST = {"Host": "127.0.0.1:8765"}
LEFT_OUT = ["/v1/erasure", "/v1/withdrawal"]
"""These would end the device for the operations that come after."""


def test_answers_are_those_of_the_description(shared_service: Any) -> None:
    schema = schemathesis.openapi.from_asgi(
        "/v1/openapi.json", shared_service.client.app, headers=HOST
    )
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    asked = 0
    for found in schema.exclude(path=LEFT_OUT).get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy(generation_mode=modes[asked % 2]))
        @settings(
            max_examples=6,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: Any) -> None:
            # A recording of random bytes fits the description, and is refused all the same.
            case.call_and_validate(
                headers=shared_service.headers() | HOST,
                excluded_checks=[checks.positive_data_acceptance],
            )

        ask()
        asked += 1
    assert asked > 12
