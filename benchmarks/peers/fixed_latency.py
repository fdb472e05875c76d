"""A chat server that answers every request after exactly the same time, in a process of its own."""

import asyncio
import json
import re
import sys
import time
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

LATENCY_SECONDS = 0.5
_SENTENCE = re.compile(r"The [^.]{20,}\.")


def example_for(text: str) -> dict[str, str]:
    """An example whose quote is the last sentence of the text: as varied as the texts are."""
    quote = (_SENTENCE.findall(text) or ["The passage has no sentence of that kind."])[-1]
    subject = " ".join(quote.rstrip(".").split()[1:4])
    return {"quote": quote, "instruction": f"What was the {subject} made with?", "input": "", "output": quote}


def _classes(body: dict[str, Any]) -> dict[str, str]:
    """The first allowed value of everything in the asked-for schema that has a list of them."""
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    item = schema.get("properties", {}).get("examples", {}).get("items", {})
    return {name: field["enum"][0] for name, field in item.get("properties", {}).items() if "enum" in field}


async def complete(request: Request) -> Response:
    started = time.monotonic()
    body = await request.json()
    passage = str(body["messages"][-1]["content"]).partition("<document>")[2].partition("</document>")[0]
    message = {"role": "assistant", "content": json.dumps({"examples": [{**_classes(body), **example_for(passage)}]})}
    await asyncio.sleep(max(0.0, LATENCY_SECONDS - (time.monotonic() - started)))
    return JSONResponse(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "fixed-latency",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
    )


async def health(_: Request) -> Response:
    return Response("ok")


app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"]), Route("/health", health)])

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
