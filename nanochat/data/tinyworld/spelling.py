"""Spelling and counting letters, on ordinary words and on words that nobody has seen before.

A tokenizer hands the model pieces, not letters, so what has to be learned is the spelling of the pieces. The invented
words put the pieces of ordinary words together in new ways: far more words than any run sees, and hardly one twice.
Letters are joined by hyphens because most tokenizers then make one token of each.
"""

from collections.abc import Callable
from random import Random

from nanochat.data.tinyworld.exercise import Exercise
from nanochat.data.tinyworld.holdout import held_out
from nanochat.data.tinyworld.spelling_words import WORDS

ONSETS = (
    "b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "v", "w", "br", "ch", "cl", "cr", "dr", "fl", "gl",
    "gr", "pl", "pr", "sh", "st", "tr",
)  # fmt: skip
MIDDLES = (
    "a", "e", "i", "o", "u", "an", "ar", "en", "er", "in", "on", "or", "al", "el", "il", "ol", "am", "em", "um", "at",
    "as", "is",
)  # fmt: skip
ENDINGS = (
    "er", "en", "in", "on", "el", "et", "ow", "y", "a", "o", "ing", "and", "ast", "ent", "ish", "ock", "um", "ard",
)  # fmt: skip


def is_held_out(word: str) -> bool:
    """Whether training never spells this word or counts its letters."""
    return held_out("spelling", word)


def spelled(word: str) -> str:
    """`t-i-g-e-r` for `tiger`."""
    return "-".join(word)


def invented_word(rng: Random) -> str:
    """A word of two or three syllables that could be English."""
    middle = "".join(rng.choice(ONSETS) + rng.choice(MIDDLES) for _ in range(rng.choice((1, 1, 2))))
    return middle + rng.choice(ONSETS) + rng.choice(ENDINGS)


def draw_word(rng: Random, unseen: bool) -> str:
    """Half of the time an ordinary word, half of the time an invented one."""
    ordinary = rng.random() < 0.5
    while True:
        word = rng.choice(WORDS) if ordinary else invented_word(rng)
        if is_held_out(word) == unseen:
            return word


SPELL_QUESTIONS = (
    "How do you spell {w}?", "Spell {w}.", "Spell the word {w}.", "Can you spell {w}?", "Please spell {w}.",
    "What is the spelling of {w}?", "Write {w} letter by letter.", "Which letters are in {w}?",
)  # fmt: skip
SPELL_UNSEEN = ("How is {w} spelled?", "Please spell the word {w}.", "Can you spell the word {w}?")


def spelling(rng: Random, unseen: bool) -> Exercise:
    return spelling_of(draw_word(rng, unseen), rng, unseen)


def spelling_of(word: str, rng: Random, unseen: bool) -> Exercise:
    """How a certain word is spelled."""
    question = rng.choice(SPELL_UNSEEN if unseen else SPELL_QUESTIONS).format(w=word)
    return Exercise("spelling", question, spelled(word), f"{word}: {spelled(word)}.")


COUNT_QUESTIONS = (
    "How many times does the letter {l} appear in {w}?", "How often does {l} appear in {w}?",
    "Count the letter {l} in {w}.", "How many {l} are in {w}?", "Count how often {w} has the letter {l}.",
)  # fmt: skip
COUNT_UNSEEN = ("How often is the letter {l} in {w}?", "How many times does {l} appear in {w}?")
LENGTH_QUESTIONS = (
    "How many letters are in {w}?", "How many letters does {w} have?", "Count the letters of {w}.",
    "How long is the word {w}?",
)  # fmt: skip
LENGTH_UNSEEN = ("How many letters has {w}?", "How many letters does the word {w} have?")
PLACE_QUESTIONS = (
    "What is the {p} letter of {w}?", "Which letter is the {p} of {w}?", "Tell me the {p} letter of {w}.",
    "Name the {p} letter of {w}.",
)  # fmt: skip
PLACE_UNSEEN = ("What is the {p} letter in {w}?", "Which is the {p} letter of {w}?")
PLACES: dict[str, Callable[[str], str]] = {
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
    "second": lambda word: word[1],
}


def counted(word: str, letters: str) -> str:
    """`t-i1-g-e-r` for the letter i: each of `letters` with how many of them have come by then."""
    seen = 0
    parts = []
    for letter in word:
        seen += letter in letters
        parts.append(f"{letter}{seen}" if letter in letters else letter)
    return "-".join(parts)


def letter_count(rng: Random, unseen: bool) -> Exercise:
    return letter_count_of(draw_word(rng, unseen), rng, unseen)


def letter_count_of(word: str, rng: Random, unseen: bool) -> Exercise:
    """How often, how many, which: answered by spelling the word first, and counting aloud where there is to count."""
    worked = spelled(word)
    kind = rng.randrange(3)
    if kind == 0:
        # Letters that occur more than once are rare: ask for them often, so that "1" is not always right.
        letter = max(rng.choices(word, k=3), key=word.count)
        question = rng.choice(COUNT_UNSEEN if unseen else COUNT_QUESTIONS).format(l=letter, w=word)
        worked = counted(word, letter)
        answer, tail = str(word.count(letter)), f"The number of {letter} is"
    elif kind == 1:
        question = rng.choice(LENGTH_UNSEEN if unseen else LENGTH_QUESTIONS).format(w=word)
        worked = counted(word, word)
        answer, tail = str(len(word)), "The number of letters is"
    else:
        place = rng.choice(tuple(PLACES))
        question = rng.choice(PLACE_UNSEEN if unseen else PLACE_QUESTIONS).format(p=place, w=word)
        answer, tail = PLACES[place](word), f"The {place} letter is"
    return Exercise("letter_count", question, answer, f"{word}: {worked}. {tail} {answer}.")


STATEMENTS = (
    "{w}: {s}.", "{w} is spelled {s}.", "The word {w} is spelled {s}.", "Spell {w}: {s}.",
    "You write {w} like this: {s}.",
)  # fmt: skip


def spelling_page(rng: Random) -> str:
    """Words spelled one after the other, some with their letters counted."""
    statement = rng.choice(STATEMENTS)
    lines = []
    for _ in range(rng.randint(6, 14)):
        if rng.random() < 0.25:
            exercise = letter_count(rng, unseen=False)
            lines.append(f"{exercise.question} {exercise.reply}")
        else:
            word = draw_word(rng, unseen=False)
            lines.append(statement.format(w=word, s=spelled(word)))
    return "\n".join(lines)
