"""Ordinary English words to spell. Plain data. The held-out ones occur in no other text of TinyWorld."""

WORDS = tuple(
    """
    able acorn actor address adult advice afternoon agent album alley almond amber anchor angle ankle antler
    apricot arrow artist ash aspen attic autumn avocado badge badger bagel bamboo bandage banner barber barley
    barrel basil basin battery beach bead beaver bedroom beetle berry birch bitter blanket blossom board border
    bottom boulder branch brave bridge bright broken bronze brother bubble bucket budget buffalo builder bundle
    burger butter button cabbage cabin cactus camel camera candle canoe canvas canyon captain caravan carbon
    card career carpet carrot carton castle cattle cedar celery cellar cement center cereal chain chair chalk
    chamber channel chapel chapter charcoal cherry chess chicken chimney cinema circle circus clever clinic
    cloud clover cobweb coconut coffee collar column comet common concert copper coral corner cotton cottage
    cousin cradle crater cream cricket crocus crown crystal cucumber cupboard curtain cushion custard dairy
    daisy dancer danger daughter delta dentist desert diamond dinner dolphin domino dragon drawer dream driver
    drizzle dusty eager early earth echo effort eleven elbow ember emerald empty engine enter envelope errand
    evening event fabric factory falcon family famous fancy father ferry fiddle finger flannel flavour flour
    flower flute fossil fountain fragile freedom freezer friend frozen funnel future galaxy gallery gallop
    garage garden garlic garment gather gentle ginger giraffe glacier glitter gloves goblet golden gossip
    granite gravel gravity guitar hammer hamster handle harbour harvest hazel heather hedge helmet herring
    hiking hollow honest hornet hospital hotel humble hunger hunter icicle igloo indoor infant island ivory
    jacket jaguar jasmine jelly jewel jigsaw journey jungle junior kennel kernel kettle kidney kingdom kitchen
    ladder lantern large lasso laundry lawyer leather legend lemon lentil leopard lesson letter lettuce lever
    lily lime linen lizard lobster lumber lunch magnet magpie mango mantle maple marble margin marrow marsh
    marvel meadow medal melody melon member memory merchant metal meteor middle mighty minister minute mirror
    mitten modern moment monkey monster mosaic mother motor mountain muffin muscle museum mustard napkin narrow
    nation nature nectar needle nephew nettle noble noodle novel nurse nutmeg object ocean office olive onion
    opera orange orbit orchid organ otter oven oyster packet paddle painter palace pancake panda panther paper
    parcel pardon parent parrot parsley partner pasture patient pattern pebble pelican pencil penguin pepper
    perfume piano pickle picnic pigeon pillar pillow pilot pirate pistol planet plaster platter plenty plunge
    pocket poem poet polish pollen pony poplar poppy porridge portrait powder prairie present pretty prince
    printer prison profit pudding puddle pulley pumpkin pupil puppet purple puzzle quarrel quarter quick quilt
    rabbit raccoon radio radish rainbow raisin random ransom rapid raven recipe record reindeer ribbon riddle
    ripple rival river robin rocket rooster rosemary rubber rudder runner saddle sailor sandal sandwich satin
    saucer sausage scarlet season secret seldom senior serpent settle seven shadow shallow shelter shepherd
    sherbet shiver shoulder shower signal silent silver simple singer sister sketch slender slipper soldier
    solid spark sparrow special spider spinach spiral splash sponge sprout squash squirrel stable station statue
    steeple sticker stomach storm stove strong student study summit sunset supper surface swallow sweater switch
    symbol table tablet tailor talent tangle teapot temple tender tennis thimble thirst thistle thunder ticket
    timber tissue toffee tongue topic tornado total tractor trailer travel treasure trumpet tulip tunnel turkey
    turnip turtle twelve twist umpire uncle uniform useful valley vanilla velvet village vinegar violet violin
    visit volcano voyage waffle waiter walnut walrus wander warden water weather wedding weekend whisper whistle
    willow window winter wisdom wizard wooden worker writer yellow yogurt zebra zipper
    """.split()  # noqa: SIM905  550 pairs of quotes would make it no clearer
)
