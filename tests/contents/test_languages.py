"""The language of a text."""

import threading

import pytest

from backend.contents.languages import detect

SENTENCES = {
    "en": [
        "The harbour closes at nine in the evening.",
        "Keep the filter dry before you switch the machine on.",
        "What is the maximum load of the crane?",
        "She bought two tickets for the last train.",
        "Never open the valve while the pump is running.",
        "The invoice must be paid within thirty days.",
        "Our museum was founded in 1897.",
        "Press the red button twice.",
        "Bread needs flour, water, salt and time.",
        "Who designed the first lighthouse on the island?",
        "The warranty lasts two years from the date of purchase.",
        "It rained all night.",
    ],
    "fr": [
        "Le port ferme à neuf heures du soir.",
        "Gardez le filtre sec avant de mettre la machine en marche.",
        "Quelle est la charge maximale de la grue ?",
        "Elle a acheté deux billets pour le dernier train.",
        "N'ouvrez jamais la vanne pendant que la pompe tourne.",
        "La facture doit être payée sous trente jours.",
        "Notre musée a été fondé en 1897.",
        "Appuyez deux fois sur le bouton rouge.",
        "Le pain demande de la farine, de l'eau, du sel et du temps.",
        "Qui a conçu le premier phare de l'île ?",
        "La garantie dure deux ans à compter de la date d'achat.",
        "Il a plu toute la nuit.",
    ],
    "de": [
        "Der Hafen schließt um neun Uhr abends.",
        "Halten Sie den Filter trocken, bevor Sie die Maschine einschalten.",
        "Wie hoch ist die größte Last des Krans?",
        "Sie kaufte zwei Karten für den letzten Zug.",
        "Öffnen Sie niemals das Ventil, während die Pumpe läuft.",
        "Die Rechnung ist innerhalb von dreißig Tagen zu bezahlen.",
        "Unser Museum wurde 1897 gegründet.",
        "Drücken Sie zweimal den roten Knopf.",
        "Brot braucht Mehl, Wasser, Salz und Zeit.",
        "Wer hat den ersten Leuchtturm der Insel entworfen?",
        "Die Garantie gilt zwei Jahre ab Kaufdatum.",
        "Es regnete die ganze Nacht.",
    ],
    "es": [
        "El puerto cierra a las nueve de la noche.",
        "Mantenga seco el filtro antes de encender la máquina.",
        "¿Cuál es la carga máxima de la grúa?",
        "Ella compró dos billetes para el último tren.",
        "No abra nunca la válvula mientras la bomba funciona.",
        "La factura debe pagarse en un plazo de treinta días.",
        "Nuestro museo fue fundado en 1897.",
        "Pulse dos veces el botón rojo.",
        "El pan necesita harina, agua, sal y tiempo.",
        "¿Quién diseñó el primer faro de la isla?",
        "La garantía dura dos años desde la fecha de compra.",
        "Llovió toda la noche.",
    ],
    "it": [
        "Il porto chiude alle nove di sera.",
        "Tenere il filtro asciutto prima di accendere la macchina.",
        "Qual è il carico massimo della gru?",
        "Lei ha comprato due biglietti per l'ultimo treno.",
        "Non aprire mai la valvola mentre la pompa è in funzione.",
        "La fattura deve essere pagata entro trenta giorni.",
        "Il nostro museo fu fondato nel 1897.",
        "Premere due volte il pulsante rosso.",
        "Il pane richiede farina, acqua, sale e tempo.",
        "Chi ha progettato il primo faro dell'isola?",
        "La garanzia dura due anni dalla data di acquisto.",
        "Ha piovuto tutta la notte.",
    ],
    "pt": [
        "O porto fecha às nove da noite.",
        "Mantenha o filtro seco antes de ligar a máquina.",
        "Qual é a carga máxima do guindaste?",
        "Ela comprou dois bilhetes para o último comboio.",
        "Nunca abra a válvula enquanto a bomba estiver a funcionar.",
        "A fatura deve ser paga no prazo de trinta dias.",
        "O nosso museu foi fundado em 1897.",
        "Prima duas vezes o botão vermelho.",
        "O pão precisa de farinha, água, sal e tempo.",
        "Quem projetou o primeiro farol da ilha?",
        "A garantia dura dois anos a contar da data de compra.",
        "Choveu a noite toda.",
    ],
    "nl": [
        "De haven sluit om negen uur 's avonds.",
        "Houd het filter droog voordat u de machine inschakelt.",
        "Wat is de maximale belasting van de kraan?",
        "Ze kocht twee kaartjes voor de laatste trein.",
        "Open nooit de klep terwijl de pomp draait.",
        "De factuur moet binnen dertig dagen worden betaald.",
        "Ons museum werd in 1897 opgericht.",
        "Druk twee keer op de rode knop.",
        "Brood heeft meel, water, zout en tijd nodig.",
        "Wie ontwierp de eerste vuurtoren van het eiland?",
        "De garantie geldt twee jaar vanaf de aankoopdatum.",
        "Het regende de hele nacht.",
    ],
}


@pytest.mark.parametrize("language", SENTENCES)
def test_one_sentence_is_enough(language: str) -> None:
    sentences = SENTENCES[language]
    assert [detect(sentence) for sentence in sentences] == [language] * len(sentences)
    assert [detect(sentence[:40]) for sentence in sentences] == [language] * len(sentences)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Пресс превращает сухие опилки в брикеты.", "ru"),
        ("今日は天気がいいです", "ja"),
        ("这台机器每小时生产十八公斤。", "zh"),
        ("이 기계는 시간당 십팔 킬로그램을 만듭니다.", "ko"),
        ("تنتج هذه الآلة ثمانية عشر كيلوغراما في الساعة.", "ar"),
        ("Maszyna produkuje osiemnaście kilogramów na godzinę.", "pl"),
    ],
)
def test_other_languages(text: str, language: str) -> None:
    assert detect(text) == language


@pytest.mark.parametrize(
    "text", ["", "  \n", "12 34 56", "ok", "12 kg | 26 kg\n18 | 3", "B12-3", "0x1F " * 900, "\ud800" * 20]
)
def test_too_little_to_tell(text: str) -> None:
    assert detect(text) is None


def test_a_long_text_is_what_most_of_it_is() -> None:
    french = " ".join(SENTENCES["fr"])
    assert detect("This report was printed in English. " * 3 + french * 200) == "fr"
    assert detect("x" * 5_000_000 + french * 1_000) is not None


def test_threads_share_one_model() -> None:
    found: list[tuple[str, str | None]] = []

    def run() -> None:
        found.extend((language, detect(sentence)) for language, some in SENTENCES.items() for sentence in some)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 * sum(map(len, SENTENCES.values()))
    assert all(language == detected for language, detected in found)
