"""A chat server that answers every request after exactly the same time, in a process of its own."""

import asyncio
import json
import sys
import time

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

LATENCY_SECONDS = 0.2
_PRODUCT = "The Ferrule "


def example_for(text: str) -> dict[str, str]:
    """An example whose quote is the last sentence about a product in the text."""
    start = text.rfind(_PRODUCT)
    quote = text[start : text.find(".", start) + 1] if start >= 0 else f"{_PRODUCT}1 lamp."
    name = " ".join(quote.split()[1:4])
    question = f"In which town and year was the {name} first sold?"
    return {"quote": quote, "instruction": question, "input": "", "output": quote}


async def complete(request: Request) -> Response:
    started = time.monotonic()
    body = await request.json()
    text = " ".join(str(message["content"]) for message in body["messages"])
    message = {"role": "assistant", "content": json.dumps({"examples": [example_for(text)]})}
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
