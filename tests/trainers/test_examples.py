"""Encoding: labels cover the answer and its end token; long questions are cut, answers never."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from backend.trainers.errors import TrainerError, from_exception
from tests.trainers.tiny import EVAL_ROWS, write_lines


@pytest.fixture(scope="module")
def tokenizer(base_model: Path) -> Any:
    from backend.trainers.loading import load_tokenizer

    return load_tokenizer(base_model)


def test_only_the_answer_is_learned(tokenizer: Any) -> None:
    from backend.trainers.examples import encode

    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "An earlier answer."},
        {"role": "user", "content": "Which colour has the lid?"},
        {"role": "assistant", "content": "The lid is red."},
    ]
    example = encode(tokenizer, messages)
    learned = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label != -100]
    assert tokenizer.decode(learned) == "The lid is red.<|im_end|>"
    assert tokenizer.decode(example.input_ids).endswith("assistant\nThe lid is red.<|im_end|>")
    assert "An earlier answer." in tokenizer.decode(example.input_ids)


def test_a_template_that_takes_no_system_message_is_told_by_name(tokenizer: Any) -> None:
    from jinja2 import TemplateError

    from backend.trainers.examples import encode

    strict = copy.copy(tokenizer)
    strict.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}."
    with pytest.raises(TemplateError) as raised:
        encode(strict, [{"role": "system", "content": "Be brief."}, *EVAL_ROWS[0]["messages"]])
    told = from_exception(raised.value)
    assert told.code == "PROMPT_REFUSED"
    assert "No system role" in str(told)


def test_a_template_without_an_end_token_gets_one(tokenizer: Any) -> None:
    from backend.trainers.examples import encode

    template = tokenizer.chat_template
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    try:
        example = encode(tokenizer, EVAL_ROWS[0]["messages"])
    finally:
        tokenizer.chat_template = template
    assert example.labels[-1] == tokenizer.eos_token_id


def test_long_examples_are_left_out_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    from backend.trainers.examples import encode_set

    long = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "kettle " * 300}]}
    path = write_lines(tmp_path / "d.jsonl", [*EVAL_ROWS, long])
    encoded = encode_set(tokenizer, path, 64)
    assert (len(encoded.examples), encoded.skipped) == (len(EVAL_ROWS), 1)
    assert encoded.longest > 64
    with pytest.raises(TrainerError) as caught:
        encode_set(tokenizer, path, 4)
    assert caught.value.code == "DATASET_TOO_LONG"
    assert "max_seq_length=4" in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        json.dumps({"messages": []}),
        json.dumps({"messages": [{"role": "user", "content": "only a question"}]}),
        json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]}),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str) -> None:
    from backend.trainers.examples import read_conversations

    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(EVAL_ROWS[0]) + "\n\n" + line + "\n")
    with pytest.raises(TrainerError, match=r"Line 3 of d\.jsonl") as caught:
        read_conversations(path)
    assert caught.value.code == "DATASET_UNUSABLE"


def test_an_empty_dataset_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    from backend.trainers.examples import encode_set

    with pytest.raises(TrainerError, match="no examples"):
        encode_set(tokenizer, write_lines(tmp_path / "d.jsonl", []), 64)


def test_long_questions_are_cut_in_the_middle_and_answers_stay_whole(tokenizer: Any, tmp_path: Path) -> None:
    from backend.trainers.examples import encode_set

    question = "Read this: " + "the kettle is on the base. " * 60 + "Which colour has the lid?"
    long = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "The lid is red."}]}
    path = write_lines(tmp_path / "d.jsonl", [long, EVAL_ROWS[0]])
    encoded = encode_set(tokenizer, path, 96)
    assert (len(encoded.examples), encoded.skipped, encoded.truncated) == (2, 0, 1)
    assert encoded.longest > 96
    example = encoded.examples[0]
    assert 80 < len(example.input_ids) <= 96
    text = tokenizer.decode(example.input_ids)
    assert text.startswith("<|im_start|>user\nRead this: ")
    assert " ... " in text
    assert "Which colour has the lid?<|im_end|>" in text
    learned = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label != -100]
    assert tokenizer.decode(learned) == "The lid is red.<|im_end|>"
    skipping = encode_set(tokenizer, path, 96, "skip")
    assert (len(skipping.examples), skipping.skipped, skipping.truncated) == (1, 1, 0)


def test_the_longest_message_is_the_one_that_is_cut(tokenizer: Any) -> None:
    from backend.trainers.examples import encode, shorten

    messages = [
        {"role": "system", "content": "Be brief, and name the part."},
        {"role": "user", "content": "the spout " * 80},
        {"role": "assistant", "content": "The spout is green."},
    ]
    shorter = shorten(tokenizer, messages, 80)
    assert shorter is not None
    assert [shorter[0], shorter[2]] == [messages[0], messages[2]]
    assert len(encode(tokenizer, shorter).input_ids) <= 80
    assert shorten(tokenizer, messages, 20) is None
