"""What a browser and an OpenAI client talk to: the chat page, and an API as OpenAI's, over models of finished runs."""

import asyncio
import hmac
import json
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from experiments.api_types import ChatRequest, CompletionRequest
from experiments.models import Models, Served
from nanochat.errors import UserError
from nanochat.inference.batcher import Ask, Closed, Full
from nanochat.inference.engine import Token
from nanochat.inference.reply import ReplyReader, least_room, reply_text
from nanochat.tokenizer import render_prompt

MOST_BODY_BYTES = 1 << 20
PAGE = Path(__file__).with_name("chat_page.html")
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}  # beside JSON
LOOK_S = 0.2  # how often to see whether a client that waits for a whole answer has gone

Asgi = Callable[..., Awaitable[None]]


class Refusal(Exception):
    """What the client is to be told, in the API's form."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, {"Retry-After": "1"} if self.status in (429, 503) else None)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def make_app(models: Models, *, host: str = "127.0.0.1", api_key: str = "") -> FastAPI:
    """The application.

    Args:
        models: those that can be asked for.
        host: what it is bound to; on loopback only requests that name it so are answered, whoever made a browser
            send them.
        api_key: that every request to the API must bring; empty: none.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(models.close)

    app = FastAPI(title="nanochat", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(_LimitBody)
    if is_loopback(host):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, host, "testserver"])
    _answer_errors_in_form(app)

    def check_key(authorization: Annotated[str, Header()] = "") -> None:
        if api_key and not hmac.compare_digest(authorization.encode(), f"Bearer {api_key}".encode()):
            raise Refusal(401, "the API key is missing or wrong", "invalid_api_key")

    guarded = [Depends(check_key)]

    @app.get("/", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": policy})

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        return {"status": "ok", "loaded": models.load()}

    @app.get("/v1/models", dependencies=guarded)
    def list_models() -> dict[str, Any]:
        described = [{"id": name, "object": "model", "created": int(created), "owned_by": "nanochat"}
                     for name, created in models.names().items()]  # fmt: skip
        return {"object": "list", "data": described, "default": models.default}

    @app.post("/v1/chat/completions", dependencies=guarded, responses=STREAMED)
    async def chat(body: ChatRequest, request: Request) -> Any:
        served = await _opened(models, body.model)
        if served.stage == "base":
            message = f"{served.name} is a base model, which continues text: ask /v1/completions"
            raise Refusal(400, message, param="model")
        try:
            prompt = render_prompt(served.tokenizer, [message.plain() for message in body.messages])
        except ValueError as error:
            raise Refusal(400, str(error), param="messages") from None
        return await _Answer(served, body, prompt, "chat.completion").respond(request)

    @app.post("/v1/completions", dependencies=guarded, responses=STREAMED)
    async def complete(body: CompletionRequest, request: Request) -> Any:
        served = await _opened(models, body.model)
        prompt = [served.tokenizer.bos_id, *served.tokenizer.encode(body.prompt)]
        return await _Answer(served, body, prompt, "text_completion").respond(request)

    return app


async def _opened(models: Models, name: str) -> Served:
    try:
        return await run_in_threadpool(models.open, name)
    except KeyError:
        raise Refusal(404, f"there is no model {name!r}: see /v1/models", "model_not_found", "model") from None
    except UserError as error:
        raise Refusal(500, error.message) from None


@dataclass
class _Answer:
    """One request on its way to its response, whole or as it is generated."""

    served: Served
    body: ChatRequest | CompletionRequest
    prompt: list[int]
    kind: str
    name: str = field(default_factory=lambda: secrets.token_hex(12))
    written: int = 0
    finish_reason: str = "stop"

    async def respond(self, request: Request) -> Any:
        """Raises Refusal."""
        tokens, ask = self._submit()
        if self.body.stream:
            return StreamingResponse(self._events(tokens, ask), media_type="text/event-stream",
                                     headers={"Cache-Control": "no-cache"})  # fmt: skip
        reader = _Stopping(ReplyReader(self.served.tokenizer), self.body.stops())
        watching = asyncio.create_task(_cancel_if_gone(request, ask))
        try:
            while not reader.stopped and (token := self._count(await tokens.get())) is not None:
                reader.feed(token.id)
            reader.finish()
        finally:
            watching.cancel()
            ask.cancelled = True
        if ask.error is not None:
            raise _refusal(ask.error)
        return self._whole(reader)

    def _submit(self) -> tuple[asyncio.Queue[Token | None], Ask]:
        body, context = self.body, self.served.context
        room = context - len(self.prompt)
        if room < (least_room(context, body.limit()) if body.leave_room else 1):
            message = f"the prompt has {len(self.prompt)} tokens, and the model's context is {context}: " \
                      "too little is left for an answer"  # fmt: skip
            raise Refusal(400, message, "context_length_exceeded", "messages")
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue[Token | None]()
        self.limit = min(body.limit() or room, room)
        ask = Ask(
            self.prompt, self.limit, lambda token: loop.call_soon_threadsafe(tokens.put_nowait, token),
            body.temperature, body.top_k, secrets.randbits(62) if body.seed is None else body.seed,
        )  # fmt: skip
        try:
            self.served.batcher.submit(ask)
        except Full:
            raise Refusal(429, "too many are waiting; try again soon", "overloaded") from None
        except Closed as error:
            raise _refusal(error) from None
        return tokens, ask

    def _count(self, token: Token | None) -> Token | None:
        if token is not None:
            self.written += 1
            self.finish_reason = "length" if self.written == self.limit else "stop"
        return token

    async def _events(self, tokens: asyncio.Queue[Token | None], ask: Ask) -> AsyncIterator[str]:
        """Server-sent events; the closed connection of a client that has gone gives its place to the next."""
        reader = _Stopping(ReplyReader(self.served.tokenizer), self.body.stops())
        try:
            if self.kind == "chat.completion":
                yield self._event({"role": "assistant", "content": ""})
            while not reader.stopped and (token := self._count(await tokens.get())) is not None:
                for part, text in reader.feed(token.id):
                    yield self._event(_delta(part, text))
            for part, text in reader.finish():
                yield self._event(_delta(part, text))
            if ask.error is not None:
                yield f"data: {json.dumps(_refusal(ask.error).body())}\n\n"
            else:
                yield self._event({}, self.finish_reason)
                if self.body.stream_options and self.body.stream_options.include_usage:
                    yield f"data: {json.dumps({**self._head('.chunk'), 'choices': [], 'usage': self._usage()})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            ask.cancelled = True

    def _event(self, delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        choice |= {"delta": delta} if self.kind == "chat.completion" else {"text": delta.get("content", "")}
        return f"data: {json.dumps({**self._head('.chunk'), 'choices': [choice]})}\n\n"

    def _whole(self, reader: "_Stopping") -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish_reason, "logprobs": None}
        if self.kind == "chat.completion":
            choice["message"] = {"role": "assistant", "content": reader.text, "parts": reader.parts}
        else:
            choice["text"] = reader.text
        return {**self._head(), "choices": [choice], "usage": self._usage()}

    def _head(self, suffix: str = "") -> dict[str, Any]:
        chat = self.kind == "chat.completion"
        return {"id": ("chatcmpl-" if chat else "cmpl-") + self.name, "object": self.kind + (suffix if chat else ""),
                "created": int(time.time()), "model": self.served.name}  # fmt: skip

    def _usage(self) -> dict[str, int]:
        count = len(self.prompt)
        return {"prompt_tokens": count, "completion_tokens": self.written, "total_tokens": count + self.written}


def _refusal(error: Exception) -> Refusal:
    """What to tell of an answer that ended with an error, which the log keeps unless it was meant."""
    if isinstance(error, Closed):
        return Refusal(503, "the model was unloaded before the answer was done; try again", "overloaded")
    logging.getLogger("uvicorn.error").error("generating failed", exc_info=error)
    return Refusal(500, "generating failed; the server's log says why")


async def _cancel_if_gone(request: Request, ask: Ask) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(LOOK_S)
    ask.cancelled = True


def _delta(part: str, text: str) -> dict[str, Any]:
    """Calls of the calculator stand beside the content, where clients that do not know them pass them over."""
    return {"content": text} if part == "text" else {"content": "", "parts": [{"type": part, "text": text}]}


class _Stopping:
    """A reply that ends before the first of some texts."""

    def __init__(self, reader: ReplyReader, stops: list[str]) -> None:
        self.reader, self.stops, self.stopped = reader, stops, False
        self._held = ""  # the beginning of what may become one of them

    @property
    def parts(self) -> list[dict[str, str]]:
        return self.reader.parts

    @property
    def text(self) -> str:
        text = reply_text(self.reader.parts)
        places = [text.index(stop) for stop in self.stops if stop in text]
        return text[: min(places)] if places else text

    def feed(self, token: int) -> list[tuple[str, str]]:
        return [piece for part, text in self.reader.feed(token) for piece in self._let_through(part, text)]

    def finish(self) -> list[tuple[str, str]]:
        rest = [] if self.stopped else [*self.reader.finish(), ("text", "")]
        told = [piece for part, text in rest for piece in self._let_through(part, text, last=part == "text")]
        return [(part, text) for part, text in told if text]

    def _let_through(self, part: str, text: str, last: bool = False) -> Iterator[tuple[str, str]]:
        if part != "text" or not self.stops:
            yield part, text
            return
        if self.stopped:
            return
        text, self._held = self._held + text, ""
        places = [text.index(stop) for stop in self.stops if stop in text]
        if places:
            self.stopped = True
            yield part, text[: min(places)]
            return
        if not last:
            keep = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        yield part, text


def _answer_errors_in_form(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body")
        return Refusal(400, f"{param or 'the body'}: {first['msg']}", param=param or None).response()

    @app.exception_handler(StarletteHTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        refusal = Refusal(error.status_code, str(error.detail)).response()
        refusal.headers.update(error.headers or {})
        return refusal


class _LimitBody:
    """Refuses a request whose body is larger than any conversation, before it is in memory."""

    def __init__(self, app: Asgi) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MOST_BODY_BYTES:
                refusal = Refusal(413, f"the body is larger than {MOST_BODY_BYTES:,} bytes").response()
                await refusal(scope, receive, send)
                return
        told = False

        async def again() -> Any:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)


def serve(models: Models, host: str, port: int, api_key: str, say: Callable[[str], None]) -> None:
    """Answer until Ctrl-C or SIGTERM.

    Raises:
        UserError: nothing can be bound there.
    """
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()  # who reads the address may come at once
    except OSError as error:
        listening.close()
        message = f"{host}:{port} cannot be served at: {error.strerror}"
        raise UserError(message, "choose another --port or --host") from None
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    say(f"{models.default}: {address}{'#key=' + quote(api_key, safe='') if api_key else ''}   (Ctrl-C ends it)")
    app = make_app(models, host=host, api_key=api_key)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listening])
