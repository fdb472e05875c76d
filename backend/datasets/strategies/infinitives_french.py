"""French infinitives: how one looks, and which one an order in -ez belongs to."""

import re
from typing import Final

INFINITIVE: Final = r" ?[a-zà-ÿœ]{2,}(?:er|ir|re|oir)\b"

# Those that do not come of putting -er in the place of -ez.
_OTHERS: Final = {
    "agissez": "agir",
    "apprenez": "apprendre",
    "attendez": "attendre",
    "avertissez": "avertir",
    "buvez": "boire",
    "choisissez": "choisir",
    "comprenez": "comprendre",
    "conduisez": "conduire",
    "couvrez": "couvrir",
    "définissez": "définir",
    "descendez": "descendre",
    "détendez": "détendre",
    "écrivez": "écrire",
    "éteignez": "éteindre",
    "établissez": "établir",
    "étendez": "étendre",
    "faites": "faire",
    "fendez": "fendre",
    "finissez": "finir",
    "fournissez": "fournir",
    "inscrivez": "inscrire",
    "introduisez": "introduire",
    "joignez": "joindre",
    "lisez": "lire",
    "maintenez": "maintenir",
    "mettez": "mettre",
    "obtenez": "obtenir",
    "offrez": "offrir",
    "ouvrez": "ouvrir",
    "poursuivez": "poursuivre",
    "prenez": "prendre",
    "prévenez": "prévenir",
    "produisez": "produire",
    "recevez": "recevoir",
    "recouvrez": "recouvrir",
    "réduisez": "réduire",
    "refroidissez": "refroidir",
    "rejoignez": "rejoindre",
    "remettez": "remettre",
    "remplissez": "remplir",
    "rendez": "rendre",
    "répondez": "répondre",
    "reprenez": "reprendre",
    "retenez": "retenir",
    "réunissez": "réunir",
    "revenez": "revenir",
    "saisissez": "saisir",
    "servez": "servir",
    "sortez": "sortir",
    "souscrivez": "souscrire",
    "suivez": "suivre",
    "tenez": "tenir",
    "tordez": "tordre",
    "traduisez": "traduire",
    "transmettez": "transmettre",
    "vendez": "vendre",
    "venez": "venir",
    "voyez": "voir",
}


def infinitive_of(order: str) -> str:
    """'nettoyez' to 'nettoyer', 'ouvrez' to 'ouvrir'."""
    return _OTHERS.get(order) or re.sub(r"ez$", "er", order)
