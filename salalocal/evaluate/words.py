"""The words that made-up texts are made of: adjectives, nouns, and names that nobody bears. Knows no sentences."""

from __future__ import annotations

from random import Random

from salalocal.errors import InvalidRequest

_ADJECTIVES = """
    amber ancient bitter blue brave bright brittle broad broken calm careful cheap clean clear clever cloudy coarse cold
    common cool coral crisp crooked curious curly damp dark deep distant dry dull dusty eager early empty even faded
    faint fair famous fast fierce fine firm flat foreign fragile fresh gentle glad golden grand green grey happy hard
    heavy hidden hollow honest humble idle ivory jolly keen kind large late lazy light little lively lonely long loose
    loud low lucky mellow mild misty modest muddy narrow neat new noble noisy old orange pale patient plain polite proud
    purple quick quiet rapid rare ready red rich rough round royal rusty sandy scarlet secret shallow sharp shiny short
    shy silent silver simple slender slow small smooth soft solid sour spare steady steep stiff strange strong sturdy
    sudden sunny sweet swift tall tame tender thick thin tidy tiny tough vast violet warm weary wet white wide wild wise
    wooden yellow young
"""
_NOUNS = """
    acorn anchor apple apron arrow badge bag bakery balcony barn barrel basin basket beacon bell bench berry blanket
    boat bonnet book boot bottle bowl bracket branch bread brick bridge broom brush bucket button cabin cabinet candle
    canoe canvas carpet cart castle cellar chain chair chapel chest chimney circle cliff cloak clock coat collar compass
    copper corner cottage cradle crane crate crown cup curtain dagger desk dial door drawer drum engine falcon farm
    feather fence ferry fiddle field finch flag flask flute forest forge fork fountain fox gallery garden gate glove
    goat grain grove hammer harbour harvest hat hedge helmet heron hill hinge hook horn horse hut ink inn island jacket
    jar kettle key kite knot ladder lake lamp lantern ledger lemon lever library lily lodge loom magnet mantle map
    maple market mast meadow medal mill mirror mitten moss mountain museum nail needle nest net notebook nut oak oar oat
    olive orchard otter oven owl paddle pail palace paper parcel parlour path pear pebble pencil pepper piano pillow
    pine pipe plate plough pocket pond poplar porch postcard pot prism pump quarry quill quilt raft rail raven ribbon
    ring river road robin roof rope rug saddle sail salmon saw scale scarf shed shell shelf shield ship shop
    sieve signal sledge sleeve spade sparrow spoon spring stable stair stamp statue stool stove string suitcase table
    tailor tent thimble thread thrush ticket tile tool torch tower trail tray trout trunk tunnel turnip umbrella valley
    vase veil village vine violin wagon wall walnut watch weaver well wharf wheel whistle willow window wool
    workshop wreath
"""

ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())
_PLAIN = sorted({*ADJECTIVES, *NOUNS})

_CONSONANTS = "b br d dr f g gr h j k kl l m n p pr r s sk st t tr v w z"
_ONSETS = tuple(_CONSONANTS.split())
_VOWELS = ("a", "e", "i", "o", "u", "ae", "ei", "ou")
_CODAS = ("l", "n", "r", "s", "th", "nd", "rk", "lm", "st", "x")
_PLACE_ENDS = ("holm", "mere", "wick", "garth", "haven", "stead", "bourne", "dale", "fell", "combe")


def invented_name(rng: Random) -> str:
    """A name of two or three syllables: "Skouland", "Driberth"."""
    syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 1, 2)))]
    return ("".join(syllables) + rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)).capitalize()


def invented_place(rng: Random) -> str:
    """A name of a place: "Troulwick"."""
    return (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) + rng.choice(_PLACE_ENDS)).capitalize()


def invented_person(rng: Random) -> str:
    """First and last name."""
    return f"{invented_name(rng)} {invented_name(rng)}"


def distinct_pairs(rng: Random, count: int) -> list[str]:
    """`count` different words of two plain ones each, in drawn order: "amber-otter".

    All are of one make, so that none stands out and none is part of another; there are enough for two million tokens.

    Raises:
        InvalidRequest: more were asked for than there are.
    """
    firsts, seconds = len(_PLAIN), len(_PLAIN) - 1
    if count > firsts * seconds:
        raise InvalidRequest(f"{count:,} different words were asked for and there are {firsts * seconds:,}")
    return [_pair(*divmod(number, seconds)) for number in rng.sample(range(firsts * seconds), count)]


def _pair(first: int, second: int) -> str:
    return f"{_PLAIN[first]}-{_PLAIN[second if second < first else second + 1]}"
