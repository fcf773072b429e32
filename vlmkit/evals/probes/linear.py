"""How much of an image a frozen tower makes linearly readable: logistic regression on its pooled features.

The quick probe of a backbone, for small sets: every attribute gets its own multinomial classifier, by scikit-learn.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from vlmkit.errors import UserError
from vlmkit.evals.probes.features import AttributeSplit
from vlmkit.evals.probes.result import ProbeResult

INVERSE_PENALTIES = (1e-2, 1e-1, 1.0, 10.0)
"""Values of C tried for every attribute, from the strongest L2 penalty to the weakest."""
HELD_OUT_FRACTION = 0.2
"""Share of the training images on which a probe chooses its settings; it is then fitted to all of them."""


def logistic_regression(split: AttributeSplit) -> ProbeResult:
    """Multinomial logistic regression on standardised features, its penalty chosen on held-out training images.

    The result depends on the features alone: no random draw is left open.
    """
    x, y = split.train_x.astype(np.float64), split.train_y
    kept, held_out = hold_out(split)
    # The products are too small to share: on busy cores, BLAS threads waiting for each other made this 50 times slower.
    with threadpool_limits(1, user_api="blas"):
        accuracies = [_classifier(c).fit(x[kept], y[kept]).score(x[held_out], y[held_out]) for c in INVERSE_PENALTIES]
        c = INVERSE_PENALTIES[int(np.argmax(accuracies))]  # the stronger penalty on a tie
        predicted = _classifier(c).fit(x, y).predict(split.test_x.astype(np.float64))
    return ProbeResult.of(split, predicted, f"C = {c:g}")


def hold_out(split: AttributeSplit) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training images to fit to and to choose settings on; always the same ones.

    Raises UserError where fewer than two classes are left to fit to.
    """
    order = np.random.default_rng(0).permutation(len(split.train_y))
    held_out, kept = np.split(order, [max(1, int(HELD_OUT_FRACTION * len(order)))])
    if len(set(split.train_y[kept])) < 2:
        raise UserError(
            f"The attribute '{split.attribute}' has fewer than two classes in the part of the training set that a "
            "probe is fitted to; give more training images."
        )
    return kept, held_out


def _classifier(c: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-3, max_iter=5000))
