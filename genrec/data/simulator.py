"""A seeded shop to run everything on without downloading anything.

What makes it more than noise: item popularity follows Zipf's law; users have a taste over concepts that drifts during
their history; parts of a series are mostly bought in order and soon after one another; and an item draws the few items
that go with it. So the last item says more about the next one than popularity does.
"""

import hashlib

import numpy as np
import pyarrow as pa

from genrec.config import SimulatedParams
from genrec.data.tables import SCHEMAS, Tables

# concept: (share of items that have it as their main concept, nouns for titles, words for texts)
SHOP = {
    "Garden": (0.13, "Trellis Trowel Planter Hedge Greenhouse", "soil seeds pruning flowers compost lawn"),
    "Kitchen": (0.12, "Skillet Kettle Teapot Casserole Whisk", "cooking baking recipes knives pans dinner"),
    "Cycling": (0.11, "Saddle Pannier Derailleur Handlebar Helmet", "bicycle riding gears wheels road commuting"),
    "Fantasy": (0.10, "Dragon Lantern Kingdom Sorcerer Crown", "magic quest wizards swords prophecy realm"),
    "Photography": (0.095, "Tripod Lens Shutter Viewfinder Darkroom", "camera portraits exposure light film landscape"),
    "Knitting": (0.09, "Cardigan Bobbin Spindle Mitten Shawl", "yarn wool needles stitches patterns crochet"),
    "Astronomy": (0.085, "Telescope Comet Nebula Eclipse Observatory", "stars planets galaxies orbit night sky"),
    "Camping": (0.075, "Tent Hammock Campfire Rucksack Canteen", "hiking wilderness trail shelter stove mountains"),
    "Board Games": (0.065, "Gambit Meeple Dungeon Tile Outpost", "strategy dice cards players rules turns"),
    "Horror": (0.05, "Crypt Phantom Cellar Asylum Raven", "ghosts haunted terror blood nightmare curse"),
    "Music": (0.045, "Ukulele Metronome Banjo Chorus Drum", "songs strings rhythm melody practice chords"),
    "Gambling": (0.035, "Roulette Jackpot Blackjack Croupier Wager", "casino betting poker odds slots bets"),
}
ADJECTIVES = (
    *("Amber", "Brass", "Copper", "Crimson", "Dusty", "Emerald", "Folding", "Gilded", "Hidden", "Ivory", "Jolly"),
    *("Little", "Midnight", "Northern", "Old", "Painted", "Quiet", "Rustic", "Scarlet", "Silver", "Sturdy", "Velvet"),
)
SERIES = ("Chronicles", "Handbook", "Collection", "Saga", "Workshop", "Journeys")

SERIES_START = 0.13  # about a third of the items, at three to five parts a series
SECOND_CONCEPT = 0.25
COMPANIONS = 3
FOLLOW_SERIES, FOLLOW_COMPANION = 0.65, 0.45
OUT_OF_ORDER = 0.03
SHORTEST = 6
EPOCH = 1_577_836_800
DAY = 86_400


def simulate(params: SimulatedParams, seed: int) -> Tables:
    """The shop's tables. The same parameters and seed give the same rows; users are named like `u00042-1f9c`."""
    random = np.random.default_rng(seed)
    concepts, following, items = _catalogue(params.items, random)
    users, bought = _histories(params, concepts, following, random)
    times = _times(users, params.users, random)
    rating = np.clip(random.normal(4.0, 0.8, len(users)).round(), 1, 5)
    names = [f"u{u:05d}-{hashlib.sha256(f'{seed}|{u}'.encode()).hexdigest()[:4]}" for u in range(params.users)]
    interactions = pa.table(
        [
            pa.array(names).take(pa.array(users)),
            items["item_id"].combine_chunks().take(pa.array(bought)),
            pa.array(times),
            pa.array(rating),
        ],
        schema=SCHEMAS["interactions"],
    )
    return Tables(interactions, items)


def _catalogue(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, pa.Table]:
    """Concept membership float [items, concepts], the next part of each item's series (or -1), and the item table."""
    shares = np.array([share for share, _, _ in SHOP.values()])
    main = np.repeat(np.arange(len(SHOP)), np.diff(np.round(np.cumsum([0, *shares]) * count).astype(int)))
    names = list(SHOP)
    member = np.zeros((count, len(SHOP)))
    member[np.arange(count), main] = 1.0
    following = np.full(count, -1)
    titles: list[str] = []
    used: set[str] = set()
    first = 0
    while first < count:
        left = int((main[first:] == main[first]).sum())
        parts = min(int(random.integers(3, 6)), left) if random.random() < SERIES_START else 1
        title = _title(names[main[first]], parts > 1, used, random)
        block = np.arange(first, first + parts)
        following[block[:-1]] = block[1:]
        titles += [f"{title}, part {part}" for part in range(1, parts + 1)] if parts > 1 else [title]
        if random.random() < SECOND_CONCEPT:
            second = (main[first] + random.integers(1, len(SHOP))) % len(SHOP)
            member[block, second] = 0.5
        first += parts
    texts = []
    for title, row in zip(titles, member, strict=True):
        tags = [names[c] for c in np.argsort(-row, kind="stable")[: int((row > 0).sum())]]
        words = random.choice(SHOP[tags[0]][2].split(), 3, replace=False)
        texts.append(f"{title}. {' and '.join(tags)}: {', '.join(words)}.")
    columns = [
        [f"i{index:04d}" for index in range(count)],
        titles,
        texts,
        [[names[c] for c in np.flatnonzero(row)] for row in member],
    ]
    return member, following, pa.table([pa.array(c) for c in columns], schema=SCHEMAS["items"])


def _title(concept: str, series: bool, used: set[str], random: np.random.Generator) -> str:
    first, second = random.choice(SHOP[concept][1].split(), 2, replace=False)
    adjective = random.choice(ADJECTIVES)
    title = f"The {adjective} {first} {random.choice(SERIES)}" if series else f"{adjective} {first} {second}"
    edition = 1
    while (name := title if edition == 1 else f"{title} {edition}") in used:
        edition += 1
    used.add(name)
    return name


def _histories(
    params: SimulatedParams, concepts: np.ndarray, following: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """User and item index of every interaction, int64 [rows], by user and in time order."""
    users, items = params.users, params.items
    popularity = 1.0 / (random.permutation(items) + 8.0) ** 0.7
    companions = _companions(concepts, random)
    previous = np.full(items, -1)
    previous[following[following >= 0]] = np.flatnonzero(following >= 0)
    start, end = random.dirichlet(np.full(concepts.shape[1], 0.35), (2, users))
    spread = random.gamma(2.0, max(params.mean_length - SHORTEST, 0) / 2.0, users)
    lengths = np.minimum(SHORTEST + spread.round().astype(int), items // 2)

    free = np.ones((users, items), bool)
    last = np.full(users, -1)
    chosen = np.full((users, lengths.max()), -1)
    for step in range(lengths.max()):
        active = np.flatnonzero(lengths > step)
        progress = (step / lengths[active])[:, None]
        taste = (1 - progress) * start[active] + progress * end[active]
        weight = (taste @ concepts.T + 0.01) * popularity
        has_previous = previous >= 0
        unread = np.zeros((len(active), items), bool)
        unread[:, has_previous] = free[active][:, previous[has_previous]]
        weight = np.where(unread, OUT_OF_ORDER * weight, weight) * free[active]
        cumulative = np.cumsum(weight, axis=1)
        drawn = random.random((len(active), 1)) * cumulative[:, -1:]
        pick = np.minimum((cumulative <= drawn).sum(axis=1), items - 1)
        follow, which = random.random(len(active)), random.integers(0, COMPANIONS, len(active))
        if step:
            sequel, companion = following[last[active]], companions[last[active], which]
            in_order = ~unread[np.arange(len(active)), companion]
            to_companion = (follow < FOLLOW_COMPANION) & free[active, companion] & in_order
            to_sequel = (sequel >= 0) & free[active, sequel] & (follow < FOLLOW_SERIES)
            pick = np.where(to_sequel, sequel, np.where(to_companion, companion, pick))
        chosen[active, step] = pick
        free[active, pick] = False
        last[active] = pick
    return np.repeat(np.arange(users), lengths), chosen[chosen >= 0]


def _companions(concepts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The items that go with each item, int64 [items, COMPANIONS]: random ones, mostly of the same main concept."""
    alike = (concepts == 1.0) @ (concepts == 1.0).T
    score = alike + random.random(alike.shape) * 1.2
    np.fill_diagonal(score, -1.0)
    return np.argsort(-score, axis=1, kind="stable")[:, :COMPANIONS]


def _times(owner: np.ndarray, users: int, random: np.random.Generator) -> np.ndarray:
    """Seconds, int64 [rows]: hours to weeks apart within a user, and one pair in a hundred at the same second."""
    gaps = 1 + random.exponential(3 * DAY, len(owner)).astype(np.int64)
    gaps[random.random(len(owner)) < 0.01] = 0
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    gaps[first] = 0
    total = np.cumsum(gaps)
    begin = EPOCH + random.integers(0, 365 * DAY, users)
    return begin[owner] + total - total[first][owner]
