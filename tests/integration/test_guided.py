"""Guided answers of the real model through the real server: they follow their guide, and a bad guide harms nobody."""

from __future__ import annotations

import collections
import itertools
import json
import re
import time
from typing import Any

import jsonschema
import psutil
import pytest

from inflight import control
from inflight_tools.server.server import Server
from tests.harness.grpc_client import GrpcClient, RequestFailed
from tests.harness.http_client import HttpClient
from tests.integration.guide_cases import HOSTILE, SCHEMAS

pytestmark = pytest.mark.server

STALL_LIMIT_S = 5.0  # a compile of two seconds of processor time, on a machine that others use as well
CHECK_LIMIT_S = 16.0  # one check that runs into its limits, and a new process
SOON_S = 1.5  # an answer to a deadline of 0.3 s, on such a machine
CHAT = [{"role": "user", "content": "Describe one person. Answer briefly."}]


def ask(client: GrpcClient, kind: str, guide: str | None, max_tokens: int = 200, **values: Any) -> Any:
    return client.start(
        messages=json.dumps(CHAT),
        stream=values.pop("stream", False),
        max_tokens=max_tokens,
        guided_decoding_guide_type=kind,
        guided_decoding_guide=guide,
        return_finish_reason=True,
        return_num_output_tokens=True,
        **values,
    ).result()


def refused(client: GrpcClient, kind: str, guide: str, **values: Any) -> str:
    with pytest.raises(RequestFailed) as caught:
        ask(client, kind, guide, **values)
    return str(caught.value)


def valid(text: str, schema: Any) -> Any:
    value = json.loads(text)
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER).validate(
        value
    )
    return value


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_json_schema(grpc: GrpcClient, schema: Any, temperature: float) -> None:
    answer = ask(grpc, "json_schema", json.dumps(schema), max_tokens=600, temperature=temperature, seed=[11])
    if answer.finish_reason == "length":  # a small model may write a long string; what there is, is a beginning
        pytest.fail(f"600 tokens were not enough: {answer.text[:200]!r}")
    valid(answer.text, schema)


def test_any_json_object(grpc: GrpcClient) -> None:
    answer = ask(grpc, "json", None, max_tokens=400)
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.text), dict)
    else:
        assert answer.text.startswith("{")


@pytest.mark.parametrize(
    "pattern",
    [
        r"[0-9]{3}-[0-9]{4}",
        r"(red|green|blue)( (and|or) (red|green|blue)){0,3}",
        r"[A-Z][a-z]+ is [0-9]{1,2} years old\.",
        r"^https://[a-z]{3,12}\.(com|org)/[a-z]{1,8}$",
        r"[äöüß]{2,5}",
        r"([a-z]{1,9} ){2,4}[0-9]",
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.5], ids=["greedy", "hot"])
def test_regex(grpc: GrpcClient, pattern: str, temperature: float) -> None:
    answer = ask(grpc, "regex", pattern, temperature=temperature, seed=[5])
    assert answer.finish_reason == "stop"
    assert re.fullmatch(pattern, answer.text), answer.text


def test_choice(grpc: GrpcClient) -> None:
    choices = ["yes", "yes, certainly", "no", 'a "quoted"\nline', "日本"]
    for seed in range(4):
        answer = ask(grpc, "choice", json.dumps(choices), temperature=2.0, seed=[seed])
        assert answer.text in choices
        assert answer.finish_reason == "stop"


def test_own_grammar(grpc: GrpcClient) -> None:
    grammar = """
        # sums of numbers and groups
        root ::= sum
        sum ::= term ("+" term){0,3}
        term ::= [1-9] [0-9]{0,2} | "(" sum ")"
    """
    answer = ask(grpc, "ebnf_grammar", grammar, max_tokens=64, temperature=0.7, seed=[3])
    if answer.finish_reason == "stop":
        assert re.fullmatch(r"[0-9+()]+", answer.text)
        assert answer.text.count("(") == answer.text.count(")")
    else:
        assert re.fullmatch(r"[0-9+()]*", answer.text)


@pytest.mark.parametrize(
    ("structured", "pattern"),
    [
        ({"regex": "[0-9]{2}"}, "[0-9]{2}"),
        ({"choice": ["left", "right"]}, "left|right"),
        ({"grammar": 'root ::= "x" [0-9]'}, "x[0-9]"),
        ({"json": {"type": "boolean"}}, "true|false"),
        ({"json": '{"type": "null"}'}, "null"),
    ],
)
def test_in_sampling_parameters(grpc: GrpcClient, structured: Any, pattern: str) -> None:
    """As an object, and as the string that vLLM's backend wants, with all that Triton's OpenAI front end adds to it."""
    unset = {"json_object": None, "disable_any_whitespace": False, "whitespace_pattern": None, "structural_tag": None}
    for given in (
        {"structured_outputs": structured},
        {"structured_outputs": json.dumps({**unset, **structured, "_backend": None, "_backend_was_auto": False})},
        {"guided_decoding": json.dumps({**unset, **structured, "backend": None, "backend_was_auto": False})},
    ):
        answer = grpc.generate("Go", sampling_parameters=json.dumps({**given, "max_tokens": 20}))
        assert re.fullmatch(pattern, answer.text)


def test_over_http(http: HttpClient) -> None:
    status, body = http.generate(
        text_input="A colour:", guided_decoding_guide_type="regex", guided_decoding_guide="(red|blue)", max_tokens=8
    )
    assert (status, body["text_output"] in ("red", "blue")) == (200, True)


def test_streamed_text_is_the_unary_text(grpc: GrpcClient) -> None:
    schema = json.dumps(SCHEMAS[0])
    whole = ask(grpc, "json_schema", schema)
    streamed = ask(grpc, "json_schema", schema, stream=True)
    assert streamed.text == whole.text
    assert len(streamed.responses) > 1


def test_several_sequences_each_follow_the_guide(grpc: GrpcClient) -> None:
    answer = ask(grpc, "regex", "[a-z]{4}[0-9]", num_return_sequences=3, temperature=1.0, seed=[1], stream=True)
    assert len(answer.texts) == 3
    assert all(re.fullmatch("[a-z]{4}[0-9]", text) for text in answer.texts)


def test_with_log_probabilities(grpc: GrpcClient) -> None:
    answer = ask(grpc, "regex", "[a-z]{3}", return_log_probs=True)
    assert re.fullmatch("[a-z]{3}", answer.text)


def test_stop_tokens_of_the_client_do_not_bend_the_grammar(grpc: GrpcClient) -> None:
    """A digit as a stop token ends the text where it comes; the grammar does not avoid it."""
    answer = ask(grpc, "regex", "[a-z]{3}7[a-z]{3}", sampling_parameters=json.dumps({"stop_token_ids": [39]}))
    assert re.match("[a-z]{3}7", answer.text + "7")
    own_end = ask(grpc, "regex", "[a-z]{3}", end_id=[5])
    assert re.fullmatch("[a-z]{3}", own_end.text)
    assert own_end.finish_reason == "stop"


def test_an_empty_text_is_an_answer(grpc: GrpcClient) -> None:
    for kind, guide in (("regex", ""), ("ebnf_grammar", 'root ::= ""')):
        answer = ask(grpc, kind, guide)
        assert (answer.text, answer.finish_reason) == ("", "stop")


@pytest.mark.parametrize(
    ("name", "value"), [("ignore_eos", [True]), ("min_tokens", [5]), ("beam_width", [2])], ids=lambda value: str(value)
)
def test_what_contradicts_a_guide_is_refused_by_name(grpc: GrpcClient, name: str, value: list[Any]) -> None:
    assert name in refused(grpc, "regex", "[0-9]{3}", **{name: value})


@pytest.mark.parametrize(
    ("kind", "guide", "words"),
    [
        ("regex", "a(b", "missing )"),
        ("ebnf_grammar", "root ::= foo", "'foo'"),
        ("ebnf_grammar", 'root ::= root "a" | "b"', "two ways"),
        ("json_schema", '{"type": "obj', "not JSON"),
        ("json_schema", '{"type": "string", "not": {"const": "x"}}', "'not'"),
        ("json_schema", '{"$ref": "https://example.com/schema"}', "local"),
        ("choice", "[]", "at least one"),
        ("choice", '["a", 1]', "not a string"),
    ],
)
def test_a_broken_guide_says_what_is_wrong(grpc: GrpcClient, kind: str, guide: str, words: str) -> None:
    message = refused(grpc, kind, guide)
    assert "guided_decoding_guide" in message
    assert words in message
    assert "/" not in message.replace("#/…", "")
    assert "\n" not in message


@pytest.mark.timeout(900)
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.full)])
def test_hostile_guides_cost_only_their_own_request(server: Server, grpc: GrpcClient, every: int) -> None:
    """While hostile guides are checked, a stream runs; afterwards the same engine gives the same text as before."""
    before = grpc.generate("Once upon a time", max_tokens=48).text
    engines = engine_pids(server)
    assert len(engines) == 1
    outcomes: collections.Counter[str] = collections.Counter()
    slowest = (0.0, "")
    gaps: list[float] = []
    canaries = 0
    hostile = iter(HOSTILE[::every])
    case = next(hostile, None)
    while case is not None:
        canary = grpc.start("The sea is", max_tokens=400)
        canary.first()
        while case is not None and not canary.done.is_set():
            began = time.monotonic()
            outcomes[outcome_of(grpc, *case)] += 1
            slowest = max(slowest, (time.monotonic() - began, case[1][:60]))
            assert engine_pids(server) == engines, case[1][:80]
            case = next(hostile, None)
        canary.result()
        canaries += 1
        times = [response.at for response in canary.responses]
        gaps += [late - early for early, late in itertools.pairwise(times)]
    print(f"\n{dict(outcomes)}, slowest {slowest}, {canaries} canaries, their longest gap {max(gaps):.2f} s")
    assert grpc.generate("Once upon a time", max_tokens=48).text == before
    assert engine_pids(server) == engines
    assert outcomes["refused"] > 20 / every
    assert max(gaps) < STALL_LIMIT_S


def outcome_of(client: GrpcClient, kind: str, guide: str) -> str:
    try:
        ask(client, kind, guide, max_tokens=24)
    except RequestFailed as error:
        message = str(error)
    else:
        return "answered"
    if "too busy" in message:
        return "too busy"
    assert "guided_decoding_guide" in message, (guide[:60], message)
    return "refused"


def test_a_flood_of_new_guides_delays_only_those_who_send_new_guides(server: Server, grpc: GrpcClient) -> None:
    """The parse pool never waits for a check, and what is known already does not either."""
    known = "(yes|no)"
    ask(grpc, "regex", known)
    with GrpcClient(server.grpc_url) as many:
        hostile = [f"(.{{1,30}}){{1,30}}{number}" for number in range(60)]
        flood = [
            many.start("x", max_tokens=4, guided_decoding_guide_type="regex", guided_decoding_guide=guide)
            for guide in hostile
        ]
        began = time.monotonic()
        assert grpc.generate("The sea is", max_tokens=4).text
        assert ask(grpc, "regex", known).text in ("yes", "no")
        waited = time.monotonic() - began
        assert not all(pending.done.is_set() for pending in flood), "the flood is over already"
        assert waited < STALL_LIMIT_S
    began = time.monotonic()  # who has left has no guide checked
    assert re.fullmatch("new[0-9]", ask(grpc, "regex", "new[0-9]").text)
    assert time.monotonic() - began < CHECK_LIMIT_S


def test_a_deadline_holds_and_a_client_that_leaves_is_noticed_while_guides_are_checked(
    server: Server, grpc: GrpcClient
) -> None:
    """With a dozen guides before it that take the checker a second or more each."""
    with GrpcClient(server.grpc_url) as many:
        for number in range(12):
            guide = f"(.{{1,30}}){{1,30}}d{number}"
            many.start("x", max_tokens=4, guided_decoding_guide_type="regex", guided_decoding_guide=guide)
        waiting = many.start("x", max_tokens=4, guided_decoding_guide_type="regex", guided_decoding_guide="w[0-9]")
        began = time.monotonic()
        with pytest.raises(RequestFailed, match="deadline passed while its guide was checked"):
            ask(grpc, "regex", "late[0-9]", deadline_ms=[300])
        assert 0.3 <= time.monotonic() - began < SOON_S
        assert not waiting.done.is_set()
    began = time.monotonic()  # all of them have left
    while status(server)["under_way"] and time.monotonic() < began + CHECK_LIMIT_S:
        time.sleep(0.02)
    assert time.monotonic() - began < SOON_S


def test_a_repeated_guide_is_not_checked_again(server: Server, grpc: GrpcClient) -> None:
    pattern = f"[a-z]{{2}}{time.monotonic_ns()}"
    ask(grpc, "regex", pattern)
    checker = guide_workers(server)
    assert len(checker) == 1
    used = cpu_s(checker[0])
    for _ in range(5):
        assert re.fullmatch(pattern, ask(grpc, "regex", pattern).text)
    assert cpu_s(checker[0]) == used


def test_the_checker_may_be_killed_at_any_time(server: Server, grpc: GrpcClient) -> None:
    ask(grpc, "regex", "[0-9]{2}[a-c]")
    for pid in guide_workers(server):
        psutil.Process(pid).kill()
    assert re.fullmatch("[0-9]{3}[a-d]", ask(grpc, "regex", "[0-9]{3}[a-d]").text)


@pytest.mark.full
def test_nothing_is_left_when_the_server_stops(make_server: Any) -> None:
    own = make_server({"llm": {}}, engine="openvino")
    with GrpcClient(own.grpc_url) as client:
        assert re.fullmatch("[0-9]{3}", ask(client, "regex", "[0-9]{3}").text)
    pids = guide_workers(own)
    assert len(pids) == 1
    own.stop()
    assert not psutil.pid_exists(pids[0])


def status(server: Server) -> dict[str, Any]:
    paths = [control.control_dir() / f"llm-{pid}.sock" for pid in server.stub_pids()]
    (path,) = (path for path in paths if path.exists())
    return control.ask(path, {"command": "status"}, 10.0)


def engine_pids(server: Server) -> list[int]:
    return _pids(server, "inflight.engine_worker")


def guide_workers(server: Server) -> list[int]:
    return _pids(server, "inflight.guides.worker")


def _pids(server: Server, module: str) -> list[int]:
    found = []
    for pid in server.processes():
        try:
            if module in psutil.Process(pid).cmdline():
                found.append(pid)
        except psutil.NoSuchProcess:
            pass
    return sorted(found)


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
