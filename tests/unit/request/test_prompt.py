from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import Capability, EngineInfo, EngineRequest
from inflight.errors import ErrorCode, RequestError, invalid, unavailable
from inflight.model.parameters import ModelConfig
from inflight.request.defaults import GenerationDefaults
from inflight.request.parse import PromptLimits, RawRequest, parse_request
from inflight.request.prompt import PromptBuilder, check_capabilities, engine_request, reading_cost
from inflight.request.stop_words import stops_of
from inflight.request.template_files import ChatTemplates
from inflight.request.tokenizer import TextTokenizer
from tests.unit.machines.strategies import info, request
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = pytest.mark.fast

BOS = 0  # <|bos|>, the first of its tokenizer
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> PromptBuilder:
    tokenizer = TextTokenizer(write_folder(tmp_path_factory.mktemp("engine")))
    return PromptBuilder(tokenizer, ChatTemplates.of(TEMPLATE, tokenizer.special_tokens), 10_000)


def for_engine(builder: PromptBuilder, engine: EngineInfo | None = None, **values: Any) -> EngineRequest:
    parsed, engine = request(**values), engine or info()
    stops = stops_of(parsed, engine, builder.tokenizer)
    return engine_request(7, parsed, builder.build(parsed, engine), stops, engine, builder.tokenizer)


def refusal(act: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        act()
    assert caught.value.message.startswith(f"{caught.value.parameter} ")
    return caught.value


def test_text_gets_the_tokenizers_own_special_tokens_unless_told_otherwise(builder: PromptBuilder) -> None:
    assert builder.build(request(text_input="dog"), info()).token_ids[0] == BOS
    assert BOS not in builder.build(request(text_input="dog", add_special_tokens=False), info()).token_ids
    assert builder.build(request(text_input="<|bos|>dog"), info()).token_ids.count(BOS) == 1


def test_a_template_that_writes_the_bos_gives_one(builder: PromptBuilder) -> None:
    ids = builder.build(request(messages='[{"role": "user", "content": "dog"}]'), info()).token_ids
    assert ids.count(BOS) == 1
    assert ids == builder.tokenizer.encode("<|bos|>dog", False)


def test_ids_are_taken_as_they_are(builder: PromptBuilder) -> None:
    assert builder.build(request(input_ids=[5, 0, 0, 6]), info()).token_ids == [5, 0, 0, 6]
    error = refusal(lambda: builder.build(request(input_ids=[5, 1000]), info(vocab_size=1000)))
    assert (error.parameter, error.code) == ("input_ids", ErrorCode.INVALID_ARG)


@pytest.mark.parametrize("name", ["text_input", "messages"])
def test_a_text_whose_tokens_the_model_lacks_is_refused(name: str, builder: PromptBuilder) -> None:
    """A tokenizer may have more tokens than its model has rows: an added [PAD], say."""
    last = builder.tokenizer.library.token_to_id("<tool call>")
    text = "dog <tool call> dog"
    values = {"text_input": text, "messages": json.dumps([{"role": "user", "content": text}])}
    asked = request(**{name: values[name]})
    assert last in builder.build(asked, info(vocab_size=last + 1)).token_ids
    error = refusal(lambda: builder.build(asked, info(vocab_size=last)))
    assert (error.parameter, error.code) == (name, ErrorCode.INVALID_ARG)
    assert "'<tool call>'" in error.message


def test_bad_words_that_the_model_cannot_make_are_left_out(builder: PromptBuilder) -> None:
    last = builder.tokenizer.library.token_to_id("<tool call>")
    words = ["<tool call>", "dog"]
    assert len(for_engine(builder, info(vocab_size=last + 1), bad_words=words).sampling.bad_words) == 4
    left = for_engine(builder, info(vocab_size=last), bad_words=words).sampling.bad_words
    assert len(left) == 2
    assert max(max(word) for word in left) < last


def test_messages_need_a_template(builder: PromptBuilder) -> None:
    bare = PromptBuilder(builder.tokenizer, None, 10_000)
    error = refusal(lambda: bare.build(request(messages='[{"role": "user", "content": "x"}]'), info()))
    assert error.parameter == "messages"
    assert "text_input" in error.message


def test_a_template_may_not_make_an_over_long_prompt(builder: PromptBuilder) -> None:
    small = PromptBuilder(
        builder.tokenizer, ChatTemplates.of("{% for i in range(99) %}{{ messages[0].content }}{% endfor %}", {}), 500
    )
    refusal(lambda: small.build(request(messages='[{"role": "user", "content": "0123456789"}]'), info()))


@pytest.mark.parametrize("name", ["text_input", "input_ids", "messages"])
def test_a_prompt_must_leave_room_for_one_token(builder: PromptBuilder, name: str) -> None:
    def values(count: int) -> dict[str, Any]:
        if name == "input_ids":
            return {name: [5] * count}
        if name == "text_input":
            return {name: "<|bos|>" + "<tool call>" * (count - 1)}
        return {name: '[{"role": "user", "content": "%s"}]' % ("<tool call>" * (count - 1))}

    engine = info(max_seq_len=20)
    sampling = for_engine(builder, engine, **values(19)).sampling
    assert sampling.max_tokens == 1
    error = refusal(lambda: builder.build(request(**values(20)), engine))
    assert error.parameter == name
    assert "20" in error.message


class Counting(TextTokenizer):
    """Notes how much text it is given."""

    characters = 0

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        self.characters += len(text)
        return super().encode(text, add_special_tokens)

    def count(self, text: str) -> int:
        self.characters += len(text)
        return super().count(text)


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    return Counting(write_folder(tmp_path))


@pytest.mark.parametrize("kind", ["text_input", "messages"])
@pytest.mark.parametrize("letter", ["7", "a", "\U0001f642", " x"])
def test_what_cannot_fit_is_refused_at_a_cost_that_does_not_grow_with_it(
    kind: str, letter: str, counting: Counting
) -> None:
    """The operator allows any size here."""
    builder = PromptBuilder(counting, ChatTemplates.of(TEMPLATE, counting.special_tokens), 1 << 24)
    engine = info(max_seq_len=2000)
    text = letter * (1 << 20)
    values = (
        {"text_input": text} if kind == "text_input" else {"messages": json.dumps([{"role": "user", "content": text}])}
    )
    config = ModelConfig(max_prompt_bytes=1 << 24)
    error = refusal(lambda: builder.build(request(config, **values), engine))
    assert error.parameter == kind
    assert "2000" in error.message
    assert counting.characters < 100_000


def test_a_prompt_that_fits_is_never_refused_for_its_size(counting: Counting) -> None:
    """Every token is one of the longest of the vocabulary."""
    builder = PromptBuilder(counting, None, 0)
    engine = info(max_seq_len=1000)
    word = max(counting.library.get_vocab(), key=len)
    text = word * 999
    assert counting.longest_token == len(word)
    assert len(text) <= builder.limits(engine).size
    built = builder.build(request(text_input=text, add_special_tokens=False), engine)
    assert len(built.token_ids) == 999


def test_the_context_limits_a_prompt_before_anything_is_made_of_it(counting: Counting) -> None:
    builder = PromptBuilder(counting, None, 0)
    limits = builder.limits(info(max_seq_len=1000))
    assert limits == PromptLimits(1000 * counting.longest_token, 1000)
    for values in ({"text_input": "7" * (limits.size + 1)}, {"input_ids": [7] * 1001}):
        raw = {name: [value.encode()] if isinstance(value, str) else value for name, value in values.items()}
        error = refusal(lambda raw=raw: parse_request(RawRequest(raw), ModelConfig(), GenerationDefaults(), limits))
        assert error.parameter in values
    assert "has 1001 tokens; the context holds 1000" in error.message
    assert PromptBuilder(counting, None, 77).limits(info()).size == 77


def test_reading_a_long_prompt_can_be_given_up(counting: Counting) -> None:
    class Gone(Exception):
        pass

    def go_on() -> None:
        if counting.characters:
            raise Gone

    builder = PromptBuilder(counting, None, 1 << 24)
    with pytest.raises(Gone):
        builder.build(
            request(ModelConfig(max_prompt_bytes=1 << 24), text_input="<tool call>" * 50_000),
            info(max_seq_len=40_000),
            go_on,
        )
    assert counting.characters < 50_000


def test_the_cost_of_reading_counts_everything_that_is_tokenized() -> None:
    assert reading_cost(request(text_input="x" * 1000)) == 1000
    assert reading_cost(request(text_input="x" * 1000, bad_words=["y" * 100, "z"])) == 1202
    assert reading_cost(request(text_input="x" * 1000, stop_words=["y" * 100, "z"])) == 1101
    assert reading_cost(request(messages=json.dumps([{"role": "user", "content": "x" * 1000}]))) > 1000
    assert reading_cost(request(input_ids=[1] * 1000)) < 100


def test_max_tokens_is_cut_to_the_room_that_is_left(builder: PromptBuilder) -> None:
    engine = info(max_seq_len=100)
    assert for_engine(builder, engine, input_ids=[5] * 40, max_tokens=1000).sampling.max_tokens == 60
    assert for_engine(builder, engine, input_ids=[5] * 40, max_tokens=60).sampling.max_tokens == 60
    assert for_engine(builder, engine, input_ids=[5] * 40, max_tokens=59).sampling.max_tokens == 59
    assert for_engine(builder, engine, input_ids=[5] * 90, max_tokens=50, min_tokens=50).sampling.min_tokens == 10


def test_an_echo_is_the_prompt_as_it_went_in(builder: PromptBuilder) -> None:
    assert builder.build(request(text_input=" a  dog "), info()).echo == ""
    assert builder.build(request(text_input=" a  dog ", exclude_input_in_output=False), info()).echo == " a  dog "
    ids = builder.tokenizer.encode("the dog", True)
    assert builder.build(request(input_ids=ids, exclude_input_in_output=False), info()).echo == "the dog"
    messages = '[{"role": "user", "content": "dog"}]'
    assert builder.build(request(messages=messages, exclude_input_in_output=False), info()).echo == "<|bos|>dog"


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ({}, (1, 2)),
        ({"end_id": 9}, (9,)),
        ({"end_id": -1}, (1, 2)),
        ({"stop_token_ids": [9, 5]}, (1, 2, 5, 9)),
        ({"ignore_eos": True}, ()),
        ({"ignore_eos": True, "stop_token_ids": [9]}, (9,)),
        ({"ignore_eos": True, "end_id": 9}, ()),
    ],
)
def test_which_tokens_end_an_answer(builder: PromptBuilder, values: dict[str, Any], stops: tuple[int, ...]) -> None:
    only_json = {name: values.pop(name) for name in ("stop_token_ids",) if name in values}
    if only_json:
        values["sampling_parameters"] = str(only_json).replace("'", '"')
    assert for_engine(builder, info(stop_token_ids=(2, 1)), **values).sampling.stop_token_ids == stops


@pytest.mark.parametrize(
    ("values", "name"),
    [({"end_id": 1000}, "end_id"), ({"sampling_parameters": '{"stop_token_ids": [-1]}'}, "stop_token_ids")],
)
def test_end_tokens_outside_the_vocabulary_are_refused(
    builder: PromptBuilder, values: dict[str, Any], name: str
) -> None:
    assert refusal(lambda: for_engine(builder, info(vocab_size=1000), **values)).parameter == name


def test_everything_reaches_the_engine(builder: PromptBuilder) -> None:
    sampling = for_engine(
        builder,
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=11,
        num_return_sequences=3,
        logprobs=4,
        bad_words=["dog"],
    ).sampling
    assert (sampling.max_tokens, sampling.min_tokens, sampling.seed, sampling.num_sequences) == (9, 2, 11, 3)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 7, 0.125)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.5, 0.5, -0.5)
    assert sampling.logprobs == 4
    encode = builder.tokenizer.encode
    assert set(sampling.bad_words) == {tuple(encode("dog", False)), tuple(encode(" dog", False))}
    whole = for_engine(
        builder,
        lora_name="l",
        cache_salt="c",
        request_priority=5,
        guided_decoding_guide_type="regex",
        guided_decoding_guide="a",
    )
    assert (whole.lora_name, whole.cache_salt, whole.priority, whole.request_id) == ("l", "c", 5, 7)
    assert whole.guide is not None
    assert (whole.guide.kind, whole.guide.text) == ("regex", "a")
    beams = for_engine(builder, beam_width=4, num_return_sequences=2, length_penalty=0.5).sampling
    assert (beams.beam_width, beams.num_sequences, beams.length_penalty) == (4, 2, 0.5)
    assert for_engine(builder, sampling_parameters='{"n": 2, "best_of": 5}').sampling.num_sequences == 5


NEEDS: list[tuple[dict[str, Any], Capability, str]] = [
    ({"return_log_probs": True}, Capability.LOGPROBS, "return_log_probs"),
    ({"return_cumulative_logprob": True}, Capability.LOGPROBS, "return_cumulative_logprob"),
    ({"logprobs": 0}, Capability.LOGPROBS, "logprobs"),
    ({"logprobs": 3}, Capability.TOP_LOGPROBS, "logprobs"),
    ({"num_return_sequences": 2}, Capability.PARALLEL_SAMPLING, "num_return_sequences"),
    ({"beam_width": 2}, Capability.BEAM_SEARCH, "beam_width"),
    ({"bad_words": ["x"]}, Capability.BAD_WORDS, "bad_words"),
    ({"cache_salt": "x"}, Capability.CACHE_SALT, "cache_salt"),
    ({"lora_name": "x"}, Capability.LORA, "lora_name"),
    ({"min_p": 0.1}, Capability.MIN_P, "min_p"),
    *(
        ({"guided_decoding_guide_type": kind, "guided_decoding_guide": "x"}, capability, "guided_decoding_guide_type")
        for kind, capability in [
            ("json", Capability.GUIDED_JSON),
            ("json_schema", Capability.GUIDED_JSON),
            ("regex", Capability.GUIDED_REGEX),
            ("ebnf_grammar", Capability.GUIDED_EBNF),
            ("choice", Capability.GUIDED_CHOICE),
        ]
    ),
]


@pytest.mark.parametrize(
    ("values", "capability", "name"), NEEDS, ids=[f"{n[1].value}-{next(iter(n[0].values()))}" for n in NEEDS]
)
def test_what_the_engine_cannot_do_is_refused_by_name(
    values: dict[str, Any], capability: Capability, name: str
) -> None:
    check_capabilities(request(**values), info())
    error = refusal(
        lambda: check_capabilities(request(**values), info(capabilities=frozenset(Capability) - {capability}))
    )
    assert (error.code, error.parameter) == (ErrorCode.UNSUPPORTED, name)
    assert capability.value in error.message
    assert "fake" in error.message, "it says which engine"


def test_an_engine_without_any_capability_still_takes_a_plain_request() -> None:
    values = {
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 5,
        "seed": 1,
        "stop_words": ["x"],
        "bad_words": [""],
        "beam_width": 1,
    }
    check_capabilities(request(**values), info(capabilities=frozenset()))


def test_more_beams_than_the_engine_has_are_refused() -> None:
    check_capabilities(request(beam_width=4), info(max_beam_width=4))
    assert refusal(lambda: check_capabilities(request(beam_width=5), info(max_beam_width=4))).parameter == "beam_width"


@pytest.mark.parametrize(
    ("json_", "capability", "name"),
    [
        ('{"structured_outputs": {"regex": "a"}}', Capability.GUIDED_REGEX, "structured_outputs"),
        ('{"n": 2}', Capability.PARALLEL_SAMPLING, "n"),
        ('{"best_of": 2}', Capability.PARALLEL_SAMPLING, "best_of"),
        ('{"return_logprobs": true}', Capability.LOGPROBS, "return_logprobs"),
    ],
)
def test_a_missing_capability_is_named_as_the_client_asked_for_it(
    json_: str, capability: Capability, name: str
) -> None:
    parsed = request(sampling_parameters=json_)
    error = refusal(lambda: check_capabilities(parsed, info(capabilities=frozenset(Capability) - {capability})))
    told = parsed.in_its_words(error)
    assert (told.code, told.parameter) == (ErrorCode.UNSUPPORTED, name)
    assert told.message.startswith(f"{name} is not supported")


@pytest.mark.parametrize(
    ("values", "parameter", "called"),
    [
        ({"random_seed": 3}, "seed", "random_seed"),
        ({"min_length": 3}, "min_tokens", "min_length"),
        ({"sampling_parameters": '{"stop": "x"}'}, "stop_words", "stop"),
        ({"sampling_parameters": '{"n": 2}'}, "num_return_sequences", "n"),
        ({"sampling_parameters": '{"n": 2, "best_of": 3}'}, "num_return_sequences", "best_of"),
        ({"streaming": True}, "stream", "streaming"),
        ({"messages": "[]"}, "input_ids", "messages"),
        ({}, "input_ids", "text_input"),
        ({"input_ids": [1]}, "input_ids", "input_ids"),
        (
            {"sampling_parameters": '{"structured_outputs": {"regex": "a"}}'},
            "guided_decoding_guide",
            "structured_outputs",
        ),
        ({"max_tokens": 3}, "max_tokens", "max_tokens"),
    ],
)
def test_an_error_names_what_the_client_sent(values: dict[str, Any], parameter: str, called: str) -> None:
    error = request(**values).in_its_words(invalid(parameter, "is wrong"))
    assert (error.parameter, error.message) == (called, f"{called} is wrong")


def test_an_error_that_names_no_parameter_stays_what_it_is() -> None:
    error = unavailable("the seed of all evil")
    assert request(random_seed=3).in_its_words(error) is error
