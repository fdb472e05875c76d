"""All settings of the service, read once from the environment (and from a .env file when there is one)."""

from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from typing_extensions import TypedDict

AuthMode = Literal["local", "token"]
FREE_PLAN = "Free"
# What Stripe counts in whole units or in thousandths (https://docs.stripe.com/currencies): 365 would be 365 yen.
_WITHOUT_CENTS = frozenset(
    "bif clp djf gnf isk jpy kmf krw mga pyg rwf ugx vnd vuv xaf xof xpf bhd iqd jod kwd lyd omr tnd".split()
)


class PlanTerms(TypedDict, total=False):
    """What a plan allows at once (null or absent: no limit), its share of the GPUs, and Stripe's price of it."""

    max_projects: int | None
    max_fine_tunings: int | None
    max_running_trainings: int | None
    weight: int
    price_id: str | None


class Settings(BaseSettings):
    """One field per environment variable of the same name in upper case."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore")

    # Where things are
    data_dir: Path = Path(".finetuneflow")
    database_url: str = "postgresql+asyncpg://finetuneflow:finetuneflow@127.0.0.1:5432/finetuneflow"
    redis_url: str = "redis://127.0.0.1:6379/0"
    storage_url: str = ""
    # Connections beyond the pool are opened and closed again for each request, which costs more than most requests.
    database_pool_size: int = Field(default=20, ge=1)
    database_max_overflow: int = Field(default=10, ge=0)

    # Who may call
    auth_mode: AuthMode = "token"
    secret_key: SecretStr = SecretStr("")
    # Seal what is secret at rest, the newest first; without any, a key is derived from SECRET_KEY.
    encryption_keys: list[SecretStr] = []
    access_token_minutes: int = Field(default=30, ge=1)
    refresh_token_days: int = Field(default=30, ge=1)
    allowed_hosts: list[str] = []
    cors_origins: list[str] = []

    # How often one user may call (requests in one window)
    rate_limits: bool = True
    rate_limit_window_seconds: int = Field(default=60, ge=1, le=3600)
    rate_limit_upload: int = Field(default=10, ge=1)
    rate_limit_generate: int = Field(default=5, ge=1)
    rate_limit_train: int = Field(default=3, ge=1)
    rate_limit_get: int = Field(default=60, ge=1)
    rate_limit_post: int = Field(default=30, ge=1)
    rate_limit_change: int = Field(default=60, ge=1)
    rate_limit_login: int = Field(default=10, ge=1)

    # Mail
    smtp_host: str = ""
    smtp_port: int = Field(default=587, ge=1, le=65_535)
    smtp_username: str = ""
    smtp_password: SecretStr = SecretStr("")
    smtp_starttls: bool = True
    mail_from: str = "FineTuneFlow <no-reply@localhost>"
    frontend_url: str = "http://localhost:3000"

    # Logs
    log_level: str = "INFO"
    log_json: bool = False

    # Uploads and documents
    upload_max_file_mb: int = Field(default=50, ge=1)
    upload_max_project_mb: int = Field(default=500, ge=1)
    upload_max_files: int = Field(default=100, ge=1)
    extraction_timeout_seconds: float = Field(default=60.0, gt=0)
    extraction_memory_mb: int = Field(default=512, ge=256)

    # Web pages
    web_max_mb: int = Field(default=10, ge=1, le=100)
    web_timeout_seconds: float = Field(default=20.0, gt=0)
    web_test_hosts: list[str] = []

    # Videos and speech
    youtube_languages: list[str] = ["fr", "en"]
    youtube_max_minutes: int = Field(default=240, ge=1, le=1440)
    youtube_proxy_url: SecretStr = SecretStr("")
    transcription_engine: Literal["faster-whisper", "openai-whisper"] = "faster-whisper"
    whisper_model: str = "base"
    transcription_device: Literal["cpu", "cuda"] = "cpu"
    transcription_threads: int = Field(default=0, ge=0)
    transcription_max_minutes: int = Field(default=240, ge=1, le=1440)

    # The language model that writes datasets: any OpenAI-compatible endpoint
    llm_base_url: str = ""
    llm_api_key: SecretStr = SecretStr("")
    llm_model: str = ""
    llm_judge_model: str = ""
    llm_strategy: Literal["auto", "grounded", "free"] = "auto"
    llm_max_concurrency: int = Field(default=4, ge=1)
    llm_timeout_seconds: float = Field(default=120.0, gt=0)
    llm_max_attempts: int = Field(default=5, ge=1)

    # Providers of models and fine-tuning
    openai_base_url: str = "https://api.openai.com/v1"
    anthropic_base_url: str = "https://api.anthropic.com"
    mistral_base_url: str = "https://api.mistral.ai"
    together_base_url: str = "https://api.together.xyz/v1"
    fireworks_base_url: str = "https://api.fireworks.ai/inference/v1"
    bedrock_endpoint_url: str = ""
    # How long an answer of a fine-tuned model is waited for
    playground_timeout_seconds: float = Field(default=30.0, gt=0, le=300)

    # Base models
    models_dir: Path | None = None
    hf_endpoint: str = ""
    hf_token: SecretStr = SecretStr("")
    hf_timeout_seconds: float = Field(default=10.0, gt=0)

    # Training
    training_device: Literal["auto", "cpu", "cuda"] = "auto"
    training_threads: int = Field(default=0, ge=0)
    training_processes: int = Field(default=0, ge=0, le=64)
    training_sharding: Literal["auto", "replicate", "shard"] = "auto"
    training_cancel_grace_seconds: float = Field(default=10.0, gt=0)
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    checkpoint_upload_max_mb: int = Field(default=20_480, ge=0)
    evaluation_examples: int = Field(default=50, ge=0, le=50)
    evaluation_max_seconds: float = Field(default=600.0, gt=0)

    # Answers of local models
    serving_memory_mb: int = Field(default=0, ge=0)
    serving_cache_mb: int = Field(default=4096, ge=1)
    serving_idle_seconds: float = Field(default=300.0, gt=0)
    serving_concurrency: int = Field(default=8, ge=1, le=256)
    serving_queue_per_user: int = Field(default=4, ge=1)
    serving_queue: int = Field(default=64, ge=1)
    serving_timeout_seconds: float = Field(default=120.0, gt=0, le=300)
    serving_price_per_1k_characters: Decimal = Field(default=Decimal(0), ge=0)
    vllm_base_url: str = ""

    # Jobs (seconds)
    job_lease_seconds: float = Field(default=15.0, gt=0)
    job_heartbeat_seconds: float = Field(default=1.0, gt=0)
    job_sweep_seconds: float = Field(default=5.0, gt=0)
    job_resend_seconds: float = Field(default=10.0, gt=0)

    # Billing
    free_characters: int = Field(default=10_000, ge=0)
    price_per_character: Decimal = Field(default=Decimal("0.000365"), gt=0, max_digits=20, decimal_places=12)
    checkout_minimum_cents: int = Field(default=60, ge=1)
    complimentary_characters_per_month: int = Field(default=20_000, ge=0)
    currency: str = Field(default="eur", pattern="^[a-z]{3}$")
    stripe_secret_key: SecretStr = SecretStr("")
    # Of the webhook endpoint; several while one is being replaced.
    stripe_webhook_secrets: list[SecretStr] = []
    stripe_api_base: str = "https://api.stripe.com"
    plans: dict[str, PlanTerms] = {
        FREE_PLAN: {"max_projects": 3, "max_fine_tunings": 2},
        "Pro": {"max_projects": 10, "max_fine_tunings": 5},
    }

    @field_validator("currency")
    @classmethod
    def _has_cents(cls, currency: str) -> str:
        if currency in _WITHOUT_CENTS:
            raise ValueError(f"CURRENCY: '{currency}' has no cents, and all amounts here are counted in them")
        return currency

    @field_validator("plans")
    @classmethod
    def _has_free_plan(cls, plans: dict[str, PlanTerms]) -> dict[str, PlanTerms]:
        if FREE_PLAN not in plans:
            raise ValueError(f"PLANS must have a plan named {FREE_PLAN}: it is everybody's who pays for none")
        if any(terms.get("weight", 1) < 1 for terms in plans.values()):
            raise ValueError("PLANS: weight is a plan's share of the GPUs, 1 or more")
        return plans

    @model_validator(mode="after")
    def _fill_in(self) -> "Settings":
        self.data_dir = self.data_dir.expanduser().absolute()
        if not self.storage_url:
            self.storage_url = (self.data_dir / "storage").as_uri()
        if self.models_dir is None:
            self.models_dir = self.data_dir / "models"
        return self

    @property
    def models_path(self) -> Path:
        assert self.models_dir is not None
        return self.models_dir

    def provider_url(self, provider: str) -> str:
        """Where a provider's API lies; empty for one that is not reached by a URL, or is not known."""
        if provider == "huggingface":
            return self.hf_endpoint
        return str(getattr(self, f"{provider}_base_url", ""))

    @property
    def sealing_keys(self) -> list[str]:
        return [key.get_secret_value() for key in self.encryption_keys] or [self.secret_key.get_secret_value()]

    @property
    def upload_max_file_bytes(self) -> int:
        return self.upload_max_file_mb * 1024 * 1024

    @property
    def upload_max_project_bytes(self) -> int:
        return self.upload_max_project_mb * 1024 * 1024


@lru_cache
def get_settings() -> Settings:
    return Settings()
