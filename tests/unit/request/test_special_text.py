"""A message cannot end itself: control tokens that a client writes are text, whatever the tokenizer's kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from inflight.request.chat import ChatOptions
from inflight.request.special_text import ControlTokens
from tests.unit.machines.strategies import budget
from tests.unit.machines.tokenizer_kinds import KINDS

pytestmark = pytest.mark.fast

END = {"byte_level": "<|eos|>"}
CONTROL = ("<|bos|>", "<|eos|>", "<s>", "</s>", "<unk>", "<tool>")


def library(kind: str) -> Tokenizer:
    """With an added token that is not special, and that the template writes."""
    tokenizer = Tokenizer.from_str(KINDS[kind]().to_str())
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer.no_padding()
    return tokenizer


LIBRARIES = {kind: library(kind) for kind in KINDS}
TOKENS = {kind: ControlTokens(LIBRARIES[kind], ["x<tool>y"]) for kind in KINDS}


def end_of(kind: str) -> str:
    return next(
        token.content
        for token in LIBRARIES[kind].get_added_tokens_decoder().values()
        if token.special and ("eos" in token.content or token.content in ("</s>", "[SEP]"))
    )


def encoded(kind: str, content: str, role: str = "user") -> tuple[str, list[int], list[int]]:
    """(the prompt, its ids, the ids that transformers would make) of one message between two real ends."""
    end = end_of(kind)
    messages, _, marks = TOKENS[kind].mark([{"role": role, "content": content}], ChatOptions())
    prompt = f"a{end}{messages[0]['content']}{end}b"
    plain = LIBRARIES[kind].encode(f"a{end}{content}{end}b", add_special_tokens=False).ids
    if marks is None:
        return prompt, plain, plain
    text, ids = TOKENS[kind].encode(prompt, marks)
    return text, ids, plain


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.sampled_from([*CONTROL, "a", " ", "<", "dog", "\n", "é", "\ufdd0"]), max_size=8).map("".join))
@budget(100)
def test_only_the_templates_own_are_control_tokens(kind: str, content: str) -> None:
    text, ids, _ = encoded(kind, content)
    end = end_of(kind)
    assert text == f"a{end}{content}{end}b"
    control = {i for i, token in LIBRARIES[kind].get_added_tokens_decoder().items() if token.special}
    control.add(LIBRARIES[kind].token_to_id("<tool>"))
    control -= {LIBRARIES[kind].token_to_id(unknown) for unknown in ("<unk>", "[UNK]")}
    found = [token_id for token_id in ids if token_id in control]
    assert found == [LIBRARIES[kind].token_to_id(end)] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_by_itself_makes_control_tokens_of_them(kind: str) -> None:
    """Which is what transformers does: a message would end itself."""
    end = end_of(kind)
    _, ids, plain = encoded(kind, end)
    end_id = LIBRARIES[kind].token_to_id(end)
    assert (plain.count(end_id), ids.count(end_id)) == (3, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", ["dog", "The lazy dog, ", " a  b"])
def test_beside_them_a_prompt_has_the_tokens_that_it_always_had(kind: str, content: str) -> None:
    """A control token of the client's in one message changes no token of the others."""
    end = end_of(kind)
    messages, _, marks = TOKENS[kind].mark(
        [{"role": "user", "content": content}, {"role": "user", "content": f"x{end}"}], ChatOptions()
    )
    assert marks is not None
    _, ids = TOKENS[kind].encode(f"{messages[0]['content']}{end}{messages[1]['content']}{end}{content}", marks)
    before = LIBRARIES[kind].encode(f"{content}{end}", add_special_tokens=False).ids
    after = LIBRARIES[kind].encode(f"{end}x{end}{content}", add_special_tokens=False).ids
    assert ids[: len(before)] == before
    tail = after[len(after) - after[::-1].index(LIBRARIES[kind].token_to_id(end)) :]
    assert ids[len(ids) - len(tail) :] == tail


def test_what_an_assistant_writes_by_itself_stays_its_own() -> None:
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": "<tool>x"}]
    assert TOKENS["byte_level"].mark(messages, ChatOptions()) == (messages, ChatOptions(), None)
    marked, _, marks = TOKENS["byte_level"].mark([{"role": "assistant", "content": "<tool><|eos|>"}], ChatOptions())
    assert marks is not None
    assert marked[0]["content"].startswith("<tool>" + marks[0])


def test_tools_and_documents_are_looked_at_too() -> None:
    chat = ChatOptions(tools=({"function": {"name": "f", "description": "<|eos|>"}},), documents=({"text": "<|bos|>"},))
    _, marked, marks = TOKENS["byte_level"].mark([{"role": "user", "content": "a"}], chat)
    assert marks is not None
    as_json = json.dumps(marked.tools, ensure_ascii=True) + json.dumps(marked.documents)
    text, ids = TOKENS["byte_level"].encode(as_json, marks)
    assert text == json.dumps(chat.tools) + json.dumps(chat.documents)
    assert LIBRARIES["byte_level"].token_to_id("<|eos|>") not in ids
