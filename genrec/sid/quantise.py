"""Residual quantisation: an embedding becomes one code per level, each level quantising what the one before left over.

methods.md, "Semantic IDs": r^1 = norm(z); s^l = argmin_k ||r^l - c_k^l||^2; r^(l+1) = norm(r^l - c^l_{s^l}). With an
encoder (RQ-VAE) r^1 is its latent of norm(z), and no residual is normalised. Codes are those of float64 distances,
because reduced precision flips some: float32 decides where its error bound lets it, float64 the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.errors import DataError

POINTS_PER_CODE = 1024
"""k-means trains on at most so many vectors per code, drawn once for all levels."""

CHUNK = 1024
"""Rows quantised at a time: what a chunk needs stays in the cache, and memory does not grow with the catalogue."""


@dataclass(frozen=True)
class Codebooks:
    """Centroids float32 [levels, codes, d], the seed they were fitted with, and the encoder in front of them.

    encoder: (weight [out, in], bias [out]) float32 of each layer, ReLU in between; empty for RQ-KMeans.
    """

    centroids: np.ndarray
    seed: int
    encoder: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    @property
    def levels(self) -> int:
        return self.centroids.shape[0]

    @property
    def codes(self) -> int:
        return self.centroids.shape[1]

    def entering(self, embeddings: np.ndarray) -> np.ndarray:
        """r^1 of `embeddings` [n, width]: float64 [n, d]."""
        x = norm(embeddings.astype(np.float64))
        for layer, (weight, bias) in enumerate(self.encoder):
            x = (np.maximum(x, 0) if layer else x) @ weight.T.astype(np.float64) + bias
        return x

    def left_over(self, residuals: np.ndarray, level: int, codes: np.ndarray) -> np.ndarray:
        """r^(l+1) from r^l float64 [n, d] and the codes int [n] of that level."""
        rest = residuals - self.centroids[level].astype(np.float64)[codes]
        return rest if self.encoder else norm(rest)


def norm(x: np.ndarray) -> np.ndarray:
    """Rows to unit length; a zero row (an item that is its own centroid) stays zero."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def squared_distances(residuals: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """||r - c||^2 in float64: [n, d], [K, d] -> [n, K]."""
    r, c = residuals.astype(np.float64), centroids.astype(np.float64)
    return (r * r).sum(1)[:, None] - 2 * r @ c.T + (c * c).sum(1)[None]


def nearest(residuals: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """argmin_k ||r - c_k||^2 as float64 has it: float64 [n, d], float32 [K, d] -> int64 [n].

    Float32 distances by |r|^2 + |c|^2 - 2 r.c are off by at most (d + 8) u (|r| + |c|)^2, u = 2^-24; rows whose two
    best are nearer to each other than twice that are decided in float64.
    """
    import faiss

    distances, codes = faiss.knn(residuals.astype(np.float32), centroids, min(2, len(centroids)))
    lengths = np.sqrt(np.einsum("ij,ij->i", residuals, residuals)) + np.linalg.norm(centroids, axis=1).max()
    bound = (residuals.shape[1] + 8) * np.finfo(np.float32).eps * lengths**2
    unsure = np.flatnonzero(distances[:, -1] - distances[:, 0] <= bound)
    nearest_codes = codes[:, 0]
    nearest_codes[unsure] = squared_distances(residuals[unsure], centroids).argmin(1)
    return nearest_codes


def check(embeddings: np.ndarray, codes: int) -> None:
    """Raise DataError unless all of `embeddings` [n, d] are finite and there is one for each of `codes`."""
    if not np.isfinite(embeddings).all():
        raise DataError("Embeddings hold NaN or infinity. Embed the items again; see embed.encoder.")
    if codes > len(embeddings):
        raise DataError(
            f"sid.codes = {codes} is larger than the catalogue ({len(embeddings)} items). "
            f"Set sid.codes to {len(embeddings)} or less."
        )


def cluster(vectors: np.ndarray, codes: int, iterations: int, seed: int):
    """A `faiss.Kmeans` trained on `vectors` float32 [n, d], the best of three runs below 50,000."""
    import faiss

    kmeans = faiss.Kmeans(
        vectors.shape[1], codes, niter=iterations, nredo=3 if len(vectors) < 50_000 else 1, seed=seed,
        min_points_per_centroid=1, max_points_per_centroid=POINTS_PER_CODE,
    )  # fmt: skip
    kmeans.train(vectors)
    return kmeans


def fit(embeddings: np.ndarray, levels: int, codes: int, iterations: int, seed: int) -> Codebooks:
    """RQ-KMeans: one k-means per level on the residuals of the level before. `embeddings` is [n, d].

    Raises DataError when one is not finite, and for fewer embeddings than codes.
    """
    check(embeddings, codes)
    n, most = len(embeddings), codes * POINTS_PER_CODE
    if n > most:
        embeddings = embeddings[np.sort(np.random.default_rng(seed).choice(n, most, replace=False))]
    codebooks = Codebooks(np.zeros((levels, codes, embeddings.shape[1]), np.float32), seed)
    residuals = np.empty(embeddings.shape, np.float64)
    for part in chunks(len(embeddings)):
        residuals[part] = codebooks.entering(embeddings[part])
    for level in range(levels):
        codebooks.centroids[level] = cluster(residuals.astype(np.float32), codes, iterations, seed + level).centroids
        for part in chunks(len(residuals)) if level < levels - 1 else ():
            code = nearest(residuals[part], codebooks.centroids[level])
            residuals[part] = codebooks.left_over(residuals[part], level, code)
    return codebooks


def chunks(rows: int) -> Iterator[slice]:
    """Slices that cover `rows` rows, CHUNK at a time."""
    return (slice(start, start + CHUNK) for start in range(0, rows, CHUNK))


def assign(embeddings: np.ndarray, codebooks: Codebooks) -> np.ndarray:
    """Nearest code of every level, int32 [n, levels]."""
    codes = np.empty((len(embeddings), codebooks.levels), np.int32)
    for part in chunks(len(embeddings)):
        residuals = codebooks.entering(embeddings[part])
        for level, centroids in enumerate(codebooks.centroids):
            codes[part, level] = code = nearest(residuals, centroids)
            if level < codebooks.levels - 1:
                residuals = codebooks.left_over(residuals, level, code)
    return codes


def residuals_along(embeddings: np.ndarray, codes: np.ndarray, codebooks: Codebooks) -> np.ndarray:
    """r^l along given `codes` [n, levels], which may differ from the nearest ones: float64 [n, levels, d]."""
    path = [codebooks.entering(embeddings)]
    for level in range(codebooks.levels - 1):
        path.append(codebooks.left_over(path[-1], level, codes[:, level]))
    return np.stack(path, 1)


def quantisation_error(embeddings: np.ndarray, codes: np.ndarray, codebooks: Codebooks) -> float:
    """Share of the squared length of r^1 that `codes` [n, levels] leave over, over all rows.

    Where residuals are normalised, what is left after level l is a product: prod_{m <= l} ||r^m - c^m||.
    """
    left, whole = 0.0, 0.0
    for part in chunks(len(embeddings)):
        path = residuals_along(embeddings[part], codes[part], codebooks)
        chosen = codebooks.centroids[np.arange(codebooks.levels), codes[part]].astype(np.float64)
        rest = ((path - chosen) ** 2).sum(-1)
        left += float((rest[:, -1] if codebooks.encoder else rest.prod(1)).sum())
        whole += float((path[:, 0] ** 2).sum())
    return left / whole


def save_codebooks(codebooks: Codebooks, path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {"centroids": codebooks.centroids}
    for layer, (weight, bias) in enumerate(codebooks.encoder):
        tensors |= {f"encoder.{layer}.weight": weight, f"encoder.{layer}.bias": bias}
    save_file(tensors, path, metadata={"seed": str(codebooks.seed)})


def load_codebooks(path: Path) -> Codebooks:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        layers = range((len(list(file.keys())) - 1) // 2)
        encoder = tuple(tuple(file.get_tensor(f"encoder.{i}.{name}") for name in ("weight", "bias")) for i in layers)
        return Codebooks(file.get_tensor("centroids"), int(file.metadata()["seed"]), encoder)
