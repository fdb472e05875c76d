"""Puts a folder into a repository of the HuggingFace Hub, in a child process that a cancel can end."""

import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from backend.kit.child_process import run_child
from backend.kit.errors import DomainError, Unavailable

log = logging.getLogger(__name__)

_LONGEST_WORDS = 300
_GRACE_SECONDS = 5.0


class HubRefusesPush(DomainError):
    code = "HUB_REFUSES_PUSH"
    template = (
        "The HuggingFace Hub refuses to take '{repo_id}': {words} Check the repository's name and that your token may "
        "write there."
    )


class HubOutOfReach(Unavailable):
    code = "HUB_OUT_OF_REACH"
    template = "The HuggingFace Hub did not take the files, without saying why. Try again in a moment."


async def publish(
    endpoint: str, token: str, repo_id: str, folder: Path, *, private: bool, on_start: Callable[[], Awaitable[None]]
) -> str:
    """Makes the repository unless it is there, and puts all files of the folder in one commit; returns its address.

    `endpoint` "" is the public Hub. The token is in the child's environment and nowhere else. Raises HubRefusesPush,
    HubOutOfReach.
    """
    found: dict[str, str] = {}

    async def on_line(line: bytes) -> None:
        said = json.loads(line)
        if "uploading" in said:
            await on_start()
        found.update(said)

    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
        "HF_TOKEN": token,
        "HF_HOME": str(folder.parent / "hub-home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # Plain HTTP, which proxies let through and which goes to no second host of its own.
        "HF_HUB_DISABLE_XET": "1",
        **({"HF_ENDPOINT": endpoint} if endpoint else {}),
    }
    command = [sys.executable, "-m", "backend.providers.hub_publishing", repo_id, str(folder), "01"[private]]
    code, complaints = await run_child(command, on_line, environment=environment, grace_seconds=_GRACE_SECONDS)
    if "url" in found:
        return found["url"]
    if "refused" in found:
        raise HubRefusesPush(repo_id=repo_id, words=found["refused"].replace(token, "[token]"))
    log.warning("a push to the Hub ended with %d: %s", code, complaints.replace(token, "[token]"))
    raise HubOutOfReach()


def main(repo_id: str, folder: str, private: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=os.environ["HF_TOKEN"])
    try:
        url = api.create_repo(repo_id, private=private == "1", exist_ok=True)
        _say(uploading=repo_id)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a fine-tuned model")
    except HfHubHTTPError as error:
        if error.response is not None and 400 <= error.response.status_code < 500:
            words = error.server_message or f"it answers {error.response.status_code}."
            _say(refused=" ".join(words.split())[:_LONGEST_WORDS])
    except HFValidationError as error:
        _say(refused=" ".join(str(error).split())[:_LONGEST_WORDS])
    else:
        _say(url=str(url))


def _say(**fields: str) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
