"""The section `rivals` of params.yaml: what `genrec bench quality` measures the served model against."""

from pydantic import Field, model_validator

from genrec.section import Section


class SasRecParams(Section):
    """SASRec, arXiv 1808.09781, with full softmax cross-entropy."""

    hidden: int = Field(128, ge=2, description="width of items, positions and layers")
    layers: int = Field(2, ge=1, description="transformer blocks")
    heads: int = Field(2, ge=1, description="hidden is a multiple of it")
    feed_forward: int = Field(256, ge=1, description="width inside a feed-forward block")
    dropout: float = Field(0.5, ge=0, lt=1, description="on embeddings, attention and layers")
    window: int = Field(50, ge=1, description="items of history the model sees")
    epochs: int = Field(30, ge=1, description="the schedule's end; the epoch of the best validation NDCG@10 is kept")
    batch_tokens: int = Field(1024, ge=2, description="items per optimiser step, padding counted")
    learning_rate: float = Field(1e-3, gt=0, description="peak of the schedule (AdamW)")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of steps with rising learning rate; cosine after")
    clip_norm: float = Field(
        1.0, gt=0, description="largest gradient norm of a step; a larger one is scaled down to it"
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "SasRecParams":
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} is no multiple of heads = {self.heads}")
        return self


class ItemKnnParams(Section):
    """Cosine of co-occurrence."""

    neighbours: int = Field(200, ge=1, description="most similar items kept per item")
    shrinkage: float = Field(10.0, ge=0, description="added to the denominator: rare pairs count less")
    recency: float = Field(
        0.9, gt=0, le=1, description="weight of an item relative to the next newer one of the history; 1: all alike"
    )


class WholeParams(Section):
    """The served architecture with all weights trained on interactions. Batches and schedule are those of `train`."""

    epochs: int = Field(20, ge=1, description="the schedule's end; the epoch of the best validation NDCG@10 is kept")
    learning_rate: float = Field(2e-3, gt=0, description="peak of the schedule (AdamW)")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    dropout: float = Field(0.2, ge=0, lt=1, description="on the token embeddings")


class RivalsParams(Section):
    validation_users: int = Field(2000, ge=1, description="users whose validation item chooses the best epoch")
    sasrec: SasRecParams = SasRecParams()
    item_knn: ItemKnnParams = ItemKnnParams()
    whole: WholeParams = WholeParams()
