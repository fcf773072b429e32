"""The fit of the scaling law against the reference's grid search, its bootstrap, and `vlmkit frontier` started cold.

    python benchmarks/scaling_fit.py

The search of arXiv 2411.03312's code: 50 x 100 x 100 x 10 nodes over A, alpha, beta and D, shuffled and cut at 20 %,
each node's predictions and sum of squares computed by themselves; here with a seed. Beside it stands the whole grid in
a few array operations, which is what the search costs when written well. Goals on a CPU: the product law fitted in
under 50 ms, 1,000 bootstrap draws in under 3 s, the cold answer in under 0.5 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from measuring import write_results

from vlmkit.pipelines.timing import interleaved_seconds
from vlmkit.scaling.bootstrap import DRAWS, residual_bootstrap
from vlmkit.scaling.fit import fit_law
from vlmkit.scaling.laws import FloatArray
from vlmkit.scaling.measurements import load_published

A, ALPHA = np.linspace(0.2, 0.7, 50), np.linspace(0, 0.2, 100)
BETA, D = np.linspace(0, 0.05, 100), np.linspace(0, 0.3, 10)
SHARE = 0.2
REFERENCE, VECTORISED = f"grid search, {SHARE:.0%} of the nodes one by one", "grid search, all nodes at once"
FIT = "vlmkit fit, product"


def search_one_by_one(N: FloatArray, V: FloatArray, error: FloatArray) -> float:
    """The least sum of squares of a random fifth of the nodes."""
    count = len(A) * len(ALPHA) * len(BETA) * len(D)
    drawn = np.random.default_rng(0).permutation(count)[: int(SHARE * count)]
    best = np.inf
    for a, alpha, beta, d in zip(*np.unravel_index(drawn, (len(A), len(ALPHA), len(BETA), len(D))), strict=True):
        predicted = A[a] * N ** -ALPHA[alpha] * V ** -BETA[beta] + D[d]
        best = min(best, ((predicted - error) ** 2).sum())
    return float(best)


def search_at_once(N: FloatArray, V: FloatArray, error: FloatArray) -> float:
    """The least sum of squares of all nodes, which is quadratic in A."""
    power = (N ** -ALPHA[:, None])[:, None] * V ** -BETA[:, None]
    above = error - D[:, None]
    cross, square, rest = power @ above.T, np.square(power).sum(-1)[..., None], np.square(above).sum(-1)
    return min(float((rest + a * (a * square - 2 * cross)).min()) for a in A)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    rows = load_published().of("reasoning")
    N, V, error = np.array([(row.llm.billions, row.visual_tokens, row.error) for row in rows], dtype=float).T
    fits = {form: fit_law(form, N, V, error) for form in ("product", "additive", "log-linear")}
    cold = [sys.executable, "-m", "vlmkit", "frontier", "--budget", "5e12"]
    squares: dict[str, float] = {}

    def searched(name: str, search: Callable[[FloatArray, FloatArray, FloatArray], float]) -> None:
        squares[name] = search(N, V, error)

    runs: dict[str, Callable[[], object]] = {
        REFERENCE: partial(searched, REFERENCE, search_one_by_one),
        VECTORISED: partial(searched, VECTORISED, search_at_once),
        **{f"vlmkit fit, {form}": partial(fit_law, form, N, V, error) for form in fits},
        "vlmkit fit, product, huber": partial(fit_law, "product", N, V, error, loss="huber"),
        **{f"{DRAWS:,} bootstrap draws, {form}": partial(residual_bootstrap, fit) for form, fit in fits.items()},
        "vlmkit frontier --budget 5e12, cold": partial(subprocess.run, cold, check=True, capture_output=True),
    }
    busy = os.getloadavg()[0]
    seconds = interleaved_seconds(runs, args.repeats, torch.device("cpu"))
    squares |= {f"vlmkit fit, {form}": fit.sum_of_squares for form, fit in fits.items()}
    assert squares[FIT] < squares[VECTORISED] <= squares[REFERENCE], "the fit is worse than a node of the grid"

    reference = statistics.median(seconds[REFERENCE])
    table = [
        {
            "what": name,
            "seconds": seconds[name],
            "grid search's time is": f"{reference / statistics.median(seconds[name]):,.3g} times that",
            "sum of squares": f"{squares[name]:.4e}" if name in squares else "",
        }
        for name in runs
    ]
    # Other work on the machine lengthens every time here; the ratios stand.
    about = vars(args) | {"numpy": np.__version__, "load average before": round(busy, 1)}
    files = write_results("scaling_fit", torch.device("cpu"), about, table)
    print(files[-1].read_text() + "\nwritten: " + ", ".join(map(str, files)))


if __name__ == "__main__":
    main()
