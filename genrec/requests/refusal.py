"""What the data knows of a subject, and why a request about it, or a text in it, is refused."""

import re
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


def storable(name: str, value: str, longest: int | None = None) -> str:
    """`value` as it is. Raises RequestError, without showing it, where not every database could store exactly that."""
    fault = None
    if "\0" in value:
        fault = "a NUL character"
    elif re.search("[\ud800-\udfff]", value):
        fault = "a lone surrogate, which is no Unicode text"
    elif longest is not None and len(value) > longest:
        fault = f"{len(value)} characters, more than {longest}"
    if fault:
        raise RequestError(f"The {name} holds {fault}. Send it as the source writes it, in UTF-8.")
    return value


def free_text(name: str, value: str, user_id: str | None) -> str:
    """`value`, which the audit chain keeps for good. Raises RequestError where it is blank or names the person."""
    if not storable(name, value).strip():
        raise RequestError(f"The {name} is empty. Say it in a few words; the audit chain keeps it.")
    if user_id and re.search(rf"(?<!\w){re.escape(user_id)}(?!\w)", value, re.IGNORECASE):
        raise RequestError(
            f"The {name} holds the person's id, and the audit chain keeps it for good. Leave the id out."
        )
    return value


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
