"""The OpenAPI document is true: what schemathesis makes of it, right and wrong, is answered as it says.

A body that is in order is drawn, so what it asks for is kept small; nothing else about it is changed.
"""

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from .conftest import RunningServer

LARGEST = {"steps": 1000, "n": 10}
SIZE = re.compile(r"auto|[0-9]{1,4}x[0-9]{1,4}")
MUST = {("POST", f"/v1/{what}/{kind}") for what in ("images", "jobs") for kind in ("generations", "edits")}
BEYOND_THE_DOCUMENT = (
    schemathesis.checks.positive_data_acceptance,  # fields that contradict each other; bytes that are no picture
    schemathesis.checks.unsupported_method,  # TRACE and the like: 405 without a list
)


@pytest.mark.parametrize(
    "examples", [4, pytest.param(250, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_every_answer_is_as_documented(served: RunningServer, examples: int) -> None:
    """Every operation, with that many bodies and parameters that fit the document, and as many that do not."""
    document = schemathesis.openapi.from_url(f"{served.address}/openapi.json")
    quietly = settings(
        deadline=None,
        derandomize=True,
        database=None,
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
    )
    operations = [found.ok() for found in document.get_all_operations()]
    assert {(one.method.upper(), one.path) for one in operations} >= MUST
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            if mode is schemathesis.GenerationMode.POSITIVE or operation.body or operation.query:
                quietly(given(operation.as_strategy(generation_mode=mode))(ask))()
    with served.client() as client:
        for job in client.get("/v1/jobs").json()["data"]:
            client.post(f"/v1/jobs/{job['id']}/cancel")
    assert not served.events("unexpected")


def ask(case: Any) -> None:
    """Send it, with as little to draw as it can have, and compare the answer with the document."""
    body = case.body
    if isinstance(body, dict):
        for name, most in LARGEST.items():
            if type(body.get(name)) is int and 1 <= body[name] <= most:  # True is an int, and no number here
                body[name] = 1
        if body.get("expand_prompt") is True:
            body["expand_prompt"] = False
        if isinstance(body.get("size"), str) and SIZE.fullmatch(body["size"]):
            body["size"] = "64x64"
    case.call_and_validate(excluded_checks=list(BEYOND_THE_DOCUMENT), timeout=60)
