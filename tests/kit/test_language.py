"""The reader's language by Accept-Language, and how French sentences are filled in."""

import time

import pytest

from backend.kit.language import Language, choose
from backend.kit.messages import fields_of, french_advice, french_problem, french_sentence


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("", "en"),
        ("fr", "fr"),
        ("FR", "fr"),
        ("fr-CA", "fr"),
        ("fr-Latn-CA;q=0.3", "fr"),
        ("fr-FR,fr;q=0.9,en-US;q=0.8,en;q=0.7", "fr"),
        ("en-US,en;q=0.9,fr;q=0.8", "en"),
        ("en;q=0.5 , fr ; q = 0.8", "fr"),
        ("fr;q=0.3, en-GB;q=0.301", "en"),
        ("fr, en", "fr"),
        ("en, fr", "en"),
        ("de", "en"),
        ("de, fr;q=0.1", "fr"),
        ("*", "en"),
        ("fr;q=0.9, *;q=0.1", "fr"),
        ("fr;q=0.5, *", "en"),
        ("*, fr", "fr"),
        ("en;q=0, *;q=0.1", "fr"),
        ("fr;q=0", "en"),
        ("fr;q=0, *", "en"),
        ("en;q=0", "en"),
        ("frr, fro", "en"),  # Frisian and Old French are no French
        ("q=;;,en;q=x,fr", "fr"),
        ("fr;q=1.5", "en"),
        ("fr;q=-1, \u0661", "en"),
        ("fr\x00", "en"),
    ],
)
def test_the_language_with_the_greatest_weight(header: str, chosen: Language) -> None:
    assert choose(header) == chosen


@pytest.mark.parametrize(
    ("header", "chosen"), [("", "fr"), ("de", "fr"), ("*", "fr"), ("fr;q=0, *", "en"), ("en", "en")]
)
def test_another_default(header: str, chosen: Language) -> None:
    assert choose(header, default="fr") == chosen


def test_a_hostile_header_takes_no_time() -> None:
    started = time.perf_counter()
    for header in ("," * 60_000, "fr;q=0.1," * 7_000, "a" * 60_000, " " * 60_000 + "x", "fr-" * 20_000):
        choose(header)
    assert time.perf_counter() - started < 1.0


def test_fields_lists_and_fractions() -> None:
    disk = french_sentence("NOT_ENOUGH_DISK", {"model_id": "a/{b}", "needed_gb": 12.34, "free_gb": 2.0})
    assert disk is not None
    assert disk.startswith("Le modèle « a/{b} » demande 12,3 Go de disque, et 2,0 Go sont libres.")
    advice = french_advice("UNSUPPORTED_FILE_TYPE", {"accepted": ["text/plain", "application/pdf"]})
    assert advice == "Envoyez plutôt l'un de ces types : text/plain, application/pdf."
    assert fields_of("{a:.1f} {{b}} {c}") == {"a", "c"}


def test_the_first_sentence_that_the_context_can_fill() -> None:
    hosted = french_sentence(
        "MODEL_NOT_TRAINABLE", {"model": "m", "provider": "p", "reason": "Closed.", "working": "a: b"}
    )
    local = french_sentence("MODEL_NOT_TRAINABLE", {"model_id": "m", "reasons": "No weights."})
    assert hosted is not None
    assert hosted.startswith("« m » ne peut pas être entraîné chez p. ")
    assert local is not None
    assert "« No weights. »" in local


def test_what_has_no_french_is_said_to_have_none(caplog: pytest.LogCaptureFixture) -> None:
    assert french_sentence("NO_SUCH_CODE", {}) is None
    assert french_sentence("FILE_TOO_LARGE", {}) is None
    assert french_advice("NOT_FOUND", {}) is None
    assert french_problem("complex_type", "Input should be complex", {}) is None
    assert french_problem("value_error", "Value error, odd", {"error": ValueError("odd")}) is None
    assert not caplog.text
    assert french_sentence("NOT_ENOUGH_DISK", {"model_id": "m", "needed_gb": "much", "free_gb": 1.0}) is None
    assert "cannot be formatted" in caplog.text
