"""Errors that carry the HTTP status, a stable code and a sentence that says what to do next."""

from typing import Any, ClassVar


class DomainError(Exception):
    """Base of every expected failure; the faces render it as {detail, error_code, context}.

    Subclasses set `status`, `code` and a `template` for the sentence; its fields come from `context`.
    """

    status: ClassVar[int] = 400
    code: str = "BAD_REQUEST"
    template: ClassVar[str] = "The request cannot be carried out."
    # What to do next, where a contract fixes the sentence itself; it goes into the context.
    advice: ClassVar[str] = ""
    # A job that fails with it is tried again later.
    retryable: ClassVar[bool] = False
    # Whether that is one of the job's attempts. False for what says nothing of the job, such as the wrong worker.
    costs_attempt: ClassVar[bool] = True
    # The transaction that it ends is committed all the same.
    keeps_changes: ClassVar[bool] = False

    def __init__(self, detail: str | None = None, **context: Any) -> None:
        self.context = {**context, "advice": self.advice.format(**context)} if self.advice else context
        self.detail = detail if detail is not None else self.template.format(**context)
        super().__init__(self.detail)


class NotFound(DomainError):
    status = 404
    code = "NOT_FOUND"
    template = "Not found."


class Conflict(DomainError):
    status = 409
    code = "CONFLICT"
    template = "The request conflicts with the present state."


class Unauthorized(DomainError):
    status = 401
    code = "UNAUTHORIZED"
    template = "Log in first: send 'Authorization: Bearer <access_token>' from POST /api/auth/login."


class DatabaseUnavailable(DomainError):
    status = 503
    code = "DATABASE_UNAVAILABLE"
    template = "The database does not answer. Try again in a moment."
    retryable = True


class Unavailable(DomainError):
    status = 503
    code = "SERVICE_UNAVAILABLE"
    template = "The service is not available right now. Try again in a moment."
    retryable = True
