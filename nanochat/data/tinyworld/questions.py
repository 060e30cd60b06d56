"""The evaluation suite: the same number of questions for every skill, none of which training ever asks."""

from nanochat.data.tinyworld.arithmetic import arithmetic, comparison, counting, word_problem
from nanochat.data.tinyworld.exercise import Draw, Exercise
from nanochat.data.tinyworld.facts import about, multiple_choice
from nanochat.data.tinyworld.holdout import document_rng
from nanochat.data.tinyworld.identity import identity
from nanochat.data.tinyworld.language import CALENDAR, WORDS
from nanochat.data.tinyworld.spelling import letter_count, spelling
from nanochat.data.tinyworld.stories import reading
from nanochat.data.tinyworld.world import EVERYDAY, GEOGRAPHY, NATURE

QUESTIONS_PER_SKILL = 30

SKILLS: dict[str, Draw] = {
    "identity": identity,
    "geography": about(GEOGRAPHY),
    "nature": about(NATURE),
    "everyday": about(EVERYDAY),
    "words": about(WORDS),
    "calendar": about(CALENDAR),
    "multiple_choice": multiple_choice,
    "arithmetic": arithmetic,
    "word_problem": word_problem,
    "comparison": comparison,
    "counting": counting,
    "spelling": spelling,
    "letter_count": letter_count,
    "reading": reading,
}


def question_suite(seed: int) -> list[Exercise]:
    """QUESTIONS_PER_SKILL different questions of every skill, skill by skill."""
    suite: list[Exercise] = []
    for skill, draw in SKILLS.items():
        rng = document_rng(seed, "questions", skill)
        distinct: dict[str, Exercise] = {}
        while len(distinct) < QUESTIONS_PER_SKILL:
            exercise = draw(rng, True)
            distinct.setdefault(exercise.question, exercise)
        suite += distinct.values()
    return suite
