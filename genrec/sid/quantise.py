"""RQ-KMeans: an embedding becomes one code per level, each level quantising what the one before left over.

methods.md, "Semantic IDs": r^1 = norm(z); s^l = argmin_k ||r^l - c_k^l||^2; r^(l+1) = norm(r^l - c^l_{s^l}).
Clustering is faiss k-means; assignment is done here in float64, because reduced precision flips codes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.errors import DataError


@dataclass(frozen=True)
class Codebooks:
    """Centroids float32 [levels, codes, d] and the seed they were fitted with."""

    centroids: np.ndarray
    seed: int

    @property
    def levels(self) -> int:
        return self.centroids.shape[0]

    @property
    def codes(self) -> int:
        return self.centroids.shape[1]


def _norm(x: np.ndarray) -> np.ndarray:
    """Rows to unit length; a zero row (an item that is its own centroid) stays zero."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def squared_distances(residuals: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """||r - c||^2 in float64: [n, d], [K, d] -> [n, K]."""
    r, c = residuals.astype(np.float64), centroids.astype(np.float64)
    return (r * r).sum(1)[:, None] - 2 * r @ c.T + (c * c).sum(1)[None]


def fit(embeddings: np.ndarray, levels: int, codes: int, iterations: int, seed: int) -> Codebooks:
    """Fit one k-means per level on the residuals of the level before. `embeddings` is [n, d]."""
    import faiss

    n, d = embeddings.shape
    if not np.isfinite(embeddings).all():
        raise DataError("Embeddings hold NaN or infinity. Embed the items again; see embed.encoder.")
    if codes > n:
        raise DataError(f"sid.codes = {codes} is larger than the catalogue ({n} items). Set sid.codes to {n} or less.")
    residuals = _norm(embeddings.astype(np.float64))
    centroids = np.empty((levels, codes, d), np.float32)
    for level in range(levels):
        kmeans = faiss.Kmeans(
            d, codes, niter=iterations, nredo=3 if n < 50_000 else 1, seed=seed + level,
            min_points_per_centroid=1, max_points_per_centroid=1024,
        )  # fmt: skip
        kmeans.train(np.ascontiguousarray(residuals, np.float32))
        centroids[level] = kmeans.centroids
        residuals = _step(residuals, centroids[level])[1]
    return Codebooks(centroids, seed)


def _step(residuals: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    code = squared_distances(residuals, centroids).argmin(1)
    return code, _norm(residuals - centroids[code].astype(np.float64))


def assign(embeddings: np.ndarray, codebooks: Codebooks) -> np.ndarray:
    """Nearest code of every level, int32 [n, levels]."""
    residual, codes = _norm(embeddings.astype(np.float64)), []
    for centroids in codebooks.centroids:
        code, residual = _step(residual, centroids)
        codes.append(code)
    return np.stack(codes, 1).astype(np.int32)


def residuals_along(embeddings: np.ndarray, codes: np.ndarray, codebooks: Codebooks) -> np.ndarray:
    """r^l along given `codes` [n, levels], which may differ from the nearest ones: float64 [n, levels, d]."""
    residual, path = _norm(embeddings.astype(np.float64)), []
    for level, centroids in enumerate(codebooks.centroids):
        path.append(residual)
        residual = _norm(residual - centroids[codes[:, level]].astype(np.float64))
    return np.stack(path, 1)


def save_codebooks(codebooks: Codebooks, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"centroids": codebooks.centroids}, path, metadata={"seed": str(codebooks.seed)})


def load_codebooks(path: Path) -> Codebooks:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return Codebooks(file.get_tensor("centroids"), int(file.metadata()["seed"]))
