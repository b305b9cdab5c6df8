"""The MLflow model of a bundle, loaded from code: MLflow keeps a copy of this file beside the bundle, no pickle."""

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class BundleModel(PythonModel):
    """Input: a column `history` of lists of item ids. Parameter `k`. Output: columns `item_ids` and `scores`.

    Served where GENREC_HOME or GENREC_LEDGER_URL is set, it keeps to the ledger's deny list as well as to the bundle's.
    """

    def load_context(self, context):
        from pathlib import Path

        from genrec.config import Settings
        from genrec.models.bundle import load_bundle
        from genrec.requests.deny import current_deny

        self.bundle = load_bundle(Path(context.artifacts["bundle"]))
        self.network = self.bundle.model()
        settings, seconds = Settings(), self.bundle.params.serving.refresh_seconds
        configured = settings.model_fields_set & {"home", "ledger_url"}
        self.deny = current_deny(settings.workspace.ledger_url, seconds) if configured else None

    def predict(self, context, model_input, params=None):
        from genrec.serving import recommend

        histories = [list(history) for history in model_input["history"]]
        denied = self.deny.value() if self.deny else ()
        lists = recommend(self.bundle, self.network, histories, (params or {}).get("k", 10), denied)
        return pd.DataFrame(
            {
                "item_ids": [[item["item_id"] for item in row] for row in lists],
                "scores": [[item["score"] for item in row] for row in lists],
            }
        )


set_model(BundleModel())
