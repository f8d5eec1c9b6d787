"""Words, numbers and names that the tasks draw from: the package's own lists, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from uuid import UUID

from ..errors import UnsupportedError


def split(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


ADJECTIVES = split(
    """
able amber ancient angry awkward bare bitter black blank blue blunt bold brave brief bright brisk broad bronze brown
busy calm careful cheap cheerful chilly civil clean clear clever cloudy clumsy coarse cold common cosy crimson crisp
crooked cruel curious curly damp dark dear deep delicate dense dim distant double dry dull dusty eager early earnest
easy elegant empty equal even exact faint fair faithful false famous fancy fast fat feeble fierce final fine firm flat
foggy fond foolish formal forward fragile frank free frequent fresh frosty frozen full funny gentle giant glad gloomy
glossy golden graceful grand grateful grave greedy green grey grim gritty hollow honest humble hungry icy idle ivory
jolly jealous keen kind large late lazy lean level light little lively local lonely long loose loud lovely low loyal
lucky mellow merry mighty mild minor misty modern modest moist muddy narrow nasty neat nervous new nimble noble noisy
normal novel numb odd old orange outer pale patient perfect plain pleasant polite poor precise pretty prime private
proud pure purple quaint quick quiet rapid rare raw ready recent red rich rigid ripe rough round royal rude rural
rusty sad safe salty sandy scarlet secret serious shallow sharp shiny short shy silent silly silver simple single
sleepy slender slim slow small smart smooth sober soft solemn solid sore sour spare special square stale steady steep
sticky stiff stormy stout straight strange strict strong stubborn sturdy subtle sudden sunny sweet swift tall tame
tender tense thick thin tidy tight timid tiny tired tough tranquil true upright urgent useful usual vague vain vast
violet vivid warm weak weary wet white wicked wide wild wise witty wooden woolly worn worthy yellow young zealous
"""
)
"""Plain English adjectives."""

NOUNS = split(
    """
acorn actor alley almond anchor ankle apple apron arch armour arrow ash attic aunt autumn avenue badge badger bakery
balcony ballad banjo bank banner barley barn barrel basin basket bath beach bead beam bean bear beaver bed bee beetle
bell belt bench berry bicycle bird biscuit blade blanket blossom board boat bone bonnet book boot border bottle
boulder bowl box branch bread brick bridge broom brother brush bubble bucket buckle bud button cabbage cabin cable
cake camel camera camp canal candle canoe canvas cape captain caravan card carpet carriage carrot cart castle cat
cattle cave cedar cellar chain chair chalk chapel chart cheese cherry chest chicken chimney church cinema circle
circus citizen clay cliff clock cloth cloud clover coach coal coast coat cobweb coffee coin collar college comb
compass copper coral cork corn cottage cotton couch cousin cradle crane crayon cream creek cricket crop crow crown cup
cupboard curtain cushion dairy daisy dance daughter dawn deck deer desert desk diary dinner dish doctor dog doll
dolphin donkey door dove dragon drawer dress drum duck dust eagle easel echo egg elbow elm engine envelope evening
fabric factory falcon family farm farmer feather fence fern ferry festival fiddle field fig finger fire fish flag
flame flask fleece floor flour flower flute foam folder forest fork fortress fountain fox frame friend frog fruit
funnel galaxy gallery garage garden garlic gate giraffe glacier glass glove goat goose gown grain granite grape grass
gravel guest guitar gull hall hammer hammock harbour hare harp harvest hat hawk hay hazel heart hedge helmet hen herb
heron hill hinge honey hood hoof horn horse hotel house iceberg inn iris iron island ivy jacket jar jaw jelly jewel
journal judge jug jungle kettle key kitchen kite kitten knee knife knight knot ladder lake lamb lamp lane lantern lark
lawn leaf leather lemon lentil letter library lily lime linen lion lizard lobster lock locket log loom lute magnet
mango mansion mantle map maple marble market marsh mast meadow medal melon menu mermaid mill mine mirror mole monk
moon moose morning mosaic moss moth motor mountain mouse mud mule museum mushroom music mustard nail napkin necklace
needle nephew nest net nettle nickel night noodle notebook nurse oak oar oasis oat ocean office olive onion opera
orbit orchard organ otter oven owl oyster paddle page paint palace palm pan panda pantry paper parade parcel park
parrot pasta pastry path peach peacock peanut pearl pebble pencil pepper piano picnic picture pier pigeon pillow pilot
pine pipe pirate pitcher plank plate plum pocket poem pond pony poppy porch port potato powder prairie prince pudding
puddle pump pumpkin puppet quarry queen quill quilt rabbit radio raft railway rain rake raven recipe reed ribbon rice
ring river road robin rock rocket roof rope rose ruby rudder rug sack saddle sail salad salmon salt sandal satin sauce
saucer scarf school scissors sculptor seal seed shadow shark shawl sheep shelf shell shepherd ship shirt shoe shovel
shrimp sister skirt sledge sleeve slipper smoke snail snake snow soap sock sofa soldier song soup sparrow spider
spinach spoon spring squirrel stable staircase star statue steam stem stocking stone stool storm stove straw stream
street sugar suitcase summer sunset swallow swan sword syrup table tailor tart tavern teacher temple tent theatre
thimble thorn thread throne thumb ticket tiger timber toast tower town train tray treasure tree trumpet tulip tunnel
turkey turnip turtle uncle valley vase vault velvet village vine vinegar violin wagon waiter wall walnut walrus
wardrobe water wave weaver wheat wheel whistle widow willow window wing winter wizard wolf wood wool workshop wren
yacht yard zebra
"""
)
"""Plain English nouns."""

WORDS = (*ADJECTIVES, *NOUNS)
"""All single words."""


def compound(random: Random) -> str:
    """An adjective and a noun, such as ``dusty-lantern``: 160,000 of them."""
    return f"{random.choice(ADJECTIVES)}-{random.choice(NOUNS)}"


def number(random: Random) -> str:
    """Seven digits, the first not 0."""
    return str(random.randrange(10**6, 10**7))


def uuid(random: Random) -> str:
    """A UUID of version 4."""
    return str(UUID(int=random.getrandbits(128), version=4))


KINDS: dict[str, Callable[[Random], str]] = {"words": compound, "numbers": number, "uuids": uuid}
"""What keys and values may be."""


TRIES = 10_000


class Fresh:
    """Draws that never come twice, and never one that is forbidden.

    Args:
        random: drawn from.
        forbidden: says which draws not to take, e.g. those a text holds already.
    """

    def __init__(self, random: Random, forbidden: Callable[[str], bool] = lambda _: False) -> None:
        self.random, self.forbidden = random, forbidden
        self._seen: set[str] = set()

    def draw(self, kind: Callable[[Random], str]) -> str:
        """One more.

        Raises:
            UnsupportedError: there are none left.
        """
        for _ in range(TRIES):
            value = kind(self.random)
            if value not in self._seen and not self.forbidden(value):
                self._seen.add(value)
                return value
        raise UnsupportedError(
            f"A prompt of this length needs more different {kind.__name__}s than there are (it has {len(self._seen)}). "
            "Choose a shorter length, or uuids where the task lets you."
        )
