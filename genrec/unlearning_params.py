"""The section `unlearning` of params.yaml: one frozen set of parameters per method, and the ladders."""

from typing import Literal

from pydantic import Field

from genrec.section import Section


class UcanParams(Section):
    """U-CAN, arXiv 2602.23400 (reconstruction): contrast, utility, soft attenuation."""

    axis: Literal["out", "rank", "in"] = Field(
        "out", description="which dimensions of the adapter decay: rows of B, the canonical rank, or columns of A"
    )
    risk_weight: float = Field(0.6, ge=0, le=1, description="lambda: weight of the contrast against (1 - utility)")
    quantile: float = Field(0.9, gt=0, lt=1, description="risk quantile above which a dimension decays")
    decay: float = Field(3.0, gt=0, description="beta of the exponential decay")
    floor: float = Field(0.05, ge=0, lt=1, description="s_min, the smallest scale")
    retain_users: int = Field(200, ge=1, description="size of the retain sample whose activations are streamed")


class UcanPlusParams(Section):
    """U-CAN+ (ours): attribution contrast, bounded forgetting, divergence from the start model as utility."""

    share: float = Field(0.5, gt=0, le=1, description="share of the adapter's weights, by contrast, that may change")
    contrast_rows: int = Field(48, ge=1, description="rows of either side that the contrast is taken on")
    forget_weight: float = Field(0.5, gt=0, description="lambda")
    forget_rise: float = Field(
        0.06, gt=0, description="how much less likely a forgotten row becomes, nat/token; see genrec calibrate"
    )
    steps: int = Field(25, ge=1, description="optimiser steps")
    batch_tokens: int = Field(3200, ge=64, description="tokens per step of either side, padding counted")
    learning_rate: float = Field(1e-3, gt=0, description="peak of the warm-up and cosine schedule (AdamW)")


class UcanPlusAttenuateParams(Section):
    """U-CAN+ in its first form: attribution contrast, soft attenuation, short repair on labels."""

    share: float = Field(0.1, gt=0, le=1, description="share of the adapter's weights, by contrast, that decay")
    contrast_rows: int = Field(48, ge=1, description="rows of either side that the contrast is taken on")
    decay: float = Field(3.0, gt=0, description="beta of the exponential decay")
    floor: float = Field(0.05, ge=0, lt=1, description="s_min, the smallest scale")
    steps: int = Field(80, ge=0, description="repair steps on retained rows; 0: none")
    batch_tokens: int = Field(3200, ge=64, description="tokens per repair step, padding counted")
    learning_rate: float = Field(1e-3, gt=0, description="peak of the repair's warm-up and cosine schedule (AdamW)")


class TracerParams(Section):
    """TRACER, arXiv 2606.07688."""

    steps: int = Field(60, ge=1, description="batches grow so that every forget row is used within them")
    batch_tokens: int = Field(
        4800, ge=64, description="per step: two thirds forget, a sixth coherence, and a quarter of it again retain"
    )
    retain_weight: float = Field(12.0, ge=0, description="weight of L_R, the divergence from the start model")
    learning_rate: float = Field(2e-4, gt=0, description="adapter (AdamW)")
    phi_learning_rate: float = Field(0.08, gt=0, description="assignment scores, in units of tau (AdamW)")
    forget_weight: float = Field(0.1, ge=0, description="l1")
    coherence_weight: float = Field(0.05, ge=0, description="l2")
    score_weight: float = Field(1e-3, ge=0, description="l3")
    coherence_items: int = Field(5, ge=1, description="K nearest retained items that take the freed mass")
    forget_margin: float = Field(4.0, ge=0, description="L_F stops at this many nat per item below a uniform guess")
    sharpen: float = Field(10.0, ge=1, description="factor by which tau shrinks over the run")
    tolerance: float | None = Field(
        None, description="it may stop with retained users' validation NLL at most so much over the start; null: never"
    )
    repair_steps: int = Field(40, ge=1, description="further steps after the commit in the `tracer_repair` rung")


class HardPruneParams(Section):
    """Hard pruning: contrast, utility, axis and quantile are those of `ucan`."""

    floor: float = Field(0.0, ge=0, lt=1, description="scale of a pruned dimension; 0 removes it")


class DescentParams(Section):
    """What the gradient baselines share: AdamW on the adapter, half of each batch forget rows, half retain rows."""

    steps: int = Field(80, ge=1, description="optimiser steps")
    batch_size: int = Field(16, ge=2, description="rows per step: half forget, half retain")
    learning_rate: float = Field(5e-4, gt=0, description="of the adapter (AdamW)")


class GradientAscentParams(DescentParams):
    """Gradient ascent has no retain term and no bound: fewer and smaller steps, or nothing of the model is left."""

    steps: int = Field(20, ge=1, description="optimiser steps; more of them destroy the model")
    learning_rate: float = Field(2e-4, gt=0, description="of the adapter (AdamW)")


class GradDiffParams(DescentParams):
    """GradDiff, arXiv 2203.12817; KL variant arXiv 2401.06121."""

    retain_term: Literal["nll", "kl"] = Field("nll", description="NLL of retained rows, or KL from the start model")
    retain_weight: float = Field(1.0, ge=0, description="weight of the retain term")


class NpoParams(DescentParams):
    """NPO, arXiv 2404.05868."""

    beta: float = Field(0.1, gt=0, description="inverse temperature; towards 0 it is gradient ascent")
    retain_weight: float = Field(1.0, ge=0, description="weight of the retained rows' NLL")


class SimNpoParams(DescentParams):
    """SimNPO, arXiv 2410.07163."""

    beta: float = Field(0.5, gt=0, description="inverse temperature of the mean log p per token")
    gamma: float = Field(0.0, ge=0, description="margin of the reward")
    retain_weight: float = Field(1.0, ge=0, description="weight of the retained rows' NLL")


class ScifParams(Section):
    """SCIF, arXiv 2304.10199, with a damped Gauss-Newton matrix on the adapter."""

    retain_rows: int = Field(256, ge=1, description="size of the retain sample whose curvature is used")
    damping: float = Field(1e-2, gt=0, description="added to the diagonal of the Gauss-Newton matrix")
    cg_steps: int = Field(10, ge=1, description="conjugate-gradient steps")
    batch_tokens: int = Field(3200, ge=64, description="tokens per forward pass, padding counted")


class UnlearningParams(Section):
    ucan: UcanParams = UcanParams()
    ucan_plus: UcanPlusParams = UcanPlusParams()
    ucan_plus_attenuate: UcanPlusAttenuateParams = UcanPlusAttenuateParams()
    tracer: TracerParams = TracerParams()
    hard_prune: HardPruneParams = HardPruneParams()
    finetune: DescentParams = DescentParams()
    gradient_ascent: GradientAscentParams = GradientAscentParams()
    graddiff: GradDiffParams = GradDiffParams()
    npo: NpoParams = NpoParams()
    simnpo: SimNpoParams = SimNpoParams()
    scif: ScifParams = ScifParams()
    user_ladder: tuple[str, ...] = Field(
        ("ucan", "ucan_plus", "retrain"), description="methods tried for users, in order; retrain is always the last"
    )
    concept_ladder: tuple[str, ...] = Field(
        ("tracer", "tracer_repair", "retrain"), description="methods tried for concepts and items, in order"
    )
