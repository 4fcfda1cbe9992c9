"""A small server: what a model writes, streamed over HTTP as it is made, and a page to ask for it."""

import asyncio
import base64
import hashlib
import json
import re
import reprlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusedlstm.charlm import draw, settings
from fusedlstm.charlm.draw import ALL, Filters, probabilities
from fusedlstm.charlm.model import CharLM, parameters_of
from fusedlstm.charlm.sample import read, start, write
from fusedlstm.charlm.settings import CharLMError, Rule
from fusedlstm.charlm.vocab import Vocab

CONTEXT = 1000  # characters that the likeliest next ones are told from
SHOWN = 5  # of these
PAGE = Path(__file__).with_name("page.html").read_text("utf-8")


@dataclass(frozen=True)
class Limits:
    """What may be asked for.

    Args:
        length: characters in one request.
        streams: texts in the making at a time, for all who ask.
        body: bytes of one request.
    """

    length: int = 10_000
    streams: int = 4
    body: int = 64 * 1024


def app(model: CharLM, vocab: Vocab, limits: Limits | None = None) -> Starlette:
    """The server of one model, in eval mode.

    GET / is the page, /model tells of the model, /healthz that it is there. POST /generate takes a JSON
    object (prime, length, temperature, top_k, top_p, min_p, seed: all may be left out) and streams text; POST
    /next takes one (prime, temperature, top_k, top_p, min_p) and tells what is likeliest to be drawn next.
    Errors are JSON, in one line.
    """
    service = Service(model, vocab, limits or Limits())
    return Starlette(
        routes=[
            Route("/", _page),
            Route("/healthz", _healthz),
            Route("/model", service.model_card),
            Route("/generate", service.generate, methods=["POST"]),
            Route("/next", service.next, methods=["POST"]),
        ],
        middleware=[Middleware(SafeHeaders)],
        exception_handlers={HTTPException: _refusal, ClientDisconnect: _gone},
    )


class Service:
    """What the requests to one server share."""

    def __init__(self, model: CharLM, vocab: Vocab, limits: Limits) -> None:
        self.model, self.vocab, self.limits = model, vocab, limits
        self.streams = 0  # texts in the making
        self.turn = asyncio.Semaphore(1)  # for the likeliest characters: one look at a time
        drawing: dict[str, tuple[Any, Rule]] = {
            "prime": ("", (_is_text, "a text in Unicode")),
            "temperature": (0.8, draw.RULES["temperature"]),
            **{name: (default, draw.RULES[name]) for name, default in vars(ALL).items()},
        }
        self.next_fields = drawing
        length = (
            lambda v: type(v) is int and 1 <= v <= limits.length,
            f"a whole number, 1 to {limits.length}",
        )
        seed = settings.RULES["seed"]
        self.generate_fields = drawing | {
            "length": (min(1000, limits.length), length),
            "seed": (None, (lambda v: v is None or seed[0](v), f"{seed[1]}, or null")),
        }

    async def generate(self, request: Request) -> Response:
        asked = await self._asked(request, self.generate_fields)
        try:
            self.vocab.encode(asked["prime"])
        except CharLMError as error:
            raise HTTPException(422, f"prime: {error}") from None
        if self.streams >= self.limits.streams:
            busy = f"{self.streams} texts are in the making, which is all this server takes: try again"
            raise HTTPException(503, busy, {"Retry-After": "1"})
        return Writing(self, self._pieces(asked))

    def _pieces(self, asked: Mapping[str, Any]) -> Iterator[str]:
        prime, length, temperature, seed = (
            asked[name] for name in ("prime", "length", "temperature", "seed")
        )
        pieces = write(self.model, self.vocab, prime, length, temperature, seed, _filters(asked))
        yield from islice(pieces, 1, None)  # the prime text is known to who asked

    async def next(self, request: Request) -> Response:
        asked = await self._asked(request, self.next_fields)
        how = asked["prime"], asked["temperature"], _filters(asked)
        async with self.turn:
            found = await run_in_threadpool(likeliest, self.model, self.vocab, *how)
        return JSONResponse({"next": found})

    async def model_card(self, request: Request) -> Response:
        return JSONResponse(
            {
                "model": self.model.describe(),
                "parameters": parameters_of(self.model),
                "vocabulary": len(self.vocab),
                "of": self.vocab.kind,
                "max_length": self.limits.length,
            }
        )

    async def _asked(self, request: Request, known: Mapping[str, tuple[Any, Rule]]) -> dict[str, Any]:
        """The fields of a request, with their defaults, or a refusal that names the one that is wrong."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.limits.body:
                raise HTTPException(413, f"the body must have at most {self.limits.body} bytes")
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            raise HTTPException(400, "the body must be JSON") from None
        if not isinstance(given, dict):
            raise HTTPException(400, f"the body must be a JSON object, got {reprlib.repr(given)}")
        for name, value in given.items():
            if name not in known:
                raise HTTPException(422, f"{reprlib.repr(name)} is none of the fields {', '.join(known)}")
            holds, expected = known[name][1]
            if not _good(value, holds):
                raise HTTPException(422, f"{name} must be {expected}, got {reprlib.repr(value)}")
        return {name: given.get(name, default) for name, (default, _) in known.items()}


class Writing(StreamingResponse):
    """A text as it is made: one of the service's streams until it is sent, or whoever asked is gone."""

    def __init__(self, service: Service, pieces: Iterator[str]) -> None:
        super().__init__(_in_a_thread(pieces), media_type="text/plain", headers={"Cache-Control": "no-store"})
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.service.streams += 1
        try:
            with suppress(asyncio.CancelledError):  # the server ends before the text
                await super().__call__(scope, receive, send)
        finally:
            self.service.streams -= 1


async def _in_a_thread(pieces: Iterator[str]) -> AsyncIterator[str]:
    """Pieces of text, each made in a thread, so that the server answers others meanwhile."""
    while (piece := await run_in_threadpool(next, pieces, None)) is not None:
        if piece:
            yield piece


@torch.inference_mode()
def likeliest(
    model: CharLM, vocab: Vocab, prime: str, temperature: float, filters: Filters
) -> list[tuple[str, float]]:
    """The characters most likely to be drawn next, after the last CONTEXT ones, and with what probability."""
    ids = vocab.encode(prime, "skip")[-CONTEXT:]
    logits, _ = read(model, start(model, vocab, ids, 1))
    p, found = probabilities(logits, temperature, filters)[0].sort(descending=True, stable=True)
    shown = zip(found[:SHOWN].tolist(), p[:SHOWN].tolist(), strict=True)
    return [(_name(vocab, i), share) for i, share in shown if share > 0]


def _name(vocab: Vocab, i: int) -> str:
    """A character of the vocabulary; a byte that is none of its own by its number."""
    symbol = vocab.symbols[i]
    return vocab.shown(i) if vocab.kind == "bytes" and ord(symbol) > 127 else symbol


def _filters(asked: Mapping[str, Any]) -> Filters:
    return Filters(**{name: asked[name] for name in vars(ALL)})


def _good(value: object, holds: Any) -> bool:
    try:
        return not isinstance(value, bool) and bool(holds(value))
    except TypeError:
        return False


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not re.search(
        "[\ud800-\udfff]", value
    )  # halves of a character: JSON has them


async def _page(request: Request) -> Response:
    return HTMLResponse(PAGE)


async def _healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


def _hashes(tag: str) -> str:
    """What the page's own parts of one kind hash to, as a content security policy names them."""
    parts = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


# What keeps a browser from running, embedding or sending on anything but the page.
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'; "
    f"img-src data:; script-src {_hashes('script')}; style-src {_hashes('style')}"
)
SAFE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class SafeHeaders:
    """Adds them to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SAFE_HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)
