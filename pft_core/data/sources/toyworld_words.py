"""The words of `toyworld`. An option is "manner action the thing"; only the manner shows the pole.

MANNERS: for each axis, the manners of the first pole and of the second. A policy has to learn them, so they are the
same in every split; the splits differ in the combinations of the other words.
"""

# By axis: the adverbs of the first pole, and of the second.
MANNERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # axes of the demo
    "Risk": (
        ("boldly", "bravely", "fearlessly", "rashly", "recklessly", "brashly", "daringly", "audaciously"),
        ("cautiously", "warily", "prudently", "safely", "guardedly", "vigilantly", "watchfully", "carefully"),
    ),
    "Pace": (
        ("quickly", "promptly", "hastily", "instantly", "briskly", "hurriedly", "speedily", "swiftly"),
        ("slowly", "gradually", "lingeringly", "unhurriedly", "leisurely", "steadily", "belatedly", "patiently"),
    ),
    "Candour": (
        ("frankly", "bluntly", "openly", "sternly", "sharply", "flatly", "gruffly", "curtly"),
        ("gently", "tactfully", "kindly", "delicately", "softly", "mildly", "considerately", "tenderly"),
    ),
    # axes on which the base model is trained
    "Mood": (
        ("gladly", "happily", "merrily", "joyfully", "cheerfully", "brightly", "gleefully", "jauntily"),
        ("sadly", "glumly", "grimly", "sullenly", "mournfully", "gloomily", "wearily", "dourly"),
    ),
    "Order": (
        ("neatly", "tidily", "orderly", "precisely", "methodically", "cleanly", "exactly", "smartly"),
        ("messily", "sloppily", "untidily", "clumsily", "randomly", "vaguely", "scruffily", "chaotically"),
    ),
    "Manners": (
        ("formally", "ceremonially", "solemnly", "officially", "correctly", "stiffly", "properly", "courteously"),
        ("casually", "loosely", "breezily", "cheekily", "informally", "playfully", "jokingly", "offhandedly"),
    ),
    "Effort": (
        ("eagerly", "keenly", "busily", "diligently", "tirelessly", "vigorously", "ardently", "zealously"),
        ("lazily", "idly", "sleepily", "languidly", "listlessly", "slackly", "drowsily", "halfheartedly"),
    ),
    "Company": (
        ("jointly", "together", "collectively", "mutually", "communally", "publicly", "sociably", "neighbourly"),
        ("privately", "alone", "singly", "separately", "independently", "secretly", "solitarily", "personally"),
    ),
    "Taste": (
        ("lavishly", "richly", "grandly", "splendidly", "opulently", "showily", "royally", "fancily"),
        ("plainly", "simply", "modestly", "barely", "humbly", "sparsely", "frugally", "starkly"),
    ),
}

ACTIONS = (
    "sell", "keep", "share", "lend", "trade", "repair", "show", "claim", "insure", "clean",
    "photograph", "restore", "test", "price", "move", "store", "rent", "paint", "return", "describe",
)  # fmt: skip

THINGS = (
    "boat", "piano", "tractor", "caravan", "loom", "kiln", "telescope", "bicycle", "cello", "canoe",
    "sledge", "press", "stove", "clock", "carousel", "wagon", "motorbike", "camera", "bookcase", "lantern",
    "tent", "violin", "drum", "globe", "scooter", "mirror", "statue", "sofa", "carpet", "harp",
    "kayak", "van", "raft", "swing", "bench", "ladder", "generator", "beehive", "puppet", "trunk",
)  # fmt: skip

NAMES = (
    "Mara", "Tilda", "Jonas", "Ines", "Otto", "Priya", "Samir", "Lena", "Bruno", "Yuki",
    "Carla", "Dmitri", "Esther", "Felix", "Gwen", "Hassan", "Irma", "Karim", "Lucia", "Milo",
    "Nadia", "Oscar", "Paula", "Quinn", "Rosa", "Stefan", "Tariq", "Uma", "Viktor", "Wanda",
)  # fmt: skip

# The beginnings of scenarios.
SITUATIONS = (
    "{name} has inherited a {thing} that two cousins want as well.",
    "A neighbour leaves {name} a {thing} and the bills for it.",
    "{name} has found a {thing} that nobody seems to own.",
    "The town wants the {thing} of {name} for its museum.",
    "{name} bought a {thing} with a friend who now wants out.",
    "A storm has damaged the {thing} that {name} looks after.",
    "A stranger asks {name} about the {thing} in the yard.",
    "{name} borrowed a {thing} from someone who has moved away.",
    "The school has given {name} a {thing} without a word.",
    "{name} may have the {thing} of an old rival.",
    "There is a {thing} in the hall and {name} must decide.",
    "{name} won a {thing} but has no room for it.",
)
