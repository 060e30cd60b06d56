"""Sums, word problems, comparing and counting on: drawn from numbers, so never the same page twice.

A held-out calculation is held out everywhere: in chat, in quizzes, in worked examples and in word problems.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from nanochat.data.tinyworld.exercise import Exercise
from nanochat.data.tinyworld.holdout import held_out
from nanochat.data.tinyworld.people import COUNTABLE, NAMES, PRONOUNS


@dataclass(frozen=True)
class Operation:
    """One kind of calculation, its phrasings and the word problems that need it."""

    symbol: str
    compute: Callable[[int, int], int]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    unseen: tuple[str, ...]
    problems: tuple[str, ...]
    unseen_problems: tuple[str, ...]

    def expression(self, a: int, b: int) -> str:
        return f"{a}{self.symbol}{b}"

    def equation(self, a: int, b: int) -> str:
        return f"{a} {self.symbol} {b} = {self.compute(a, b)}"


OPERATIONS = (
    Operation(
        "+", lambda a, b: a + b,
        ("{a} + {b} = {c}.", "{a} plus {b} is {c}.", "The sum of {a} and {b} is {c}.",
         "Add {a} and {b} and you get {c}."),
        questions=("What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b}", "Add {a} and {b}.",
                   "Calculate {a} + {b}.", "How much is {a} plus {b}?", "Please work out {a} + {b}.", "{a} + {b} = ?",
                   "Can you add {a} and {b}?"),
        unseen=("How much is {a} + {b}?", "Please add {a} and {b}.", "Can you work out {a} + {b}?"),
        problems=("{n} has {a} {things} and buys {b} more. How many {things} does {n} have now?",
                  "{n} had {a} {things}. Then {he} found {b} more. How many {things} does {n} have now?",
                  "There are {a} {things} on the table. {n} brings {b} more. How many {things} are there?",
                  "{n} picks {a} {things} and {m} picks {b}. How many {things} do they have together?"),
        unseen_problems=("{n} has {a} {things} and finds {b} more. How many {things} does {n} have now?",),
    ),
    Operation(
        "-", lambda a, b: a - b,
        ("{a} - {b} = {c}.", "{a} minus {b} is {c}.", "Take {b} from {a} and you get {c}."),
        questions=("What is {a} - {b}?", "What is {a} minus {b}?", "{a} - {b}", "Subtract {b} from {a}.",
                   "Calculate {a} - {b}.", "How much is {a} minus {b}?", "Please work out {a} - {b}.", "{a} - {b} = ?",
                   "Can you take {b} from {a}?"),
        unseen=("How much is {a} - {b}?", "Please subtract {b} from {a}.", "Can you work out {a} - {b}?"),
        problems=("{n} has {a} {things} and gives {b} away. How many {things} does {n} have now?",
                  "{n} had {a} {things}. Then {he} lost {b}. How many {things} are left?",
                  "There are {a} {things} on the table. {n} takes {b} of them. How many {things} are left?",
                  "{n} has {a} {things} and sells {b} to {m}. How many {things} does {n} keep?"),
        unseen_problems=("{n} has {a} {things} and loses {b}. How many {things} are left?",),
    ),
    Operation(
        "*", lambda a, b: a * b,
        ("{a} * {b} = {c}.", "{a} times {b} is {c}.", "Multiply {a} by {b} and you get {c}."),
        questions=("What is {a} * {b}?", "What is {a} times {b}?", "{a} * {b}", "Multiply {a} by {b}.",
                   "Calculate {a} * {b}.", "How much is {a} times {b}?", "Please work out {a} * {b}.", "{a} * {b} = ?",
                   "Can you multiply {a} by {b}?"),
        unseen=("How much is {a} * {b}?", "Please multiply {a} by {b}.", "Can you work out {a} * {b}?"),
        problems=("{n} has {a} boxes with {b} {things} in each. How many {things} are there?",
                  "There are {a} bags, and each bag holds {b} {things}. How many {things} are there?",
                  "{n} buys {a} packs of {b} {things}. How many {things} does {he} have?"),
        unseen_problems=("There are {a} boxes, and each box holds {b} {things}. How many {things} are there?",),
    ),
)  # fmt: skip

OPENERS = ("", "", "", "", "Help me: ", "A sum for you: ")


def operands(rng: Random, operation: Operation, unseen: bool) -> tuple[int, int]:
    """Two numbers for a calculation that training may show, or may not."""
    while True:
        if operation.symbol == "*":
            a, b = rng.randint(2, 20), rng.randint(2, 12)
        else:
            limit = rng.choice((20, 99, 99, 99, 999))
            a, b = rng.randint(1, limit), rng.randint(1, limit)
            if operation.symbol == "-" and a < b:
                a, b = b, a
        if held_out(operation.symbol, *sorted((a, b))) == unseen:
            return a, b


def arithmetic(rng: Random, unseen: bool) -> Exercise:
    """A bare calculation, answered with the calculator."""
    operation = rng.choice(OPERATIONS)
    a, b = operands(rng, operation, unseen)
    question = rng.choice(operation.unseen if unseen else operation.questions).format(a=a, b=b)
    opener = "" if unseen else rng.choice(OPENERS)
    return Exercise(
        "arithmetic",
        opener + question,
        str(operation.compute(a, b)),
        f"{operation.equation(a, b)}.",
        expression=operation.expression(a, b),
    )


def word_problem(rng: Random, unseen: bool) -> Exercise:
    """A calculation inside a small situation; the reader has to find out which one it is."""
    operation = rng.choice(OPERATIONS)
    a, b = operands(rng, operation, unseen)
    name, other = rng.sample(tuple(NAMES), 2)
    problem = rng.choice(operation.unseen_problems if unseen else operation.problems)
    answer = str(operation.compute(a, b))
    return Exercise(
        "word_problem",
        problem.format(n=name, m=other, he=PRONOUNS[NAMES[name]][0], things=rng.choice(COUNTABLE), a=a, b=b),
        answer,
        f"{operation.equation(a, b)}, so the answer is {answer}.",
        expression=operation.expression(a, b),
    )


COMPARISONS = {
    "larger": ("Which number is larger, {a} or {b}?", "What is larger, {a} or {b}?", "Is {a} or {b} the larger number?",
               "Which is the larger number: {a} or {b}?", "Which is larger: {a} or {b}?",
               "Which one is larger, {a} or {b}?"),
    "smaller": ("Which number is smaller, {a} or {b}?", "What is smaller, {a} or {b}?",
                "Is {a} or {b} the smaller number?", "Which is the smaller number: {a} or {b}?",
                "Which is smaller: {a} or {b}?", "Which one is smaller, {a} or {b}?"),
}  # fmt: skip
UNSEEN_COMPARISON = "Which is {word}, {a} or {b}?"


def _different_numbers(rng: Random, unseen: bool) -> tuple[int, int]:
    while True:
        limit = rng.choice((20, 99, 99))
        a, b = rng.randint(1, limit), rng.randint(1, limit)
        if a != b and held_out("comparison", *sorted((a, b))) == unseen:
            return a, b


def comparison(rng: Random, unseen: bool) -> Exercise:
    a, b = _different_numbers(rng, unseen)
    word = rng.choice(tuple(COMPARISONS))
    question = UNSEEN_COMPARISON if unseen else rng.choice(COMPARISONS[word])
    answer = str(max(a, b) if word == "larger" else min(a, b))
    reply = f"The {word} number is {answer}."
    return Exercise("comparison", question.format(word=word, a=a, b=b), answer, reply, chance=0.5)


ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """`forty-seven` for 47; 0 <= number < 100."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")


COUNTING = (
    # (seen, unseen, reply, answer)
    (("What number comes after {n}?", "Which number follows {n}?", "What comes next after {n}?",
      "Which number comes right after {n}?"),
     "Which number comes after {n}?", "After {n} comes {a}.", lambda n: str(n + 1)),
    (("What number comes before {n}?", "Which number is just before {n}?", "What comes just before {n}?",
      "Which number comes right before {n}?"),
     "Which number comes before {n}?", "Before {n} comes {a}.", lambda n: str(n - 1)),
    (("How do you write {n} in words?", "Write {n} in words.", "What is {n} in words?",
      "Can you write {n} in words?"),
     "Please write {n} in words.", "In words, {n} is {a}.", in_words),
)  # fmt: skip


def counting(rng: Random, unseen: bool) -> Exercise:
    """The next number, the one before, or a number in words."""
    seen, unseen_question, reply, compute = rng.choice(COUNTING)
    while held_out("counting", number := rng.randint(1, 99)) != unseen:
        pass
    question = unseen_question if unseen else rng.choice(seen)
    answer = compute(number)
    return Exercise("counting", question.format(n=number), answer, reply.format(n=number, a=answer))


def sums_page(rng: Random) -> str:
    """Worked calculations, one to a line."""
    operation = rng.choice(OPERATIONS)
    template = rng.choice(operation.statements)
    lines = []
    for _ in range(rng.randint(4, 10)):
        a, b = operands(rng, operation, unseen=False)
        lines.append(template.format(a=a, b=b, c=operation.compute(a, b)))
    return "\n".join(lines)


def numbers_page(rng: Random) -> str:
    """Counting by steps, comparing, numbers in words."""
    start, step = rng.randint(1, 90), rng.choice((1, 1, 1, 2, 5, 10))
    counted = ", ".join(str(start + i * step) for i in range(rng.randint(5, 9)))
    lines = [f"Counting on from {start}" + (f" in steps of {step}" if step > 1 else "") + f": {counted}."]
    for _ in range(rng.randint(3, 6)):
        kind = rng.randrange(3)
        if kind == 0:
            small, large = sorted(_different_numbers(rng, unseen=False))
            lines.append(rng.choice((f"{large} is larger than {small}.", f"{small} is smaller than {large}.")))
        elif kind == 1:
            drawn = counting(rng, unseen=False)
            lines.append(f"{drawn.question} {drawn.reply}")
        else:
            drawn = comparison(rng, unseen=False)
            lines.append(f"{drawn.question} {drawn.reply}")
    return "\n".join(lines)
