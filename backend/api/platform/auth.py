"""Registration and login, for people and for the Authorize button of the interactive docs."""

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import parse_qs

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, EmailStr, Field, StringConstraints, ValidationError

from backend.api.auth import ClaimsDep
from backend.api.bodies import problem_of
from backend.api.errors import error_responses
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.users import service
from backend.users.service import Login

router = APIRouter(prefix="/auth", tags=["auth"])

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Password = Annotated[str, StringConstraints(min_length=8, max_length=256)]


class RegisterIn(BaseModel):
    email: EmailStr
    password: Password
    name: Name


class LoginIn(BaseModel):
    username: Annotated[str, StringConstraints(min_length=1, max_length=320)] = Field(description="The e-mail address")
    password: Annotated[str, StringConstraints(min_length=1, max_length=256)]


class RefreshIn(BaseModel):
    refresh_token: Annotated[str, StringConstraints(min_length=1, max_length=4096)]


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
async def register(body: RegisterIn, session: SessionDep) -> Any:
    return await service.register(session, email=body.email, password=body.password, name=body.name)


@router.post("/login", openapi_extra=_LOGIN_DOCS, responses=error_responses(401, 422))
async def log_in(request: Request, body: Annotated[LoginIn, Depends(login_body)], services: ServicesDep) -> LoginOut:
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


@router.post("/logout", responses=error_responses(401))
async def log_out(claims: ClaimsDep, session: SessionDep) -> DetailOut:
    if claims is not None:
        await service.end_session(session, claims.session)
    return DetailOut(detail="Successfully logged out")


def login_out(login: Login) -> LoginOut:
    return LoginOut(
        access_token=login.access_token,
        refresh_token=login.refresh_token,
        user=UserOut.model_validate(login.user),
    )
