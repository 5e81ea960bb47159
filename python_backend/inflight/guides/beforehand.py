"""What is said about a guide before any work: limits that cost nothing, and combinations that no engine can honour."""

from __future__ import annotations

from inflight.engines.base import EngineInfo, Guide
from inflight.errors import invalid, unsupported
from inflight.grammar.nodes import GrammarError
from inflight.grammar.prepare import parse_choices, parse_json
from inflight.request.limits import MAX_CHOICES, MAX_GUIDE_DEPTH, MAX_GUIDE_VALUES
from inflight.request.parse import GenerationRequest

NAME = "guided_decoding_guide"


def check_limits(guide: Guide) -> None:
    """Raises INVALID_ARG for a guide that is not even worth a check. Takes milliseconds at most."""
    try:
        guide.text.encode()
        if guide.kind == "choice":
            choices = parse_choices(guide.text)
            if len(choices) > MAX_CHOICES:
                raise GrammarError(f"has {len(choices)} choices; at most {MAX_CHOICES:,} are allowed")
            "".join(choices).encode()
        elif guide.kind == "tools":
            _check_size(parse_json(guide.text))
        elif guide.kind == "json_schema":
            schema = parse_json(guide.text)
            if not isinstance(schema, (dict, bool)):
                raise GrammarError("is no JSON Schema: it must be a JSON object")
            _check_size(schema)
    except UnicodeEncodeError:
        raise invalid(NAME, "has half of a surrogate pair in it, which is no character") from None
    except GrammarError as error:
        raise invalid(NAME, str(error)) from None


def _check_size(schema: object) -> None:
    level: list[object] = [schema]
    count = depth = 0
    while level:
        depth += 1
        count += len(level)
        if depth > MAX_GUIDE_DEPTH:
            raise GrammarError(f"is nested more than {MAX_GUIDE_DEPTH} levels deep")
        if count > MAX_GUIDE_VALUES:
            raise GrammarError(f"has more than {MAX_GUIDE_VALUES:,} values")
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                "".join(value).encode()
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                value.encode()
        level = below


def check_combination(request: GenerationRequest, info: EngineInfo) -> None:
    """Raises UNSUPPORTED for what goes against a guide: the guide alone decides where a text ends, and it follows one
    text at a time.
    """
    if request.guide is None:
        return
    engine = f"together with a guide on the {info.name} engine"
    if request.beam_width > 1:
        raise unsupported("beam_width", f"above 1 is not supported {engine}; leave one of them out")
    if request.ignore_eos:
        raise unsupported("ignore_eos", f"is not supported {engine}: the guide decides where the text ends")
    if request.min_tokens > 0:
        raise unsupported("min_tokens", f"is not supported {engine}: the guide decides where the text ends")
