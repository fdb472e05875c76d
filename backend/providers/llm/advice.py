"""How the errors of a language model speak of its server, and what they tell its user to do next."""

from dataclasses import dataclass, field

from backend.providers.catalogue import providers

_URL_ENDING = "Check LLM_BASE_URL; it usually ends with /v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """`server` stands in the middle of a sentence; each of the others is a sentence without its full stop."""

    server: str
    silent: str
    unreachable: str
    not_understood: str
    busy: str
    wrong_key: str
    forbidden: str
    wrong_path: str
    no_such_model: str
    refused: str
    weak: str
    context: dict[str, str] = field(default_factory=dict)

    def of_status(self, status: int) -> str:
        """What to do about an answer with this status, which is none that is tried again."""
        return {401: self.wrong_key, 403: self.forbidden, 404: self.wrong_path}.get(status, self.refused)


def of_endpoint(base_url: str, model: str) -> Advice:
    """For the server at LLM_BASE_URL, which whoever runs this service has chosen."""
    return Advice(
        server=f"the LLM server at {base_url}",
        silent="Raise LLM_TIMEOUT_SECONDS, lower LLM_MAX_CONCURRENCY or use a faster model",
        unreachable="Start it, or change LLM_BASE_URL",
        not_understood=_URL_ENDING,
        busy="Wait, or lower LLM_MAX_CONCURRENCY",
        wrong_key="Set LLM_API_KEY to a valid key",
        forbidden="Set LLM_API_KEY to a key that may use this model",
        wrong_path=_URL_ENDING,
        no_such_model=f"With Ollama run `ollama pull {model}`; otherwise set LLM_MODEL to a name that "
        f"{base_url.rstrip('/')}/models lists",
        refused="Check LLM_BASE_URL and LLM_MODEL",
        weak="A stronger model usually helps: change LLM_MODEL",
    )


def of_account(provider: str, *, own_key: bool) -> Advice:
    """For a provider of the catalogue, asked with the user's own key or with that of the service (LLM_API_KEY)."""
    name = providers()[provider].name
    key = "Replace your key with POST /api/users/me/api-keys" if own_key else "Set LLM_API_KEY to a valid key of it"
    may = f"Use a model that your key may use at {name}" if own_key else "Set LLM_API_KEY to one that may use the model"
    model = f"Name another model of {name}" if own_key else f"Set LLM_MODEL to {provider}/ and a name that it has"
    return Advice(
        server=name,
        silent="Try again later, or use a faster model",
        unreachable="Try again later",
        not_understood="Try again later",
        busy="Wait, or have the limits of the account raised there",
        wrong_key=key,
        forbidden=may,
        wrong_path=model,
        no_such_model=model,
        refused="Check the account there and the model's name",
        weak="A stronger model usually helps",
        context={"provider": provider},
    )
