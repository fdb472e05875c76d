"""Registration and login, for people and for the Authorize button of the interactive docs."""

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import parse_qs

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, EmailStr, Field, StringConstraints, ValidationError

from backend.api.auth import LoginDep, OwnerDep
from backend.api.bodies import problem_of
from backend.api.errors import error_responses
from backend.api.rate_limit import count_login
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.kit import language
from backend.kit.language import Language
from backend.users import queries, recovery, service
from backend.users.service import Login

router = APIRouter(prefix="/auth", tags=["auth"])

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Password = Annotated[str, StringConstraints(min_length=8, max_length=256)]
GivenPassword = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class RegisterIn(BaseModel):
    email: EmailStr
    password: Password
    name: Name


class LoginIn(BaseModel):
    username: Annotated[str, StringConstraints(min_length=1, max_length=320)] = Field(description="The e-mail address")
    password: GivenPassword


class RefreshIn(BaseModel):
    refresh_token: Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class EmailIn(BaseModel):
    email: EmailStr


class OneUseTokenIn(BaseModel):
    token: Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ResetIn(OneUseTokenIn):
    password: Password


class UserOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    name: str
    is_active: bool
    has_completed_onboarding: bool
    created_at: datetime


class LoginOut(BaseModel):
    access_token: str
    refresh_token: str
    token_type: str = "bearer"
    user: UserOut


class DetailOut(BaseModel):
    detail: str


_LINK_SENT: dict[Language, str] = {
    "en": "A new link is on its way. Look into the spam folder too.",
    "fr": "Un nouveau lien est en route. Regardez aussi dans les indésirables.",
}
_LINK_SENT_IF_KNOWN: dict[Language, str] = {
    "en": "If there is an account with this address, a link is on its way. It works for one hour.",
    "fr": "Si un compte existe à cette adresse, un lien est en route. Il fonctionne pendant une heure.",
}
_PASSWORD_RESET: dict[Language, str] = {
    "en": "The password is changed, and all sessions are ended. Log in with the new one.",
    "fr": "Le mot de passe est modifié, et toutes les sessions ont pris fin. Connectez-vous avec le nouveau.",
}
_FORM = "application/x-www-form-urlencoded"


async def login_body(request: Request) -> LoginIn:
    """The JSON body of the contract, or the OAuth2 form that the interactive docs send."""
    raw = await request.body()
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    # Whatever it is declared as, it is read as JSON unless it is a form.
    unfit = problem_of(raw, kind if kind == _FORM else "")
    if unfit is not None:
        raise RequestValidationError([{"loc": ("body",), "msg": unfit[0], "type": unfit[1]}])
    try:
        if kind == _FORM:
            fields: Any = {key: values[0] for key, values in parse_qs(raw.decode()).items()}
        else:
            fields = orjson.loads(raw)
        return LoginIn.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in error.errors()]) from error
    except ValueError as error:
        problem = {"loc": ("body",), "msg": "neither JSON nor a form", "type": "value_error"}
        raise RequestValidationError([problem]) from error


_LOGIN_DOCS = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": LoginIn.model_json_schema()} for kind in ("application/json", _FORM)},
    }
}


@router.post("/register", status_code=201, response_model=UserOut, responses=error_responses(409))
async def register(body: RegisterIn, request: Request, session: SessionDep, services: ServicesDep) -> Any:
    """The address gets a mail with a link for POST /api/auth/verify-email; its language is that of Accept-Language."""
    # French, the platform's own, when the header names neither of our languages.
    spoken = language.choose(request.headers.get("accept-language", ""), default="fr")
    user = await service.register(session, email=body.email, password=body.password, name=body.name, language=spoken)
    await recovery.send_verification(session, services.post, user)
    return user


@router.post("/login", openapi_extra=_LOGIN_DOCS, responses=error_responses(401, 422))
async def log_in(request: Request, body: Annotated[LoginIn, Depends(login_body)], services: ServicesDep) -> LoginOut:
    await count_login(request, services.settings, body.username)
    login = await service.log_in(
        services.db,
        services.signer,
        services.lifetimes,
        email=body.username,
        password=body.password,
        user_agent=request.headers.get("user-agent", ""),
    )
    return login_out(login)


@router.post("/refresh-token", responses=error_responses(401))
async def refresh_token(body: RefreshIn, session: SessionDep, services: ServicesDep) -> LoginOut:
    return login_out(await service.refresh(session, services.signer, services.lifetimes, body.refresh_token))


@router.post("/logout", responses=error_responses(401, 403))
async def log_out(claims: LoginDep, session: SessionDep) -> DetailOut:
    if claims is not None:
        await service.end_session(session, claims.session)
    return DetailOut(detail="Successfully logged out")


@router.post("/verify-email", response_model=UserOut, responses=error_responses(400))
async def verify_email(body: OneUseTokenIn, session: SessionDep) -> Any:
    """Takes the token of the mail; works without a login."""
    return await recovery.verify_email(session, body.token)


@router.post("/resend-verification", status_code=202, responses=error_responses(401, 403, 409))
async def resend_verification(
    request: Request, owner: OwnerDep, session: SessionDep, services: ServicesDep
) -> DetailOut:
    """Mails a new link to the caller's address, at most once a minute; older links die."""
    await recovery.send_verification(session, services.post, await queries.get_user(session, owner))
    return told(request, _LINK_SENT)


@router.post("/forgot-password", status_code=202)
async def forgot_password(body: EmailIn, request: Request, services: ServicesDep) -> DetailOut:
    """The same answer, after the same time, whether or not there is an account: the search runs beside it."""
    await count_login(request, services.settings, body.email)
    services.background.start(recovery.send_reset(services.db, services.post, body.email))
    return told(request, _LINK_SENT_IF_KNOWN)


@router.post("/reset-password", responses=error_responses(400))
async def reset_password(body: ResetIn, request: Request, services: ServicesDep) -> DetailOut:
    """Takes the token of the mail and a new password, and ends all sessions."""
    await recovery.reset_password(services.db, services.post, token=body.token, password=body.password)
    return told(request, _PASSWORD_RESET)


def told(request: Request, sentence: "dict[Language, str]") -> DetailOut:
    """A sentence in the language of the request's Accept-Language; English when that names neither of ours."""
    return DetailOut(detail=sentence[language.choose(request.headers.get("accept-language", ""))])


def login_out(login: Login) -> LoginOut:
    return LoginOut(
        access_token=login.access_token,
        refresh_token=login.refresh_token,
        user=UserOut.model_validate(login.user),
    )
