"""Requests of the API, as OpenAI's clients send them; what is not understood is refused rather than passed over."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST_MESSAGES, MOST_CHARS, MOST_STOPS = 512, 200_000, 4


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds half a character, which no text can") from None
    return text


Text = Annotated[str, Field(max_length=MOST_CHARS), AfterValidator(_encodable)]


class TextPart(BaseModel):
    """One of the pieces that a content may be given in."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: Text


class TextMessage(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=64)]

    def plain(self) -> dict[str, str]:
        """As `render_prompt` takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    include_usage: bool = False


class Generation(BaseModel):
    """What both kinds of requests share. Fields of OpenAI's that would change the answer and are not known here must
    have the value that changes nothing."""

    model: Text = ""
    temperature: float = Field(default=1.0, ge=0, le=10, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=1, le=1_000_000)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    leave_room: bool = False
    """Refuse a prompt that leaves the answer less than its most tokens, or than a quarter of the context if that is
    less. Not a field of OpenAI's."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_ignored(cls, data: Any) -> Any:
        neutral = {"n": (1,), "best_of": (1,), "top_p": (1,), "presence_penalty": (0,), "frequency_penalty": (0,),
                   "logit_bias": ({},), "logprobs": (False, 0), "echo": (False,), "suffix": ("",), "tools": ([],),
                   "response_format": ({"type": "text"},)}  # fmt: skip
        if isinstance(data, dict):
            for name, values in neutral.items():
                if data.get(name) is not None and data[name] not in values:
                    raise ValueError(f"{name} can only be {values[0]!r} here")
        return data

    def stops(self) -> list[str]:
        """Texts before which the answer ends."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]

    def limit(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: list[TextMessage] = Field(min_length=1, max_length=MOST_MESSAGES)


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: Text
