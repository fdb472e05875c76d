"""Near duplicates: which pairs of examples are the same, and what the index promises."""

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.datasets import shingles
from backend.datasets.near_duplicates import NearDuplicateIndex, find, normalised

_PUMP = "What is the maximum pressure of the feed pump during normal operation?"
_PUMP_ANSWER = "The feed pump may run at up to 3 bar during normal operation, as the safety chapter of the manual says."
_POMPE = "Quelle est la pression maximale de la pompe d'alimentation en fonctionnement normal ?"
_POMPE_REPONSE = (
    "La pompe peut monter à 3 bar en fonctionnement normal, comme le dit le chapitre du manuel sur la sécurité."
)

SAME = [
    ((_PUMP, _PUMP_ANSWER), (_PUMP.upper(), _PUMP_ANSWER.upper())),
    ((_PUMP, _PUMP_ANSWER), (_PUMP.lower(), _PUMP_ANSWER.lower())),
    ((_PUMP, _PUMP_ANSWER), (_PUMP.replace("?", " ?!"), _PUMP_ANSWER.replace(",", " -"))),
    ((_PUMP, _PUMP_ANSWER), (_PUMP.replace("pressure", "presure"), _PUMP_ANSWER)),
    ((_PUMP, _PUMP_ANSWER), (_PUMP, _PUMP_ANSWER.replace("chapter", "chatper"))),
    ((_PUMP, _PUMP_ANSWER), ("During normal operation, what is the maximum pressure of the feed pump?", _PUMP_ANSWER)),
    ((_PUMP, _PUMP_ANSWER), ("Please tell me: " + _PUMP[0].lower() + _PUMP[1:], _PUMP_ANSWER)),
    ((_PUMP, _PUMP_ANSWER), (_PUMP, "As the safety chapter of the manual says, " + _PUMP_ANSWER[0].lower() +
                             _PUMP_ANSWER[1:].split(", as")[0] + ".")),
    ((_PUMP, _PUMP_ANSWER), (_PUMP.replace("What", "And what exactly"), _PUMP_ANSWER)),
    ((_PUMP, _PUMP_ANSWER), (_PUMP, _PUMP_ANSWER.replace("may run", "can run"))),
    ((_PUMP, _PUMP_ANSWER), (_PUMP, _PUMP_ANSWER.replace("3 bar", "3\u00a0bar"))),
    ((_POMPE, _POMPE_REPONSE), (_POMPE.upper(), _POMPE_REPONSE)),
    ((_POMPE, _POMPE_REPONSE), (_POMPE.replace(" ?", "?"), _POMPE_REPONSE.replace(",", ""))),
    ((_POMPE, _POMPE_REPONSE), (_POMPE.replace("pression", "presion"), _POMPE_REPONSE)),
    ((_POMPE, _POMPE_REPONSE), ("En fonctionnement normal, quelle est la pression maximale de la pompe d'alimentation?",
                                _POMPE_REPONSE)),
    ((_POMPE, _POMPE_REPONSE), ("Merci d'indiquer : " + _POMPE, _POMPE_REPONSE)),
    ((_POMPE, _POMPE_REPONSE), (_POMPE, _POMPE_REPONSE.replace("comme le dit", "ainsi que le dit"))),
    ((_POMPE, _POMPE_REPONSE), (_POMPE.replace("’", "'").replace("'", "’"), _POMPE_REPONSE)),
    (("Is the cover required during transport of the press?", "No, it isn't required while the press is moved."),
     ("Is the cover required during transport of the press?", "No, it is not required while the press is moved.")),
    (("Who founded the company Ferrule in the town of Osterby?", "The company was founded by Anna Holm, a smith."),
     ("who founded the company ferrule in the town of osterby", "the company was founded by anna holm, a smith")),
]  # fmt: skip

DIFFERENT = [
    ((_PUMP, _PUMP_ANSWER), (_PUMP, _PUMP_ANSWER.replace("3 bar", "4 bar"))),
    ((_PUMP, _PUMP_ANSWER), (_PUMP, _PUMP_ANSWER.replace("3 bar", "3.5 bar"))),
    ((_PUMP, _PUMP_ANSWER), (_PUMP, _PUMP_ANSWER.replace("3 bar", "3 psi"))),
    ((_PUMP, _PUMP_ANSWER), (_PUMP.replace("maximum", "minimum"), _PUMP_ANSWER)),
    ((_PUMP, _PUMP_ANSWER), (_PUMP, _PUMP_ANSWER.replace("may run", "may not run"))),
    ((_PUMP, _PUMP_ANSWER), (_PUMP.replace("the feed pump", "feed pump P2"), _PUMP_ANSWER)),
    (("What is the capacity of tank A?", "It holds 40 litres."),
     ("What is the capacity of tank B?", "It holds 40 litres.")),
    (("What is the capacity of tank A?", "It holds 40 litres."),
     ("What is the capacity of tank A?", "It holds 45 litres.")),
    (("Is smoking allowed near the storage tank of the plant?", "See the house rules."),
     ("Is smoking not allowed near the storage tank of the plant?", "See the house rules.")),
    (("Is smoking allowed near the storage tank of the plant?", "See the house rules."),
     ("Is smoking forbidden near the storage tank of the plant?", "See the house rules.")),
    (("Which valve has to be closed before the pump is started?", "The one at the inlet of the pump."),
     ("Which valve has to be closed after the pump is started?", "The one at the inlet of the pump.")),
    (("Which valve has to be closed before the pump is started?", "The one at the inlet of the pump."),
     ("Which valve has to be open before the pump is started?", "The one at the inlet of the pump.")),
    (("What is the name of the river that flows through the town of Osterby?", "The river Holm."),
     ("What is the name of the river that flows through the town of Malmby?", "The river Holm.")),
    (("Paris is on the banks of which of the large rivers of the country?", "It is on the Seine."),
     ("Rouen is on the banks of which of the large rivers of the country?", "It is on the Seine.")),
    (("What does the option --max-size of the command do?", "It bounds the size of what is read."),
     ("What does the option --min-size of the command do?", "It bounds the size of what is read.")),
    (("Which error does the function return when the key HTTP_PROXY is missing?", "A configuration error."),
     ("Which error does the function return when the key FTP_PROXY is missing?", "A configuration error.")),
    (("Does the guarantee cover the motor of the lawn mower?", "Yes, for the time that the contract names."),
     ("Does the guarantee cover the motor of the lawn mower?", "No, for the time that the contract names.")),
    ((_POMPE, _POMPE_REPONSE), (_POMPE, _POMPE_REPONSE.replace("3 bar", "4 bar"))),
    ((_POMPE, _POMPE_REPONSE), (_POMPE.replace("maximale", "minimale"), _POMPE_REPONSE)),
    ((_POMPE, _POMPE_REPONSE), (_POMPE, _POMPE_REPONSE.replace("peut monter", "ne peut pas monter"))),
    (("Peut-on ouvrir la vanne pendant le nettoyage de la cuve ?", "Voir la consigne affichée sur la machine."),
     ("Peut-on fermer la vanne pendant le nettoyage de la cuve ?", "Voir la consigne affichée sur la machine.")),
    (("Quelle est la capacité de la cuve A de l'atelier ?", "Elle contient quarante litres."),
     ("Quelle est la capacité de la cuve B de l'atelier ?", "Elle contient quarante litres.")),
    (("Quel fleuve traverse la ville de Rouen avant de rejoindre la mer ?", "C'est la Seine."),
     ("Quel fleuve traverse la ville de Paris avant de rejoindre la mer ?", "C'est la Seine.")),
    (("Le port du casque est-il obligatoire dans l'atelier de peinture ?", "Oui, le règlement le dit."),
     ("Le port du casque est-il facultatif dans l'atelier de peinture ?", "Oui, le règlement le dit.")),
    (("Combien de jours dure la garantie du moteur après la livraison ?", "La durée figure au contrat."),
     ("Combien de mois dure la garantie du moteur après la livraison ?", "La durée figure au contrat.")),
    (("What does the manual say about cleaning the filter?", "Clean it every week with warm water."),
     ("Who is to be told when the alarm of the boiler rings?", "The engineer on duty, by telephone.")),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), SAME)
def test_rewordings_are_duplicates(first: tuple[str, str], second: tuple[str, str]) -> None:
    assert find([(7, normalised(*first)), (9, normalised(*second))]) == {9: 7}
    assert find([(9, normalised(*second)), (7, normalised(*first))]) == {7: 9}


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_one_deciding_word_keeps_both(first: tuple[str, str], second: tuple[str, str]) -> None:
    assert find([(7, normalised(*first)), (9, normalised(*second))]) == {}
    assert find([(9, normalised(*second)), (7, normalised(*first))]) == {}


def test_a_series_from_one_template_survives_whole() -> None:
    texts = [
        normalised(f"What is the capacity of tank {n} in the north hall?", f"{n * 7} litres.") for n in range(3000)
    ]
    assert find(enumerate(texts)) == {}


def test_a_series_of_names_survives_and_its_copies_do_not() -> None:
    names = sorted(
        {f"{a}{b}{c}" for a in ("Pa", "Lo", "Mi", "Tre") for b in "bdfgklmnprst" for c in ("ra", "lek", "non", "is")}
    )
    texts = [
        normalised(
            f"What is the capital of the province of {name} in the old kingdom?", f"The seat of {name} is by the sea."
        )
        for name in names
    ]
    copies = [text.replace("What is", "what exactly is") for text in texts]
    assert find(enumerate([*texts, *copies])) == {len(texts) + row: row for row in range(len(texts))}


def test_thousands_of_versions_of_one_text_leave_the_first() -> None:
    rng = random.Random(4)
    words = (_PUMP + " " + _PUMP_ANSWER).split()
    texts = []
    for _ in range(2000):
        place = rng.randrange(10, len(words) - 1)
        texts.append(" ".join([*words[:place], "really", *words[place:]]))
    assert find([(-1, " ".join(words)), *enumerate(texts)]) == dict.fromkeys(range(2000), -1)


def test_compared_is_with_kept_texts_only() -> None:
    """b is near a and c near b, but c is not near a: b goes, and c stays."""
    a = "alpha bravo charlie delta echoes foxtrot golfing hotels india juliet kilogramme limas".replace(
        "kilogramme", "kilos"
    )
    b = a.replace("alpha", "uniform")
    c = b.replace("bravo", "victors").replace("delta", "whiskey")
    similarity = [shingles.jaccard(*shingles.sets(pair)) for pair in ((a, b), (b, c), (a, c))]
    threshold = (max(similarity[2], 0.4) + min(similarity[:2])) / 2
    assert similarity[2] < threshold < min(similarity[:2])
    assert find([(1, a), (2, b), (3, c)], threshold=threshold) == {2: 1}
    index = NearDuplicateIndex(threshold)
    assert [index.add(key, text) for key, text in ((1, a), (2, b), (3, c))] == [None, 1, None]
    assert len(index) == 2


def test_odd_texts() -> None:
    long = " ".join(f"word{n * 7919 % 99991}" for n in range(90_000))
    assert len(long) > 800_000
    texts = ["", " ", "x", "X!", "y", "🎉🎉", "🎉", "🎉🎉 ", "水はどこから来ますか", "水はどこから来ますか。",
             "火はどこへ行くのか",
             long, long + " and more", "\0", "\ud800 lone"]  # fmt: skip
    found = find(enumerate(texts))
    assert found == {1: 0, 3: 2, 7: 5, 9: 8, 12: 11, 13: 0}


def test_batches_make_no_difference() -> None:
    rng = random.Random(1)
    words = [f"{a}{b}{c}" for a in ("pa", "lo", "mi", "tre") for b in "bdfgklmn" for c in ("ra", "lek", "non", "is")]
    originals = [" ".join(rng.choices(words, k=18)) for _ in range(400)]
    texts = [*originals, *(f"{text} {rng.choice(words)}" for text in rng.choices(originals, k=300))]
    rng.shuffle(texts)
    one_by_one = NearDuplicateIndex()
    singly = [one_by_one.add(key, text) for key, text in enumerate(texts)]
    assert sum(first is not None for first in singly) > 150
    assert NearDuplicateIndex().add_many(range(700), texts) == singly
    assert find(enumerate(texts)) == {key: first for key, first in enumerate(singly) if first is not None}


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="threshold must lie between"):
        NearDuplicateIndex(1.5)
    with pytest.raises(ValueError, match="2 keys for 1 texts"):
        NearDuplicateIndex().add_many([1, 2], ["a"])


def test_memory_stays_small() -> None:
    rng = np.random.default_rng(0)
    vocabulary = ["".join(rng.choice(list("etaoinshrdlu"), size)) for size in rng.integers(2, 10, 4000)]
    texts = (" ".join(vocabulary[place] for place in rng.integers(0, 4000, 60)) for _ in range(20_000))
    index = NearDuplicateIndex()
    index.add(-1, "warm up")
    tracemalloc.start()
    for key, batch in enumerate(shingles.batches(texts, most=500)):
        index.add_many(range(key * 500, key * 500 + len(batch)), batch)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index) == 20_001
    assert held < 20_000 * 400, held  # 100,000 of them stay under 40 MB; their texts alone are 400 bytes each


_WORDS = st.sampled_from("pump valve tank press lamp glass town river 3 4 not Paris Rouen 水 🎉 é".split())
_TEXTS = st.lists(st.lists(_WORDS, max_size=8).map(" ".join) | st.text(max_size=30), max_size=40)


@settings(max_examples=150, deadline=None)
@given(_TEXTS)
def test_a_duplicate_is_of_an_earlier_kept_text(texts: list[str]) -> None:
    found = find(enumerate(texts), threshold=0.6)
    assert all(first < key and first not in found for key, first in found.items())
    kept = shingles.sets(texts)
    assert all(
        texts[key] == texts[first] or shingles.jaccard(kept[key], kept[first]) >= 0.6 for key, first in found.items()
    )


@settings(max_examples=100, deadline=None)
@given(_TEXTS, st.randoms(use_true_random=False))
def test_of_identical_texts_the_first_stays_whatever_follows(texts: list[str], rng: random.Random) -> None:
    first = "the very same words of a text in the middle"
    later = [*texts, first, first]
    rng.shuffle(later)
    found = find(enumerate([first, *later]))
    assert 0 not in found
    assert all(found[key] == 0 for key, text in enumerate(later, start=1) if text == first)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=12))
def test_shingles_do_not_depend_on_the_batch(texts: list[str]) -> None:
    together, offsets = shingles.shingles(texts)
    words, word_offsets = shingles.words(texts)
    for row, text in enumerate(texts):
        assert together[offsets[row] : offsets[row + 1]].tolist() == shingles.shingles([text])[0].tolist()
        assert words[word_offsets[row] : word_offsets[row + 1]].tolist() == shingles.words([text])[0].tolist()


def test_shingles_are_the_4_grams_of_words() -> None:
    def plain(text: str) -> set[str]:
        padded = [f" {word} " for word in text.split()]
        return {word[at : at + 4] for word in padded for at in range(max(len(word) - 3, 1))}

    texts = ["the feed pump", "a feed of the pumps", "of of of", "tank b", "tank a"]
    for first in texts:
        for second in texts:
            mine = shingles.jaccard(*shingles.sets([first, second]))
            one, other = plain(first), plain(second)
            assert mine == len(one & other) / len(one | other)
