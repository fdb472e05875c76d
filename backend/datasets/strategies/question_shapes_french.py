"""Questions that a French sentence answers, by grammar alone: the embedded model does not write French."""

import re

from backend.datasets.strategies.question_shapes import QuestionShape

_SUBJECT = r"((?:Le |La |Les |L['’]|Un |Une |Votre |Chaque )[^,;:]{3,60}?)"
_VERB = r"(?:est|sont|doit|doivent|peut|peuvent|a|ont|dure|durent|contient|contiennent|permet|permettent|se|s['’]\w+)"
_CLAUSE = re.compile(r"\b(?:que|qui|dont|si|quand|lorsque|est|sont|ne)\b|qu['’]")


def shapes_french(sentence: str) -> list[QuestionShape]:
    """Shapes with their whole question; empty when none fits."""
    body = sentence.strip().rstrip(".!")
    if match := re.match(r"(.+?) (signifie|indique|signale)(nt)? (?:que |qu['’])(.+)$", body):
        return [QuestionShape("meaning", fixed=f"Que {match[2]}{match[3] or ''} {_lower(match[1])} ?")]
    if match := re.match(r"(Si|Lorsque|Quand) ([^,]+), ([^,]+)$", body):
        condition = f"{match[1].lower()} {match[2]}"
        todo = re.match(r"[a-zà-ÿ]+ez\b|ne [a-zà-ÿ]+ez\b|(?:il )?faut\b|vous (?:devez|pouvez)\b", match[3])
        return [
            QuestionShape("condition", fixed=f"{'Que faut-il faire' if todo else 'Que se passe-t-il'} {condition} ?")
        ]
    if (match := re.match(rf"{_SUBJECT} {_VERB} .+$", body)) and not _CLAUSE.search(match[1]):
        return [QuestionShape("subject", fixed=f"Que dit le document sur {_lower(match[1])} ?")]
    return []


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]
