"""What the data knows of a subject, and why a request about it is refused."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

from genrec.data.subjects import Subject
from genrec.errors import RequestError, unknown


@dataclass(frozen=True)
class Known:
    """What the data knows, to check a subject against. `concepts` maps a tag to its number of catalogue items."""

    users: Container[str]
    items: Container[str]
    concepts: Mapping[str, int]
    catalogue_size: int
    interactions: Callable[[str, str], bool]


def refuse(subject: Subject, known: Known, max_share: float) -> None:
    """Raise RequestError for a subject the data does not know or a concept over more than `max_share` of its items."""
    if subject.user_id and subject.user_id not in known.users:  # neither this id nor a near one belongs in a message
        raise RequestError("Unknown user: the data holds nothing under this id. Check how the source writes its ids.")
    if subject.item_id and subject.item_id not in known.items:
        raise RequestError(f"Unknown item {subject.item_id!r}. Check its item_id in the items table.")
    if subject.kind == "interaction" and not known.interactions(subject.user_id, subject.item_id):
        raise RequestError(f"This user has no interaction with item {subject.item_id!r}. Check both ids.")
    if subject.kind == "concept":
        if subject.concept not in known.concepts:
            raise RequestError(unknown("concept", subject.concept, known.concepts, "See genrec data concepts."))
        count, size = known.concepts[subject.concept], known.catalogue_size
        if count > max_share * size:
            raise RequestError(
                f"Concept {subject.concept!r} covers {count / size:.1%} of the catalogue ({count} of {size} items), "
                f"more than the {max_share:.1%} of requests.max_concept_share. Ask for a narrower one or raise it."
            )
