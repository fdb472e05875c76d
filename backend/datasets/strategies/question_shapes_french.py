"""Questions that a French sentence answers, by grammar alone: the embedded model does not write French."""

import re
from collections.abc import Iterator

from backend.datasets.strategies.infinitives_french import INFINITIVE, infinitive_of
from backend.datasets.strategies.question_shapes import QuestionShape

_SUBJECT = r"((?:Le |La |Les |L['’]|Un |Une |Votre |Vos |Chaque )[^,;:]{2,60}?)"
_VERB = (
    r"(?:est|sont|doit|doivent|peut|peuvent|a|ont|dure|durent|contient|contiennent|permet|permettent|se|s['’]\w+|"
    r"répond|répondent|sert|servent|reste|restent|fonctionne|fonctionnent|fournit|fournissent|ouvre|ferme)"
)
# With a determiner after them: what stands before is the whole subject, and what follows the object.
_TRANSITIVE = re.compile(
    rf"{_SUBJECT} ((?:affiche|alimente|assure|chauffe|commande|contrôle|couvre|délivre|désigne|détecte|exige|filtre|"
    r"fixe|garde|gère|indique|interrompt|nécessite|porte|produit|propose|protège|prévoit|reçoit|refroidit|règle|"
    r"remplace|requiert|signale|signifie|stocke|supporte|transporte|utilise|vérifie|contient|comprend|définit|décrit|"
    r"garantit|interdit)|(?:affichent|alimentent|assurent|chauffent|commandent|contrôlent|couvrent|désignent|détectent|"
    r"indiquent|nécessitent|portent|produisent|protègent|reçoivent|remplacent|signalent|signifient|utilisent|"
    r"contiennent|comprennent|définissent|décrivent)) (?:un|une|le|la|les|l['’]|des|du|de la|de l['’]|tous?|toutes?) ?"
)
_CLAUSE = re.compile(r"\b(?:que|qui|dont|où|si|quand|lorsque|est|sont|doit|peut|ne)\b|\b(?:qu|n)['’]")
_RELATIVE = re.compile(r"\b(?:que|qui|dont|où|ne|pas)\b|\b(?:qu|n)['’]")
_PRONOUN = re.compile(
    r"(?<![\w-])(?:il|elle|ils|elles|on|nous|cela|ceci|celui|celle|ceux|y|en même temps)(?![\w-])", re.IGNORECASE
)
_NUMBER = (
    r"(?:\d[\d\u00a0\u202f.,]*|un|une|deux|trois|quatre|cinq|six|sept|huit|neuf|dix|onze|douze|quinze|seize|vingt|"
    r"trente|quarante|cinquante|soixante|cent|mille)(?:-\w+)*"
)
_TIME = r"(?:secondes?|minutes?|heures?|jours?|semaines?|mois|ans?|années?|trimestres?)"
_FREQUENCY = re.compile(
    rf" (?:(?:tous|toutes) les (?:{_NUMBER} )?(?:{_TIME}|fois)|(?:{_NUMBER}) fois par {_TIME}|"
    r"chaque (?:jour|semaine|mois|année|trimestre|matin|soir))(?= |$)"
)
_IMPERATIVE = re.compile(r"([A-ZÀ-ÖØ-Þ]?[a-zà-ÿœ]{2,}ez|[Ff]aites)\b")
_WHEN = r"(?:si |s['’]|lorsque |lorsqu['’]|quand|dès que|dès qu['’]|tant que|une fois que)"
_PARTICIPLE = r"([a-zà-ÿ]+(?:é|ée|és|ées|i|ie|is|ies|ise|ises|u|ue|us|ues|t|te|ts|tes))"
_ADVERB = r"(?:toujours |régulièrement |soigneusement |entièrement |aussi )?"
_PLACED = r"(?:situé|rangé|placé|fixé|installé|imprimé|conservé|stocké|monté|gravé|noté|inscrit|écrit|logé)(?:e|s|es)?"
_SIDE = (
    r"(?:dans|sur|sous|derrière|devant|près|au-dessus|au-dessous|à côté|au |aux |à la |à l['’]|à droite|à gauche|"
    r"au dos|au fond|en haut|en bas)"
)


def shapes_french(sentence: str) -> list[QuestionShape]:
    """Shapes with their whole question, the most certain first; empty when none fits."""
    body = re.sub(r"\s+", " ", sentence.strip()).rstrip(".!").rstrip()
    found = [*_of_conditions(body)] or [*_of_rules(body), *_of_orders(body), *_of_figures(body), *_of_statements(body)]
    if not found:
        found = [*_of_subject(body)]
    # A pronoun stands for something that the question does not name.
    return [shape for shape in dict.fromkeys(found) if not _PRONOUN.search(_without_inversion(shape.fixed))]


def _of_conditions(body: str) -> Iterator[QuestionShape]:
    """What happens, or what to do, in a case that the sentence names. At most one."""
    if match := re.match(rf"({_WHEN}[^,]+), (.+)$", body, re.IGNORECASE):
        condition, main = _lower(match[1]), match[2]
        if _is_order(main):
            yield QuestionShape("condition", fixed=f"Que faut-il faire {condition} ?")
        elif "," not in main:
            yield QuestionShape("condition", fixed=f"Que se passe-t-il {condition} ?")
    elif match := re.match(
        r"((?:avant|après|pendant|lors|en cas|à la fin|au moment|pour) [^,]{4,60}), (.+)$", body, re.IGNORECASE
    ):
        if _is_order(match[2]):
            how = re.match(rf"pour ({INFINITIVE}.*)$", match[1], re.IGNORECASE)
            question = f"Comment {how[1]} ?" if how else f"Que faut-il faire {_lower(match[1])} ?"
            yield QuestionShape("condition", fixed=question)
        elif re.match(r"(?:après|pendant|lors|en cas)", match[1], re.IGNORECASE) and "," not in match[2]:
            yield QuestionShape("condition", fixed=f"Que se passe-t-il {_lower(match[1])} ?")
    elif (
        (match := re.match(rf"([^,]{{8,}}?) (?<!même )(?<!comme )(?<!sauf )({_WHEN}(?!possible|nécessaire).+)$", body))
        and not re.search(r"[,;:]", match[2])
        and not _RELATIVE.search(match[1])
    ):
        what = "Que faut-il faire" if _is_order(match[1]) else "Que se passe-t-il"
        yield QuestionShape("condition", fixed=f"{what} {match[2]} ?")


def _of_rules(body: str) -> Iterator[QuestionShape]:
    """What is forbidden, and what must be done to the subject."""
    if match := re.match(
        rf"Il (?:ne faut (?:jamais|pas)|est (?:interdit|déconseillé) d(?:e |['’]))({INFINITIVE}.*)$", body
    ):
        if not re.match(r"\S+ (?:d['’]|de |aucun|rien|plus)", match[1].strip()):
            yield QuestionShape("permission", fixed=f"Peut-on {match[1].strip()} ?")
        return
    if match := re.match(r"(?:Ne |N['’])([a-zà-ÿœ]+ez) (?:jamais|pas) (.+)$", body):
        if not re.match(r"(?:d['’]|de |aucun|rien|plus)", match[2]):
            yield QuestionShape("permission", fixed=f"Peut-on {infinitive_of(match[1])} {match[2]} ?")
        return
    if match := re.match(rf"{_SUBJECT} ne (doit|doivent|peut|peuvent) (?:jamais|pas) (.+)$", body):
        if _is_noun(match[1]) and not re.match(r"\S+ (?:d['’]|de )", match[3]):
            can = "peut" if match[2] in ("doit", "peut") else "peuvent"
            yield QuestionShape("permission", fixed=f"Est-ce {_que(match[1])} {can} {match[3]} ?")
        return
    match = re.match(rf"{_SUBJECT} (doit|doivent) {_ADVERB}être {_PARTICIPLE}( .+)?$", body)
    if not match or not _is_noun(match[1]):
        return
    rest = match[4] or ""
    if often := _FREQUENCY.search(rest):
        question = f"À quelle fréquence {_lower(match[1])} {match[2]}-{_pronoun(match[3], match[2])} être {match[3]}"
        yield QuestionShape("frequency", fixed=f"{question}{rest[: often.start()]} ?")
    elif re.match(r" (?:avant|après|dès|à la fin|le \d|le premier|le dernier|chaque) ?", rest) and "," not in rest:
        question = f"Quand {_lower(match[1])} {match[2]}-{_pronoun(match[3], match[2])} être {match[3]} ?"
        yield QuestionShape("time", fixed=question)
    # 'Qu'est-ce qui' agrees with no subject, so only what is written alike can be turned.
    if match[2] == "doit" and re.search(r"ée?$", match[3]) and len(rest.split()) >= 2:
        yield QuestionShape("rule", fixed=f"Qu'est-ce qui doit être {match[3].removesuffix('e')}{rest} ?")


def _of_orders(body: str) -> Iterator[QuestionShape]:
    """How, how often, how long, with what and why: asked about an order."""
    match = re.match(rf"(?:Il faut|Vous devez|On doit) ({INFINITIVE}) (.+)$", body)
    if match:
        verb, rest = match[1], match[2]
    elif (order := _IMPERATIVE.match(body)) and not body.startswith(("Chez", "Assez")):
        verb, rest = infinitive_of(order[1].lower()), body[order.end() :].lstrip(" ")
    else:
        return
    if "," in rest or not rest or re.match(r"(?:pas|jamais|-)\b", rest):
        return
    task = f"{verb} {rest}"
    if match := re.match(r"(.+?) (?:car|parce que|parce qu['’]) ?.+$", task):
        yield QuestionShape("reason", fixed=f"Pourquoi faut-il {match[1]} ?")
        return
    if match := _FREQUENCY.search(task):
        yield QuestionShape("frequency", fixed=f"À quelle fréquence faut-il {task[: match.start()]} ?")
    if match := re.search(rf" pendant (?:au moins |environ )?{_NUMBER} {_TIME}", task):
        yield QuestionShape("duration", fixed=f"Pendant combien de temps faut-il {task[: match.start()]} ?")
    if match := re.search(rf" pour ({INFINITIVE} .+)$", task):
        yield QuestionShape("purpose", fixed=f"Comment {match[1]} ?")
    elif (
        match := re.search(r" avec (?:un|une|le|la|l['’]|du|de la|de l['’]|des) ?[^,]+$", task)
    ) and " et " not in task:
        plain = _FREQUENCY.sub("", task[: match.start()])
        yield QuestionShape("means", fixed=f"Avec quoi faut-il {plain} ?")


def _of_figures(body: str) -> Iterator[QuestionShape]:
    """How much, how many, how long, when. At most one."""
    up_to = r"(?:jusqu['’]à |environ |au moins |au plus |plus de |moins de )?"
    if (match := re.match(rf"{_SUBJECT} (dure|durent) {up_to}{_NUMBER} {_TIME}", body)) and _is_noun(match[1]):
        yield QuestionShape("duration", fixed=f"Combien de temps {match[2]} {_lower(match[1])} ?")
    elif (match := re.match(rf"{_SUBJECT} (pèse|mesure|coûte)(nt)? {up_to}{_NUMBER}", body)) and _is_noun(match[1]):
        yield QuestionShape("measure", fixed=f"Combien {match[2]}{match[3] or ''} {_lower(match[1])} ?")
    elif (
        match := re.match(
            rf"{_SUBJECT} (?:a|ont|possède|offre) une? ([a-zà-ÿ]+(?: [a-zà-ÿ]+)?) de {up_to}{_NUMBER}\b", body
        )
    ) and _is_noun(match[1]):
        is_feminine = bool(re.search(rf" une {match[2]} de ", body))
        article = "l'" if match[2][0] in "aeéèêiouyh" else "la " if is_feminine else "le "
        which = "Quelle" if is_feminine else "Quel"
        yield QuestionShape("measure", fixed=f"{which} est {article}{match[2]} {_de(match[1])} ?")
    elif (
        match := re.match(
            rf"((?:Le|La) [^,;:]{{3,60}}?) (est|doit être) (?:de|comprise? entre|inférieure? à|supérieure? à|égale? à|"
            rf"limitée? à) {up_to}{_NUMBER}",
            body,
        )
    ) and _is_noun(match[1]):
        which = "Quelle" if match[1].startswith("La") else "Quel"
        yield QuestionShape("measure", fixed=f"{which} {match[2]} {_lower(match[1])} ?")
    elif (
        match := re.match(
            rf"{_SUBJECT} (contient|contiennent|comprend|compte|possède|consomme|produit|supporte|accepte) {up_to}"
            rf"(?!une? )(?:{_NUMBER}) ([a-zà-ÿœ]{{3,}}s|l|kg|g|kW|W)( d(?:e |['’])[a-zà-ÿœ]+)?(?= |$)",
            body,
        )
    ) and _is_noun(match[1]):
        unit = {"l": "litres", "kg": "kilogrammes", "g": "grammes", "kW": "kilowatts", "W": "watts"}.get(
            match[3], match[3]
        )
        of = "d'" if unit[0] in "aeéiouh" else "de "
        yield QuestionShape("count", fixed=f"Combien {of}{unit}{match[4] or ''} {match[2]} {_lower(match[1])} ?")
    elif (match := re.match(rf"{_SUBJECT} (ouvre|ferme|commence|se termine)(nt)? à \d", body)) and _is_noun(match[1]):
        yield QuestionShape("time", fixed=f"À quelle heure {match[2]}{match[3] or ''} {_lower(match[1])} ?")


def _of_statements(body: str) -> Iterator[QuestionShape]:
    """What, where, when and how often, of a subject that is plain to see. At most one."""
    if match := re.match(r"(.+?) (signifie|indique|signale)(nt)? (?:que |qu['’])(.+)$", body):
        yield QuestionShape("meaning", fixed=f"{_what(match[2])}{match[3] or ''} {_lower(match[1])} ?")
    elif (match := re.match(rf"{_SUBJECT} (se trouvent?|(?:est|sont) {_PLACED}) {_SIDE}", body)) and _is_noun(match[1]):
        yield QuestionShape("place", fixed=f"Où {match[2]} {_lower(match[1])} ?")
    elif (
        match := re.match(rf"{_SUBJECT} (a|ont) été {_PARTICIPLE}( [^,]+?)? en (?:[a-zà-ÿû]+ )?\d{{4}}\b", body)
    ) and _is_noun(match[1]):
        asked = f"{match[2]}-{'t-' if match[2] == 'a' else ''}{_pronoun(match[3], match[2])}"
        yield QuestionShape("time", fixed=f"Quand {_lower(match[1])} {asked} été {match[3]}{match[4] or ''} ?")
    elif (
        match := re.match(rf"{_SUBJECT} (est|sont) {_ADVERB}{_PARTICIPLE}((?: .+?)??){_FREQUENCY.pattern}", body)
    ) and (_is_noun(match[1])):
        asked = f"{match[2]}-{_pronoun(match[3], match[2])} {match[3]}{match[4]}"
        yield QuestionShape("frequency", fixed=f"À quelle fréquence {_lower(match[1])} {asked} ?")
    elif (match := re.match(rf"{_SUBJECT} (se [a-zà-ÿ]+|s['’][a-zà-ÿ]+){_FREQUENCY.pattern}", body)) and _is_noun(
        match[1]
    ):
        yield QuestionShape("frequency", fixed=f"À quelle fréquence {match[2]} {_lower(match[1])} ?")
    elif (match := re.match(rf"{_SUBJECT} est (?:un|une|le|la|l['’]) ?[a-zà-ÿ]", body)) and _is_noun(match[1]):
        yield QuestionShape("definition", fixed=f"Qu'est-ce {_que(match[1])} ?")
    elif (match := _TRANSITIVE.match(body)) and _is_noun(match[1]):
        yield QuestionShape("object", fixed=f"{_what(match[2])} {_lower(match[1])} ?")


def _of_subject(body: str) -> Iterator[QuestionShape]:
    """The last resort for a statement whose subject is plain: dull, but never wrong."""
    if (match := re.match(rf"{_SUBJECT} {_VERB} .+$", body)) and _is_noun(match[1]):
        yield QuestionShape("subject", fixed=f"Que dit le document sur {_lower(match[1])} ?")


def _is_order(text: str) -> bool:
    return bool(
        _IMPERATIVE.match(text)
        or re.match(r"(?:ne |n['’])[a-zà-ÿ]+ez\b|il (?:ne )?faut\b|vous (?:ne )?devez\b|on doit\b", text, re.IGNORECASE)
    )


def _is_noun(subject: str) -> bool:
    """Whether the words before a verb are a noun phrase without a clause of its own."""
    return not _CLAUSE.search(subject) and not re.search(r"\b(?:et|ou|à|de|dans|pour|très|plus)$", subject)


def _pronoun(participle: str, verb: str) -> str:
    """The pronoun that repeats a subject in a question, told by the agreement of its participle."""
    if verb in ("doivent", "sont", "ont"):
        return "elles" if participle.endswith("es") else "ils"
    return "elle" if participle.endswith("e") else "il"


def _without_inversion(question: str) -> str:
    return re.sub(r"-(?:t-)?(?:il|elle|ils|elles|on)\b", "", question)


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _que(subject: str) -> str:
    """'que' with the subject after it."""
    plain = _lower(subject)
    return f"qu'{plain}" if plain.startswith(("un ", "une ")) else f"que {plain}"


def _what(verb: str) -> str:
    """'que' with the verb after it."""
    return f"Qu'{verb}" if verb[0] in "aeéiou" else f"Que {verb}"


def _de(subject: str) -> str:
    """'de' with the subject after it."""
    plain = _lower(subject)
    for article, joined in (("le ", "du "), ("les ", "des "), ("un ", "d'un "), ("une ", "d'une ")):
        if plain.startswith(article):
            return joined + plain[len(article) :]
    return f"de {plain}"
