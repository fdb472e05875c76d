"""Text from tokens as they come: whole characters, stop strings across tokens; and which token is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backend.trainers.decoding import Sampling, TextStream, choose


class ByteTokenizer:
    """Every token is a byte."""

    def decode(self, tokens: list[int], **_: Any) -> str:
        return bytes(tokens).decode("utf-8", "replace")


def pieces(text: str, *stop: str) -> tuple[list[str], str, bool]:
    """What comes out at each token, what at the end, and whether a stop string ended it."""
    stream = TextStream(ByteTokenizer(), stop)
    out = []
    for token in text.encode():
        out.append(stream.push(token))
        if stream.stopped:
            break
    return out, stream.finish(), stream.stopped


def test_a_character_comes_when_it_is_whole() -> None:
    out, rest, _ = pieces("é→🔦!")
    assert out == ["", "é", "", "", "→", "", "", "", "🔦", "!"]
    assert rest == ""


def test_half_a_character_at_the_end_is_told_as_it_is() -> None:
    stream = TextStream(ByteTokenizer())
    assert [stream.push(token) for token in "a🔦".encode()[:3]] == ["a", "", ""]
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stop", "told"),
    [
        ("one END two", ["END"], "one "),
        ("one EN two", ["END"], "one EN two"),
        ("ends in EN", ["END"], "ends in EN"),
        ("aaab", ["aab"], "a"),
        ("ababac", ["abac"], "ab"),
        ("x\n\ny", ["\n\n", "y"], "x"),
        ("either or", ["or", "either"], ""),
        ("lampe éteinte", ["é"], "lampe "),
        ("nothing", [], "nothing"),
        ("abc", ["", "c"], "ab"),
    ],
)
def test_nothing_of_a_stop_string_is_ever_told(text: str, stop: list[str], told: str) -> None:
    out, rest, stopped = pieces(text, *stop)
    assert "".join(out) + rest == told
    assert stopped == (told != text)


def test_the_likeliest_and_the_share_of_the_likely() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    assert choose(logits, Sampling(), None) == 1
    drawn = {choose(logits, Sampling(temperature=1.0), generator) for _ in range(400)}
    assert drawn == {0, 1, 2, 3}
    # Shares are 0.64, 0.24, 0.09, 0.03: the one that crosses the border still counts.
    for top_p, kept in ((0.6, {1}), (0.7, {1, 2}), (0.9, {0, 1, 2})):
        drawn = {choose(logits, Sampling(temperature=1.0, top_p=top_p), generator) for _ in range(400)}
        assert drawn == kept, top_p
    cold = [choose(logits, Sampling(temperature=0.05), generator) for _ in range(100)]
    assert set(cold) == {1}


def test_the_shares_are_those_of_the_temperature() -> None:
    logits = torch.tensor([0.0, 1.0])
    generator = torch.Generator().manual_seed(1)
    for temperature in (0.5, 1.0, 2.0):
        expected = float(torch.softmax(logits / temperature, 0)[1])
        drawn = sum(choose(logits, Sampling(temperature=temperature), generator) for _ in range(4000)) / 4000
        assert abs(drawn - expected) < 0.03, temperature
