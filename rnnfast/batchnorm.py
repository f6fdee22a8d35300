"""Batch normalisation of the input projection, over all steps and rows that a batch has.

Sequence-wise, as Laurent et al. 2015 ("Batch normalized recurrent neural networks") and Deep Speech
2 (Amodei et al. 2016) have it: with z = W_ih x over the N packed rows,

    a = gain * (z - mean(z)) / sqrt(var(z) + eps) + b_ih

which is W'_ih x + b'_ih with W' = s W, b' = b_ih - s W mean(x), s = gain / sqrt(w C w^T + eps), C
the covariance of x and w a row of W. So a backend runs the layer with W' and b', and the gradients
of W, x and the gain follow from those of W' and b' here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .weights import Layer, Weights

Array = NDArray[Any]

EPS = 1e-5  # as in torch.nn.BatchNorm1d


class Folded(NamedTuple):
    """A layer whose normalisation is part of its weights, and what its gradient needs."""

    layer: Layer
    centred: Array | None  # (N, I) x - mean(x); None where running statistics were used
    mean: Array | None  # (I,)
    directions: list[Direction]


class Direction(NamedTuple):
    weights: Weights  # as the user gave them
    scale: Array  # (G*H,) s
    deviation: Array  # (G*H,) sqrt(var + eps)
    projected: Array | None  # (G*H, I) W C


def fold(layer: Layer, rows: Array, momentum: float | None) -> Folded:
    """With the statistics of `rows` (N, I), which also move the running ones; else with those."""
    if momentum is None or rows.shape[0] == 0:
        return with_running(layer)
    count = rows.shape[0]
    mean = rows.mean(axis=0)
    centred = rows - mean
    covariance = centred.T @ centred / rows.dtype.type(count)
    folded, directions = [], []
    for w in layer:
        projected = w.w_ih @ covariance
        variance = np.maximum((projected * w.w_ih).sum(axis=1), 0)
        deviation = np.sqrt(variance + w.w_ih.dtype.type(EPS))
        scale = w.bn_ih / deviation
        of_z = w.w_ih @ mean
        folded.append(_scaled(w, scale, of_z))
        directions.append(Direction(w, scale, deviation, projected))
        unbiased = variance * w.w_ih.dtype.type(count / max(1, count - 1))
        for running, of_batch in ((w.bn_mean, of_z), (w.bn_var, unbiased)):
            running += running.dtype.type(momentum) * (of_batch - running)
    return Folded(tuple(folded), centred, mean, directions)


def for_inference(layers: list[Layer]) -> list[Layer]:
    """The layers with running statistics as part of their weights; themselves where none has."""
    if layers[0][0].bn_ih is None:
        return layers
    return [with_running(layer).layer for layer in layers]


def with_running(layer: Layer) -> Folded:
    # The user's move with the next call that trains, which this one's gradients do not see.
    layer = tuple(w._replace(bn_mean=w.bn_mean.copy()) for w in layer)
    deviations = [np.sqrt(w.bn_var + w.w_ih.dtype.type(EPS)) for w in layer]
    directions = [
        Direction(w, w.bn_ih / deviation, deviation, None)
        for w, deviation in zip(layer, deviations, strict=True)
    ]
    folded = tuple(_scaled(d.weights, d.scale, d.weights.bn_mean) for d in directions)
    return Folded(folded, None, None, directions)


def _scaled(w: Weights, scale: Array, mean: Array) -> Weights:
    shift = -scale * mean if w.b_ih is None else w.b_ih - scale * mean
    return w._replace(
        w_ih=scale[:, None] * w.w_ih, b_ih=shift, bn_ih=None, bn_mean=None, bn_var=None
    )


def backward(folded: Folded, dx: Array, dweights: list[Weights]) -> tuple[Array, list[Weights]]:
    """Gradients of x and of the weights that the user gave; `dx` may be changed."""
    found = []
    for one, d in zip(folded.directions, dweights, strict=True):
        w, scale, deviation, projected = one
        of_z = w.bn_mean if folded.mean is None else w.w_ih @ folded.mean
        dscale = (d.w_ih * w.w_ih).sum(axis=1) - d.b_ih * of_z
        dw_ih = scale[:, None] * d.w_ih
        if folded.centred is not None and folded.mean is not None and projected is not None:
            dmean_z = -scale * d.b_ih
            # var = w C w^T, and s = gain (var + eps)^(-1/2)
            dvariance = -dscale * scale / (2 * deviation**2)
            dw_ih += 2 * dvariance[:, None] * projected + dmean_z[:, None] * folded.mean
            count = dx.dtype.type(len(dx))
            dcovariance = (w.w_ih * dvariance[:, None]).T @ w.w_ih
            dx = dx + folded.centred @ (dcovariance * (2 / count)) + (dmean_z @ w.w_ih) / count
        found.append(
            d._replace(
                w_ih=dw_ih,
                b_ih=None if w.b_ih is None else d.b_ih,
                bn_ih=dscale / deviation,
                bn_mean=np.zeros_like(w.bn_mean),
                bn_var=np.zeros_like(w.bn_var),
            )
        )
    return dx, found
