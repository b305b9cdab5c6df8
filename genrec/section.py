"""What every part of the configuration tree is."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of the tree: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
