"""Which questions an English sentence answers: for each, how it opens and which of the sentence's words it may use.

A very small model writes fluent questions about the wrong thing. Told the question word that fits, and held to the
sentence's own words without the asked-for part, it has little left to get wrong.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NUMBER = (
    r"(?:\d+(?:[.,]\d+)*|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|"
    r"fifteen|sixteen|"
    r"seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:[- ](?:one|two|three|"
    r"four|five|"
    r"six|seven|eight|nine|hundred|thousand|million))*"
)
_TIME = r"(?:working |business |calendar )?(?:milli)?(?:seconds?|minutes?|hours?|days?|nights?|weeks?|months?|years?)"
_MEASURES = {
    r"(?:litres?|liters?|L)": "How many litres",
    r"(?:g|grams?)": "How many grams",
    r"(?:kg|kilograms?)": "How many kilograms",
    r"(?:watts?|W)": "How many watts",
    r"(?:volts?|V)": "How many volts",
    r"bar": "How many bar",
    r"(?:°C|°F|degrees)": "What temperature",
    r"(?:percent|%)": "What percentage",
}
_IMPERATIVES = frozenset(
    "add adjust allow apply attach avoid change charge check choose clean close connect contact descale "
    "disconnect discard "
    "drain dry empty enable ensure enter fill fit hold insert install keep leave let lift lock lower loosen "
    "lubricate make "
    "measure mount move open place plug pour press pull push put raise read recharge refill release remove "
    "repeat replace "
    "reset rinse rotate run select send set shake soak store switch tap tighten touch turn unplug update use "
    "wait wash wear "
    "wipe".split()
)
_AUXILIARY = r"(?:is|are|was|were|must|can|cannot|should|may|will|has|have)"
_CLAUSE = re.compile(rf"\b(?:that|which|who|if|when|not|{_AUXILIARY})\b")
_UP_TO = r"(?:(?:up to|about|around|at least|at most|approximately|more than|less than|only|exactly|no more than) )?"
_FREQUENCY = re.compile(
    rf" (?:every (?:{_NUMBER} )?(?:{_TIME}|time|use|cycles?|kilometres|miles|pages)|"
    rf"(?:once|twice) an? {_TIME})(?= |$|,)"
)
_RELATIVE = re.compile(r" (?:that|which|who|when|if|because|before|after|so) ")
# 'What does the owner press?' has as many answers as the document has steps.
_ANYBODY = r"\b(?:owner|user|operator|customer|reader|person|people|you|we)s?(?: \w+)?$"
_NEGATIVE = re.compile(r"\b(?:cannot|not|never|no)\b")
_DIMENSION = re.compile(r" (?:wide|long|high|tall|deep|thick|away|longer|wider|higher|smaller|larger)\b")
_VERB = re.compile(
    r" (contains?|covers?|needs?|requires?|includes?|uses?|supports?|carr(?:y|ies)|damages?|removes?|stores?|"
    r"brews?|shows?|"
    r"displays?|connects? to|runs? on|makes?|produces?|protects?|takes?|doubles?|measures?|controls?|indicates?|"
    r"consists? of|"
    r"provides?|offers?|describes?|defines?|specif(?:y|ies)|extracts?|reduces?|increases?|"
    # any other verb, where a determiner after it shows that it is one
    r"[a-z]{3,}(?<!s)s(?= (?:an?|the|all|any|each|every|both|up to|its|your) ))(?= )"
)
_NO_SUBJECT = re.compile(
    r"(?:in|on|at|for|with|by|to|of|after|before|from|during|because|as|although|though|since|under|without|"
    r"only|if|when|while|"
    r"once|unless|until|despite|due|according|depending|even|not|both|given|like|unlike|however|please|thank)\b",
    re.IGNORECASE,
)
_PLACE = re.compile(
    r" (?:printed|sent|found|stored|placed|made|located|designed|written|mounted|kept|installed|fitted)"
    r"( (?:in|at|on|to|under|behind|inside|near|below|above) (?:(?:the|an?) )?(?!night|least)[^,\d]+)$"
)
_PARTICIPLE = r"(?:[a-z]+ed|set|put|kept|made|sent|held|found|cut|worn)"


@dataclass(frozen=True, slots=True)
class QuestionShape:
    """One way to ask about a sentence. `fixed` is the whole question where grammar alone gives it; otherwise the model
    continues `opening` with words of `source`, which is the sentence without the asked-for part."""

    kind: str
    opening: str = ""
    source: str = ""
    fixed: str = ""


def shapes(sentence: str, common_words: frozenset[str] = frozenset()) -> list[QuestionShape]:
    """Shapes that fit an English sentence, the most certain first; empty when none does.

    `common_words` are words that the document also writes in lower case, so that a sentence's first word is not
    taken for a name.
    """
    body = re.split(r", e\.g\. |[;:] ", sentence.strip())[0].rstrip(".!")
    first, _, rest = body.partition(" ")
    if first.lower() in _IMPERATIVES and not rest.startswith("of "):
        found = [*_of_instruction(f"{first.lower()} {rest}")]
    else:
        if first.lower() in common_words or first in _ORDINARY_STARTS or re.fullmatch(r"[A-Z][a-z]+ing", first):
            body = body[0].lower() + body[1:]
        found = [*_whole(body)]
        if not found and not _NO_SUBJECT.match(body):
            found = [*_of_numbers(body), *_of_circumstances(body), *_of_objects(body)] or [*_of_subject(body)]
    return list(dict.fromkeys(shape for shape in found if shape.fixed or len(shape.source.split()) >= 2))


_ORDINARY_STARTS = frozenset(
    "The A An All Some Each Every No Your If When Once While After Before During Never Do Children Users One "
    "Two Three".split()
)


def _of_instruction(body: str) -> Iterator[QuestionShape]:
    """Questions that an imperative sentence answers; all of them are 'should you', so grammar alone writes them."""
    if match := _FREQUENCY.search(body):
        yield QuestionShape("frequency", fixed=f"How often should you {body[: match.start()]}?")
        return
    for unit, opening in _MEASURES.items():
        if match := re.match(rf"(\w+) {_UP_TO}{_NUMBER} ?{unit} of (.+?)( (?:for|to|in|into|per|with) .+)?$", body):
            yield QuestionShape("measure", fixed=f"{opening} of {match[2]} should you {match[1]}{match[3] or ''}?")
            return
    match = re.search(rf" {_UP_TO}{_NUMBER} ((?!{_TIME}\b)[a-z]{{2,}}s)(?= |$|,)", body)
    if (
        match
        and not re.search(r" and |,", body[: match.start()])
        and not body[: match.start()].endswith((" of", " size"))
    ):
        rest = body[: match.start()] + body[match.end() :]
        yield QuestionShape("count", fixed=f"How many {match[1]} should you {rest}?")
    match = re.search(r" (?:when|before|after|until|while|during) ", body)
    if match and len(body[: match.start()].split()) >= 3 and not body[: match.start()].endswith((" or", " and")):
        yield QuestionShape("time", fixed=f"When should you {body[: match.start()]}?")
    if (match := re.search(r" (?:with|using) (?:(?:an?|the|some) )?[^,]+$", body)) and " and " not in body:
        yield QuestionShape("means", fixed=f"What should you {body[: match.start()]} with?")
    put = r"(?:place|store|keep|put|install|mount|position)"
    place = rf"({put} [^,]+?) (?:in|on|at|under|near|away from) (?:an?|the|its|your) "
    if match := re.match(place, body):
        yield QuestionShape("place", fixed=f"Where should you {match[1]}?")
    if match := re.search(r" to ((?!the|an?|your|each|it\b)[a-z]+ .+)$", body):
        yield QuestionShape("purpose", fixed=f"What should you do to {match[1]}?")


def _whole(body: str) -> Iterator[QuestionShape]:
    """Questions that are the sentence itself, turned round by grammar alone. At most one."""
    if match := re.match(r"(.+?) (mean|indicate|signal|show|tell)(s?)( you)? that (.+)$", body):
        yield QuestionShape("meaning", fixed=f"What {_do(match[3])} {match[1]} {match[2]}{match[4] or ''}?")
    elif match := re.match(r"((?:if|when|once|while) [^,]+), (.+)$", body):
        first = match[2].split()[0]
        if first in _IMPERATIVES or re.match(r"(?:never|do not|you (?:must|should))\b", match[2]):
            yield QuestionShape("condition", fixed=f"What should you do {match[1]}?")
        elif re.search(r"\b(?:probably|likely)\b", match[2]):
            yield QuestionShape("condition", fixed=f"What is the likely cause {match[1]}?")
        elif re.search(r"\b(?:may|must|can|should)\b", match[2]):
            yield QuestionShape("condition", fixed=f"What applies {match[1]}?")
        else:
            yield QuestionShape("condition", fixed=f"What happens {match[1]}?")
    elif match := re.match(r"((?:after|before|during) [^,]{3,50}), ([a-z]+) ", body):
        if match[2] in _IMPERATIVES:
            yield QuestionShape("time", fixed=f"What should you do {match[1]}?")
    elif match := re.match(r"(?:never|do not) ([a-z]+ .+)$", body):
        yield QuestionShape("permission", fixed=f"Are you allowed to {match[1]}?")
    elif match := re.match(r"(?:Dr|Mr|Mrs|Ms|Prof)\.? (?:[A-Z]\S* )+([a-z]\S+ .+)$", body):
        yield QuestionShape("person", fixed=f"Who {match[1]}?")
    elif match := re.match(r"no (.+?) (is|are) (.+)$", body):
        article = "" if match[2] == "are" else ("an " if match[1][0] in "aeiou" else "a ")
        yield QuestionShape("permission", fixed=f"{match[2].capitalize()} {article}{match[1]} {match[3]}?")
    elif (match := re.match(r"(.{3,60}?) (is|are|can|may|must) (?:not|never) (.+)$", body)) and "because" not in body:
        if not _NO_SUBJECT.match(body) and not _CLAUSE.search(match[1]) and not re.search(r" and$|\d ", match[1]):
            auxiliary = "May" if match[2] == "must" else match[2].capitalize()
            yield QuestionShape("permission", fixed=f"{auxiliary} {match[1]} {match[3]}?")
    elif match := re.match(
        rf"(.{{3,60}}?) (is|are) {_UP_TO}{_NUMBER} ?\w+ (long|wide|high|tall|deep|thick|heavy)$", body
    ):
        if _plain_subject(match[1]) and not re.search(r" (?:has|and)\b", match[1]):
            yield QuestionShape("measure", fixed=f"How {match[3]} {match[2]} {match[1]}?")
    elif match := re.match(rf"([^,]{{3,60}}?) has an? ([a-z -]+) of {_UP_TO}{_NUMBER}", body):
        yield QuestionShape("measure", fixed=f"What is the {match[2]} of {match[1]}?")
    elif match := re.match(
        r"([^,]{3,60}?) (was|were) ([a-z]+ed|built|made|written|sold) (?:.+ )?in (?:[A-Z][a-z]+ )?\d{4}\b", body
    ):
        yield QuestionShape("time", fixed=f"When {match[2]} {match[1]} {match[3]}?")
    elif match := re.match(rf"(.{{3,60}}?) (is|are) ([a-z]+ly )?({_PARTICIPLE}) by .+$", body):
        if not _CLAUSE.search(match[1]):
            yield QuestionShape("agent", fixed=f"What {match[2]} {match[1]} {match[3] or ''}{match[4]} by?")
    elif (match := re.match(r"([^,]{3,60}?) (is|are) (?:an?|the) .+$", body)) and _plain_subject(match[1]):
        yield QuestionShape("definition", fixed=f"What {match[2]} {match[1]}?")


def _of_numbers(body: str) -> Iterator[QuestionShape]:
    """How often, how long, how much, how many: the model writes the rest of the question. At most one."""
    if match := _FREQUENCY.search(body):
        yield QuestionShape("frequency", "How often", body[: match.start()])
        return
    match = re.search(rf" (?:(for|within|takes?|lasts?) ){_UP_TO}{_NUMBER} {_TIME}(?= |$|,)", body)
    if (
        match
        and not _RELATIVE.search(body[: match.start()])
        and len(body[: match.start()].split()) >= 2
        and not re.match(r"\w+ing\b", body)
    ):
        verb = f" {match[1]}" if match[1].startswith(("take", "last")) else ""
        opening = "How soon" if match[1] == "within" else "How long"
        rest = re.split(r" and |, ", body[match.end() :])[0]
        yield QuestionShape("duration", opening, body[: match.start()] + verb + rest)
        return
    if re.search(r" (?:between|from) \d\S* (?:and|to) \d\S*", body):
        return
    for unit, opening in _MEASURES.items():
        match = re.search(rf" {_UP_TO}{_NUMBER} ?{unit}(?= |$|,)", body)
        before = body[: match.start()] if match else ""
        if (
            match
            and len(before.split()) >= 2
            and not _RELATIVE.search(before)
            and not re.search(r" (?:at|of|with|by|to|between|under|over)$", before)
        ):
            rest = re.split(r" and |, ", body[match.end() :])[0]
            yield QuestionShape("measure", opening, before + rest)
            return
    match = re.search(rf" {_UP_TO}{_NUMBER} (?!{_TIME}\b)((?:[a-z]+ )?[a-z]{{2,}}s)(?= |$|,)", body)
    before = body[: match.start()] if match else ""
    counted = re.search(r" (?!of|first|last|the|these|size|under|or|and|with|to|at|by|in)[a-z]+$", before)
    if (
        match
        and counted
        and not _DIMENSION.match(body[match.end() :])
        and not re.search(rf",|{_RELATIVE.pattern}", before)
    ):
        rest = re.split(r" and |, ", body[match.end() :])[0]
        yield QuestionShape("count", f"How many {match[1]}", before + rest)


def _of_circumstances(body: str) -> Iterator[QuestionShape]:
    """Why, when, where: the model writes the rest of the question."""
    if match := re.search(r" because ", body):
        yield QuestionShape("reason", "Why", body[: match.start()])
        return
    match = re.search(r" (?:when|if|before|after|until|once|while) ", body)
    clause = match and (_NEGATIVE.search(body[: match.start()]) or _RELATIVE.search(body[: match.start()]))
    if match and not clause and not re.search(rf"{_NUMBER} {_TIME}$| (?:or|and)$|,", body[: match.start()]):
        yield QuestionShape("time", "When", body[: match.start()])
    if (match := _PLACE.search(body)) and not re.search(r"\b(?:when|by|and)\b", match[1]):
        yield QuestionShape("place", "Where", body[: match.start(1)])


def _of_objects(body: str) -> Iterator[QuestionShape]:
    """What the subject does, where the verb is plain to see; and what a rule applies to."""
    for match in _VERB.finditer(body):
        subject, after = body[: match.start()], body[match.end() :]
        verb, _, particle = match[1].partition(" ")
        plural = not verb.endswith("s")
        # 'cold brew needs': a bare noun before a form without s is no plural subject.
        if (
            _CLAUSE.search(subject)
            or "," in subject
            or len(subject.split()) > 8
            or plural != bool(re.search(r"s$| and ", subject))
        ):
            continue
        if re.match(r" (?:up|out|off|down|away|back)\b", after):
            break
        if re.match(rf" {_UP_TO}{_NUMBER} ", after + " ") or re.search(r" and$|" + _ANYBODY, subject):
            break
        base = verb if plural else base_form(verb)
        question = f"What {'do' if plural else 'does'} {subject} {base}{' ' + particle if particle else ''}?"
        yield QuestionShape("object", fixed=question)
        return
    rule = re.match(rf"([^,]{{3,60}}?) (must|can|should|may) be ({_PARTICIPLE})( .+)$", body)
    if rule and not _CLAUSE.search(rule[1]):
        yield QuestionShape("rule", fixed=f"What {rule[2]} be {rule[3]}{rule[4]}?")


def _of_subject(body: str) -> Iterator[QuestionShape]:
    """The last resort for a statement whose subject is plain: dull, but never wrong."""
    match = re.match(rf"((?:the|an?|each|every|[A-Z][\w-]+) ?[^,;:()]{{3,50}}?) (?:{_AUXILIARY}|does|do) ", body)
    if match and _plain_subject(match[1]) and not re.search(r" (?:and|or|to)\b|\w+s (?:the|an?) ", match[1]):
        yield QuestionShape("subject", fixed=f"What does the document say about {match[1]}?")


def base_form(verb: str) -> str:
    """A verb of the third person as it stands after 'does'."""
    if verb.endswith("ies"):
        return verb[:-3] + "y"
    return verb[:-2] if verb.endswith(("ches", "shes", "sses", "xes", "oes")) else verb[:-1]


def _plain_subject(text: str) -> bool:
    """Whether the words before a verb are a noun phrase: no clause, no activity, no adverb left over."""
    return not (
        _CLAUSE.search(text)
        or _NO_SUBJECT.match(text)
        or re.match(r"\w+ing\b", text)
        or re.search(r"\b(?:already|also|often|usually|always|never|still|only|just|now|it|you|we|they|there)$", text)
    )


def _do(ending: str) -> str:
    return "does" if ending else "do"
