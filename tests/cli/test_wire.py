"""The client's shapes are those of the models, and its errors those of the error tree."""

from __future__ import annotations

from typing import get_type_hints

import pytest
from pydantic import BaseModel

from hanok.cli.output import problem_of
from hanok.client import wire
from hanok.client.client import failure
from hanok.client.http import error_of
from hanok.errors import HanokError, all_error_types
from hanok.model.host import Fit, Room
from hanok.model.operation import Event, Operation, OperationState, Problem
from tests.cli import recorded


@pytest.mark.parametrize(
    ("shape", "model"),
    [
        (wire.ProblemWire, Problem),
        (wire.OperationWire, Operation),
        (wire.EventWire, Event),
        (wire.FitWire, Fit),
        (wire.RoomWire, Room),
    ],
)
def test_shapes_have_the_fields_of_the_models(shape: type, model: type[BaseModel]) -> None:
    assert set(get_type_hints(shape)) == set(model.model_fields)


def test_final_states() -> None:
    assert {state.value for state in OperationState if state.is_final} == wire.FINAL_STATES


@pytest.mark.parametrize("kind", all_error_types().values())
def test_errors_come_back_as_they_went(kind: type[HanokError]) -> None:
    sent = kind("what", field="f", expected="e", hint="h")
    problem = problem_of(sent)
    assert Problem.model_validate(problem).code == kind.code
    got = failure(
        {**recorded.operation(state="failed"), "error": problem}  # type: ignore[typeddict-item]
    )
    assert type(got) is kind
    assert (got.message, got.field, got.expected, got.hint) == ("what", "f", "e", "h")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"7", b'{"detail": 7}', b"\xff"])
def test_an_error_without_a_problem_is_still_an_error(body: bytes) -> None:
    got = error_of(body, 502)
    assert "status 502" in got.message
