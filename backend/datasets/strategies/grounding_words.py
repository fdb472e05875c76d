"""The words that decide whether an answer rests on its quote: negations, opposites, numbers, units and fillers."""

import re

NEGATIONS = frozenset(
    "not never no cannot neither nor none nothing nobody "
    "pas jamais aucun aucune ni rien nicht kein keine keinen nie nunca ninguno ninguna".split()
)  # 'ne' is not among them: 'ne … pas' would count twice
# Words that deny without a negation: 'forbidden' says the same as 'must not'.
SOFT_NEGATIONS = frozenset(
    "without sans ohne sin forbidden prohibited avoid avoided avoids prevent prevents except excluded excludes "
    "lacks lack missing unless "
    "exempt free refuse refused fails failed unable impossible only invalid unsafe unsuitable "
    "interdit interdite interdits interdites eviter evitez evite exclut exclu exclue exclus sauf impossible empeche "
    "depourvu verboten vermeiden ausser prohibido evitar salvo excepto".split()
)


def _pairs(text: str) -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
    """'a,b/c,d; e/f' as pairs of sets; a word with a blank is a phrase."""
    sides = (pair.split("/") for pair in text.split(";"))
    return tuple(
        (frozenset(one.strip() for one in left.split(",")), frozenset(one.strip() for one in right.split(",")))
        for left, right in sides
    )


OPPOSITES = _pairs(
    "with,avec,mit,con/without,sans,ohne,sin; increase,increases,increased,rise,rises,grows/decrease,decreases,"
    "decreased,fall,falls,drops,shrinks;"
    "before/after; more than,at least,minimum,no less than/less than,at most,maximum,no more than;"
    "higher,greater,larger,bigger/lower,smaller; faster,quicker/slower; full/empty; open,opens,opened/closed,close,"
    "closes; on/off; left/right; top,above,upper/bottom,below,lower; first/last; always/never; all/some;"
    "allowed,permitted/forbidden,prohibited; optional/mandatory,required,compulsory; hot,hotter,warm,warmer/cold,"
    "colder,cool,cooler; enable,enables,enabled/disable,disables,disabled; lock,locked/unlock,unlocked;"
    "start,starts/stop,stops; buyer/seller; tenant/landlord; employer/employee; import/export; inside/outside;"
    "longer/shorter; north/south; east/west; morning/night,evening; add,adds/remove,removes;"
    "augmente,augmentent,croit,monte/diminue,diminuent,baisse,decroit; avant/apres;"
    "au moins,minimum,plus de/au plus,maximum,moins de; superieur,superieure/inferieur,inferieure; plein,pleine/vide;"
    "ouvert,ouverte,ouvre/ferme,fermee; gauche/droite; toujours/jamais; autorise,autorisee/interdit,interdite;"
    "obligatoire/facultatif,facultative; chaud,chaude/froid,froide; premier,premiere/dernier,derniere;"
    "acheteur/vendeur; locataire/bailleur,proprietaire; matin/soir,nuit; nord/sud; est de/ouest de"
)

_UNITS = {
    "litre": "l litre litres liter liters",
    "millilitre": "ml millilitre millilitres milliliter milliliters",
    "gallon": "gallon gallons",
    "gram": "g gram grams gramme grammes",
    "milligram": "mg milligram milligrams milligramme milligrammes",
    "kilogram": "kg kilo kilos kilogram kilograms kilogramme kilogrammes",
    "pound": "lb lbs pound pounds livres",
    "tonne": "t tonne tonnes ton tons",
    "metre": "m metre metres meter meters mètre mètres",
    "centimetre": "cm centimetre centimetres centimeter centimeters centimètre centimètres",
    "millimetre": "mm millimetre millimetres millimeter millimeters millimètre millimètres",
    "kilometre": "km kilometre kilometres kilometer kilometers kilomètre kilomètres",
    "mile": "mile miles",
    "foot": "ft foot feet",
    "inch": "in inch inches pouce pouces",
    "second": "s sec second seconds seconde secondes",
    "millisecond": "ms millisecond milliseconds milliseconde millisecondes",
    "minute": "min minute minutes",
    "hour": "h hr hour hours heure heures",
    "day": "day days jour jours",
    "week": "week weeks semaine semaines",
    "month": "month months mois",
    "year": "year years an ans année années",
    "percent": "% percent pourcent|pour cent|per cent",
    "watt": "w watt watts",
    "kilowatt": "kw kilowatt kilowatts",
    "volt": "v volt volts",
    "ampere": "a amp amps ampere amperes ampère ampères",
    "celsius": "°c|° c|degrees celsius|degrés celsius celsius",
    "fahrenheit": "°f|° f|degrees fahrenheit fahrenheit",
    "degree": "° degree degrees degré degrés",
    "bar": "bar bars",
    "hertz": "hz hertz",
    "gigahertz": "ghz gigahertz",
    "decibel": "db decibel decibels décibel décibels",
    "byte": "b byte bytes octet octets",
    "kilobyte": "kb kilobyte kilobytes",
    "megabyte": "mb megabyte megabytes mo",
    "gigabyte": "gb gigabyte gigabytes go",
    "euro": "€ eur euro euros",
    "dollar": "$ usd dollar dollars",
}
UNITS = {
    name: unit for unit, names in _UNITS.items() for part in names.split("|") for name in [*part.split(" "), part]
} | {"pour cent": "percent", "per cent": "percent"}
# Parts of names of two words that are no units by themselves.
for _word in ("pour", "cent", "per", "a", "in", "go", "mo", "degrees celsius", "degrees fahrenheit"):
    UNITS.pop(_word, None)

MONTHS = {
    name: str(number)
    for number, names in enumerate(
        (
            "january janvier",
            "february février",
            "march mars",
            "april avril",
            "may mai",
            "june juin",
            "july juillet",
            "august août",
            "september septembre",
            "october octobre",
            "november novembre",
            "december décembre",
        ),
        1,
    )
    for name in names.split()
}
# Verbs and a planet as well: months only beside a number and with a capital.
AMBIGUOUS_MONTHS = frozenset({"may", "march", "mars"})

_SPELLED = (
    "zero zéro|one|two deux|three trois|four quatre|five cinq|six|seven sept|eight huit|nine neuf|ten dix|"
    "eleven onze|"
    "twelve douze|thirteen treize|fourteen quatorze|fifteen quinze|sixteen seize|seventeen dix-sept|eighteen|"
    "nineteen|"
    "twenty vingt"
)
NUMBER_WORDS = {name: str(value) for value, names in enumerate(_SPELLED.split("|")) for name in names.split()} | {
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "sixty": "60",
    "seventy": "70",
    "eighty": "80",
    "ninety": "90",
    "trente": "30",
    "quarante": "40",
    "cinquante": "50",
    "soixante": "60",
    "hundred": "100",
    "thousand": "1000",
    "mille": "1000",
}
for _word in ("zero", "zéro", "one"):
    NUMBER_WORDS.pop(_word)

# Words that answers are built with and that state nothing by themselves.
SCAFFOLDING = frozenset(
    "yes because since therefore thus order due need needs needed required means mean meaning should shall let "
    "first second next then finally step steps use uses used using make makes made get gets ensure sure please "
    "refer refers called known stated described document passage text section following example "
    "always usually generally typically mainly still just instead either both while whereas though although however "
    "go goes happen happens become becomes give gives take takes see be having done allow allows able other others "
    "oui non parce car afin donc ainsi alors puis ensuite enfin d'abord besoin nécessaire signifie veut dire doit "
    "devez devrait pouvez utiliser utilise utilisez utilisé faire fait faites permet document texte passage section "
    "lorsqu bout va vont toujours généralement seulement aussi encore il s'agit également".split()
)

# What an assistant says for politeness; it needs no evidence.
COURTESY = re.compile(
    r"(?:^|(?<=[.!?]\s))(?:sure|of course|certainly|absolutely|great question|good question|hello|hi|hi there|"
    r"thanks for asking|(?:i(?:'m|’m| am) )?(?:happy|glad) to help|here (?:is|are) (?:what|how)[^.!:]*|"
    r"(?:please )?(?:let me know|feel free)[^.!?]*|i hope (?:this|that) helps[^.!?]*|"
    r"bien sûr|avec plaisir|bonjour|bonne question|volontiers|n[’']hésitez pas[^.!?]*|j[’']espère[^.!?]*)\s*[.!,"
    r":?]\s*",
    re.IGNORECASE,
)
