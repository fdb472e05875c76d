"""French questions by grammar: each is one that a French reader would ask, and none is refused for its own words."""

import pytest

from backend.datasets.strategies.base import ChunkText
from backend.datasets.strategies.grounded import GroundedStrategy
from backend.datasets.strategies.infinitives_french import infinitive_of
from backend.datasets.strategies.quality import vague
from backend.datasets.strategies.question_shapes_french import shapes_french

QUESTIONS = [
    ("Si le voyant clignote, appuyez sur le bouton.", "Que faut-il faire si le voyant clignote ?"),
    ("Si l'eau manque, la pompe s'arrête.", "Que se passe-t-il si l'eau manque ?"),
    ("Lorsqu'un visiteur arrive, prévenez l'accueil.", "Que faut-il faire lorsqu'un visiteur arrive ?"),
    ("En cas de fuite de gaz, fermez la vanne.", "Que faut-il faire en cas de fuite de gaz ?"),
    ("Avant la mise en service, il faut ouvrir la vanne.", "Que faut-il faire avant la mise en service ?"),
    ("Pour réserver une salle, connectez-vous à l'intranet.", "Comment réserver une salle ?"),
    ("L'écran affiche A0 quand l'appareil est prêt.", "Que se passe-t-il quand l'appareil est prêt ?"),
    ("Fermez la vanne dès que le réservoir est plein.", "Que faut-il faire dès que le réservoir est plein ?"),
    ("Le code E3 signale un manque d'eau.", "Que signale le code E3 ?"),
    ("Le voyant rouge indique que la batterie est vide.", "Qu'indique le voyant rouge ?"),
    ("La mutuelle couvre les frais dentaires.", "Que couvre la mutuelle ?"),
    ("Le bouton de commande contrôle le débit.", "Que contrôle le bouton de commande ?"),
    ("La garantie dure cinq ans.", "Combien de temps dure la garantie ?"),
    ("La chaudière pèse 38 kg.", "Combien pèse la chaudière ?"),
    ("La cuve contient 22 litres d'eau.", "Combien de litres d'eau contient la cuve ?"),
    ("Le bâtiment possède quatre issues.", "Combien d'issues possède le bâtiment ?"),
    ("Le brûleur a une puissance de 24 kW.", "Quelle est la puissance du brûleur ?"),
    ("La pression de l'eau doit être comprise entre 1,2 et 1,8 bar.", "Quelle doit être la pression de l'eau ?"),
    ("Le filtre doit être nettoyé tous les six mois.", "À quelle fréquence le filtre doit-il être nettoyé ?"),
    ("Les grilles doivent être rincées chaque semaine.", "À quelle fréquence les grilles doivent-elles être rincées ?"),
    ("Les joints sont remplacés tous les quatre ans.", "À quelle fréquence les joints sont-ils remplacés ?"),
    ("Le comité se réunit une fois par trimestre.", "À quelle fréquence se réunit le comité ?"),
    ("Vous devez changer le filtre tous les trois mois.", "À quelle fréquence faut-il changer le filtre ?"),
    ("Les notes de frais doivent être remises avant le 5.", "Quand les notes de frais doivent-elles être remises ?"),
    ("L'entreprise a été fondée en mars 1998 à Lyon.", "Quand l'entreprise a-t-elle été fondée ?"),
    ("La cantine ouvre à 11 h 30.", "À quelle heure ouvre la cantine ?"),
    ("Les archives sont conservées dans le sous-sol.", "Où sont conservées les archives ?"),
    ("Appuyez sur le bouton pendant trois secondes.", "Pendant combien de temps faut-il appuyer sur le bouton ?"),
    ("Tournez la clé pour ouvrir la vanne.", "Comment ouvrir la vanne ?"),
    ("Nettoyez la grille avec un chiffon doux.", "Avec quoi faut-il nettoyer la grille ?"),
    ("Débranchez l'appareil parce que la plaque reste chaude.", "Pourquoi faut-il débrancher l'appareil ?"),
    ("Il est interdit de fumer dans les locaux.", "Peut-on fumer dans les locaux ?"),
    ("Ne laissez jamais la porte ouverte.", "Peut-on laisser la porte ouverte ?"),
    ("Le socle ne doit jamais être plongé dans l'eau.", "Est-ce que le socle peut être plongé dans l'eau ?"),
    ("Le règlement intérieur est un document obligatoire.", "Qu'est-ce que le règlement intérieur ?"),
    ("Le badge doit être porté de façon visible.", "Qu'est-ce qui doit être porté de façon visible ?"),
    ("Les employés doivent prévenir la direction.", "Que dit le document sur les employés ?"),
]


@pytest.mark.parametrize(("sentence", "question"), QUESTIONS, ids=range(len(QUESTIONS)))
def test_questions_by_grammar(sentence: str, question: str) -> None:
    found = [shape.fixed for shape in shapes_french(sentence)]
    assert question in found
    assert not any(vague(one) for one in found)


@pytest.mark.parametrize(
    "sentence",
    [
        "Si elle clignote, appuyez sur le bouton.",  # nobody knows what 'elle' is
        "Il ne faut jamais utiliser de solvant sur la façade.",  # 'utiliser de solvant' is not how one asks
        "N'utilisez pas de solvant.",
        "La directrice, Mme Roche, dirige le site.",
        "Ce qui est écrit ici, nul ne le sait.",
    ],
)
def test_where_no_question_is_certain_there_is_none(sentence: str) -> None:
    assert shapes_french(sentence) == []


@pytest.mark.parametrize(
    ("order", "infinitive"),
    [("nettoyez", "nettoyer"), ("ouvrez", "ouvrir"), ("mettez", "mettre"), ("laissez", "laisser"), ("faites", "faire")],
)
def test_infinitives(order: str, infinitive: str) -> None:
    assert infinitive_of(order) == infinitive


def test_a_french_leaflet_gives_a_question_for_every_sentence_of_its_kind() -> None:
    text = " ".join(sentence for sentence, _ in QUESTIONS[:20])
    plan = GroundedStrategy().plan(ChunkText(text=text), 30)
    assert plan.asks == ()
    assert len({draft.quote for draft in plan.ready if draft.is_valid}) == 20
    assert all(draft.meta["language"] == "fr" for draft in plan.ready)


def test_a_later_round_does_not_ask_again() -> None:
    text = " ".join(sentence for sentence, _ in QUESTIONS[:6])
    first = GroundedStrategy().plan(ChunkText(text=text), 9).ready
    assert len(first) >= 6
    again = ChunkText(text=text, avoid=tuple(draft.instruction for draft in first), round=2)
    assert GroundedStrategy().plan(again, 9).ready == ()
