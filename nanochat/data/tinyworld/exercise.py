"""One question with its worked reply: what documents, conversations and the evaluation are all made of."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Content = str | list[dict[str, str]]


@dataclass(frozen=True)
class Exercise:
    """A question, the reply an assistant should give, and the answer that reply must end with."""

    skill: str
    question: str
    answer: str
    reply: str
    expression: str | None = None
    """What the assistant types into the calculator before it replies; the result is always `answer`."""
    choices: tuple[str, ...] = ()
    """The letters to choose from, for multiple choice."""
    chance: float = 0.0
    """Share of correct replies of one who picks blindly among the candidates that the question names."""

    def content(self) -> Content:
        """The assistant's message: plain text, or the calculator call followed by the text."""
        if self.expression is None:
            return self.reply
        return [
            {"type": "python", "text": self.expression},
            {"type": "python_output", "text": self.answer},
            {"type": "text", "text": self.reply},
        ]


Draw = Callable[[Random, bool], Exercise]
"""`draw(rng, unseen)`: an exercise that training may show (unseen=False) or that only the evaluation asks (True)."""


def sentence(text: str) -> str:
    """Capitalise the first letter and leave the rest alone."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """`a cow`, `an owl`: right for every noun of TinyWorld."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
