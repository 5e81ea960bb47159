from __future__ import annotations

import pytest

from inflight.errors import (
    ErrorCode,
    RequestError,
    cancelled,
    did_you_mean,
    internal,
    invalid,
    unavailable,
    unsupported,
)

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("error", "code", "parameter", "message"),
    [
        (invalid("top_p", "must be above 0"), ErrorCode.INVALID_ARG, "top_p", "top_p must be above 0"),
        (unsupported("lora_name", "is not there"), ErrorCode.UNSUPPORTED, "lora_name", "lora_name is not there"),
        (unavailable("come back"), ErrorCode.UNAVAILABLE, None, "come back"),
        (cancelled(), ErrorCode.CANCELLED, None, "the request was cancelled by its client"),
    ],
)
def test_each_error_has_its_code_its_parameter_and_a_sentence(
    error: RequestError, code: ErrorCode, parameter: str | None, message: str
) -> None:
    assert (error.code, error.parameter, error.message, str(error)) == (code, parameter, message, message)


def test_an_internal_error_tells_the_request_id_and_nothing_else() -> None:
    error = internal("abc123")
    assert error.code is ErrorCode.INTERNAL
    assert "abc123" in error.message
    assert "\n" not in error.message
    assert "/" not in error.message


def test_the_codes_are_tritons() -> None:
    assert {code.value for code in ErrorCode} == {"invalid_arg", "unsupported", "unavailable", "cancelled", "internal"}


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("max_token", " (did you mean max_tokens?)"),
        ("temprature", " (did you mean temperature?)"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_a_suggestion_is_the_nearest_name_or_nothing(name: str, suggestion: str) -> None:
    assert did_you_mean(name, ["max_tokens", "temperature", "top_p"]) == suggestion
