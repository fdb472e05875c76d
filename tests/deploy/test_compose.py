"""docker-compose.yml against what it must match: the command line, the settings, the Dockerfile and .env.example."""

import re
from typing import Any

import pytest
from sqlalchemy import make_url

from backend.kit.broker import QUEUES
from backend.kit.config import Settings
from backend.users.tokens import TokenSigner
from tests.deploy.reading import ROOT, compose, dockerfile, filled_in, parse_command, variables_of

GIVEN = {"SECRET_KEY": "k" * 48, "POSTGRES_PASSWORD": "secret", "COMPOSE_PROFILES": "cpu"}
OURS = ("finetuneflow-api", "finetuneflow-worker-gpu")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = filled_in(compose(), GIVEN)["services"]
    return found


def of_ours(services: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in services.items() if item["image"].split(":")[0] in OURS}


def test_each_part_has_a_service_and_each_queue_a_worker(services: dict[str, Any]) -> None:
    parts = {"migrate", "api", "worker", "worker-llm", "worker-control", "worker-gpu", "worker-cpu", "beat"}
    parts |= {"serving-gpu", "serving-cpu"}
    assert set(of_ours(services)) == parts
    assert set(services) - parts == {"postgres", "redis", "ollama", "vllm"}
    commands = [parse_command(item["command"]) for item in of_ours(services).values()]
    assert {found["queue"] for found in commands if found["command"] == "worker"} == set(QUEUES)
    assert {found["command"] for found in commands} == {"migrate", "api", "worker", "serve", "beat"}


def test_the_api_listens_where_its_port_is_published_and_its_health_is_asked(services: dict[str, Any]) -> None:
    api = services["api"]
    found = parse_command(api["command"])
    assert (found["host"], found["port"]) == ("0.0.0.0", 8000)
    assert api["ports"] == ["127.0.0.1:8000:8000"]
    assert "'127.0.0.1', 8000" in api["healthcheck"]["test"][-1]


def test_no_other_service_is_reachable_from_outside(services: dict[str, Any]) -> None:
    assert [name for name, item in services.items() if "ports" in item] == ["api"]


def test_a_workers_health_is_asked_of_its_own_queue(services: dict[str, Any]) -> None:
    for item in of_ours(services).values():
        found = parse_command(item["command"])
        if found["command"] == "worker":
            assert f'"{found["queue"]}@$HOSTNAME"' in item["healthcheck"]["test"][-1]


def test_the_environment_makes_valid_settings(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, item in of_ours(services).items():
        environment = item["environment"]
        assert {key.lower() for key in environment} <= set(Settings.model_fields), name
        with monkeypatch.context() as patch:
            for field in Settings.model_fields:
                patch.delenv(field.upper(), raising=False)
            for key, value in environment.items():
                patch.setenv(key, value)
            settings = Settings()
        url = make_url(settings.database_url)
        postgres = services["postgres"]["environment"]
        assert (url.drivername, url.host) == ("postgresql+asyncpg", "postgres")
        assert (url.username, url.database) == (postgres["POSTGRES_USER"], postgres["POSTGRES_DB"])
        assert url.password == postgres["POSTGRES_PASSWORD"]
        assert make_url(settings.redis_url).host == "redis"
        assert settings.auth_mode == "token"
        TokenSigner(settings.secret_key.get_secret_value())


def test_all_parts_share_one_data_folder_and_one_database(services: dict[str, Any]) -> None:
    ours = of_ours(services)
    assert {tuple(item["volumes"]) for item in ours.values()} == {("data:/data",)}
    for key in ("DATABASE_URL", "REDIS_URL", "DATA_DIR", "SECRET_KEY"):
        assert len({item["environment"][key] for item in ours.values()}) == 1


def test_nothing_starts_before_what_it_needs(services: dict[str, Any]) -> None:
    for name, item in services.items():
        for needed, how in item.get("depends_on", {}).items():
            assert needed in services, f"{name} needs {needed}"
            assert "profiles" not in services[needed], f"{name} needs {needed}, which may not be started"
            if how["condition"] == "service_healthy":
                assert "test" in services[needed]["healthcheck"], f"{needed} has no health check"
            else:
                assert how["condition"] == "service_completed_successfully"
                assert (needed, services[needed]["restart"]) == ("migrate", "no")
    for name, item in of_ours(services).items():
        assert ("migrate" in item["depends_on"]) == (name != "migrate")


def test_images_are_pinned_and_ours_have_a_build_target(services: dict[str, Any]) -> None:
    _, stages = dockerfile()
    for name, item in services.items():
        image, _, tag = item["image"].rpartition(":")
        assert re.match(r"v?\d", tag), f"{name}: {item['image']} names no version"
        if image in OURS:
            assert item["build"]["target"] == image.removeprefix("finetuneflow-")
            assert item["build"]["target"] in stages
            arguments = set(item["build"].get("args", {}))
            assert arguments <= {
                value.partition("=")[0] for word, value in stages[item["build"]["target"]].instructions if word == "ARG"
            }


def test_a_card_is_asked_for_by_profiles_with_a_card_alone(services: dict[str, Any]) -> None:
    cards = {name: item["deploy"]["resources"] for name, item in services.items() if "deploy" in item}
    assert set(cards) == {"worker-gpu", "serving-gpu", "vllm"}
    for card in cards.values():
        assert card["reservations"]["devices"] == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    profiles = {name: item["profiles"] for name, item in services.items() if "profiles" in item}
    assert profiles == {
        "worker-gpu": ["gpu"],
        "serving-gpu": ["gpu"],
        "worker-cpu": ["cpu"],
        "serving-cpu": ["cpu"],
        "ollama": ["ollama"],
        "vllm": ["vllm"],
    }


def test_vllm_takes_adapters_from_where_the_api_puts_them(services: dict[str, Any]) -> None:
    vllm, api = services["vllm"], services["api"]
    assert "--enable-lora" in vllm["command"]
    assert vllm["environment"] == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    assert "data:/data:ro" in vllm["volumes"]
    assert api["environment"]["DATA_DIR"] == "/data"
    assert "ports" not in vllm


def test_named_volumes_are_declared_and_used(services: dict[str, Any]) -> None:
    used = {volume.split(":")[0] for item in services.values() for volume in item.get("volumes", [])}
    assert used == set(compose()["volumes"])


def test_the_containers_of_ours_have_no_privileges(services: dict[str, Any]) -> None:
    for item in of_ours(services).values():
        assert item["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in item["security_opt"]
        assert not item.get("privileged")


def test_its_variables_are_those_of_the_example() -> None:
    asked = variables_of((ROOT / "docker-compose.yml").read_text())
    text = (ROOT / ".env.example").read_text()
    _, _, own = text.partition("# ---- Docker Compose only")
    offered = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", own, re.MULTILINE))
    # Profiles are read by Compose itself, and the key is a setting of the service.
    assert set(offered) - {"COMPOSE_PROFILES"} == set(asked) - {"SECRET_KEY"}
    assert {name for name, default in asked.items() if default is None} == {"SECRET_KEY", "POSTGRES_PASSWORD"}
    assert {name: default for name, default in asked.items() if default is not None} == {
        name: value for name, value in offered.items() if name not in ("COMPOSE_PROFILES", "POSTGRES_PASSWORD")
    }
