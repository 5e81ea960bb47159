"""Every sentence of the backend that refuses a request, read from its source, means to the gateway what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from inflight.request.contract import INPUTS
from inflight_gateway.core.errors import Kind
from inflight_gateway.core.refusal import refusal
from inflight_tools.common.layout import REPOSITORY

SERVING = REPOSITORY / "python_backend" / "inflight"
PARAMETERS = frozenset(tensor.name for tensor in INPUTS) | {"structured_outputs", "best_of", "stop_token_ids"}
WAITS = {Kind.OVERLOADED, Kind.RESTARTING, Kind.DRAINING, Kind.DOWN, Kind.DEADLINE}


def spoken(node: ast.expr) -> str | None:
    """A constant or an f-string as it may be said; None: it is put together elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "7" for part in node.values)
    return None


def sentences(function: str, arguments: int) -> Iterator[tuple[str, list[str]]]:
    """Where `function` is called, and its arguments that are texts."""
    for path in sorted(SERVING.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function:
                said = [spoken(argument) for argument in node.args[:arguments]]
                if len(said) == arguments and all(said):
                    yield f"{path.relative_to(SERVING)}:{node.lineno}", [text or "" for text in said]


UNAVAILABLE = [pytest.param(texts[0], id=place) for place, texts in sentences("unavailable", 1)]
NAMED = [
    pytest.param(function, texts[0], texts[1], id=place)
    for function in ("invalid", "unsupported")
    for place, texts in sentences(function, 2)
]


def test_the_source_has_as_many_sentences_as_it_is_known_to_have() -> None:
    assert len(UNAVAILABLE) >= 12
    assert len(NAMED) >= 50


@pytest.mark.parametrize("sentence", UNAVAILABLE)
def test_what_passes_is_to_be_tried_again(sentence: str) -> None:
    assert refusal(sentence, PARAMETERS).kind in WAITS, sentence


@pytest.mark.parametrize(("function", "name", "problem"), NAMED)
def test_what_is_wrong_with_a_request_is_the_clients_to_mend(function: str, name: str, problem: str) -> None:
    found = refusal(f"{name} {problem}", PARAMETERS)
    assert found.kind.status == 400, found.kind
    assert found.param
    if function == "unsupported" and "not supported" in problem:
        assert found.kind is Kind.UNSUPPORTED


@pytest.mark.parametrize(
    ("sentence", "kind", "param"),
    [
        ("num_return_sequences must be at most 128, but is 400", Kind.INVALID, "n"),
        ("messages has 9031 tokens; the context holds 8192, at least one for the answer", Kind.TOO_LONG, "messages"),
        ("Request for unknown model: 'nope' is not found", Kind.NO_MODEL, None),
        ("internal error while handling request ab12; see the server's log", Kind.INTERNAL, None),
        ("the request was cancelled by its client", Kind.CANCELLED, None),
        ("the engine died (signal 9) and is being restarted; try again in a few seconds", Kind.RESTARTING, None),
        ("Failed to process the request(s) for model 'llm_0_0', message: Stub process", Kind.INTERNAL, None),
        ("something that nobody knows", Kind.INTERNAL, None),
    ],
)  # fmt: skip
def test_a_sentence_means_its_kind_and_names_the_clients_field(sentence: str, kind: Kind, param: str | None) -> None:
    found = refusal(sentence, PARAMETERS)
    assert (found.kind, found.param) == (kind, param)


def test_a_sentence_of_others_is_not_shown() -> None:
    said = "in ensemble 'x', failed at /srv/models/secret"
    assert "secret" not in refusal(said, PARAMETERS).message
