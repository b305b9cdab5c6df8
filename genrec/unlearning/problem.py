"""What every unlearning method is given and gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from genrec.config import Params
from genrec.data.sequences import Dataset
from genrec.models.bundle import Bundle
from genrec.plugins import parameters
from genrec.section import Section


@dataclass(frozen=True, eq=False)
class Problem:
    """One erasure to make true in the weights.

    bundle: the model to start from, left as it is. retained: the data version without the forgotten rows; restored:
    the same with them put back. users: forgotten users (indices into `restored`), empty for a concept. items: item
    indices to forget wholesale (a concept's or an item's), empty for users. embeddings: float32 [items, d], by item
    index. batch_id names the overlay or SID change this leaves behind.
    """

    bundle: Bundle
    params: Params
    retained: Dataset
    restored: Dataset
    users: np.ndarray
    items: np.ndarray
    embeddings: np.ndarray
    batch_id: str
    seed: int = 0

    @cached_property
    def retained_users(self) -> np.ndarray:
        """Users of `retained` (indices into it) that have training rows."""
        return self.retained.trained_users


@dataclass(frozen=True, eq=False)
class Outcome:
    """The candidate bundle, and what the method has to say of how it went."""

    bundle: Bundle
    diagnostics: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A named method. exact: the result never saw the forgotten rows.

    params: of another package's method, what its keys under `plugins.methods.<name>` must be; None: it has none.
    """

    name: str
    run: Callable[[Problem], Outcome]
    exact: bool = False
    params: type[Section] | None = None

    def parameters(self, params: Params) -> Section | None:
        """The method's own keys of params.yaml. Raises ConfigError for those it does not know."""
        return parameters(self.params, params.plugins.methods.get(self.name, {}), f"plugins.methods.{self.name}")
