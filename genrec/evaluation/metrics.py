"""Every figure that genrec reports of a model: its name, formula and unit, where it is used, and what others call it.

A case is a staying person's last item after the ones before it (the last but one where `genrec bench unlearn` has
--tuning): one target, so that Recall@k is a hit rate and the ideal DCG is 1. The whole catalogue is ranked, items of
the history among it, by the bare model, without deny list or filter. Shares have Wilson's interval, coverage@10 and
trade-off@10 none, all others a bootstrap's over people. Names in RecBole and torchmetrics are given where the
definition is the same.

A history is in the order of its times, equal ones by a seeded hash. Amazon Beauty has days alone: there the published
order stays (within a day by product code), so that figures compare with the literature's. `tied_targets`, beside the
figures of the base model and of `genrec bench quality`, is the share of test items that the source's times, to a day
there, do not tell from the item before.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One figure. name: as in JSON, MLflow and reports, `...` standing for a label and k for 5 or 10; used: where."""

    name: str
    formula: str
    unit: str
    used: str
    recbole: str = ""
    torchmetrics: str = ""

    def names(self, figure: str) -> bool:
        """Whether `figure` is one of this name."""
        pattern = re.escape(self.name).replace(r"\.\.\.", ".+").replace("@k", r"@\d+")
        return re.fullmatch(pattern, figure) is not None


EVERYWHERE = "base model, night, bench"
NIGHT = "night, calibration, bench"
BENCH = "bench"

METRICS = (
    Metric("recall@k", "mean of [rank < k], rank from 0", "share of cases", EVERYWHERE, "Recall, Hit",
           "RetrievalRecall"),
    Metric("ndcg@k", "mean of [rank < k] / log2(rank + 2)", "0 to 1", EVERYWHERE, "NDCG",
           "RetrievalNormalizedDCG"),
    Metric("mrr@k", "mean of [rank < k] / (rank + 1)", "0 to 1", EVERYWHERE, "MRR", "RetrievalMRR"),
    Metric("test NLL", "mean over cases of -log p(target) / tokens of its SID", "nat/token", EVERYWHERE),
    Metric("coverage@10", "different items in all top-10 lists / items", "share of the catalogue", EVERYWHERE,
           "ItemCoverage"),
    Metric("ndcg@10 ratio", "ndcg@10 / the champion's, same cases", "ratio", "gates utility, collateral, drift; bench"),
    Metric("test NLL increase", "test NLL - the champion's, same cases", "nat/token",
           "gates utility, collateral; calibration; bench"),
    Metric("test NLL increase, ...",
           "the same on a slice: head, mid or tail (20, 40, 40 % of the items), short or long history, sharing 1 or 2+ "
           "SID tokens with the concept", "nat/token", BENCH),
    Metric("test NLL over retrained", "test NLL - the retrained model's, same cases", "nat/token", BENCH),
    Metric("prediction shift", "share of cases whose first item is not the champion's", "share of cases", BENCH),
    Metric("user NLL gap", "mean NLL of forgotten people - of never-seen ones, nearest in length", "nat/token",
           f"{NIGHT}; gates user-nll, over-forgetting"),
    Metric("user NLL gap over retrained", "the gap - the retrained model's, same people", "nat/token",
           "gates user-nll, over-forgetting where there is such a model; bench"),
    Metric("user NLL gap over the retrained model's", "the same", "nat/token", "calibration, power"),
    Metric("membership AUC", "P(NLL of a forgotten < NLL of a never-seen person), ties half", "0 to 1",
           f"{NIGHT}; gate membership", "AUC", "BinaryAUROC"),
    Metric("membership loss AUC", "membership AUC, as one of three attacks", "0 to 1", BENCH, "AUC", "BinaryAUROC"),
    Metric("membership calibrated AUC", "AUC of NLL(backbone) - NLL", "0 to 1", BENCH, "AUC", "BinaryAUROC"),
    Metric("membership min_k AUC", "AUC of the mean NLL of a person's 20 % least likely tokens", "0 to 1", BENCH,
           "AUC", "BinaryAUROC"),
    Metric("membership ... TPR@1%FPR", "forgotten people found by an attack that flags 1 % of never-seen ones",
           "share of people", BENCH),
    Metric("sh@10 ...", "share of cases with another target whose top 10 holds an item of the concept",
           "share of cases", f"{NIGHT}; gate concept"),
    Metric("likers sh@10", "the same of people whose history holds an item of the concept", "share of cases", BENCH),
    Metric("others sh@10", "the same of the rest", "share of cases", BENCH),
    Metric("exposure share", "concept items / 10, mean over all lists", "share of a list", BENCH),
    Metric("target mass", "sum of p(SID) over the concept's items, mean over cases", "probability", BENCH),
    Metric("KL from ...", "KL(other model || candidate) over the vocabulary, per target token", "nat/token", BENCH),
    Metric("prediction shift from ...", "share of target tokens whose most likely token is not the other model's",
           "share of tokens", BENCH),
    Metric("perplexity forgotten", "exp(mean NLL per token) of the forgotten sequences", "1 and more", BENCH,
           torchmetrics="Perplexity"),
    Metric("forget recall@10", "recall@10 of forgotten people's last training item", "share of people", BENCH,
           "Recall, Hit", "RetrievalRecall"),
    Metric("forget ndcg@10", "ndcg@10 of the same", "0 to 1", BENCH, "NDCG", "RetrievalNormalizedDCG"),
    Metric("trade-off@10", "U-CAN's: share of the forgotten people's recall@10 lost - the same of the others",
           "points of 100", BENCH),
    Metric("extraction@50", "forgotten people whose last training item is in the top 50 after the ones before it",
           "share of people", BENCH),
    Metric("extraction@50 over unseen", "the same - never-seen people's", "difference of shares", BENCH),
    Metric("relearning gains over retrained",
           "what `relearn.steps` on a part of the rows bring back - the same of the retrained model",
           "nat/token (people), share of cases (concept)", "bench; gate relearn"),
    Metric("relearning gains over retrained, same SIDs", "the same, the retrained model on the candidate's SIDs",
           "share of cases", BENCH),
)  # fmt: skip
