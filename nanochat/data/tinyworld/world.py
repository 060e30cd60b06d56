"""Facts about the world: countries, elements, planets, animals and everyday things. Plain data."""

from collections.abc import Mapping

from nanochat.data.tinyworld.relation import Relation

# country: capital, continent, main language, currency
COUNTRIES = {
    "France": ("Paris", "Europe", "French", "euro"),
    "Germany": ("Berlin", "Europe", "German", "euro"),
    "Spain": ("Madrid", "Europe", "Spanish", "euro"),
    "Italy": ("Rome", "Europe", "Italian", "euro"),
    "Portugal": ("Lisbon", "Europe", "Portuguese", "euro"),
    "Greece": ("Athens", "Europe", "Greek", "euro"),
    "Austria": ("Vienna", "Europe", "German", "euro"),
    "Poland": ("Warsaw", "Europe", "Polish", "zloty"),
    "Sweden": ("Stockholm", "Europe", "Swedish", "krona"),
    "Norway": ("Oslo", "Europe", "Norwegian", "krone"),
    "Denmark": ("Copenhagen", "Europe", "Danish", "krone"),
    "Iceland": ("Reykjavik", "Europe", "Icelandic", "krona"),
    "Hungary": ("Budapest", "Europe", "Hungarian", "forint"),
    "Czechia": ("Prague", "Europe", "Czech", "koruna"),
    "Ukraine": ("Kyiv", "Europe", "Ukrainian", "hryvnia"),
    "Romania": ("Bucharest", "Europe", "Romanian", "leu"),
    "Croatia": ("Zagreb", "Europe", "Croatian", "euro"),
    "Egypt": ("Cairo", "Africa", "Arabic", "pound"),
    "Kenya": ("Nairobi", "Africa", "Swahili", "shilling"),
    "Ethiopia": ("Addis Ababa", "Africa", "Amharic", "birr"),
    "Morocco": ("Rabat", "Africa", "Arabic", "dirham"),
    "Algeria": ("Algiers", "Africa", "Arabic", "dinar"),
    "Tunisia": ("Tunis", "Africa", "Arabic", "dinar"),
    "Nigeria": ("Abuja", "Africa", "English", "naira"),
    "Ghana": ("Accra", "Africa", "English", "cedi"),
    "Angola": ("Luanda", "Africa", "Portuguese", "kwanza"),
    "Japan": ("Tokyo", "Asia", "Japanese", "yen"),
    "China": ("Beijing", "Asia", "Chinese", "yuan"),
    "India": ("New Delhi", "Asia", "Hindi", "rupee"),
    "Thailand": ("Bangkok", "Asia", "Thai", "baht"),
    "Vietnam": ("Hanoi", "Asia", "Vietnamese", "dong"),
    "Nepal": ("Kathmandu", "Asia", "Nepali", "rupee"),
    "Iran": ("Tehran", "Asia", "Persian", "rial"),
    "Iraq": ("Baghdad", "Asia", "Arabic", "dinar"),
    "Jordan": ("Amman", "Asia", "Arabic", "dinar"),
    "South Korea": ("Seoul", "Asia", "Korean", "won"),
    "Pakistan": ("Islamabad", "Asia", "Urdu", "rupee"),
    "Canada": ("Ottawa", "North America", "English", "dollar"),
    "Mexico": ("Mexico City", "North America", "Spanish", "peso"),
    "Cuba": ("Havana", "North America", "Spanish", "peso"),
    "Jamaica": ("Kingston", "North America", "English", "dollar"),
    "Brazil": ("Brasilia", "South America", "Portuguese", "real"),
    "Argentina": ("Buenos Aires", "South America", "Spanish", "peso"),
    "Chile": ("Santiago", "South America", "Spanish", "peso"),
    "Peru": ("Lima", "South America", "Spanish", "sol"),
    "Colombia": ("Bogota", "South America", "Spanish", "peso"),
    "Uruguay": ("Montevideo", "South America", "Spanish", "peso"),
    "Australia": ("Canberra", "Oceania", "English", "dollar"),
    "New Zealand": ("Wellington", "Oceania", "English", "dollar"),
}

# element: symbol, atomic number
ELEMENTS = {
    "hydrogen": ("H", 1), "helium": ("He", 2), "lithium": ("Li", 3), "carbon": ("C", 6), "nitrogen": ("N", 7),
    "oxygen": ("O", 8), "fluorine": ("F", 9), "neon": ("Ne", 10), "sodium": ("Na", 11), "magnesium": ("Mg", 12),
    "aluminium": ("Al", 13), "silicon": ("Si", 14), "phosphorus": ("P", 15), "sulfur": ("S", 16),
    "chlorine": ("Cl", 17), "potassium": ("K", 19), "calcium": ("Ca", 20), "iron": ("Fe", 26), "nickel": ("Ni", 28),
    "copper": ("Cu", 29), "zinc": ("Zn", 30), "silver": ("Ag", 47), "tin": ("Sn", 50), "iodine": ("I", 53),
    "gold": ("Au", 79), "mercury": ("Hg", 80), "lead": ("Pb", 82), "uranium": ("U", 92),
}  # fmt: skip

PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth",
)  # fmt: skip

YOUNG = {
    "cow": "calf", "cat": "kitten", "dog": "puppy", "horse": "foal", "sheep": "lamb", "pig": "piglet", "goat": "kid",
    "duck": "duckling", "goose": "gosling", "hen": "chick", "bear": "cub", "lion": "cub", "deer": "fawn",
    "kangaroo": "joey", "frog": "tadpole", "swan": "cygnet", "owl": "owlet", "seal": "pup", "elephant": "calf",
    "whale": "calf", "wolf": "pup", "eagle": "eaglet", "butterfly": "caterpillar", "tiger": "cub",
}  # fmt: skip

SOUNDS = {
    "cow": "moo", "dog": "woof", "cat": "meow", "sheep": "baa", "horse": "neigh", "duck": "quack", "lion": "roar",
    "pig": "oink", "owl": "hoot", "frog": "croak", "bee": "buzz", "snake": "hiss", "wolf": "howl", "mouse": "squeak",
    "crow": "caw", "hen": "cluck",
}  # fmt: skip

LEGS = {
    "cow": "four", "dog": "four", "cat": "four", "horse": "four", "frog": "four", "lion": "four", "hen": "two",
    "duck": "two", "owl": "two", "swan": "two", "crow": "two", "eagle": "two", "ant": "six", "bee": "six",
    "butterfly": "six", "beetle": "six", "spider": "eight", "scorpion": "eight", "crab": "ten", "lobster": "ten",
}  # fmt: skip

HOMES = {
    "bee": "hive", "rabbit": "burrow", "bear": "den", "spider": "web", "dog": "kennel", "horse": "stable",
    "pig": "sty", "ant": "anthill", "hen": "coop", "cow": "barn", "snail": "shell", "beaver": "lodge", "eagle": "nest",
    "camel": "desert", "whale": "ocean", "monkey": "jungle", "frog": "pond",
}  # fmt: skip

KINDS = {
    "cow": "mammal", "whale": "mammal", "bear": "mammal", "rabbit": "mammal", "monkey": "mammal", "elephant": "mammal",
    "owl": "bird", "swan": "bird", "crow": "bird", "eagle": "bird", "penguin": "bird", "duck": "bird",
    "bee": "insect", "ant": "insect", "butterfly": "insect", "beetle": "insect",
    "snake": "reptile", "lizard": "reptile", "turtle": "reptile", "crocodile": "reptile",
    "frog": "amphibian", "toad": "amphibian", "newt": "amphibian", "salmon": "fish", "shark": "fish", "trout": "fish",
}  # fmt: skip

COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "milk": "white", "lettuce": "green",
    "chocolate": "brown", "a lemon": "yellow", "a ripe tomato": "red", "a carrot": "orange", "a ripe banana": "yellow",
    "a flamingo": "pink", "a raven": "black", "a ruby": "red", "a sapphire": "blue", "an emerald": "green",
    "a pumpkin": "orange", "a strawberry": "red", "a polar bear": "white", "the clear sky": "blue",
    "a canary": "yellow", "lavender": "purple", "an elephant": "grey", "rust": "orange",
}  # fmt: skip

JOBS = {
    "bakes bread": "baker", "teaches children": "teacher", "flies planes": "pilot", "grows crops": "farmer",
    "treats sick people": "doctor", "puts out fires": "firefighter", "cuts hair": "hairdresser",
    "paints pictures": "painter", "writes books": "writer", "repairs pipes": "plumber", "sells meat": "butcher",
    "looks after teeth": "dentist", "sews clothes": "tailor", "cooks meals": "cook", "studies the stars": "astronomer",
    "plays music": "musician", "treats sick animals": "vet", "repairs shoes": "cobbler",
    "makes wooden furniture": "carpenter", "designs buildings": "architect", "takes photographs": "photographer",
    "works in a library": "librarian", "works on a ship": "sailor", "digs for coal": "miner",
}  # fmt: skip

TOOLS = {
    "cut paper": "scissors", "hit nails": "hammer", "tell the time": "clock", "sweep the floor": "broom",
    "look at distant stars": "telescope", "measure temperature": "thermometer", "find north": "compass",
    "open a lock": "key", "stay dry in the rain": "umbrella", "boil water": "kettle", "dig a hole": "shovel",
    "cut wood": "saw", "see very tiny things": "microscope", "eat soup": "spoon", "dry your hands": "towel",
    "sew cloth": "needle", "light a dark room": "lamp", "climb onto a roof": "ladder", "weigh flour": "scale",
    "tidy your hair": "comb", "slice bread": "knife", "wash your hands": "soap",
}  # fmt: skip

SIDES = {
    "triangle": "three", "square": "four", "rectangle": "four", "pentagon": "five", "hexagon": "six",
    "heptagon": "seven", "octagon": "eight",
}  # fmt: skip


def _column(table: Mapping[str, tuple[str, ...]], index: int) -> dict[str, str]:
    return {subject: row[index] for subject, row in table.items()}


GEOGRAPHY = (
    Relation(
        "capital", "geography", _column(COUNTRIES, 0),
        ("The capital of {s} is {a}.", "{a} is the capital of {s}.", "The capital city of {s} is called {a}.",
         "The government of {s} sits in {a}, the capital."),
        topic="the capital of {s}", reply="The capital of {s} is {a}.",
        questions=("Which city is the capital of {s}?", "What is the capital city of {s}?", "Name the capital of {s}."),
        unseen=("What city is the capital of {s}?",),
    ),
    Relation(
        "continent", "geography", _column(COUNTRIES, 1),
        ("{s} is a country in {a}.", "{s} lies on the continent of {a}.", "The continent of {s} is {a}.",
         "On the map you find {s} in {a}."),
        topic="the continent of {s}", reply="{s} is in {a}.",
        questions=("Which continent is {s} in?", "On which continent is {s}?", "What continent does {s} belong to?"),
        unseen=("Which continent does {s} lie on?",),
    ),
    Relation(
        "language", "geography", _column(COUNTRIES, 2),
        ("The main language of {s} is {a}.", "In {s} most people can speak {a}.", "{a} is the main language of {s}.",
         "Children in {s} learn to read and write {a}."),
        topic="the main language of {s}", reply="The main language of {s} is {a}.",
        questions=("Which language do people speak in {s}?", "What language is spoken in {s}?",
                   "What do people in {s} speak?"),
        unseen=("Which language is spoken in {s}?",),
    ),
    Relation(
        "currency", "geography", _column(COUNTRIES, 3),
        ("The currency of {s} is the {a}.", "People in {s} pay with the {a}.", "The money of {s} is called the {a}.",
         "In a shop in {s} you pay with the {a}."),
        topic="the currency of {s}", reply="The currency of {s} is the {a}.",
        questions=("Which money do people use in {s}?", "What do people in {s} pay with?",
                   "What is the money of {s} called?"),
        unseen=("Which currency do people use in {s}?",),
    ),
)  # fmt: skip

NATURE = (
    Relation(
        "symbol", "nature", {name: symbol for name, (symbol, _) in ELEMENTS.items()},
        ("The symbol of {s} is {a}.", "Chemists write {a} for {s}.", "The chemical symbol for {s} is {a}."),
        topic="the chemical symbol for {s}", reply="The chemical symbol for {s} is {a}.",
        questions=("Which symbol stands for {s}?", "How do chemists write {s}?", "What is the symbol of {s}?"),
        unseen=("Which symbol do chemists write for {s}?",),
    ),
    Relation(
        "atomic_number", "nature", {name: str(number) for name, (_, number) in ELEMENTS.items()},
        ("The atomic number of {s} is {a}.", "{s} has the atomic number {a}.",
         "In the table of elements, {s} is number {a}."),
        topic="the atomic number of {s}", reply="The atomic number of {s} is {a}.",
        questions=("Which atomic number does {s} have?", "What number is {s} in the table of elements?"),
        unseen=("What atomic number does {s} have?",),
    ),
    Relation(
        "planet_place", "nature", dict(zip(PLANETS, ORDINALS, strict=False)),
        ("{s} is the {a} planet from the Sun.", "Counting from the Sun, {s} is planet number {a}.",
         "The {a} planet from the Sun is {s}."),
        topic="the place of {s} among the planets", reply="Counted from the Sun, {s} is the {a}.",
        questions=("Which planet from the Sun is {s}?", "Counted from the Sun, which planet is {s}?"),
        unseen=("Which place does {s} take among the planets?",),
    ),
    Relation(
        "planet_at", "nature", dict(zip(ORDINALS, PLANETS, strict=False)),
        ("The {s} planet from the Sun is {a}.", "{a} is the {s} planet from the Sun."),
        topic="the {s} planet from the Sun", reply="The {s} planet from the Sun is {a}.",
        questions=("Which planet is the {s} from the Sun?", "What is the name of the {s} planet?"),
        unseen=("Which is the {s} planet from the Sun?",),
    ),
    Relation(
        "young", "nature", YOUNG,
        ("A young {s} is called {an_a}.", "The young of {an_s} is {an_a}.", "A baby {s} is {an_a}.",
         "Before it grows up, {an_s} is {an_a}."),
        topic="the name for a young {s}", reply="A young {s} is called {an_a}.",
        questions=("What is a young {s} called?", "What do you call a baby {s}?", "What is a baby {s}?"),
        unseen=("What do you call a young {s}?",),
    ),
    Relation(
        "sound", "nature", SOUNDS,
        ("{an_s} says {a}.", "The sound of {an_s} is {a}.", "When you hear {a}, {an_s} is near."),
        topic="the sound of {an_s}", reply="{an_s} says {a}.",
        questions=("What does {an_s} say?", "What sound does {an_s} make?", "Which sound comes from {an_s}?"),
        unseen=("Which sound does {an_s} make?",),
    ),
    Relation(
        "legs", "nature", LEGS,
        ("{an_s} has {a} legs.", "{an_s} walks on {a} legs.", "The number of legs of {an_s} is {a}."),
        topic="the number of legs of {an_s}", reply="The number of legs of {an_s} is {a}.",
        questions=("How many legs does {an_s} have?", "On how many legs does {an_s} walk?"),
        unseen=("How many legs has {an_s}?",),
    ),
    Relation(
        "home", "nature", HOMES,
        ("The home of {an_s} is the {a}.", "{an_s} lives in the {a}.", "You will find {an_s} in the {a}."),
        topic="the home of {an_s}", reply="{an_s} lives in the {a}.",
        questions=("Where does {an_s} live?", "Where is {an_s} at home?", "Where can I find {an_s}?"),
        unseen=("Where is the home of {an_s}?",),
    ),
    Relation(
        "kind", "nature", KINDS,
        ("{an_s} is a kind of {a}.", "In a book about animals, look for {an_s} under this word: {a}.",
         "Among animals {an_s} counts as {an_a}."),
        topic="the animal group of {an_s}", reply="{an_s} is a kind of {a}.",
        questions=("What kind of animal is {an_s}?", "Which group of animals does {an_s} belong to?"),
        unseen=("Which kind of animal is {an_s}?",),
    ),
)  # fmt: skip

EVERYDAY = (
    Relation(
        "colour", "everyday", COLOURS,
        ("The colour of {s} is {a}.", "{s} is {a}.", "Everyone can see that {s} is {a}."),
        topic="the colour of {s}", reply="The colour of {s} is {a}.",
        questions=("What colour is {s}?", "Which colour would you paint {s}?", "What is the usual colour of {s}?"),
        unseen=("Which colour is {s}?",),
    ),
    Relation(
        "job", "everyday", JOBS,
        ("Someone who {s} is {an_a}.", "{an_a} is a person who {s}.", "If a person {s}, we call that person {an_a}."),
        topic="the word for a person who {s}", reply="A person who {s} is called {an_a}.",
        questions=("Who {s}?", "What do you call someone who {s}?", "What is the job of a person who {s}?"),
        unseen=("What do you call a person who {s}?",),
    ),
    Relation(
        "tool", "everyday", TOOLS,
        ("To {s} you use this: {a}.", "The right thing to {s} is called {a}.",
         "When you want to {s}, look for this: {a}."),
        topic="the right thing to {s}", reply="The right thing to {s} is called {a}.",
        questions=("What do you need to {s}?", "What do people use to {s}?", "I want to {s}. What do I need?"),
        unseen=("What do you use to {s}?",),
    ),
    Relation(
        "sides", "everyday", SIDES,
        ("{an_s} has {a} sides.", "The number of sides of {an_s} is {a}.", "If you draw {an_s}, you draw {a} sides."),
        topic="the number of sides of {an_s}", reply="The number of sides of {an_s} is {a}.",
        questions=("How many sides does {an_s} have?", "How many sides do I draw for {an_s}?"),
        unseen=("How many sides has {an_s}?",),
    ),
)  # fmt: skip
