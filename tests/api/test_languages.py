"""Errors in English or French by Accept-Language, and a French sentence for every one of them."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from datetime import date, datetime
from enum import Enum
from itertools import product
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, EmailStr, Field, TypeAdapter, ValidationError

import backend
import celery_app
from backend.api import errors
from backend.contents.parsers.failures import FAILURES
from backend.kit import messages
from backend.kit.config import Settings
from backend.kit.errors import DomainError
from backend.main import create_app
from backend.providers.llm.base import LLMError
from tests.conftest import Tenant

ROOT = Path(__file__).resolve().parents[2]
FR = "backend/kit/messages/fr.toml"
FRENCH = {"Accept-Language": "fr-CA,fr;q=0.9,en;q=0.5"}
# These load libraries or run programs when they are imported, and define no error of an answer.
APART = ("backend.trainers", "backend.embedded", "backend.demo", "backend.cli", "backend.contents.parsers.__main__")
# What an answer has beside the context of a class: the problems of a 422, the name of a refused document.
GIVEN = {"VALIDATION_ERROR": {("problems", "")}, **{code: {("filename", "")} for code in FAILURES}}
# What it has only sometimes: the provider, where a language model is asked with the user's own key.
SOMETIMES = {error.code: {("provider", "")} for error in LLMError.__subclasses__()}


def subclasses(of: type[DomainError]) -> Iterator[type[DomainError]]:
    for found in of.__subclasses__():
        yield found
        yield from subclasses(found)


@pytest.fixture(scope="module")
def classes() -> dict[str, list[type[DomainError]]]:
    """All errors of the application, by code."""
    for package in (backend, celery_app):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.startswith(APART):
                importlib.import_module(module.name)
    found: dict[str, list[type[DomainError]]] = {}
    for error in [DomainError, *subclasses(DomainError)]:
        if error.__module__.startswith(("backend.", "celery_app.")):
            found.setdefault(error.code, []).append(error)
    return found


def documented() -> set[str]:
    table = (ROOT / "docs/api.md").read_text().split("\n## Error codes of answers\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([A-Z_]+)` \|", table, re.MULTILINE))


def fields(sentence: str) -> set[tuple[str, str]]:
    """(name, format) of each field."""
    return {(name, spec or "") for _, name, spec, _ in Formatter().parse(sentence) if name is not None}


def test_every_code_has_a_french_sentence_and_every_sentence_a_code(
    classes: dict[str, list[type[DomainError]]],
) -> None:
    codes = {*classes, *documented(), *FAILURES, *errors._CODES.values(), "ERROR"}
    written = set(messages.load()["errors"])
    missing, unused = sorted(codes - written), sorted(written - codes)
    assert not missing, f"write a French sentence for each of these codes into [errors] of {FR}: {missing}"
    assert not unused, f"no error has these codes any more; delete them from [errors] of {FR}: {unused}"


def test_french_sentences_have_only_fields_that_their_errors_have(
    classes: dict[str, list[type[DomainError]]],
) -> None:
    for code, sentences in messages.load()["errors"].items():
        known = [fields(error.template) | fields(error.advice) for error in classes.get(code, [])]
        known = [have | GIVEN.get(code, set()) for have in known or [set()]]
        known += [have | SOMETIMES[code] for have in known if code in SOMETIMES]
        for sentence in sentences:
            assert any(fields(sentence) <= have for have in known), (
                f"[errors] {code} of {FR} has a field or a format that no template of this code has: {sentence!r}. "
                f"Use some of {known}, or give the class a template with that field"
            )
        for have in known:
            assert any(fields(sentence) <= have for sentence in sentences), (
                f"an error {code} with the fields {have} fits none of its sentences in [errors] of {FR}: add one"
            )


def test_french_advice_goes_with_english_advice(classes: dict[str, list[type[DomainError]]]) -> None:
    english = {
        code: [fields(error.advice) for error in found if error.advice]
        for code, found in classes.items()
        if any(error.advice for error in found)
    }
    french = messages.load()["advice"]
    assert set(french) == set(english), f"[advice] of {FR} and the classes with an `advice` must have the same codes"
    for code, sentences in french.items():
        for sentence in sentences:
            known = any(fields(sentence) <= have for have in english[code])
            assert known, f"[advice] {code} of {FR} has a field that the English has not"
        for have in english[code]:
            assert any(fields(sentence) <= have for sentence in sentences), f"[advice] {code} of {FR} lacks a sentence"


def test_french_sentences_are_whole_sentences() -> None:
    tables = messages.load()
    for code, sentences in {**tables["errors"], **tables["advice"]}.items():
        for sentence in sentences:
            assert re.fullmatch(r"[A-ZÀ-Ý«{].{20,}\.", sentence), f"{code}: {sentence}"
            # French puts a space before these, and inside its quotation marks.
            assert not re.search(
                r"\w[?!;](?:\s|$)|\w:\s|«\S|\S»|[’“”]", re.sub(r"(Authorization|Content-Type): ", "", sentence)
            ), code


class _Shade(Enum):
    LIGHT = "light"
    DARK = "dark"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = ""


class _Named(BaseModel):
    name: str


REFUSED: list[tuple[Any, Any]] = [
    (bool, "perhaps"),
    (bool, []),
    (date, "soon"),
    (datetime, "soon"),
    (dict[str, Any], 1),
    (EmailStr, "nobody"),
    (_Shade, "grey"),
    (_Strict, {"surname": "x"}),
    (Annotated[float, Field(allow_inf_nan=False)], "nan"),
    (float, "x"),
    (float, []),
    (Annotated[int, Field(gt=3)], 3),
    (Annotated[float, Field(ge=0.5)], 0),
    (int, 1.5),
    (int, "x"),
    (int, "9" * 5000),
    (int, []),
    (Annotated[int, Field(lt=3)], 3),
    (Annotated[int, Field(le=3)], 4),
    (list[int], "x"),
    (Literal["a", "b"], "c"),
    (_Named, {}),
    (_Named, 1),
    (Annotated[str, Field(pattern="^a$")], "b"),
    (Annotated[str, Field(max_length=1)], "bb"),
    (Annotated[str, Field(min_length=1)], ""),
    (str, 1),
    (str, b"\xff"),
    (Annotated[list[int], Field(max_length=1)], [1, 2]),
    (Annotated[list[int], Field(min_length=1)], []),
    (UUID, "x"),
    (UUID, 1),
]


def test_each_problem_of_a_field_is_one_that_occurs() -> None:
    written = set(messages.load()["problems"])
    told = {}
    for (wanted, value), as_body in product(REFUSED, (True, False)):
        with pytest.raises(ValidationError) as caught:
            # FastAPI reads the models of bodies by their attributes, which has a type of its own.
            TypeAdapter(wanted).validate_python(value, from_attributes=as_body)
        for item in caught.value.errors():
            kind = "email" if wanted is EmailStr else item["type"]
            told[kind] = messages.french_problem(item["type"], item["msg"], item.get("ctx", {}))
            assert told[kind], f"[problems] of {FR} has nothing for {item}"
    assert told["greater_than_equal"] == "doit être supérieur ou égal à 0,5"
    assert told["literal_error"] == "doit être l'une de ces valeurs : 'a' ou 'b'"
    assert told["string_too_long"] == "doit compter au plus 1 caractère(s)"
    api = {path: path.read_text() for path in (ROOT / "backend/api").rglob("*.py")}
    bodies = api[ROOT / "backend/api/bodies.py"]
    own = {kind for kind in written if f'"{kind}"' in bodies}
    sentences = {
        node.args[0].value
        for text in api.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ValueError"
        if node.args and isinstance(node.args[0], ast.Constant)
    }
    assert sentences <= written, f"write these texts of a ValueError into [problems] of {FR}: {sentences - written}"
    assert written <= {*told, *own, *sentences}, f"[problems] of {FR} has what never occurs"


async def test_the_language_is_chosen_by_the_header(anonymous: httpx.AsyncClient) -> None:
    for header, spoken, start in (
        (None, "en", "There is nothing"),
        ("fr", "fr", "Il n'y a rien"),
        ("fr-CA", "fr", "Il n'y a rien"),
        ("en;q=0.2, fr-BE;q=0.7", "fr", "Il n'y a rien"),
        ("fr;q=0.2, en;q=0.7", "en", "There is nothing"),
        ("ja", "en", "There is nothing"),
    ):
        for path in ("/nothing", "/api/nothing"):
            answer = await anonymous.get(path, headers={"Accept-Language": header} if header else None)
            assert (answer.status_code, answer.json()["error_code"]) == (404, "NOT_FOUND")
            assert answer.json()["detail"].startswith(start), header
            assert answer.headers["content-language"] == spoken
            assert answer.headers["vary"] == "Accept-Language"
            assert int(answer.headers["content-length"]) == len(answer.content)
    twice = httpx.Headers([("Accept-Language", "de"), ("Accept-Language", "fr")])
    assert (await anonymous.get("/nothing", headers=twice)).headers["content-language"] == "fr"


async def test_both_faces_and_the_framework_speak_french(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    refused = await anonymous.get("/projects", headers=FRENCH)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert refused.json()["detail"].startswith("Connectez-vous d'abord")
    method = await anonymous.put("/health", headers=FRENCH)
    assert (method.status_code, method.headers["allow"]) == (405, "GET")
    assert method.json()["detail"].startswith("Cette adresse n'accepte pas cette méthode.")
    for path in (f"/projects/{uuid4()}", "/api/projects/2000000000"):
        foreign = await tenant.client.get(path, headers=FRENCH)
        assert foreign.json() == {
            "detail": "Ce projet n'existe pas. Vérifiez son identifiant, ou relisez la liste de vos projets.",
            "error_code": "PROJECT_NOT_FOUND",
            "context": {},
        }
    large = await tenant.client.post("/projects", content=b" " * 1_100_000, headers=FRENCH)
    assert (large.status_code, large.headers["content-language"]) == (413, "fr")
    assert large.json()["detail"].startswith("Le corps de la requête est trop grand.")


async def test_what_is_not_valid_is_told_field_by_field(tenant: Tenant) -> None:
    body = {"name": "", "task_type": "poetry", "config": 3}
    english = await tenant.client.post("/projects", json=body)
    french = await tenant.client.post("/projects", json=body, headers=FRENCH)
    assert english.status_code == french.status_code == 422
    assert french.headers["content-language"] == "fr"
    here, there = english.json()["context"]["errors"], french.json()["context"]["errors"]
    assert [(item["field"], item["type"]) for item in here] == [(item["field"], item["type"]) for item in there]
    assert {item["type"] for item in there} == {"string_too_short", "literal_error", "model_attributes_type"}
    assert [item["message"] for item in there] == [
        "doit compter au moins 1 caractère(s)",
        "doit être l'une de ces valeurs : 'qa', 'instruction', 'chat', 'classification' ou 'summarization'",
        "doit être un objet",
    ]
    assert english.json()["detail"].startswith("The request is not valid. body.name: String should have at least 1")
    assert french.json()["detail"].startswith(
        "La requête n'est pas valable. body.name : doit compter au moins 1 caractère(s) ; body.task_type : "
    )
    for field, sentence in (
        ({"content": b"{"}, "body : n'est pas du JSON valable"),
        ({"json": {"name": "a\0b"}}, "body : contient un caractère NUL, qui ne peut pas être enregistré"),
        ({"json": {}}, "body.name : est obligatoire"),
    ):
        answer = await tenant.client.post("/projects", headers={**FRENCH, "Content-Type": "application/json"}, **field)
        assert answer.json()["detail"] == f"La requête n'est pas valable. {sentence}."
    account = {"email": "nobody", "password": "a long password", "name": "N"}
    answer = await tenant.client.post("/api/auth/register", json=account, headers=FRENCH)
    assert answer.json()["detail"] == "La requête n'est pas valable. body.email : doit être une adresse e-mail valable."


async def test_fields_and_advice_of_an_upload(tenant: Tenant) -> None:
    project = await tenant.make_project()
    tenant.client.headers.update(FRENCH)
    image = await tenant.upload(project, "logo.png", b"\x89PNG\r\n\x1a\n" + bytes(200))
    assert image.json()["error_code"] == "UNSUPPORTED_FILE_TYPE"
    assert image.json()["detail"].startswith("Le fichier « logo.png » est d'un type qui n'est pas accepté (image/png).")
    assert image.json()["context"]["advice"].startswith("Envoyez plutôt l'un de ces types : ")
    assert isinstance(image.json()["context"]["accepted"], list)
    empty = await tenant.upload(project, "vide.txt", b"")
    assert empty.json()["detail"] == "vide.txt est vide. Envoyez un fichier qui a du contenu."
    job = await tenant.client.post(
        f"/projects/{project}/chunks/generate", json={"chunk_size_tokens": 64, "chunk_overlap_tokens": 64}
    )
    assert job.json()["detail"].startswith("Le recouvrement chunk_overlap_tokens (64) doit être inférieur à")


async def test_refusals_of_the_middleware_speak_french(settings: Settings) -> None:
    origin = "http://studio.example"
    app: FastAPI = create_app(
        settings.model_copy(
            update={"auth_mode": "local", "rate_limits": True, "rate_limit_get": 2, "cors_origins": [origin]}
        )
    )

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("inside")

    @app.get("/untold")
    async def untold() -> None:
        raise _Untold("Only English knows this.")

    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=FRENCH) as client:
            outside = await client.get("/projects", headers={"Host": "evil.example"})
            assert (outside.status_code, outside.headers["content-language"]) == (403, "fr")
            assert outside.json()["detail"].startswith("AUTH_MODE=local ne répond qu'à cette machine")
            failed = await client.get("/broken", headers={"Origin": origin})
            assert failed.status_code == 500
            assert failed.json()["detail"].startswith("Le service a commis une erreur.")
            assert {"x-request-id", "content-language"} <= set(failed.headers)
            untold = await client.get("/untold", headers={"Origin": origin})
            assert untold.json()["detail"] == "Only English knows this."
            assert untold.headers["content-language"] == "en"
            assert untold.headers["vary"] == "Accept-Language, Origin"
            limited = await client.get("/projects")
            assert (limited.status_code, limited.headers["content-language"]) == (429, "fr")
            seconds = limited.headers["retry-after"]
            assert limited.json()["detail"] == (
                "Trop de requêtes de cette sorte : 2 sont permises en 60 secondes. "
                f"Attendez {seconds} s, puis recommencez."
            )


class _Untold(DomainError):
    code = "UNTOLD"
