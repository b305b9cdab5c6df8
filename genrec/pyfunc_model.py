"""The MLflow model of a bundle, loaded from code: MLflow keeps a copy of this file beside the bundle, no pickle."""

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class BundleModel(PythonModel):
    """Input: a column `history` of lists of item ids. Parameter `k`. Output: columns `item_ids` and `scores`."""

    def load_context(self, context):
        from pathlib import Path

        from genrec.models.bundle import load_bundle

        self.bundle = load_bundle(Path(context.artifacts["bundle"]))
        self.network = self.bundle.model()

    def predict(self, context, model_input, params=None):
        from genrec.serving import recommend

        histories = [list(history) for history in model_input["history"]]
        lists = recommend(self.bundle, self.network, histories, (params or {}).get("k", 10))
        return pd.DataFrame(
            {
                "item_ids": [[item["item_id"] for item in row] for row in lists],
                "scores": [[item["score"] for item in row] for row in lists],
            }
        )


set_model(BundleModel())
