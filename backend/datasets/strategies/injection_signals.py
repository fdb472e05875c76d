"""The signs by which a sentence gives itself away as an order to a language model, in six languages, with weights."""

import re
from dataclasses import dataclass

# A sentence is an order when its signs weigh this much together; one sign of weight 1 alone proves nothing.
ENOUGH = 2

# All patterns but those of marks run over folded text: lower case, no accents, no hidden characters, no emphasis.
_INSTRUCTIONS = (
    r"(?:instructions?|directives?|rules?|guidelines|guidance|prompts?|orders|commands|task|"
    r"consignes?|regles|directives|invite|anweisung(?:en)?|regeln|vorgaben|befehle|instruccion(?:es)?|reglas|ordenes|"
    r"indicaciones|istruzioni|regole|instrucoes|regras)"
)
_BEFORE = (
    r"(?:previous|prior|above|earlier|preceding|foregoing|initial|original|former|existing|"
    r"precedente?s?|anterieure?s?|ci-dessus|initiales?|"
    r"vorherige[nrs]?|bisherige[nrs]?|obige[nrs]?|vorige[nrs]?|fruhere[nrs]?|"
    r"anterior(?:es)?|previas?|precedenti)"
)
_YOUR = r"(?:your|tes|ton|ta|tus|tu|deine[nrs]?|teus|tuas|suas|tue|tuoi)"
_DROP = (
    r"(?:ignore|disregard|forget|override|neglect|bypass|discard|set aside|skip|abandon|(?:stop|quit) following|"
    r"arrete[sz]? de suivre|hor(?:e|t) auf|deja de seguir|"
    r"pay no attention to|(?:do not|don't|never|no longer) (?:follow|obey|heed)|"
    r"ignorez?|oublie[sz]?|neglige[sz]?|fai(?:s|tes) abstraction d\w+|ne (?:tiens|tenez) pas compte d\w+|"
    r"ne (?:suis|suivez) (?:pas|plus)|"
    r"ignoriere?n?|vergiss|missachte[nt]?|ubergehe|ignora|olvida|descarta|haz caso omiso de|no sigas|"
    r"ignor[ae]|dimentica|esquece|esqueca)"
)
_SAY = (
    r"(?:answer|reply|respond|say|write|output|print|return|emit|type|state|echo|append|include|put|use|mention|"
    r"produce|repeat|add|insert|finish|give|indique[sz]?|answering|replying|writing|saying|printing|"
    r"repon(?:ds|dez|dre|d)|ecri(?:s|vez|re)|di(?:s|tes)|renvoie[sz]?|produi(?:s|sez|re)|met(?:s|tez)|donne[sz]?|"
    r"termine[sz]?|"
    r"antworte[nt]?|schreib(?:e|t|en)?|sag(?:e|st|t)?|gib|wiederhole|trage|nenne|"
    r"responde|contesta|escribe|di|devuelve|incluye|repite|termina|dice|rispondi|scrivi|responda|escreva)"
)
_EACH = (
    r"(?:each|every|all|any|chaque|toutes? (?:tes |les )?|jede[sr]?|alle[ns]?|cada|todas? (?:tus |las )?)(?: of)?"
    r"(?: your| the| generated)*"
)
_RESULT = (
    r"(?:answers?(?! (?:sheet|key))|answer fields?|repl(?:y|ies)|responses?|outputs?|output fields?|completions?|"
    r"examples?|training pairs?|queries|query|questions?|"
    r"reponses?|exemples?|sorties?|antwort(?:en|feld)?|ausgaben?|beispiele?|frage|respuestas?|ejemplos?|preguntas?)"
)
_MACHINE = (
    r"(?:a\.?i\.?|artificial intelligence|ai (?:systems?|models?|assistants?)|(?:large )?language models?|llms?|"
    r"chat ?bots?|chatgpt|gpt(?:-?\d\w*)?|"
    r"ia|intelligences? artificielles?|modeles? de lang(?:age|ue)|"
    r"ki|sprachmodelle?|kunstliche intelligenz|modelos? de lenguaje|inteligencia artificial)"
)
_HELPER = r"(?:assistant|model|bots?|system|modele|assistente?n?|modell|asistente|modelo)"


# A verb of speaking where an order begins, and the one word that it wants to hear: 'reply banana', but not 'reply to
# the customer', 'reply within two days' or 'answer promptly'.
_CLAUSE_START = (
    r"(?:^|[:;,.!?]\s|\b(?:you|and|then|please|just|only|always|instead|to|must|should|shall|will|but|et|puis|und|y|dann|"
    r"ensuite|luego|toujours|immer|siempre) )"
)
_BARE_WORD = (
    r"(?: (?:with|only|just|always|mit|nur|avec|con|solo|par|uniquement))*"
    r"(?: (?:the|a|one|le|el|das) (?:single |only |one |seul |einzige )?(?:words?|string|phrase|code|mot|wort|"
    r"palabra))? "
    r"[\"'“«]?(?!(?:the|an?|to|all|any|every|each|your|his|her|its|their|our|my|no|yes|if|when|what|whether|that|this|"
    r"these|it|them|him|us|me|you|on|in|at|by|for|from|of|and|or|with|without|within|as|up|down|out|only|not|power|"
    r"voltage|current|level|signal|le|la|les|un|une|des|du|de|au|aux|vos|votre|a|par|sur|der|die|das|den|dem|ein|eine|"
    r"auf|in|el|los|las|una|al|en|por|si|oui|non|ja|nein|goodbye|hello|thanks|\w+ly|\w+ment)\b)"
    r"[\w-]+[\"'”»]?"
)
_SPEAK = (
    r"(?:answer|reply|respond|say|output|emit|echo|chant|repon(?:ds|dez|dre)|dis|dites|antworte[nt]?|antwortest|"
    r"sag(?:e|t)?|"
    r"responde|contesta|di|rispondi|responda)"
)
_PUT = (
    r"(?:write|print|return|type|add|put|insert|include|mention|set|state|append|ecri(?:s|vez|re)|schreibe?|"
    r"escribe|gib)"
)
_ENDS = (
    r"(?= ?(?:[.!,;:]|$)| (?:and|et|und|y) (?:nothing|rien|sonst|nada)| (?:to|in|for|at|a|dans|en|zu|from|"
    r"instead|only)\b)"
)
_TALK = rf"{_CLAUSE_START}(?:{_SPEAK}|{_PUT}){_BARE_WORD}{_ENDS}"


@dataclass(frozen=True, slots=True)
class Signal:
    """One sign: what it is called in messages of tests, how much it weighs, and how it looks."""

    name: str
    weight: int
    pattern: re.Pattern[str]


def _signals(*rows: tuple[str, int, str]) -> tuple[Signal, ...]:
    return tuple(Signal(name, weight, re.compile(pattern)) for name, weight, pattern in rows)


# What people say to machines that read for them, and seldom to one another.
CUES = re.compile(
    rf"\b(?:{_MACHINE}|(?:models?|assistants?|bots?|robots?|software|systems?|agents?|tools?|readers?|"
    rf"lecteurs?) (?:that|which|who) (?:reads?|process\w*|sees?|"
    r"parses?|summari\w+)|(?:system|your|this|the above|hidden) prompt|prompt above|"
    rf"{_YOUR} (?:training|memory|purpose|reply|programming|context|developers?|creators?|instructions|answers|"
    rf"replies|responses|"
    r"output|consignes|reponses|antworten|anweisungen|respuestas|instrucciones)|"
    r"(?:its|their|leurs?|ses|ihre[nr]?|sus) (?:answers|replies|responses|output|reponses|antworten|respuestas)|"
    r"you (?:have been|were|are) (?:now )?(?:re)?(?:programmed|configured|hacked|jailbroken|instructed|trained)|"
    r"reprogrammed|no longer counts?|automated (?:readers?|systems?|tools?|processes)|model under test|"
    r"(?:to|for|pour|aux|an|para) (?:all |the |les |la |alle )?(?:robots?|machines|software)|safety checks|"
    r"highest priority instruction|test(?:ing)? purposes|rewarded if you|obey this|real answer|"
    r"happen to be (?:software|a machine|a model)|what the prompt says|vergiss alles|forget everything|oublie tout|"
    r"(?:task|job|work) you (?:were|have been) given|(?:tes|vos) concepteurs|^abort\b|no longer counts?|"
    r"do not (?:summari[sz]e|translate|describe|process)|don't (?:summari[sz]e|"
    r"translate)|"
    r"tell the user|reads? this (?:line|text|page|document|sentence)|(?:respond|reply|answer) to this (?:document|text|"
    r"page|passage)|asked of you|stop here|(?:assistant|parrot|developer|debug|test|god|admin) mode|"
    r"mode (?:on|off|enabled|disabled|activated)|test (?:string|phrase)|secret (?:word|code|phrase))\b"
)

SIGNALS = _signals(
    (
        "drops what was ordered before",
        2,
        (
            rf"(?<!not )(?<!never )(?<!pas )\b{_DROP} (?:\w+ ){{0,3}}?(?:{_BEFORE} (?:\w+ )?{_INSTRUCTIONS}|"
            rf"{_INSTRUCTIONS} (?:above|{_BEFORE}|you (?:were|have|are)|given|qui (?:t|vous)|so far)|"
            rf"{_YOUR} (?:\w+ ){{0,2}}?{_INSTRUCTIONS}|(?:vos|vuestras) (?:consignes|directives|ordenes))\b"
        ),
    ),
    (
        "drops all that came before",
        2,
        (
            rf"\b{_DROP} (?:everything|anything|all|whatever|what|the text|the above|the passage|the document|"
            rf"the system prompt|tout|ce qui|"
            r"alles|lo|todo)(?: (?:that |you |was |has |have |been |said |written |told |asked |the |is |comes? |"
            r"stands ))*"
            r"(?: ?(?:above|before|previously|so far|earlier|precede|ci-dessus|obige|anterior|developer|passage\b)|"
            r"(?<=the above)|(?<=the passage)|(?<=the system prompt)|(?<=the document)(?= and|\.| ?$))"
        ),
    ),
    ("drops what one was told", 2, rf"\b{_DROP} (?:whatever|what|all|everything) (?:\w+ ){{1,5}}(?:you|told|asked)\b"),
    (
        "declares orders void",
        2,
        (
            rf"\byour (?:{_BEFORE} )?{_INSTRUCTIONS} (?:have been|has been|are|is|were) (?:revoked|void|cancelled|"
            r"replaced|changed|over)\b|\btext (?:before|above) (?:\w+ ){0,3}is void\b"
        ),
    ),
    (
        "asks for the prompt",
        2,
        (
            r"\b(?:reveal|print|show|display|repeat|tell me|output|translate|leak|affiche[sz]?|revele[sz]?|"
            r"montre[sz]?|gib|"
            r"zeige?|nenne|muestra|revela)(?: \w+){0,5}? (?:(?:your|the) (?:system )?prompt\b|your (?:initial|hidden|"
            r"original|secret|system) instructions|what your prompt|(?:words|text) above starting|"
            r"invite systeme|(?:tes|vos) consignes (?:cachees|secretes|initiales)|systemprompt|prompt del sistema)|"
            r"\bwhat your prompt says\b"
        ),
    ),
    (
        "speaks to a machine",
        2,
        (
            r"(?:\b(?:if|as|note to|notice to|message to|attention|dear|hey|to|si (?:tu es|vous etes)|"
            r"a l'attention (?:du|de|"
            r"des)|toute|cher|chere|liebe[sr]?|hinweis an (?:das|die|den)|falls du|wenn du|nota para|si eres|"
            rf"para)(?: you are)?(?: (?:an?|any|the|all|une?|la|l'|eine?|el|each|every))* ?{_MACHINE}\b)"
            rf"(?=.*\b(?:{_SAY}|must|required|wants|should|muss|doit|doivent|debe)\b)"
        ),
    ),
    (
        "greets a helper",
        2,
        (
            rf"(?:\b(?:note|notice|message) to (?:the |any )?{_HELPER}\b|^(?:dear|hey|attention|cher|"
            rf"liebe[rs]?|querido) "
            rf"{_HELPER}\b ?[,:!])"
        ),
    ),
    ("calls a machine by name", 2, rf"^(?:{_MACHINE}|bots and crawlers|bots)(?:[,:]| ?!)(?=.*\b{_SAY}\b)"),
    (
        "binds a machine",
        2,
        (
            rf"\b{_MACHINE}\b[^.:]*\b(?:must|should|shall|(?:is|are) required to|has to|have to|doit|doivent|muss|"
            rf"mussen|debe[n]?)\b(?: always| only)? {_SAY}\b"
        ),
    ),
    ("summarised by a machine", 2, rf"\b(?:who|which|that|whoever)\b[^.:]*\b{_MACHINE}: {_SAY}\b"),
    ("calls a helper", 1, rf"^{_HELPER}, "),
    ("binds a helper", 1, rf"\b(?:the|any|every) {_HELPER} (?:must|shall|should|will|has to) {_SAY}\b"),
    (
        "gives a new self",
        2,
        (
            r"\byou are (?:now|no longer|from now on) (?:dan\b|an? (?:\w+ )?(?:ai|assistant|chatbot|bot|model|data "
            r"generator|oracle|parrot|pirate|character))|\b(?:from now on|henceforth) you are [\w-]+,|"
            r"\btu es (?:desormais|maintenant) une? (?:assistante?|ia|robot|modele)|"
            r"\b(?:a partir de ahora|ahora) eres (?:un|una) (?:asistente|ia|modelo)|"
            r"\bdu bist (?:ab jetzt|nun|jetzt) (?:ein|eine) (?:assistent|ki|modell)"
        ),
    ),
    (
        "has it play a part",
        2,
        (
            r"\b(?:pretend|imagine) (?:that )?you (?:are|have|were)\b(?=.*(?:\banswer|\breply|\bsay|\bstate|\bwrite|"
            r"guidelines|\brules))|"
            r"\bact as an? (?:\w+ )?(?:chatbot|ai|assistant|model|unrestricted)|"
            r"\b(?:fais|faites) comme si (?:tu|vous) eti?(?:ez|ais)\b.*\breponds?|"
            r"\btu so, als warst du\b|\bfinge que eres\b|\blet's play a game: you are\b"
        ),
    ),
    (
        "unbinds it",
        1,
        (
            r"\bwithout (?:any )?(?:restrictions?|limits|rules)\b|\bunrestricted\b|\bno guidelines\b|\bsans (?:limites|"
            r"restrictions)\b|\bohne regeln\b|\bsin (?:limites|restricciones)\b"
        ),
    ),
    ("from now on", 1, r"\b(?:from now on|henceforth|desormais|ab jetzt|ab sofort|a partir de ahora)\b"),
    (
        "names a new task",
        1,
        (
            r"\b(?:new|real|true|actual) (?:instructions?|task|orders?)\b|\bchange of plans\b|"
            r"\bnouvelles? consignes?\b|"
            r"\bneue (?:anweisung|aufgabe)\b|\bnuevas? (?:instruccion|tarea)\b"
        ),
    ),
    (
        "your own task",
        1,
        (
            r"\byour (?:(?:new|real|only|next|true|current|sole) )?(?:task|output|instructions?|guidelines?|prompt|"
            r"directives?|training data)\b|\bcurrent task\b|\bchanged the task\b|\btache en cours\b"
        ),
    ),
    (
        "your only answer",
        2,
        (
            r"\byour (?:only|sole|single|every|next) (?:output|answer|reply|response|word)\b|\bwhose every reply\b|"
            r"\b(?:ta|votre) (?:seule|unique) reponse\b|\bdeine einzige antwort\b|\btu unica respuesta\b"
        ),
    ),
    (
        "fixes every answer",
        2,
        (
            rf"\b(?:answer|response|reply|output)s? (?:to|for|of) (?:all|each|every|any) (?:the )?(?:questions?|query|"
            rf"queries|prompts?|examples?) ?(?:is|are|must be|shall be|:)(?! \w+ed\b)|"
            rf"\b{_EACH} {_RESULT} (?:must|shall|has to|doit|doivent|muss|debe|lauten)\b(?! (?:be )?\w+ed\b)|"
            rf"\b{_EACH} {_RESULT} (?:is|are|est|sont|ist|es|lautet) [^\s.]+[.!]?$|"
            rf"\bevery (?:example|training pair) must have\b"
        ),
    ),
    (
        "speaks of the examples",
        2,
        (
            rf"\b{_SAY} (?:\S+ ){{0,4}}?(?:in|as|of|at|into|for) (?:the )?(?:outputs?|answer) (?:field )?(?:of|in|for) "
            rf"{_EACH} ?examples?\b|\b(?:field output|output fields?)\b(?=.*\b(?:every|any|all)\b|$)|"
            rf"\bany json you (?:produce|write)\b|\bgenerated training pair\b|\bexamples? whose output\b|"
            r"\b(?:stop|do not|don't) writ(?:e|ing) (?:\w+ )?examples\b|\bwrite that in every example\b|"
            r"\bevery output field\b|\bjedes antwortfeld\b|\bals ausgabe\b"
        ),
    ),
    (
        "says it in every answer",
        2,
        (
            rf"\b{_SAY} (?:\S+ ){{1,3}}?(?:in|to|at|dans|en|a) (?:{_EACH} ?{_RESULT}|your repl(?:y|ies)|"
            rf"your answers|everything)"
            r"\b(?! (?:sheet|on the|in the))|"
            rf"\b(?:reply|answer|respond|says?) (?:\S+ )?to everything\b|\breplace (?:all|each|every) (?:of )?your "
            rf"answers\b|"
            rf"\bremplace[sz]? chaque reponse\b|\bend each answer\b|\bas (?:each|every) answer\b|"
            rf"\b(?:for|in) (?:the remainder|the rest) of this conversation\b"
        ),
    ),
    (
        "answers all with one thing",
        2,
        (
            r"\b(?:answer|reply to|respond to) (?:all|every|each|any) (?:questions?|prompts?|"
            r"queries) with [^\s.]+[.!]?$|"
            r"\brepon(?:ds|dez) [^\s.]+ a (?:chaque|toutes? les?) questions?\b|"
            r"\bthe correct response to (?:each|every) query is\b"
        ),
    ),
    (
        "wants one thing only",
        1,
        (
            r"\b(?:only|sole) (?:valid |permitted |correct |allowed )?(?:answer|output|response|reply|word)\b|"
            rf"\b{_SAY} (?:only|exclusively|just|uniquement|seulement|nur|ausschliesslich|solo|unicamente|soltanto|"
            r"apenas)\b|\b(?:answer|reply|respond) with [^\s.]+ only\b|\b(?:output|write|produce|say) nothing but\b|"
            r"\band nothing else\b|\b(?:gib|antworte)\b.*\b(?:nur|ausschliesslich|ausschlie?ßlich)\b|"
            rf"\b(?:always|toujours|immer|siempre) (?:say|reply|answer|repond|says|sagst|dice)|"
            rf"\b(?:answer|reply|response|output) is always\b|\bonly one answer is\b|\b(?:dan|and) always "
            rf"says\b|\bcomme seule reponse\b|\bcomo respuesta\b|\bsagst immer\b|"
            rf"\brepond toujours\b"
        ),
    ),
    (
        "claims authority",
        1,
        (
            r"\bfrom your (?:developers?|creators?|operators?)\b|\b(?:debug|developer|god) mode is on\b|"
            r"\bsystem override\b|"
            r"\bsafety is (?:disabled|off)\b|\byour operator wants\b|\bauthorises you to\b|\bjailbreak\b"
        ),
    ),
    (
        "orders with authority",
        1,
        rf"\b(?:your developers?|mode is on|system override|safety is (?:disabled|off))\b.*[:,;] {_SAY}\b",
    ),
    ("says one bare word", 1, _TALK),
    (
        "says one bare word and no other",
        2,
        (
            rf"(?=.*\b(?:nothing (?:but|else|more)|instead|only|just|exclusively|always|from now on|henceforth|"
            rf"everything|"
            r"no matter what|whatever|uniquement|seulement|rien d'autre|toujours|desormais|a tout|nur|sonst "
            r"nichts|alles|"
            rf"immer|ab sofort|ab jetzt|solo|solamente|siempre|a todo|nada "
            rf"mas)\b){_CLAUSE_START}{_SPEAK}{_BARE_WORD}{_ENDS}"
        ),
    ),
    ("speaks of models", 1, CUES.pattern),
    ("drops what is yours", 1, rf"\b(?:{_DROP}|erase|wipe|clear|reset|effacez?|losche|borra) {_YOUR}\b"),
    (
        "answers all with one word",
        2,
        (
            r"\bantwort(?:e|est|et|en)(?: du| sie)? (?:auf )?(?:alles|jede\w* \w+) (?:nur )?mit\b|"
            rf"\b(?:set|change|turn|fill|replace|make) (?:in )?{_EACH} ?{_RESULT} (?:to|into|with|by)\b"
        ),
    ),
    (
        "wants a single word",
        1,
        (
            r"\b(?:with|mit|par|con) (?:the|a|one|just the|only the|le|un|dem|la|una) (?:single |one |seul |"
            r"einzigen |sola )?"
            r"(?:word|string|phrase|token|mot|wort|palabra)\b"
        ),
    ),
    (
        "ends the document",
        1,
        (
            r"\bend of (?:the )?(?:document|passage|text)\b|\bbefore this (?:line|sentence) (?:is|was)\b|"
            r"\bwhat comes before\b"
        ),
    ),
    ("reads as a machine", 2, r"\bwhen you (?:generate|write|create) (?:questions?|examples?|answers?|pairs?) from\b"),
)

# Beside an order, any short sentence that tells somebody what to say belongs to it.
TALK = re.compile(_TALK)
SPOKEN_WORD = re.compile(rf"{_CLAUSE_START}{_SPEAK}(?P<said>{_BARE_WORD}){_ENDS}")
SAYING = re.compile(rf"(?:^|[:;,] |\b(?:and|then|et|puis|und|y|luego|that|only|instead) ){_SAY}s?\b")

# A last word like BANANA-42 after a verb of saying: what an order wants to see, hardly ever what a manual does.
FIXED_STRING = re.compile(
    rf"(?i:\b{_SAY}|\bsays|\bis|\bwith|\bmit)(?: (?i:as|with|the (?:word|string|phrase)|avec|mit|con))? "
    r"[\"'“«]?(?=[\w-]*[A-Z])(?:[A-Z0-9]+[-_][A-Z0-9-]+|[A-Z]{5,})[\"'”»]?(?= |[.!,]|$)"
)
