"""The plots of the stories: what happens, in several wordings, and what a reader can be asked. Plain data.

Fields: {n} the hero with {he} {his} {him}; {f} the other one with {fhe} {fhis} {fhim}; {thing} with {c} its colour;
{thing2} with {c2}; {place}, {place2}, {animal}, {food}, {craft}, {relative}, {trade}, {country}, {capital}, {day}.
Every wording of a beat that is told states the same facts, so that every question has its answer in the story.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ask:
    """Something to ask about a plot. The last of `questions` is for the evaluation alone."""

    questions: tuple[str, ...]
    reply: str
    answer: str


@dataclass(frozen=True)
class Plot:
    """Beats in order, each in several wordings. Remarks come only in long stories and tell nothing that is asked."""

    beats: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...]
    """In the order in which they make sense: the first half before the last beat, the others after it."""
    asks: tuple[Ask, ...]


def _who(event: str, person: str) -> Ask:
    questions = (f"Who {event}?", f"Which person {event}?", f"Tell me who {event}.", f"Say who {event}.")
    return Ask(questions, f"It was {person}.", person)


def _colour(thing: str, colour: str) -> Ask:
    return Ask(
        (
            f"What colour was the {thing}?",
            f"Which colour was the {thing}?",
            f"Tell me the colour of the {thing}.",
            f"Name the colour of the {thing}.",
        ),
        f"The {thing} was {colour}.",
        colour,
    )


PLOTS = (
    Plot(  # lost and found
        (("{n} took a {c} {thing} to the {place}.", "One {day}, {n} went to the {place} with a {c} {thing}.",
          "{n} walked to the {place}, carrying a {c} {thing}.",
          "With a {c} {thing} under {his} arm, {n} came to the {place}."),
         ("There {he} lost the {thing}.", "{he} sat down to rest, and when {he} got up, the {thing} was gone.",
          "{he} played for an hour and then could not find the {thing} any more.",
          "The wind blew hard, and suddenly the {thing} was nowhere to be seen."),
         ("{f} found it and brought it back.", "Later {f} found it in the grass and gave it back.",
          "Luckily {f} found it behind a wall.", "It was {f} who found it, late in the afternoon.")),
        ("{he} looked under every bench and behind every tree.", "{n} asked everyone who passed by.",
         "A thing like that is easy to lose and hard to find.",
         "\"Do not be sad,\" said an old woman, \"lost things like to be found.\"",
         "{n} thanked {f} with a big smile.", "From then on {n} kept it safely in {his} bag."),
        (_who("found the {thing}", "{f}"), _who("lost the {thing}", "{n}"), _colour("{thing}", "{c}"),
         Ask(("Where did {n} go?", "Where was the {thing} lost?", "Where did {n} lose the {thing}?"),
             "{n} was at the {place}.", "{place}"),
         Ask(("What did {n} lose?", "What did {f} find?", "What was lost?"), "It was the {thing}.", "{thing}")),
    ),
    Plot(  # a present
        (("{n} wanted to give {f} a present.", "It was the birthday of {f}, and {n} had nothing to give.",
          "{n} saw that {f} was sad and wanted to cheer {fhim} up."),
         ("At the {place} {he} bought a {c} {thing}.", "So {he} went to the {place} and chose a {c} {thing}.",
          "{he} walked all the way to the {place} to buy a {c} {thing}."),
         ("{f} was very happy with it.", "When {f} opened the parcel, {fhe} laughed with joy.",
          "\"How beautiful!\" said {f}, and {fhe} meant it.", "{f} thanked {him} and put it by the window.")),
        ("It cost nearly all {his} money.", "The seller wrapped it in thin paper.",
         "{n} hid the parcel under {his} coat.",
         "A present does not have to be large to be good.",
         "They drank tea and told each other stories until it was dark."),
        (_who("bought the {thing}", "{n}"), _who("got the {thing}", "{f}"), _colour("{thing}", "{c}"),
         Ask(("Where did {n} buy the {thing}?", "Where was the present bought?", "Where did {n} find the present?"),
             "It was bought at the {place}.", "{place}"),
         Ask(("What did {n} buy?", "What did {f} get?", "What was the present?"), "It was the {thing}.", "{thing}")),
    ),
    Plot(  # two ways
        (("{n} went to the {place}.", "In the morning {n} walked to the {place}.", "{n} set out for the {place}.",
          "After breakfast {n} hurried to the {place}."),
         ("{f} went to the {place2}.", "But {f} took the road to the {place2}.",
          "{f} liked the {place2} better and went there.",
          "Meanwhile {f} rode to the {place2}."),
         ("In the evening they met again.", "They came home at the same time.",
          "At night they told each other about the day.")),
        ("The road was long and dusty.", "On the way there was a dog that barked at everyone.",
         "Neither of them forgot the day.",
         "\"Tomorrow we go together,\" they said.", "It is good to go out, and it is good to come home."),
        (_who("went to the {place}", "{n}"), _who("went to the {place2}", "{f}"),
         Ask(("Where did {n} go?", "To which place did {n} go?", "Where was {n}?"), "{n} went to the {place}.",
             "{place}"),
         Ask(("Where did {f} go?", "To which place did {f} go?", "Where was {f}?"), "{f} went to the {place2}.",
             "{place2}")),
    ),
    Plot(  # two loads
        (("{n} carried a {c} {thing}.", "{n} had a {c} {thing} with {him}.", "In {his} hands {n} held a {c} {thing}."),
         ("{f} carried a {c2} {thing2}.", "{f} brought a {c2} {thing2}.",
          "Behind {him} came {f} with a {c2} {thing2}."),
         ("Together they went to the {place}.", "They were on the way to the {place}.",
          "Side by side they walked to the {place}.")),
        ("Nobody complained about the weight.", "People turned their heads and smiled.",
         "\"Is it still far?\" asked {f}.",
         "They sang so that the way seemed shorter.", "When they arrived, they put everything down and rested."),
        (_who("carried the {thing}", "{n}"), _who("carried the {thing2}", "{f}"),
         _colour("{thing}", "{c}"), _colour("{thing2}", "{c2}"),
         Ask(("What did {n} carry?", "What did {n} have?", "What was {n} carrying?"), "{n} carried the {thing}.",
             "{thing}"),
         Ask(("What did {f} carry?", "What did {f} have?", "What was {f} carrying?"), "{f} carried the {thing2}.",
             "{thing2}"),
         Ask(("Where did they go?", "To which place did they walk?", "Where were they going?"),
             "They went to the {place}.", "{place}")),
    ),
    Plot(  # an animal in need
        (("At the {place} {n} heard a small cry.", "{n} was at the {place} when {he} heard a strange sound.",
          "One {day}, {n} heard someone cry for help at the {place}."),
         ("It was a {animal} that could not get out of a hole.", "A {animal} was caught in an old net.",
          "A young {animal} had lost its way and was afraid."),
         ("{n} called {f}, and together they set it free.", "{f} came running, and the two of them helped it.",
          "With the help of {f}, {n} brought it to safety.")),
        ("It was cold and shook all over.", "{n} gave it some water and spoke in a soft voice.",
         "Soon it could stand again.",
         "For a moment it looked back, as if to say thank you.", "Whoever helps the weak is strong."),
        (_who("heard the cry first", "{n}"), _who("came to help", "{f}"),
         Ask(("Which animal was in trouble?", "What animal needed help?", "Which animal needed help?"),
             "It was the {animal}.", "{animal}"),
         Ask(("Where was {n}?", "Where did {n} hear it?", "Where was the animal?"), "It was at the {place}.",
             "{place}")),
    ),
    Plot(  # a meal
        (("{n} made {food} for {f}.", "{n} stood in the kitchen and cooked {food} for {f}.",
          "For dinner {n} cooked {food}, and {f} was the guest."),
         ("They ate at the {place}, under the open sky.", "They took everything to the {place} and ate there.",
          "Then they carried the pot to the {place} and shared it."),
         ("{f} asked for more.", "\"I have never had better,\" said {f}.", "{f} ate until nothing was left.")),
        ("The smell filled the whole street.", "There was a little too much salt, but nobody minded.",
         "A {animal} waited for the crumbs.",
         "Food tastes better when it is shared.", "Afterwards they washed the dishes together."),
        (_who("cooked", "{n}"), _who("was the guest", "{f}"),
         Ask(("What did {n} cook?", "What did they eat?", "What did {f} eat?"), "It was {food}.", "{food}"),
         Ask(("Where did they eat?", "To which place did they go to eat?", "Where was the meal?"),
             "They ate at the {place}.", "{place}")),
    ),
    Plot(  # a race
        (("{n} and {f} ran a race to the {place}.", "\"Who is first at the {place}?\" cried {n}, and {f} ran too.",
          "On {day} there was a race to the {place}, and {n} ran against {f}."),
         ("{n} was fast, but {f} won.", "Halfway {n} fell, and so {f} won.",
          "At the end {f} was one step ahead of {n} and won."),
         ("The prize was a {c} {thing}.", "As a prize {fhe} got a {c} {thing}.",
          "{fhe} was given a {c} {thing} as a prize.")),
        ("The whole village came to watch.", "It had rained, and the ground was soft.",
         "\"Next time I will be faster,\" said {n}.",
         "They shook hands, as runners do.", "A good race makes good friends."),
        (_who("won the race", "{f}"), _who("lost the race", "{n}"), _colour("{thing}", "{c}"),
         Ask(("What was the prize?", "What did {f} win?", "What did the winner get?"), "The prize was the {thing}.",
             "{thing}"),
         Ask(("Where did they run?", "To which place was the race?", "Where did the race end?"),
             "The race went to the {place}.", "{place}")),
    ),
    Plot(  # hide and seek
        (("{n} hid a {c} {thing} at the {place}.", "For a game, {n} put a {c} {thing} somewhere at the {place}.",
          "Nobody saw how {n} hid a {c} {thing} at the {place}."),
         ("{f} looked for it at the {place2} first.", "First {f} searched the {place2}, but there was nothing.",
          "{f} thought it was at the {place2} and went there in vain."),
         ("In the end {fhe} found the right spot.", "Only in the evening did {fhe} find it.",
          "At last {fhe} guessed where it was.")),
        ("\"Warm, warmer, hot!\" called {n}.", "A {animal} watched the two of them.", "The clue was hidden in a song.",
         "Then it was the turn of {f} to hide something."),
        (_who("hid the {thing}", "{n}"), _who("looked for the {thing}", "{f}"), _colour("{thing}", "{c}"),
         Ask(("What did {n} hide?", "What did {f} look for?", "What was hidden?"), "It was the {thing}.", "{thing}"),
         Ask(("Where was the {thing}?", "Where did {n} hide the {thing}?", "Where was the {thing} hidden?"),
             "It was at the {place}.", "{place}"),
         Ask(("Where did {f} look first?", "Where did {f} search in vain?", "Where did {f} begin to look?"),
             "First {f} went to the {place2}.", "{place2}")),
    ),
    Plot(  # repair
        (("The {c} {thing} of {f} was broken.", "{f} had a {c} {thing}, but it was broken.",
          "One {day}, the {c} {thing} of {f} broke in two."),
         ("{n} took it to the {place} and mended it.", "{n} knew what to do and mended it at the {place}.",
          "So {n} carried it to the {place}, found a tool and mended it."),
         ("Now it was as good as new.", "{f} could hardly believe {fhis} eyes.",
          "It even looked a little better than before.")),
        ("It took glue, thread and a lot of patience.", "\"Give me an hour,\" said {n}.",
         "An old {trade} watched and nodded.",
         "{f} paid with a slice of cake.", "What is broken need not be thrown away."),
        (_who("mended the {thing}", "{n}"), _who("had a broken {thing}", "{f}"), _colour("{thing}", "{c}"),
         Ask(("What was broken?", "What did {n} mend?", "Which thing was broken?"), "It was the {thing}.", "{thing}"),
         Ask(("Where did {n} mend it?", "Where was it mended?", "Where was the {thing} mended?"),
             "It was mended at the {place}.", "{place}")),
    ),
    Plot(  # a journey
        (("{n} travelled to {country} to see {his} {relative}.",
          "In summer {n} went to {country}, where {his} {relative} lived.",
          "{n} took a train to {country} to visit {his} {relative}."),
         ("In {capital}, the capital, {he} bought a {c} {thing}.",
          "They walked through {capital}, the capital, and {n} bought a {c} {thing}.",
          "From {capital}, the capital, {he} brought home a {c} {thing}."),
         ("{f} wanted to hear everything about it.", "At home {he} told {f} the whole story.",
          "{he} sent {f} a letter every week.")),
        ("The journey took two days and one night.", "At first {he} understood hardly a word.",
         "The mountains were higher than the clouds.",
         "The food was new to {him}, but {he} tried everything.", "Some day {n} will go there again."),
        (_who("went on a journey", "{n}"), _colour("{thing}", "{c}"),
         Ask(("Which country did {n} visit?", "To which country did {n} travel?", "What country did {n} visit?"),
             "{n} visited {country}.", "{country}"),
         Ask(("Whom did {n} visit?", "Who lived in {country}?", "Whom did {n} see there?"), "It was the {relative}.",
             "{relative}"),
         Ask(("What did {n} buy?", "What did {n} bring home?", "What did {n} buy in {capital}?"),
             "It was the {thing}.", "{thing}")),
    ),
    Plot(  # learning
        (("{f} taught {n} how to {craft}.", "{n} learned from {f} how to {craft}.",
          "\"I will show you how to {craft},\" said {f} to {n}."),
         ("They practised at the {place} every {day}.", "Every {day} they met at the {place}.",
          "The lessons were at the {place}, always on {day}."),
         ("After a month {n} could do it alone.", "It was hard at first, but {n} did not give up.",
          "Soon {n} was nearly as good as {f}.")),
        ("Nobody is born a master.", "The first try went wrong, and the second one too.",
         "\"Slowly,\" said {f}, \"and once more.\"",
         "A {trade} who passed by clapped loudly.", "Now {n} teaches others."),
        (_who("was the teacher", "{f}"), _who("was the pupil", "{n}"),
         Ask(("What did {n} learn?", "What did {f} teach?", "What can {n} do now?"), "It was how to {craft}.",
             "{craft}"),
         Ask(("Where did they practise?", "Where were the lessons?", "Where did they meet?"),
             "They met at the {place}.", "{place}"),
         Ask(("On which day did they meet?", "On what day were the lessons?", "On which day were the lessons?"),
             "They met on {day}.", "{day}")),
    ),
    Plot(  # a swap
        (("{n} had a {c} {thing}.", "{n} owned a {c} {thing}.",
          "Once {n} had a {c} {thing} that {he} no longer needed."),
         ("{f} had a {c2} {thing2}.", "{f} owned a {c2} {thing2}.", "{f} came by with a {c2} {thing2}."),
         ("At the {place} they swapped.", "They met at the {place} and swapped.",
          "So they made a swap at the {place}.")),
        ("\"Is that fair?\" asked {f}.", "They looked at both things for a long time.",
         "Both were happy, and that makes a good bargain.",
         "The old owner and the new owner shook hands."),
        (_who("had the {thing} at first", "{n}"), _who("had the {thing2} at first", "{f}"),
         _who("got the {thing2}", "{n}"), _who("got the {thing}", "{f}"), _colour("{thing}", "{c}"),
         _colour("{thing2}", "{c2}"),
         Ask(("Where did they swap?", "Where was the swap?", "Where did they meet?"), "They swapped at the {place}.",
             "{place}")),
    ),
    Plot(  # a storm
        (("A storm caught {n} at the {place}.", "{n} was at the {place} when the storm began.",
          "On {day} a storm broke out while {n} was at the {place}."),
         ("{he} found shelter at the {place2} and waited.",
          "{he} ran to the {place2} and stayed there until it was over.",
          "Wet to the skin, {he} reached the {place2}."),
         ("There {he} met {f}, who lent {him} a {c} {thing}.", "{f} was there too and gave {him} a {c} {thing}.",
          "There stood {f}, holding out a {c} {thing}.")),
        ("The thunder rolled, and the trees bent low.", "A {animal} had found shelter there as well.",
         "They counted the seconds between flash and thunder.",
         "When the rain stopped, there was a rainbow over the hills.", "After every storm the air smells new."),
        (_who("was caught by the storm", "{n}"), _who("had a {thing}", "{f}"), _colour("{thing}", "{c}"),
         Ask(("Where was {n} when the storm began?", "Where did the storm begin for {n}?",
              "Where did the storm catch {n}?"), "{n} was at the {place}.", "{place}"),
         Ask(("Where did {n} find shelter?", "Where did {n} wait?", "Where did {n} stay until it was over?"),
             "{n} was at the {place2}.", "{place2}")),
    ),
    Plot(  # a job
        (("{n} was a {trade} and worked at the {place}.", "Every day {n}, the {trade}, worked at the {place}.",
          "There once was a {trade} called {n}, whose house stood near the {place}."),
         ("One {day}, {f} came and asked for a {c} {thing}.", "On {day}, {f} came in and wanted a {c} {thing}.",
          "One morning {f} stood at the door and asked for a {c} {thing}."),
         ("{n} gave it away for a song.", "{n} found one and asked for nothing but a story.",
          "{n} worked all night, and in the morning it was ready.")),
        ("The days were long, but {he} liked {his} work.", "Everybody in the village knew {him}.",
         "A {animal} slept beside the stove.",
         "\"Come back soon,\" {he} said, as {he} said to everyone.", "Good work speaks for itself."),
        (_who("was a {trade}", "{n}"), _who("asked for a {thing}", "{f}"), _colour("{thing}", "{c}"),
         Ask(("What did {f} want?", "What did {f} ask for?", "Which thing did {f} want?"), "{f} wanted the {thing}.",
             "{thing}"),
         Ask(("What was the job of {n}?", "What kind of work did {n} do?", "What did {n} do for a living?"),
             "{n} was a {trade}.", "{trade}")),
    ),
)  # fmt: skip

OPENINGS = (
    "It was a bright morning in {month}.", "It was a cold day in {month}.", "Rain fell softly on the roofs.",
    "Long ago, in a small town by the sea, this is what happened.", "The first snow had fallen overnight.",
    "Summer had come early that year.", "This is a true story, or nearly so.",
    "The church bell had just struck {hour}.",
    "Fog lay over the fields.", "Everybody still remembers that {day}.", "The holidays had begun.",
    "Listen to what happened last {day}.", "A warm wind came from the south.",
    "There was nothing special about that {day}.",
    "In {month} the evenings are long.", "The stars were still out.",
)  # fmt: skip

ENDINGS = (
    "That night everybody slept well.", "And that was that.", "People still tell the story.",
    "It was the best day of {month}.",
    "{n} wrote it all down that evening.", "The moon rose, and the day was over.",
    "And so a {day} that began badly ended well.",
    "{n} and {f} have been friends ever since.", "Nobody in the town ever forgot it.",
    "Then they went home, tired and content.",
    "At {hour} the lights went out.", "What would you have done?",
)  # fmt: skip
