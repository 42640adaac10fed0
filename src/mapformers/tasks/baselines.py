"""Reference scores in bits per byte that a trained model must beat: unigram, order-5 n-gram, xz.

Formula  Witten-Bell, interpolated: with c(h, w) the count of byte w after the context h of k bytes,
         c(h) = sum_w c(h, w) and T(h) the number of different bytes seen after h,
             P_k(w | h) = (c(h, w) + T(h) P_{k-1}(w | h without its first byte)) / (c(h) + T(h)),
         and P_{-1} = 1/256.
         A context never seen leaves P_k = P_{k-1}.
Cost     one sort of the training bytes per order: about 3 s for 4 MB of training data.
"""

import lzma
from dataclasses import asdict, dataclass

import numpy as np

from mapformers.core.errors import require

ORDER = 5  # bytes of context of the n-gram model
TRAIN_LIMIT = 64_000_000  # the last bytes of a longer training text are enough


@dataclass(frozen=True)
class Baselines:
    """Bits per byte of held-out bytes under three simple models of the training bytes."""

    unigram: float
    ngram: float
    xz: float

    def as_dict(self) -> dict[str, float]:
        """The scores by name, rounded for files."""
        return {name: round(score, 6) for name, score in asdict(self).items()}


def baselines(train: np.ndarray, test: np.ndarray) -> Baselines:
    """All three scores of `test` [n] uint8 given `train` [m] uint8; every byte of `test` but the first
    counts.
    """
    require(
        len(test) >= 2, f"baselines: held-out data must have 2 bytes or more, got {len(test)}; give more data"
    )
    train = train[-TRAIN_LIMIT:]
    return Baselines(
        witten_bell(train, test, order=0), witten_bell(train, test, order=ORDER), xz_given(train, test)
    )


def witten_bell(train: np.ndarray, test: np.ndarray, order: int = ORDER) -> float:
    """Bits per byte of test[1:] under interpolated Witten-Bell with `order` bytes of context (0 =
    unigram).
    """
    require(0 <= order <= 7, f"baselines: order must be 0 to 7, got {order}; 8 bytes fill one integer")
    probability = np.full(len(test), 1 / 256)
    for k in range(min(order, len(train) - 1, len(test) - 1) + 1):
        grams, count = np.unique(_grams(train, k), return_counts=True)
        context = grams >> np.uint64(8)  # sorted, as grams are
        first = np.flatnonzero(np.r_[True, context[1:] != context[:-1]])
        followers = np.diff(np.r_[first, len(context)])  # T(h)
        total = np.add.reduceat(count, first)  # c(h)
        asked = _grams(test, k)
        pair = _look_up(grams, count, asked)
        new = _look_up(context[first], followers, asked >> np.uint64(8))
        seen = _look_up(context[first], total, asked >> np.uint64(8))
        lower = probability[k:]
        probability[k:] = np.where(seen > 0, (pair + new * lower) / np.maximum(seen + new, 1), lower)
    return float(-np.log2(probability[1:]).mean())


def xz_given(train: np.ndarray, test: np.ndarray) -> float:
    """Bits per byte of `test` for an xz that has read `train` before: size(train + test) - size(train)."""
    window = max(1 << int(len(train) + len(test)).bit_length(), 1 << 16)  # the dictionary spans everything
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]
    before = lzma.compress(train.tobytes(), format=lzma.FORMAT_XZ, filters=filters)
    after = lzma.compress(train.tobytes() + test.tobytes(), format=lzma.FORMAT_XZ, filters=filters)
    return 8 * (len(after) - len(before)) / len(test)


def _grams(data: np.ndarray, k: int) -> np.ndarray:
    """[n - k] uint64: each byte from the k-th on with the k bytes before it, packed, the byte itself
    lowest.
    """
    grams = np.zeros(len(data) - k, dtype=np.uint64)
    for i in range(k + 1):
        grams = (grams << np.uint64(8)) | data[i : len(data) - k + i].astype(np.uint64)
    return grams


def _look_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The value of each asked key among the sorted `keys`, 0 where it is missing."""
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[place] == asked, values[place], 0)
