"""Faults that an example's own texts show, whatever its passage: vague questions, refusals, leftovers, lengths."""

import re

from backend.datasets.strategies.base import InvalidReason, TaskType
from backend.datasets.strategies.language import content_stems, words
from backend.datasets.strategies.sentences import squeeze

SHORTEST_OUTPUT_WORDS = 3
# Where words are not put apart by blanks.
SHORTEST_OUTPUT_CHARACTERS = 6
SHORTEST_QUESTION_WORDS = 3
LONGEST_OUTPUT_WORDS = {
    TaskType.QA: 150,
    TaskType.CHAT: 400,
    TaskType.INSTRUCTION: 600,
    TaskType.SUMMARIZATION: 300,
    TaskType.CLASSIFICATION: 30,
}
# A summary must leave something out: the most words for each word of its input.
LONGEST_SUMMARY_SHARE = 0.75
LONGEST_QUESTION_WORDS = 120

_SOURCE = (
    r"(?:text|passage|document|excerpt|extract|section|paragraph|chapter|article|author|context|source|snippet|"
    r"table above|sentence)"
)
_SOURCE_FR = r"(?:texte|passage|document|extrait|paragraphe|section|chapitre|article|auteur|contexte)"
_ELSEWHERE = re.compile(
    rf"\b(?:according to|based on|as (?:stated|described|mentioned|given|shown)(?: in)?|(?:mentioned|described|"
    rf"stated|"
    rf"discussed|listed|given|provided|used|shown)(?: \w+)? (?:in|by)|in|from|of|does|by) "
    rf"(?:the|this|that|its) (?:\w+ )?{_SOURCE}\b(?! of\b)|"
    rf"\b(?:the|this) (?:given|above|following|provided) {_SOURCE}\b|\b(?:mentioned|described|stated|given) above\b|"
    rf"\bthis (?:{_SOURCE}|manual|guide)\b|"
    rf"\b(?:selon|d'après|dans|de|du) (?:le |la |l'|ce |cet |cette )?(?:\w+ )?{_SOURCE_FR}\b(?! d)|"
    rf"\b(?:dit|dise|indique|explique|mentionne|décrit|précise) (?:le|la|l'|ce|cet|cette) ?{_SOURCE_FR}\b|"
    rf"\b(?:le|ce) {_SOURCE_FR} (?:dit|indique|explique|mentionne|décrit|précise)|"
    rf"\bce (?:texte|passage|document|paragraphe|chapitre|manuel)\b|\bcette section\b|\bcet (?:extrait|article)\b|"
    r"\b(?:mentionnée?s?|décrite?s?|citée?s?|indiquée?s?) (?:ci-dessus|plus haut|dans le (?:texte|passage|document))|"
    r"\bci-dessus\b|\bim (?:text|abschnitt|dokument)\b|\blaut (?:dem )?text\b|\ben el (?:texto|documento|pasaje)\b|"
    r"\bsegún el (?:texto|documento|pasaje)\b",
    re.IGNORECASE,
)
_PRONOUN = re.compile(
    r"\b(?:it|its|they|them|their|he|she|his|her|this|these|those)\b|"
    r"(?<![-\w'’])(?:il|elle|ils|elles|cela|ceci|celui-ci|celle-ci|ceux-ci)\b|\b(?:cette|ces|cet)\b|"
    r"-(?:il|elle|ils|elles)\b",
    re.IGNORECASE,
)
# 'It' that stands for nothing: 'Why is it important to …', 'Pourquoi est-il …', 'il faut'.
_EMPTY_PRONOUN = re.compile(
    r"\b(?:is|was|would|does) it (?:take|safe|possible|necessary|important|allowed|required|recommended|better|best|"
    r"mean|not \w+ to|\w+ (?:to|that|for))\b|\bit (?:is|was|takes) \w+ (?:to|that|for)\b|"
    r"\bil (?:faut|y a|est (?:\w+ )?(?:possible|nécessaire|important|interdit|conseillé|recommandé|obligatoire))\b|"
    r"\b(?:faut|peut|y a|a-t|passe-t|passe|s['’]agit|existe(?:-t)?|arrive(?:-t)?|suffit|convient|reste(?:-t)?|"
    r"est)-il\b|\bs['’]il vous plaît\b|\bil (?:convient|existe|suffit|arrive)\b",
    re.IGNORECASE,
)
# Something that a pronoun can stand for: a name, or a noun with its article.
_ANTECEDENT = re.compile(
    r"\b(?:the|an?|my|our|your|each|every|any|no|all|le|la|les|une?|des|du|mon|ma|mes|notre|votre|vos|chaque|au|aux|"
    r"der|die|das|el|los|las) [^\W\d_]{3,}|\b[ld]['’][^\W\d_]{3,}|(?<!^)(?<![.!?] )(?-i:\b[A-Z][\w-]+)|\b\w*\d\w*\b|"
    r"^(?:if|when|after|before|si|quand) [^\W\d_]{3,}s\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial|large language|language) ?(?:model|assistant|intelligence)?\b|"
    r"\bi(?:'m| am) (?:sorry|unable|afraid|not able|just an? (?:ai|language model))\b|\bi (?:cannot|can't|can "
    r"not|won't) (?:answer|help|"
    r"provide|assist|comply|fulfil|determine|generate|find|do that|write|create)|"
    r"\bi (?:do not|don't) have (?:enough|any|the|access|sufficient) (?:information|context|access|data)|"
    r"\b(?:the )?(?:text|passage|document|context) does(?: not|n't) (?:\w+ )?(?:mention|say|provide|specify|"
    r"state|contain|"
    r"include|give)|\bnot (?:mentioned|specified|stated|provided) in the (?:text|passage|document|context)|"
    r"\bthere is no information\b|\bno information (?:is|was) (?:given|provided)|\bi apologi[sz]e\b|"
    r"\ben tant qu['’](?:ia|intelligence artificielle|assistant|modèle)|\bje (?:suis désolée?|ne peux pas|"
    r"ne suis pas en mesure|n['’]ai pas (?:accès|assez|suffisamment|d['’]information))|\bdésolée?, (?:mais )?je|"
    r"\b(?:le|ce) (?:texte|passage|document) ne (?:\w+ )?(?:mentionne|précise|dit|indique|donne|contient|fournit)|"
    r"\bals (?:ki|sprachmodell)\b|\bich kann (?:das|diese|dir|ihnen)? ?(?:frage )?(?:leider )?nicht\b|\bcomo "
    r"(?:modelo|ia|asistente)\b|"
    r"\blo siento, (?:pero )?no\b",
    re.IGNORECASE,
)
_LEFTOVER = re.compile(
    r"\[(?:insert|your|name|date|company|product|placeholder|answer|question|todo|xxx|insérer|votre|nom)\b[^\]]*\]|"
    r"\blorem ipsum\b|\bTODO\b|\bTBD\b|\{\{[^}]*\}\}|\$\{\w+\}|<(?:your|insert|placeholder)[^>]*>|"
    r"</?(?:p|div|span|br|b|i|u|em|strong|ul|ol|li|h[1-6]|table|tr|td|a|img|code|pre|html|body|document|"
    r"think)(?: [^<>]*)?/?>|"
    r"\*\*[^*\n]+\*\*|^#{1,6} |^```|\[[^\]\n]+\]\(https?:|"
    r"\"(?:instruction|output|input|quote|question|answer|question_type|difficulty)\"\s*:|^\s*[{[]\s*\"|"
    r"^\s*(?:user|assistant|system|human|ai|question|answer|q|a|réponse|utilisateur)\s*:\s|"
    r"<\|[a-z_]+\|>|\[/?INST\]|<</?SYS>>|\\n|&(?:nbsp|amp|lt|gt|quot|#\d+);",
    re.IGNORECASE | re.MULTILINE,
)


def question_unclear(question: str, *, has_input: bool) -> bool:
    """True for a question that nobody can answer without the passage beside it.

    An example with an input may speak of 'the following text'; of anything else it has to name what it means.
    """
    found = words(question)
    dense = len(re.findall("[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]", question)) >= SHORTEST_OUTPUT_CHARACTERS
    if len(found) < SHORTEST_QUESTION_WORDS and not dense or not content_stems(question):
        return True
    if has_input:
        return False
    if _ELSEWHERE.search(question):
        return True
    tidy = _EMPTY_PRONOUN.sub(" ", question)
    pronoun = _PRONOUN.search(tidy)
    return pronoun is not None and not _ANTECEDENT.search(tidy[: pronoun.start()])


def refuses(text: str) -> bool:
    """Whether an answer declines instead of answering, or speaks of what the text does not say."""
    return bool(_REFUSAL.search(text.replace("’", "'")))


def leftover(text: str, passage: str) -> bool:
    """Whether the text holds markup, JSON, placeholders or role marks that are not the passage's own."""
    return any(match.group().strip() not in passage for match in _LEFTOVER.finditer(text))


def length_fault(task: TaskType, output: str, given: str) -> InvalidReason | None:
    """Whether an output is too short to be an answer, or too long for its task."""
    count = len(words(output))
    if count < SHORTEST_OUTPUT_WORDS and (output.isascii() or len(output) < SHORTEST_OUTPUT_CHARACTERS or count > 1):
        return InvalidReason.OUTPUT_TOO_SHORT
    if count > LONGEST_OUTPUT_WORDS[task]:
        return InvalidReason.OUTPUT_TOO_LONG
    if task is TaskType.SUMMARIZATION and given and count > LONGEST_SUMMARY_SHARE * max(len(words(given)), 12):
        return InvalidReason.OUTPUT_TOO_LONG
    return None


def gives_itself_away(question: str, answer: str) -> bool:
    """Whether the question already says all that the answer says; a choice and a yes or no are asked that way."""
    if squeeze(answer).lower().rstrip(".") in squeeze(question).lower():
        return not _is_choice(question)
    if _is_choice(question) or re.match(r"(?:yes|no|oui|non|ja|nein|sí)\b", answer, re.IGNORECASE):
        return False
    said = set(content_stems(answer))
    return bool(said) and len(said) >= 2 and said <= set(content_stems(question))


def _is_choice(question: str) -> bool:
    return bool(re.search(r"\b(?:or|ou|oder|o)\b", question, re.IGNORECASE))
