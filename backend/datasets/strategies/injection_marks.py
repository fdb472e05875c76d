"""The marks of hidden orders: chat templates, faked answers, comments, unseen characters; and words to look for."""

import re

# Marks that only a chat template, a prompt or a faked answer has; looked for in the text as it stands.
MARKS = re.compile(
    r"<\|[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|</?s>|"
    r"</?(?:document|system|assistant|user|human|instructions?|prompt|context)(?:-\w+)?>|"
    r"^#{2,4} ?(?:instruction|response|system|assistant|human|user|input|output) ?:",
    re.IGNORECASE | re.MULTILINE,
)
ROLE_LINE = re.compile(r"^[^\w\n]{0,9}(?:system|assistant|user|human|ai) ?:", re.IGNORECASE | re.MULTILINE)
# The headings of a training prompt, as they are left when a document's own heading marks have been read.
FAKED_TURN = re.compile(
    r"^#{0,4} ?instructions? ?: *\n.{0,600}?^#{0,4} ?response ?: *\n\s*[^\n]*", re.IGNORECASE | re.MULTILINE | re.DOTALL
)
COMMENTS = re.compile(r"<!--(?:(?!<!--).)*?(?:-->|\Z)|^\[//\]: ?#[^\n]*", re.DOTALL | re.MULTILINE)
FAKED_JSON = re.compile(
    r"(?:```(?:json)?\s{0,9})?[\[{]\s{0,9}\"(?:examples|instruction|messages|quote|output|role|completion)\"\s{0,9}:",
    re.IGNORECASE,
)
# Characters that no reader sees: soft hyphens, zero width, direction marks, variation selectors, tags. Joiners only in
# Latin text, for Persian and Hindi words are written with them.
HIDDEN = re.compile(
    "[\u00ad\ufffe]\n?|[\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff"
    "\U000e0000-\U000e0fff]|(?<=[ -\u024f])[\u200c\u200d]"
)

# A sentence without any of these words has no signs to look for: most sentences, so that looking is cheap.
CORE_WORDS = frozenset(
    "instruction instructions directive directives rule rules guidelines guidance prompt prompts order orders command "
    "commands task consigne consignes regle regles invite anweisung anweisungen regeln vorgaben befehle instruccion "
    "instrucciones reglas ordenes indicaciones istruzioni regole instrucoes regras systemprompt "
    "everything anything whatever above told passage precede document "
    "answer answers answering output outputs reply replies response responses example examples completion completions "
    "repond reponds repondez repondre reponse reponses antwort antworte antworten antwortet antwortfeld ausgabe "
    "respuesta respuestas responde responda rispondi question questions query queries questionnaire says say json "
    "assistant assistente asistente assistent model modele modell modelo bot bots chatbot chatbots chatgpt gpt llm "
    "llms ai ia ki intelligence intelligences intelligenz inteligencia sprachmodell sprachmodelle system "
    "dan generator oracle parrot pirate pretend imagine finge eres "
    "developer developers operator conversation exclusively unrestricted jailbreak override nothing henceforth "
    "print emit repeat echo type write return mention respond include "
    "add put insert set state append chant dites dis reprogrammed programmed hacked training memory user mode trained "
    "robots software automated purpose robot machine machines readers rewarded obey safety priority testing "
    "alles tout todo "
    "counts summarise summarize erase wipe antwortest ecrire repondre rispondi stop secret instead always only just "
    "ecris ecrivez schreibe escribe gib sag sagst dice tu du".split()
)
