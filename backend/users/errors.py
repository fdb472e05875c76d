"""What can go wrong with people and their logins."""

from backend.kit.errors import Conflict, DomainError, NotFound, Unauthorized


class EmailTaken(Conflict):
    code = "EMAIL_TAKEN"
    template = "An account with this e-mail address already exists. Log in, or reset the password."


class BadCredentials(Unauthorized):
    """The same words for an unknown address, a wrong password and a closed account, so that none can be told apart."""

    code = "BAD_CREDENTIALS"
    template = "The e-mail address or the password is wrong."


class BadToken(Unauthorized):
    code = "BAD_TOKEN"
    template = "The token is not valid or has expired. Log in again, or refresh it at POST /api/auth/refresh-token."


class RefreshTokenReused(Unauthorized):
    code = "REFRESH_TOKEN_REUSED"
    keeps_changes = True
    template = "This refresh token was used before, so its session has been ended. Log in again."


class LoginRequired(DomainError):
    status = 403
    code = "LOGIN_REQUIRED"
    template = "A personal access token cannot do this. Log in with e-mail address and password."


class LocalAccount(DomainError):
    status = 403
    code = "LOCAL_ACCOUNT"
    template = "AUTH_MODE=local has one owner without a password. Set AUTH_MODE=token to have accounts."


class WrongPassword(DomainError):
    code = "WRONG_PASSWORD"
    template = "The current password is wrong. Type it again, or reset it at POST /api/auth/forgot-password."


class LinkNotValid(DomainError):
    """The same words for a token that is unknown, used, replaced by a newer one, or too old."""

    code = "LINK_NOT_VALID"
    template = "This link was used before, is too old, or was replaced by a newer one. Ask for a new mail."


class EmailAlreadyVerified(Conflict):
    code = "EMAIL_ALREADY_VERIFIED"
    template = "This e-mail address is verified already. There is nothing more to do."


class MailSentJustNow(DomainError):
    status = 429
    code = "MAIL_SENT_JUST_NOW"
    template = "A mail was sent less than a minute ago. Look into the spam folder too, then ask again."


class TokenNotFound(NotFound):
    code = "TOKEN_NOT_FOUND"
    template = "You have no personal access token with this id. GET /api/users/me/tokens lists them."


class TooManyTokens(Conflict):
    code = "TOO_MANY_TOKENS"
    template = "An account has at most {limit} personal access tokens. Delete one first."


class SessionNotFound(NotFound):
    code = "SESSION_NOT_FOUND"
    template = "You have no session with this id. GET /api/users/me/sessions lists them."


class PlanLimitReached(DomainError):
    status = 403
    code = "PLAN_LIMIT_REACHED"
    template = (
        "The plan {plan} allows {allowed} at once ({limit}), and {used} are there. Delete one, or change the plan."
    )


class NoProviderKey(Unauthorized):
    code = "PROVIDER_KEY_MISSING"
    template = "No key for {provider} is kept. Add one with POST /api/users/me/api-keys first."


class ProviderKeyNotFound(NotFound):
    code = "PROVIDER_KEY_NOT_FOUND"
    template = "No key for {provider} is kept."


class BadIdempotencyKey(DomainError):
    code = "BAD_IDEMPOTENCY_KEY"
    template = "Idempotency-Key must have 1 to 255 printable ASCII characters. A new UUID for each task is a good one."


class IdempotencyKeyReused(DomainError):
    status = 422
    code = "IDEMPOTENCY_KEY_REUSED"
    template = "This Idempotency-Key was sent before with another request. Take a new key for a new request."
