"""Which sentences of a chunk are facts, and the language of a text."""

import pytest

from backend.contents.blocks import Block
from backend.contents.chunking import ApproximateTokenCounter, chunk
from backend.datasets.strategies.sentences import facts


def test_facts_of_a_chunk_stand_in_it_word_for_word() -> None:
    blocks = [
        Block("heading", "3. Care", 1),
        Block("paragraph", "Wash the jug with warm water after every use. It holds twelve cups. See Section 4."),
        Block("list_item", "• Empty the tank before transport.", 1),
        Block("list_item", "2. Dry the tank with a soft cloth.", 1),
        Block("table", "The net weight of the press | The press weighs 3.4 kg."),
        Block("paragraph", "Dr. Ilse Maren leads the service centre in Ghent. Le bac de la machine contient 1,5 l."),
        Block("paragraph", "Wash the jug with warm water after every use."),
    ]
    (draft,) = chunk(blocks, ApproximateTokenCounter())
    found = facts(draft.content)
    assert found == [
        "Wash the jug with warm water after every use.",
        "Empty the tank before transport.",
        "Dry the tank with a soft cloth.",
        "Dr. Ilse Maren leads the service centre in Ghent.",
        "Le bac de la machine contient 1,5 l.",
    ]
    assert all(fact in draft.content for fact in found)


@pytest.mark.parametrize(
    "sentence",
    [
        "Technical data",
        "It holds twelve cups of coffee.",
        "This setting doubles the contact time.",
        "However, the lamp must be switched off.",
        "Because of this, the unit must not be burnt.",
        "The values are listed in the table below.",
        "If you followed Section 3.5, skip the step.",
        "Who is allowed to open the lid?",
        "Weight        3.4 kg of net mass.",
        "Introduction ........ 12.",
        "1,150 W 230 V 50 Hz 3.4 kg.",
        "Press it.",
        "The " + "very " * 60 + "long sentence ends.",
        "Il contient deux filtres en papier.",
        "Ces filtres sont lavables à la main.",
    ],
)
def test_what_cannot_stand_alone_is_no_fact(sentence: str) -> None:
    assert facts(sentence) == []
