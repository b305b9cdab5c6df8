"""Parameters of the audits of evaluation.md; importable without torch."""

from pydantic import Field

from genrec.section import Section


class RelearnParams(Section):
    """The relearning attack: a little training on a share of what was forgotten."""

    steps: int = Field(20, ge=1, description="optimiser steps of the attacker")
    share: float = Field(0.10, gt=0, le=1, description="share of the forget rows the attacker holds, at least one row")
    learning_rate: float = Field(5e-4, gt=0, description="peak of the attacker's cosine schedule (AdamW)")
    batch_size: int = Field(16, ge=1, description="rows per step")


class BenchParams(Section):
    """What `genrec bench unlearn` erases."""

    user_share: float = Field(0.10, gt=0, lt=1, description="share of the trained users that one draw forgets")
    tuning_share: float = Field(0.20, gt=0, lt=1, description="share of users that only `--tuning` draws from")
    tuning_concepts: tuple[str, ...] = Field(
        ("Horror", "Western", "Documentary", "Animation"),
        description="concepts that methods were tuned on or rules prompted by, never reported; default: of ML-100k",
    )
    concepts: int = Field(5, ge=1, description="concepts to choose when none is named")
    concept_share: tuple[float, float] = Field((0.005, 0.15), description="share of training rows of a chosen concept")
    max_cases: int = Field(2000, ge=1, description="cases to measure on, a sample where there are more")
    nights: int = Field(10, ge=1, description="nights of a stream")
    night_users: tuple[float, float] = Field(
        (0.001, 0.01),
        description="share of the users that a night forgets; at least gates.min_users people where the upper end is",
    )
    concept_nights: int = Field(3, ge=0, description="nights of a stream that forget a concept as well")
