"""All tables of facts together, and the exercises that ask for any of them."""

from random import Random

from nanochat.data.tinyworld.exercise import Draw, Exercise
from nanochat.data.tinyworld.language import CALENDAR, WORDS
from nanochat.data.tinyworld.relation import LETTERS, Relation
from nanochat.data.tinyworld.world import EVERYDAY, GEOGRAPHY, NATURE

RELATIONS: tuple[Relation, ...] = (*GEOGRAPHY, *NATURE, *EVERYDAY, *WORDS, *CALENDAR)


def _by_subject() -> tuple[tuple[str, tuple[Relation, ...]], ...]:
    subjects = dict.fromkeys(subject for relation in RELATIONS for subject in relation.subjects)
    grouped = {subject: tuple(table for table in RELATIONS if subject in table.pairs) for subject in subjects}
    return tuple((subject, relations) for subject, relations in grouped.items() if len(relations) > 1)


SUBJECTS = _by_subject()
"""Everything that more than one relation knows something about."""

_CHOOSABLE = tuple(relation for relation in RELATIONS if len(relation.answers) >= len(LETTERS))


def draw_relations(rng: Random, count: int, among: tuple[Relation, ...] = RELATIONS) -> list[Relation]:
    """Relations with replacement: long tables more often than short ones, or their facts would be too rare to learn."""
    return rng.choices(among, [len(relation.pairs) ** 0.75 for relation in among], k=count)


def about(relations: tuple[Relation, ...]) -> Draw:
    """Questions about the facts of these relations only."""
    return lambda rng, unseen: draw_relations(rng, 1, relations)[0].exercise(rng, unseen)


def fact(rng: Random, unseen: bool) -> Exercise:
    """A question about any fact."""
    return draw_relations(rng, 1)[0].exercise(rng, unseen)


def multiple_choice(rng: Random, unseen: bool) -> Exercise:
    """A fact among four lettered options."""
    return draw_relations(rng, 1, _CHOOSABLE)[0].multiple_choice(rng, unseen)
