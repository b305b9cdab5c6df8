"""Fine-tuning on retained rows alone: the forgotten ones fade, or do not. The weakest baseline.

L = NLL_r, the mean NLL per retained token. As in "Descent-to-Delete" (arXiv 2007.02923), without its noise.
"""

from genrec.training.rows import batch_loss
from genrec.unlearning.descent import descend
from genrec.unlearning.problem import Method, Outcome, Problem


def finetune(problem: Problem) -> Outcome:
    """Descend on the retained half of each batch; the other methods see as many retained rows."""
    params = problem.params.unlearning.finetune
    return descend(problem, params, lambda model, forget, retain: {"retain": batch_loss(model, retain)})


METHOD = Method("finetune", finetune)
