"""How far a result may be from the truth: stated here, once, and used by every test.

The error of an array is its largest absolute error divided by its largest absolute value in the
truth (max-norm), in units of eps of the dtype. Nothing is compared with an absolute tolerance: an
array that is zero in the truth must be zero. The gradients of the weights of one direction, all of
them sums of the same numbers, share one largest value, because a bias of one unit may cancel to
nothing. Only where gradients vanish so far that their
rounding errors are denormal, and may be flushed to zero (1e-31 in float32), that size is taken
instead of the largest value.

**Backends against the reference.** The truth is the reference in float64 on the same (upcast)
numbers. How large rounding errors are depends on the problem: they grow with T through the state,
and with what cancels. So the growth is measured instead of guessed: `noise` is the error of the
*float32 reference* on this very problem, in eps of float32; rounding scales with eps, so it tells
for float64 too. A correct backend does the same sums in another order, with functions good to a
few ULP instead of half. A sum of K terms of either sign, in whatever order, is off by about
sqrt(K) eps in units of its result, and BLAS, which the reference uses, does better than that by
summing in blocks. With K the longest sum (over I, D*H or T*B), a backend may have

    8 noise + 4 sqrt(K) + 16   eps

where 16 is for problems so small that the reference happens to make no error at all; below FEW
numbers, noise is the worst of this problem and eight close by, for the same reason. Typical noise
is 2 to 50, so a float32 result must agree to about 1e-5 of its largest number, a float64 one to
about 2e-14; `test_tolerance.py` shows that swapped gates, a missing bias and even a thousandth of
one weight do not pass. Of 10,000 random problems, the native backend needed 0.04 of what it may
have in the middle, 0.12 on the worst hundredth, and 0.5 on the worst of all.

**In 16 bits** (backend "cuda") everything is computed in float32 but for what is rounded: every
result, y and dx of every layer, h as a product reads it, and the gradients of the gates as products
read them. Each of these is off by half an eps of 16 bits, where the float32 reference rounds
several times at every step; noise tells how that grows with T. A backend may have

    2 + L + noise   eps

Of 560 random problems with up to 100 steps, half needed 0.5 eps, which is rounding the results.

**Against PyTorch and finite differences.** In float64, TORCH = 1e-10 as issue 2 demands, and
DIFFERENCES = 1e-8: the five-point stencil with step 1e-3 has an error of order step^4 = 1e-12
times a fifth derivative, which is of order 100 to 10000 for sigmoids of sigmoids.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from helpers import Case, Problem, problem, run

FEW = 5000
MOST_NOISE = 2000  # a problem with more says nothing; `well_conditioned` tells
TORCH = 1e-10
DIFFERENCES = 1e-8


def errors(got: dict[str, Any], truth: dict[str, Any]) -> dict[str, float]:
    """The max-norm relative error of each array; inf where it is not finite."""
    assert got.keys() == truth.keys()
    largest = {name: float(np.abs(np.asarray(a)).max(initial=0)) for name, a in truth.items()}
    groups: dict[str, float] = {}
    for name, value in largest.items():
        group = name.partition(".")[0]
        groups[group] = max(groups.get(group, 0), value)
    found = {}
    for name, wanted in truth.items():
        wanted, array = np.asarray(wanted), np.asarray(got[name])
        assert array.shape == wanted.shape, f"{name}: {array.shape}, expected {wanted.shape}"
        info = finfo(array.dtype)
        scale = max(groups[name.partition(".")[0]], float(info.tiny / info.eps))
        worst = float(np.abs(array.astype(wanted.dtype) - wanted).max(initial=0))
        possible = np.isfinite(worst) and largest[name] > 0
        found[name] = 0.0 if worst == 0 else worst / scale if possible else np.inf
    return found


def finfo(dtype: Any) -> Any:
    """That of NumPy, which has none for bfloat16."""
    kind = np.dtype(dtype)
    if kind.name != "bfloat16":
        return np.finfo(kind)
    import ml_dtypes

    return ml_dtypes.finfo(kind)


def assert_close(got: dict[str, Any], truth: dict[str, Any], rtol: float) -> None:
    """Each array within rtol of the truth, relative to its largest number."""
    bad = {k: e for k, e in errors(got, truth).items() if not e <= rtol}
    assert not bad, f"relative errors above {rtol:.2g}: " + ", ".join(
        f"{k} {e:.2g}" for k, e in bad.items()
    )


@lru_cache(maxsize=4)
def truth(case: Case) -> tuple[dict[str, Any], float]:
    """The reference's results in float64 on the numbers of `case`, and the noise of float32."""
    exact = problem(case).astype(np.float64)
    wanted = run(exact)
    noise = noise_of(exact, wanted if case.dtype == "float32" else None)
    if exact.x.size + sum(a.size for a in wanted.values()) < FEW:
        # A few numbers may round luckily, so look at problems close by as well.
        noise = max(noise, *(noise_of(close_by(exact, 1 + k / 997)) for k in range(8)))
    return wanted, noise


def close_by(p: Problem, factor: float) -> Problem:
    return p.map(lambda a: a * factor)


def noise_of(exact: Problem, wanted: dict[str, Any] | None = None) -> float:
    """The worst error of the reference in float32, in eps."""
    single = exact.astype(np.float32)
    if wanted is None:
        wanted = run(single.astype(np.float64))
    return max(errors(run(single), wanted).values()) / float(np.finfo(np.float32).eps)


def well_conditioned(case: Case) -> bool:
    """Whether rounding leaves enough of the results for a comparison."""
    return truth(case)[1] < MOST_NOISE


def allowed(case: Case) -> float:
    """The relative error that a backend may have on this problem."""
    longest = max(case.I, case.D * case.H, case.T * case.B)
    eps = finfo(case.dtype).eps
    assert well_conditioned(case), f"{case}: the float32 reference is off by {truth(case)[1]} eps"
    if eps > np.finfo(np.float32).eps:
        return float(eps) * (2 + case.L + truth(case)[1])
    return float(eps * (8 * truth(case)[1] + 4 * longest**0.5 + 16))


def assert_agrees(case: Case, results: dict[str, Any]) -> None:
    """Results of `helpers.run` on this case are right within rounding."""
    assert all(np.asarray(a).dtype == case.dtype for a in results.values())
    assert_close(results, truth(case)[0], allowed(case))
