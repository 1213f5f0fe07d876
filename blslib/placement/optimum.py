"""The optimum as yardstick: pieces on ranks with the least greatest load, by integer programming (HiGHS through scipy).

For judging strategies, and for caps that they find no placement under; not for thousands of tables.
"""

import math
from typing import NamedTuple

import numpy as np

from blslib.placement.strategies import ImpossibleError, NoneFoundError


class Optimum(NamedTuple):
    """The best placement found, and how good any could be.

    Attributes:
        owners: (n,) the rank of each piece.
        load: the greatest load of a rank.
        bound: no placement has less.
    """

    owners: np.ndarray
    load: float
    bound: float


def optimum(
    weights: np.ndarray,
    sizes: np.ndarray,
    ranks: int,
    *,
    cap: float = math.inf,
    gap: float = 0.01,
    limit_s: float = 10.0,
) -> Optimum:
    """Minimise the greatest sum of weights on a rank, with no rank above the cap.

    Ranks are alike, so the i-th heaviest piece is tried on ranks 0 to i alone.

    Args:
        weights: (n,) at least 0, of the pieces.
        sizes: (n,) bytes.
        ranks: P.
        cap: bytes of a rank.
        gap: close enough to the bound, as a share.
        limit_s: seconds after which the best so far is taken.

    Raises:
        ImpossibleError: there is no placement, proven.
        NoneFoundError: none was found in time.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import eye_array, hstack, kron

    weights, sizes = np.asarray(weights, dtype=float), np.asarray(sizes, dtype=float)
    pieces, mean = len(weights), max(weights.sum() / ranks, 1e-300)
    # x[piece, rank], then the load in units of the mean.
    once = hstack([kron(eye_array(pieces), np.ones((1, ranks))), np.zeros((pieces, 1))])
    loads = hstack([kron(weights[None] / mean, eye_array(ranks)), np.full((ranks, 1), -1.0)])
    constraints = [LinearConstraint(once, 1, 1), LinearConstraint(loads, -np.inf, 0)]
    if cap < math.inf:
        held = hstack([kron(sizes[None] / cap, eye_array(ranks)), np.zeros((ranks, 1))])
        constraints.append(LinearConstraint(held, -np.inf, 1))
    place = np.argsort(np.argsort(-weights, kind="stable"))  # of each piece among the heaviest
    upper = np.append((np.arange(ranks) <= place[:, None]).astype(float), np.inf)
    lower = np.append(np.zeros(pieces * ranks), max(1.0, weights.max() / mean))
    found = milp(
        np.append(np.zeros(pieces * ranks), 1.0),
        integrality=np.append(np.ones(pieces * ranks), 0),
        bounds=Bounds(lower, upper),
        constraints=constraints,
        options={"time_limit": limit_s, "mip_rel_gap": gap},
    )
    if found.status == 2:
        raise ImpossibleError(
            f"impossible without cuts: {pieces} whole pieces do not fit on {ranks} ranks of {cap:,.0f} bytes"
        )
    if found.x is None:
        raise NoneFoundError(f"found none in {limit_s:g} s, and no proof that there is none: give it more time")
    owners = found.x[:-1].reshape(pieces, ranks).argmax(axis=1)
    if np.bincount(owners, sizes, ranks).max() > cap:  # by less than a millionth, which the solver does not see
        raise NoneFoundError("found none that keeps the cap to the byte, and no proof that there is none")
    load = np.bincount(owners, weights, ranks).max()
    return Optimum(owners, float(load), float(min(found.mip_dual_bound * mean, load)))
