"""What can go wrong with people and their logins."""

from backend.kit.errors import Conflict, Unauthorized


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
