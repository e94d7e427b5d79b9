"""Student's t distribution: its quantiles, from the incomplete beta function. Needs no scipy."""

from __future__ import annotations

import functools
import math

_TINY = 1e-300


@functools.cache
def student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t with ``freedom`` degrees, to ten digits.

    Solves P(T <= t) = ``probability`` by bisection, the distribution through the incomplete beta function.

    Raises:
        ValueError: a probability outside (0, 1), fewer than one degree.
    """
    if not 0 < probability < 1 or freedom < 1:
        raise ValueError(f"no quantile of t at {probability} with {freedom} degrees of freedom")
    if probability < 0.5:
        return -student_t(1 - probability, freedom)
    target = 2 * (1 - probability)  # of both tails together
    low, high = 0.0, 1.0
    while _two_tails(high, freedom) > target:
        low, high = high, high * 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _two_tails(middle, freedom) > target else (low, middle)
    return high


def _two_tails(t: float, freedom: int) -> float:
    """P(|T| > t) = I_x(freedom / 2, 1 / 2) with x = freedom / (freedom + t^2)."""
    square = t * t
    if square == 0:
        return 1.0
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + square), square / (freedom + square))


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b), the regularised incomplete beta function; ``rest`` is 1 - x without its rounding.

    The continued fraction (DLMF 8.17.22) converges fast below (a+1) / (a+b+2); above, I_x(a, b) = 1 - I_(1-x)(b, a).
    """
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, rest, x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    )
    # Lentz's evaluation, from the front: `fraction` holds the value so far, `c` and `d` ratios of its convergents.
    c, d = 1.0, 1 / _off_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _off_zero(1 + term * d)
            c = _off_zero(1 + term / c)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction / a


def _off_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
