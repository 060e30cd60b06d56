"""Who and what the stories are about. Plain data."""

PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "his", "him")}
"""subject, possessive, object"""

NAMES = {
    **dict.fromkeys(
        ("Anna", "Mia", "Lena", "Clara", "Rosa", "Emma", "Nora", "Ines", "Alice", "Sofia", "Maya", "Ruth", "Hana",
         "Eva",
         "Lucy", "Ida", "Zoe", "Nina", "Olga", "Grace", "Mary", "Julia", "Vera", "Amina", "Leila", "Kate", "Stella",
         "Priya", "Yuki", "Dora"), "she"),
    **dict.fromkeys(
        ("Tom", "Ben", "Omar", "Leo", "Max", "Paul", "Hugo", "Ivan", "Sam", "Jack", "Noah", "David", "Felix", "Oscar",
         "Peter", "Karl", "Luis", "Adam", "Erik", "Henry", "Marco", "Anton", "Simon", "Theo", "Ali", "Kofi", "Ravi",
         "Diego", "Emil", "Walter"), "he"),
}  # fmt: skip

PLACES = (
    "market", "park", "river", "beach", "library", "school", "farm", "forest", "station", "harbour", "bakery", "museum",
    "garden", "castle", "lake", "mill", "bridge", "church", "hill", "village", "meadow", "workshop", "playground",
    "theatre", "zoo", "square", "lighthouse", "orchard", "inn", "fountain", "tower", "field", "cave", "ferry", "barn",
    "post office",
)  # fmt: skip

THINGS = (
    "kite", "ball", "book", "hat", "lamp", "basket", "cup", "map", "coin", "drum", "flute", "scarf", "boat", "doll",
    "box",
    "bell", "ribbon", "umbrella", "blanket", "bottle", "ring", "clock", "candle", "mirror", "feather", "shell", "stone",
    "rope", "spoon", "brush", "pencil", "bag", "coat", "button", "whistle", "mug", "bucket", "necklace", "kettle",
    "pillow", "jar", "violin", "notebook", "wagon", "puppet", "apron", "bracelet", "suitcase",
)  # fmt: skip

COLOURS = (
    "red", "blue", "green", "yellow", "white", "black", "brown", "orange", "purple", "pink", "grey", "golden", "silver",
)  # fmt: skip

ANIMALS = (
    "dog", "cat", "horse", "duck", "goat", "rabbit", "owl", "lamb", "fox", "deer", "swan", "donkey", "mouse", "turtle",
    "hen", "goose", "pony", "calf", "frog", "hedgehog",
)  # fmt: skip

FOODS = (
    "bread", "soup", "cheese", "honey", "cake", "rice", "pancakes", "jam", "noodles", "porridge", "salad", "apple pie",
    "stew", "biscuits", "dumplings", "plum tart",
)  # fmt: skip

COUNTABLE = (
    "apples", "pears", "eggs", "books", "coins", "pencils", "marbles", "stamps", "cookies", "shells", "buttons",
    "cards",
    "oranges", "plums", "nuts", "stickers", "flowers", "candles", "bricks", "tickets",
)  # fmt: skip

RELATIVES = ("grandmother", "grandfather", "aunt", "uncle", "cousin", "sister", "brother", "teacher", "neighbour")

CRAFTS = (
    "whistle", "swim", "bake bread", "ride a bicycle", "play chess", "tie a knot", "sail", "juggle", "knit", "dance",
    "catch fish", "draw horses", "read a map", "light a fire", "play the piano", "milk a cow", "row", "skate",
)  # fmt: skip

TRADES = ("baker", "farmer", "sailor", "tailor", "miller", "gardener", "carpenter", "teacher", "shepherd", "clockmaker")
