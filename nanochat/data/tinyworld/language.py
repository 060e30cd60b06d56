"""Facts about words and about the calendar. Plain data."""

from nanochat.data.tinyworld.relation import Relation
from nanochat.data.tinyworld.world import ORDINALS

OPPOSITES = (
    "hot cold", "big small", "fast slow", "high low", "light dark", "old new", "full empty", "open closed", "wet dry",
    "hard soft", "happy sad", "early late", "near far", "rich poor", "strong weak", "clean dirty", "loud quiet",
    "thick thin", "wide narrow", "deep shallow", "rough smooth", "sharp blunt", "sweet sour", "true false",
    "right wrong", "up down", "in out", "over under", "above below", "before after", "first last", "more less",
    "always never", "day night", "summer winter", "north south", "east west", "push pull", "give take", "buy sell",
    "win lose", "start stop", "come go", "begin end", "love hate", "laugh cry", "rise fall", "remember forget",
    "arrive leave", "build destroy", "friend enemy", "question answer", "front back", "top bottom", "inside outside",
    "alive dead", "asleep awake", "safe dangerous", "easy difficult", "cheap expensive", "same different",
    "tight loose", "polite rude", "war peace", "float sink", "lend borrow", "increase decrease", "ancient modern",
)  # fmt: skip

PLURALS = {
    "child": "children", "mouse": "mice", "foot": "feet", "tooth": "teeth", "goose": "geese", "man": "men",
    "woman": "women", "person": "people", "leaf": "leaves", "knife": "knives", "wolf": "wolves", "life": "lives",
    "loaf": "loaves", "shelf": "shelves", "half": "halves", "ox": "oxen", "sheep": "sheep", "baby": "babies",
    "city": "cities", "story": "stories", "berry": "berries", "puppy": "puppies", "box": "boxes", "fox": "foxes",
    "dish": "dishes", "bus": "buses", "potato": "potatoes", "tomato": "tomatoes", "hero": "heroes",
    "watch": "watches", "bench": "benches", "lady": "ladies", "calf": "calves", "thief": "thieves", "key": "keys",
    "toy": "toys",
}  # fmt: skip

PAST = {
    "go": "went", "see": "saw", "eat": "ate", "run": "ran", "come": "came", "take": "took", "give": "gave",
    "find": "found", "buy": "bought", "bring": "brought", "think": "thought", "teach": "taught", "catch": "caught",
    "sing": "sang", "swim": "swam", "drink": "drank", "write": "wrote", "ride": "rode", "drive": "drove",
    "fly": "flew", "grow": "grew", "know": "knew", "throw": "threw", "sleep": "slept", "keep": "kept",
    "leave": "left", "feel": "felt", "make": "made", "say": "said", "tell": "told", "sell": "sold", "hear": "heard",
    "stand": "stood", "win": "won", "lose": "lost", "build": "built", "break": "broke", "speak": "spoke",
    "choose": "chose", "wear": "wore", "fall": "fell", "begin": "began",
}  # fmt: skip

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = {
    "January": 31, "February": 28, "March": 31, "April": 30, "May": 31, "June": 30, "July": 31, "August": 31,
    "September": 30, "October": 31, "November": 30, "December": 31,
}  # fmt: skip
SEASONS = ("spring", "summer", "autumn", "winter")
SPANS = {
    "days in a week": "seven", "months in a year": "twelve", "hours in a day": "twenty-four",
    "minutes in an hour": "sixty", "seconds in a minute": "sixty", "seasons in a year": "four",
    "years in a decade": "ten", "years in a century": "one hundred", "days in a weekend": "two",
}  # fmt: skip


def _both_ways(pairs: tuple[str, ...]) -> dict[str, str]:
    table: dict[str, str] = {}
    for pair in pairs:
        left, right = pair.split()
        table |= {left: right, right: left}
    return table


def _following(cycle: tuple[str, ...], step: int) -> dict[str, str]:
    return {item: cycle[(place + step) % len(cycle)] for place, item in enumerate(cycle)}


_MONTHS = tuple(MONTHS)

WORDS = (
    Relation(
        "opposite", "words", _both_ways(OPPOSITES),
        ("The opposite of {s} is {a}.", "{s} and {a} are opposites.",
         "If you look for the opposite of {s}, you find {a}."),
        topic="the opposite of {s}", reply="The opposite of {s} is {a}.",
        questions=("Which word is the opposite of {s}?", "What word means the opposite of {s}?",
                   "Name the opposite of {s}."),
        unseen=("What word is the opposite of {s}?",),
    ),
    Relation(
        "plural", "words", PLURALS,
        ("The plural of {s} is {a}.", "One {s}, two {a}.", "We say one {s} but many {a}."),
        topic="the plural of {s}", reply="The plural of {s} is {a}.",
        questions=("What do you call more than one {s}?", "One {s}, two what?", "Which word is the plural of {s}?"),
        unseen=("What word is the plural of {s}?",),
    ),
    Relation(
        "past", "words", PAST,
        ("The past tense of {s} is {a}.", "Today I {s}, yesterday I {a}.", "The verb {s} becomes {a} in the past."),
        topic="the past tense of {s}", reply="The past tense of {s} is {a}.",
        questions=("Which word is the past tense of {s}?", "Today I {s}. What did I do yesterday?",
                   "What does {s} become in the past?"),
        unseen=("What word is the past tense of {s}?",),
    ),
)  # fmt: skip

CALENDAR = (
    Relation(
        "day_after", "calendar", _following(DAYS, 1),
        ("The day after {s} is {a}.", "{s} is followed by {a}.", "After {s} comes {a}."),
        topic="the day after {s}", reply="The day after {s} is {a}.",
        questions=("Which day comes after {s}?", "Today is {s}. What day is tomorrow?", "What day follows {s}?"),
        unseen=("Which day follows {s}?",),
    ),
    Relation(
        "day_before", "calendar", _following(DAYS, -1),
        ("The day before {s} is {a}.", "Just before {s} comes {a}.", "If today is {s}, yesterday was {a}."),
        topic="the day before {s}", reply="The day before {s} is {a}.",
        questions=("Which day comes before {s}?", "Today is {s}. What day was yesterday?", "What day is before {s}?"),
        unseen=("Which day is before {s}?",),
    ),
    Relation(
        "month_after", "calendar", _following(_MONTHS, 1),
        ("The month after {s} is {a}.", "{s} is followed by {a}.", "After {s} comes {a}."),
        topic="the month after {s}", reply="The month after {s} is {a}.",
        questions=("Which month comes after {s}?", "What month follows {s}?", "It is {s}. What month is next?"),
        unseen=("Which month follows {s}?",),
    ),
    Relation(
        "month_before", "calendar", _following(_MONTHS, -1),
        ("The month before {s} is {a}.", "Just before {s} comes {a}."),
        topic="the month before {s}", reply="The month before {s} is {a}.",
        questions=("Which month comes before {s}?", "What month is before {s}?"),
        unseen=("Which month is before {s}?",),
    ),
    Relation(
        "month_days", "calendar", {month: str(days) for month, days in MONTHS.items()},
        ("{s} has {a} days.", "The number of days in {s} is {a}.", "There are {a} days in {s}."),
        topic="the number of days in {s}", reply="The number of days in {s} is {a}.",
        questions=("How many days are in {s}?", "How many days does {s} have?"),
        unseen=("How many days are there in {s}?",),
    ),
    Relation(
        "month_place", "calendar", dict(zip(ORDINALS, _MONTHS, strict=True)),
        ("{a} is the {s} month of the year.", "The {s} month of the year is {a}."),
        topic="the {s} month of the year", reply="The {s} month of the year is {a}.",
        questions=("Which month is the {s} of the year?", "Name the {s} month."),
        unseen=("Which is the {s} month of the year?",),
    ),
    Relation(
        "season_after", "calendar", _following(SEASONS, 1),
        ("The season after {s} is {a}.", "After {s} comes {a}.", "When {s} ends, {a} begins."),
        topic="the season after {s}", reply="The season after {s} is {a}.",
        questions=("Which season comes after {s}?", "What season follows {s}?"),
        unseen=("Which season follows {s}?",),
    ),
    Relation(
        "span", "calendar", SPANS,
        ("The number of {s} is {a}.", "Count the {s} and you get {a}.", "There are {a} of these: {s}."),
        topic="the number of {s}", reply="The number of {s} is {a}.",
        questions=("How many {s}?", "How many {s} are there?", "Count the {s} for me."),
        unseen=("How many {s} do we count?",),
    ),
)  # fmt: skip
