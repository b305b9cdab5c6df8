"""The MLflow model of a bundle, loaded from code: MLflow keeps a copy of this file beside the bundle, no pickle.

genrec is not in the model: what reads the ledger and the registry is the genrec that is installed where it runs.
"""

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class BundleModel(PythonModel):
    """Input: a column `history` of lists of item ids. Parameter `k`. Output: columns `item_ids` and `scores`.

    Served where GENREC_HOME is set (or GENREC_LEDGER_URL and GENREC_MLFLOW_URI), it keeps to the ledger's deny list as
    well as to the bundle's; the champion follows the alias, and another version is refused once it knows what was
    forgotten.
    """

    def load_context(self, context):
        from pathlib import Path

        try:
            from genrec.served import served_model
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error}. This model runs where genrec is installed: serve it from there with --env-manager local."
            ) from error
        self.current, self.denied = served_model(Path(context.artifacts["bundle"]))

    def predict(self, context, model_input, params=None):
        from genrec.serving import recommend

        served, histories = self.current(), [list(history) for history in model_input["history"]]
        lists = recommend(served.bundle, served.model, histories, (params or {}).get("k", 10), self.denied())
        return pd.DataFrame(
            {
                "item_ids": [[item["item_id"] for item in row] for row in lists],
                "scores": [[item["score"] for item in row] for row in lists],
            }
        )


set_model(BundleModel())
