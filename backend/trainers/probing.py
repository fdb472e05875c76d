"""Probes of a loaded model: short greedy answers with the likeliest tokens in each place, made and measured."""

from __future__ import annotations

from typing import Any

import torch

from backend.trainers.answering import stop_tokens
from backend.trainers.examples import Message, prompt_ids
from backend.trainers.parity import Probe, Top

PROBES, ANSWER_TOKENS, TOP = 6, 16, 10
# Longer prompts cost much and prove no more.
LONGEST_PROMPT = 512
# For a run without held-out questions.
QUESTIONS = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Quelle est la capitale de la France ?",
    "Write the numbers from 1 to 10.",
)


def make_probes(model: Any, tokenizer: Any, conversations: list[list[Message]]) -> list[Probe]:
    """Let `model` answer the first prompts that are short enough, greedily, and note how sure it was."""
    model.eval()
    probes: list[Probe] = []
    asked = [messages[:-1] for messages in conversations] or [[{"role": "user", "content": it}] for it in QUESTIONS]
    for messages in asked:
        ids = prompt_ids(tokenizer, messages)
        if len(ids) > LONGEST_PROMPT:
            continue
        tokens = torch.tensor([ids])
        with torch.inference_mode():
            output = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                eos_token_id=stop_tokens(model, tokenizer),
                pad_token_id=tokenizer.pad_token_id,
            )
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        generated = output[0, len(ids) :].tolist()
        # What generation chose may differ from the likeliest by rounding: the reference decides.
        tops = walk(model, ids, generated, TOP)
        length = next((at for at, top in enumerate(tops) if top[0][0] != generated[at]), len(tops))
        if length:
            probes.append(Probe(messages, prompt, ids, generated[:length], tops[:length]))
        if len(probes) == PROBES:
            break
    return probes


def measure(model: Any, probes: list[Probe]) -> list[list[Top]]:
    """The likeliest tokens of another model along the same answers, with the answer's own among them."""
    model.eval()
    return [walk(model, probe.prompt_ids, probe.answer_ids, TOP) for probe in probes]


def walk(model: Any, prompt: list[int], answer: list[int], count: int) -> list[Top]:
    """For each place of `answer`, the `count` likeliest tokens and the answer's own."""
    tokens = torch.tensor([[*prompt, *answer]])
    with torch.inference_mode():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0].float()
    places = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
    tops: list[Top] = []
    for token, place in zip(answer, places, strict=True):
        values, indices = place.topk(min(count, place.shape[0]))
        top = list(zip(indices.tolist(), values.tolist(), strict=True))
        if token not in indices.tolist():
            top.append((token, float(place[token])))
        tops.append(top)
    return tops
