"""Stories from plots and casts, and the questions a reader can answer from the story alone."""

import re
from random import Random

from nanochat.data.tinyworld import people
from nanochat.data.tinyworld.arithmetic import ONES
from nanochat.data.tinyworld.exercise import Exercise, sentence
from nanochat.data.tinyworld.holdout import held_out
from nanochat.data.tinyworld.language import DAYS, MONTHS
from nanochat.data.tinyworld.plots import ENDINGS, OPENINGS, PLOTS, Plot
from nanochat.data.tinyworld.world import COUNTRIES

Cast = dict[str, str]
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_NAMES, _COUNTRIES, _MONTHS = tuple(people.NAMES), tuple(COUNTRIES), tuple(MONTHS)


def draw_cast(rng: Random, unseen: bool) -> Cast:
    """Who, where and what. Whether training may show it depends on the hero, the thing and the place together."""
    while True:
        name, friend = rng.sample(_NAMES, 2)
        place, place2 = rng.sample(people.PLACES, 2)
        thing, thing2 = rng.sample(people.THINGS, 2)
        if held_out("cast", name, thing, place) == unseen:
            break
    colour, colour2 = rng.sample(people.COLOURS, 2)
    country = rng.choice(_COUNTRIES)
    he, his, him = people.PRONOUNS[people.NAMES[name]]
    fhe, fhis, fhim = people.PRONOUNS[people.NAMES[friend]]
    return {
        "n": name, "he": he, "his": his, "him": him, "f": friend, "fhe": fhe, "fhis": fhis, "fhim": fhim,
        "thing": thing, "thing2": thing2, "c": colour, "c2": colour2, "place": place, "place2": place2,
        "animal": rng.choice(people.ANIMALS), "food": rng.choice(people.FOODS), "craft": rng.choice(people.CRAFTS),
        "relative": rng.choice(people.RELATIVES), "trade": rng.choice(people.TRADES), "country": country,
        "capital": COUNTRIES[country][0], "day": rng.choice(DAYS), "month": rng.choice(_MONTHS),
        "hour": ONES[rng.randint(1, 12)],
    }  # fmt: skip


def _tell(template: str, cast: Cast) -> str:
    # The one slip a template can make is the article: "a orange umbrella".
    return sentence(_ARTICLE.sub(r"\1n ", template.format_map(cast)))


def short_story(rng: Random, plot: Plot, cast: Cast) -> str:
    """Only what happens: one wording of every beat."""
    return " ".join(_tell(rng.choice(beat), cast) for beat in plot.beats)


def long_story(rng: Random, plot: Plot, cast: Cast) -> str:
    """The same with an opening, remarks on the way and an ending."""
    sentences = [rng.choice(OPENINGS)]
    half = len(plot.remarks) // 2
    before, after = plot.remarks[:half], plot.remarks[half:]
    *beats, last = (rng.choice(beat) for beat in plot.beats)
    sentences += [*beats, *rng.sample(before, rng.randint(0, half)), last, *rng.sample(after, rng.randint(0, 2))]
    if rng.random() < 0.6:
        sentences.append(rng.choice(ENDINGS))
    return " ".join(_tell(template, cast) for template in sentences)


def question_about(rng: Random, plot: Plot, cast: Cast, unseen: bool) -> Exercise:
    """One question about a story with this plot and cast, without the story."""
    ask = rng.choice(plot.asks)
    question = ask.questions[-1] if unseen else rng.choice(ask.questions[:-1])
    return Exercise("reading", _tell(question, cast), ask.answer.format_map(cast), _tell(ask.reply, cast))


READING_TASKS = (
    "{story}\n{question}", "Read this story. {story}\n{question}", "{story} {question}",
    "Story: {story}\nQuestion: {question}",
)  # fmt: skip


def reading(rng: Random, unseen: bool) -> Exercise:
    """A short story and a question whose answer stands in it."""
    plot, cast = rng.choice(PLOTS), draw_cast(rng, unseen)
    story = short_story(rng, plot, cast)
    asked = question_about(rng, plot, cast, unseen)
    task = rng.choice(READING_TASKS).format(story=story, question=asked.question)
    return Exercise("reading", task, asked.answer, asked.reply)


_PLOTS_WITH_A_THING = tuple(plot for plot in PLOTS if any("{thing}" in wording for wording in sum(plot.beats, ())))
REQUESTS = (
    "Tell me a story about {n} and a {thing}.", "Tell me a short story about {n}.",
    "Can you tell me a story with {n} and {f}?", "Please write a story about a {thing}.",
    "I would like to hear a story about {n}.",
)  # fmt: skip


def storytelling(rng: Random) -> Exercise:
    """A story on request. Never evaluated: there is no one right answer."""
    plot, cast = rng.choice(_PLOTS_WITH_A_THING), draw_cast(rng, False)
    return Exercise("storytelling", _tell(rng.choice(REQUESTS), cast), "", short_story(rng, plot, cast))


def story_document(rng: Random) -> str:
    """A long story; half of them with questions and answers at the end."""
    plot, cast = rng.choice(PLOTS), draw_cast(rng, False)
    lines = [long_story(rng, plot, cast)]
    if rng.random() < 0.5:
        asked = {question_about(rng, plot, cast, unseen=False) for _ in range(rng.randint(1, 4))}
        lines += sorted(f"{exercise.question} {exercise.reply}" for exercise in asked)
    return "\n".join(lines)
