"""The base documents: pages of plain English, each a function of its own random numbers."""

from collections.abc import Callable
from random import Random

from nanochat.data.tinyworld import people
from nanochat.data.tinyworld.arithmetic import arithmetic, comparison, counting, numbers_page, sums_page, word_problem
from nanochat.data.tinyworld.exercise import Draw, Exercise, with_article
from nanochat.data.tinyworld.facts import SUBJECTS, draw_relations, fact, multiple_choice
from nanochat.data.tinyworld.identity import identity, self_portrait
from nanochat.data.tinyworld.language import DAYS, MONTHS
from nanochat.data.tinyworld.spelling import letter_count, spelling, spelling_page
from nanochat.data.tinyworld.stories import reading, story_document


def fact_list(rng: Random) -> str:
    """Statements of one relation, in one wording or in several."""
    relation = draw_relations(rng, 1)[0]
    subjects = rng.sample(relation.subjects, min(len(relation.subjects), rng.randint(4, 9)))
    if rng.random() < 0.5:
        template = rng.choice(relation.statements)
        return "\n".join(relation.say(template, subject) for subject in subjects)
    return " ".join(relation.statement(rng, subject) for subject in subjects)


def notebook(rng: Random) -> str:
    """Facts about this and that, as somebody learning would note them."""
    notes = _statements(rng, rng.randint(4, 9))
    name, day = rng.choice(tuple(people.NAMES)), rng.choice(DAYS)
    head = rng.choice((f"From the notebook of {name}, {day}.", f"What {name} learned on {day}:", "Did you know?"))
    return "\n".join([head, *notes])


def profile(rng: Random) -> str:
    """All there is to say about one country, animal, element, month or word."""
    subject, relations = rng.choice(SUBJECTS)
    sentences = [relation.statement(rng, subject) for relation in relations]
    rng.shuffle(sentences)
    return " ".join(sentences)


def gazetteer(rng: Random) -> str:
    """Two or three profiles on one page."""
    return "\n\n".join(profile(rng) for _ in range(rng.randint(2, 4)))


QUIZ: tuple[tuple[Draw, float], ...] = (
    (fact, 5), (multiple_choice, 2), (reading, 2), (spelling, 1), (letter_count, 1.5), (arithmetic, 0.5),
    (word_problem, 1), (comparison, 1), (counting, 1), (identity, 0.5),
)  # fmt: skip


def _exercises(rng: Random, count: int) -> list[Exercise]:
    draws, weights = zip(*QUIZ, strict=True)
    return [draw(rng, False) for draw in rng.choices(draws, weights, k=count)]


def quiz(rng: Random) -> str:
    """Questions with their answers."""
    ask, answer = rng.choice((("Question: ", "Answer: "), ("Q: ", "A: "), ("", ""), ("- ", "- ")))
    asked = _exercises(rng, rng.randint(2, 5))
    return "\n\n".join(f"{ask}{exercise.question}\n{answer}{exercise.reply}" for exercise in asked)


def lesson(rng: Random) -> str:
    """A grown-up asks, children answer."""
    teacher, *pupils = rng.sample(tuple(people.NAMES), 3)
    family = ("grandmother", "mother", "aunt") if people.NAMES[teacher] == "she" else ("grandfather", "father", "uncle")
    who = rng.choice(("teacher", "neighbour", *family))
    lines = [rng.choice((
        f"{teacher} is the {who} of {pupils[0]} and {pupils[1]}, and likes to ask them things.",
        f"On {rng.choice(DAYS)} {teacher}, the {who}, sat down with {pupils[0]} and {pupils[1]}.",
        f"It was raining, so {teacher} played the question game with {pupils[0]} and {pupils[1]}.",
    ))]  # fmt: skip
    for _ in range(rng.randint(2, 4)):
        exercise = fact(rng, False)
        asked = f'"{exercise.question}" asked' if exercise.question[-1] == "?" else f'"{exercise.question[:-1]}," said'
        said = rng.choice(("said", "answered", "called", "whispered"))
        lines.append(f'{asked} {teacher}. "{exercise.reply[:-1]}," {said} {rng.choice(pupils)}.')
    lines.append(rng.choice((f'"Well done," said the {who}.', "Nobody was wrong that day.", "Then they had dinner.")))
    return "\n".join(lines)


def diary(rng: Random) -> str:
    """Some days of somebody's week."""
    month, start = rng.choice(tuple(MONTHS)), rng.randrange(7)
    date = rng.randint(1, MONTHS[month] - 4)
    name = rng.choice(tuple(people.NAMES))
    lines = [f"Diary of {name}, {month}"]
    for offset in range(rng.randint(2, 5)):
        friend, place = rng.choice(tuple(people.NAMES)), rng.choice(people.PLACES)
        thing, colour = rng.choice(people.THINGS), rng.choice(people.COLOURS)
        entry = rng.choice((
            f"Went to the {place} with {friend}. Saw the {colour} {thing} in a window again.",
            f"{friend} came by. We had {rng.choice(people.FOODS)} and talked about the {place}.",
            f"Rain all day. Read a book about the {rng.choice(people.ANIMALS)}.",
            f"Tried to {rng.choice(people.CRAFTS)}. {friend} laughed, but I will try again tomorrow.",
            f"My {rng.choice(people.RELATIVES)} wrote. The {colour} {thing} has arrived at last.",
            f"Worked at the {place} until dark. {friend} helped, and so did the {rng.choice(people.ANIMALS)}.",
        ))  # fmt: skip
        lines.append(f"{DAYS[(start + offset) % 7]}, {month} {date + offset}: {entry}")
    return "\n".join(lines)


def letter(rng: Random) -> str:
    """A letter between friends, with a fact or two in it."""
    writer, reader = rng.sample(tuple(people.NAMES), 2)
    body = [
        rng.choice(("How are you? I am well.", "Thank you for your letter.", "It has been a long time since we met.",
                    "I have so much to tell you.")),
        f"Last {rng.choice(DAYS)} I was at the {rng.choice(people.PLACES)} with my {rng.choice(people.RELATIVES)}.",
        "There I learned something new. " + " ".join(_statements(rng, rng.randint(1, 3))),
        rng.choice((f"I am sending you {with_article(rng.choice(people.THINGS))}.",
                    f"Do you still have the {rng.choice(people.COLOURS)} {rng.choice(people.THINGS)}?",
                    f"Next {rng.choice(DAYS)} I will come and visit you.")),
    ]  # fmt: skip
    farewell = rng.choice(("Your friend", "With love", "Yours", "Best wishes"))
    return f"Dear {reader},\n{' '.join(body)}\n{farewell},\n{writer}"


def _statements(rng: Random, count: int) -> list[str]:
    return [relation.statement(rng, rng.choice(relation.subjects)) for relation in draw_relations(rng, count)]


DOCUMENTS: tuple[tuple[Callable[[Random], str], float], ...] = (
    (story_document, 26), (fact_list, 11), (notebook, 9), (gazetteer, 7), (quiz, 18), (lesson, 6), (diary, 3),
    (letter, 3), (sums_page, 3), (numbers_page, 3), (spelling_page, 10), (self_portrait, 1),
)  # fmt: skip
_KINDS = [kind for kind, _ in DOCUMENTS]
_WEIGHTS = [weight for _, weight in DOCUMENTS]


def document(rng: Random) -> str:
    """One base document of a kind drawn by weight."""
    return rng.choices(_KINDS, _WEIGHTS)[0](rng)
