"""What can go wrong with contents."""

from typing import Any

from backend.kit.errors import DomainError, NotFound


class ContentNotFound(NotFound):
    code = "FILE_NOT_FOUND"
    template = "There is no such file in this project."


class UnknownContent(NotFound):
    code = "CONTENT_NOT_FOUND"
    template = "There is no such content."


class UnsupportedType(DomainError):
    code = "UNSUPPORTED_FILE_TYPE"
    template = "File '{filename}' has unsupported MIME type '{mime_type}'"
    advice = "Upload one of these types instead: {accepted}."

    def __init__(self, *, filename: str, mime_type: str, accepted: list[str], **context: str) -> None:
        super().__init__(filename=filename, mime_type=mime_type, accepted=", ".join(accepted), **context)
        self.context["accepted"] = accepted


class TypeOfOtherKind(UnsupportedType):
    """The other `kind` of upload takes the type."""

    advice = "Send the form field kind={kind} to upload it as such. Or upload one of these types instead: {accepted}."


class UnknownKind(DomainError):
    code = "UNKNOWN_FILE_KIND"
    template = "kind must be one of {accepted}. Send it as a form field beside 'files'."


class UnknownPurpose(DomainError):
    code = "UNKNOWN_PURPOSE"
    template = (
        "purpose must be one of {accepted}: rows to train on, or an evaluation set that examples must stay clear of. "
        "Send it as a form field beside 'files'."
    )


class UnknownSplit(DomainError):
    code = "UNKNOWN_SPLIT"
    template = "split must be one of {accepted}. Send it as a form field beside 'files'."


class NoFiles(DomainError):
    code = "NO_FILES"
    template = "The upload holds no file. Send at least one in the multipart field 'files'."


class FileTooLarge(DomainError):
    status = 413
    code = "FILE_TOO_LARGE"
    template = "File exceeds maximum size of {limit_mb} MB"
    advice = "Split the document into smaller files and upload those."


class ProjectFull(DomainError):
    status = 413
    code = "PROJECT_STORAGE_FULL"
    template = "The files of a project may have {limit_mb} MB in all. Delete some, or use another project."


class DocumentRejected(DomainError):
    """A document that cannot be read; `code` and sentence come from the extraction."""

    def __init__(self, code: str, detail: str, **context: Any) -> None:
        super().__init__(detail, **context)
        self.code = code


class DatasetHasNoRows(DomainError):
    """Carries the report of the import in its context."""

    code = "DATASET_HAS_NO_ROWS"
    template = "{filename} has no row that can become an example. {reasons} Correct the rows and upload the file again."

    def __init__(self, *, filename: str, report: dict[str, Any]) -> None:
        reasons = " ".join(f"Row {error['line']}: {error['message']}" for error in report["errors"][:3])
        super().__init__(filename=filename, reasons=reasons or "It holds no row at all.")
        self.context = {"filename": filename, **report, "errors": report["errors"][:20]}


class NoDocuments(DomainError):
    code = "NO_DOCUMENTS"
    template = "The project has no documents. Upload some with POST /projects/{project_id}/files/upload first."


class BadChunkSizes(DomainError):
    code = "BAD_CHUNK_SIZES"
    template = "chunk_overlap_tokens ({overlap}) must be less than chunk_size_tokens ({size})."
