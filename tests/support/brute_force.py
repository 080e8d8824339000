"""Judge ranges on the raw data, independently of the package's histograms, scales and kernels."""

import numpy as np


def distributions(n, seed=0):
    """Return data of the kinds that calibration meets."""
    rng = np.random.default_rng(seed)
    outlier = rng.normal(size=n)
    outlier[n // 2] = 1e4
    return {
        "normal": rng.normal(size=n),
        "laplace": rng.laplace(size=n),
        "gamma": rng.gamma(2.0, size=n),
        "student_t": rng.standard_t(3, size=n),
        "lognormal": rng.lognormal(size=n),
        "uniform": rng.uniform(-1.0, 1.0, size=n),
        "rectified": np.maximum(rng.normal(size=n), 0.0),
        "offset": rng.uniform(3.0, 7.0, size=n),
        "outlier": outlier,
    }


def hard_distributions(n, seed=0):
    """Return data for which bins say little about the error of a range: far from 0, or uneven within bins."""
    rng = np.random.default_rng(seed)
    ends = [(4, 9), (0, 1), (3, 7), (1, 2), (-3, 5), (-9, -4), (0.5, 10), (100, 140), (1000, 1010), (-0.1, 3)]
    uniform = {f"uniform({low}, {high})": rng.uniform(low, high, n) for low, high in ends}
    normal = {f"normal({mean}, {std})": rng.normal(mean, std, n) for mean, std in [(1, 1), (10, 1), (50, 2)]}
    clusters = {}  # narrower than bins: none, or a zero, beside them
    for std in (0.001, 0.003, 0.01, 0.03):
        for places in range(1, 5):
            centres = rng.uniform(-10.0, 10.0, places)
            x = rng.choice(centres, n) + rng.normal(0.0, std, n)
            clusters[f"{places} clusters of {std}"] = x
            clusters[f"{places} clusters of {std}, and 0"] = np.append(x[1:], 0.0)
    return {
        **uniform,
        **normal,
        **clusters,
        **{f"beta({a}, {a})": rng.beta(a, a, n) * 5.0 + 1.0 for a in (0.2, 0.5)},  # with unbounded density at both ends
        "power": rng.uniform(size=n) ** 3 * 5.0 + 2.0,  # with unbounded density at one end
        "sine": np.sin(rng.uniform(0.0, 2.0 * np.pi, n)),
        "triangle": rng.triangular(2.0, 3.0, 8.0, n),
        "two": np.concatenate([rng.normal(-3.0, 0.3, n // 2), rng.normal(5.0, 0.4, n - n // 2)]),
        "clipped": np.clip(rng.normal(size=n), -2.0, 2.0),
        "pixels": np.clip(np.rint(rng.normal(128.0, 30.0, n)), 0.0, 255.0),  # on a lattice, which min-max hits
        "counts": rng.poisson(3.0, n).astype(np.float64),
    }


def code_range(bits, symmetric):
    """Return the least and the greatest code of an integer format with this number of bits."""
    high = 2 ** (bits - 1) - 1
    return (-high if symmetric else -high - 1), high


def squared_error(x, scale, zero_point, codes):
    """Return the mean squared error of x, with codes rounded half away from zero."""
    v = x / scale + zero_point
    q = np.clip(np.where(v < 0.0, np.ceil(v - 0.5), np.floor(v + 0.5)), *codes)
    return np.mean(((q - zero_point) * scale - x) ** 2)


def best_symmetric(x, bits):
    """Return the least error over clips at fractions of the largest magnitude, on ever finer grids."""
    codes = code_range(bits, True)
    largest = np.abs(x).max()

    def cost(fraction):
        return squared_error(x, fraction * largest / codes[1], 0, codes)

    fractions = np.concatenate([np.linspace(0.005, 1.0, 400), np.geomspace(1e-4, 1.0, 200)])
    least, best = min((cost(f), f) for f in fractions)
    for width in (0.005, 0.0005):
        around = np.linspace(best - width, best + width, 21)
        least, best = min([(least, best), *((cost(f), f) for f in around if 0.0 < f <= 1.0)])
    return least


def best_affine(x, bits):
    """Return the least error over ranges; their ends are fractions of the way from the median to the extremes."""
    codes = code_range(bits, False)
    low, high, middle = x.min(), x.max(), np.median(x)

    def cost(below, above, data=x):
        start, stop = middle + below * (low - middle), middle + above * (high - middle)
        if not start < stop:
            return np.inf
        scale = (stop - start) / (codes[1] - codes[0])
        return squared_error(data, scale, codes[0] - round(start / scale), codes)

    coarse = np.concatenate([np.geomspace(1e-4, 0.05, 12), np.linspace(0.075, 1.0, 38)])
    belows, aboves = (coarse if end != middle else [1.0] for end in (low, high))
    pairs = [(a, b) for a in belows for b in aboves]
    if x.size > 3000:  # a sample finds the best candidates, and all of the data decides
        sample = np.random.default_rng(0).choice(x, 3000, replace=False)
        pairs = [*sorted(pairs, key=lambda pair: cost(*pair, sample))[:60], (1.0, 1.0)]
    least, a, b = min((cost(*pair), *pair) for pair in pairs)
    for width in (0.025, 0.006):
        belows = np.linspace(max(a - width, 1e-5), min(a + width, 1.0), 9) if low != middle else [1.0]
        aboves = np.linspace(max(b - width, 1e-5), min(b + width, 1.0), 9) if high != middle else [1.0]
        least, a, b = min([(least, a, b), *((cost(i, j), i, j) for i in belows for j in aboves)])
    return least
