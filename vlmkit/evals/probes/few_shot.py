"""Few-shot classification: ridge regression onto the classes from a handful of images of each, in closed form.

After the protocol of the published 10-shot tables (arXiv 2411.03313, Table 2; big_vision's ``fewshot_lsr``): features
standardised over the shots, least squares onto the classes, three draws, mean and spread over them. The penalty is not
theirs. There it is a constant, 2^10 in their common configuration, whatever the number of shots and features; here it
grows with the larger of the two (:data:`L2`). For 10 shots of 1000 classes the two are all but equal (1000 and 1024);
on small sets theirs is far stronger, so figures there compare towers with each other, not with published ones.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from vlmkit.evals.probes.features import AttributeSplit
from vlmkit.evals.probes.result import ProbeResult

SHOTS = (1, 5, 10)
"""Training images of each class."""
NUM_DRAWS = 3
"""Draws of the shots, seeded 0, 1, ...: the same images for every tower."""
L2 = 0.1
"""Coefficient of the squared weights, in units of max(n, D) for n shots of D features: what the mean squared singular
value of standardised features is. Fixed, since a handful of shots cannot tell: their leave-one-out error asks for far
stronger penalties, which do worse."""


def few_shot(split: AttributeSplit, shots: int) -> ProbeResult:
    """Classes of the test images by ridge regression from ``shots`` training images of each class, or all there are.

    Features are standardised over the shots; the intercept is not penalised. One run for each draw.
    """
    targets = np.eye(len(split.classes))
    predicted = []
    with threadpool_limits(1, user_api="blas"):
        for seed in range(NUM_DRAWS):
            rows = draw_shots(split.train_y, shots, seed)
            x = split.train_x[rows].astype(np.float64)
            ridge = make_pipeline(StandardScaler(), Ridge(L2 * max(x.shape)))
            ridge.fit(x, targets[split.train_y[rows]])
            predicted.append(ridge.predict(split.test_x.astype(np.float64)).argmax(axis=1))
    return ProbeResult.of(split, np.stack(predicted))


def draw_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of ``shots`` random images of every class in ``labels`` [n] (of all its images where there are fewer)."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == label][:shots] for label in np.unique(labels)])
