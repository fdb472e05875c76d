"""Why a document gave no text: each failure has a stable code and a sentence that says what to do."""

from typing import ClassVar


class ExtractionError(Exception):
    """A document that gave no text; `code` is stable, `str()` is the sentence for the user."""

    code: ClassVar[str] = "EXTRACTION_FAILED"
    sentence: ClassVar[str] = "The text could not be read. Try again; if it fails again, save the document anew as PDF."

    def __init__(self, sentence: str = "") -> None:
        super().__init__(sentence or self.sentence)


class EmptyDocument(ExtractionError):
    code = "EMPTY_DOCUMENT"
    sentence = "The document is empty. Upload a document that contains text."


class DocumentEncrypted(ExtractionError):
    code = "DOCUMENT_ENCRYPTED"
    sentence = "The document is protected by a password. Save a copy without the password and upload that."


class DocumentHasNoText(ExtractionError):
    code = "DOCUMENT_HAS_NO_TEXT"
    sentence = (
        "The document has pages but no text: it is probably a scan. Run text recognition (OCR) on it first, "
        "for example with OCRmyPDF, and upload the result."
    )


class DocumentBroken(ExtractionError):
    code = "DOCUMENT_BROKEN"
    sentence = (
        "The document is damaged or is not what its type says. Open it in the program that made it, save it anew "
        "and upload it again."
    )


class DocumentTooComplex(ExtractionError):
    code = "DOCUMENT_TOO_COMPLEX"
    sentence = (
        "Reading the document took more time or memory than allowed. Split it into smaller documents, or export it "
        "as plain text, and upload those."
    )


class DocumentTooLarge(ExtractionError):
    code = "DOCUMENT_TOO_LARGE"
    sentence = "The document holds more text or pages than allowed. Split it into smaller documents and upload those."


FAILURES: dict[str, type[ExtractionError]] = {
    failure.code: failure
    for failure in (
        EmptyDocument,
        DocumentEncrypted,
        DocumentHasNoText,
        DocumentBroken,
        DocumentTooComplex,
        DocumentTooLarge,
    )
}
