"""Work cell by cell: a rectifier's gradient, optimisers, sums of maps, and whether all is finite.

Arrays have one axis and one length, but where a shape is named. Nothing depends on the geometry.
"""

import numpy as np


def rectify(output, most, grad, workspace, geometry, n_threads):
    """grad becomes 0 wherever not 0 < output <= most."""
    grad[~((output > 0) & (output <= most))] = 0


def sgd(gradient, lr, momentum, weight_decay, nesterov, parameter, velocity, workspace, geometry, n_threads):
    """A step of gradient descent, of parameter and velocity, which has length 0 where momentum is 0.

    ``g = gradient + weight_decay * parameter; velocity = momentum * velocity + g; parameter -= lr * velocity``, with
    nesterov ``parameter -= lr * (g + momentum * velocity)``, without momentum ``parameter -= lr * g``.
    """
    if weight_decay:
        gradient = gradient + weight_decay * parameter
    if momentum:
        velocity[...] = momentum * velocity + gradient
        gradient = gradient + momentum * velocity if nesterov else velocity
    parameter -= lr * gradient


def adam(
    gradient, step, mean_share, kept, square_share, scale, eps, shrink, weight_decay, parameter, mean, square, workspace,
    geometry, n_threads,
):  # fmt: skip
    """A step of Adam, of parameter and of the means of the gradient and of its square.

    ``g = gradient + weight_decay * parameter; mean += mean_share * (g - mean);
    square = kept * square + square_share * g**2;
    parameter = shrink * parameter - step * mean / (scale * sqrt(square) + eps)``
    """
    if weight_decay:
        gradient = gradient + weight_decay * parameter
    mean += mean_share * (gradient - mean)
    square[...] = kept * square + square_share * gradient**2
    parameter[...] = shrink * parameter - step * (mean / (scale * np.sqrt(square) + eps))


def map_sums(input, sums, workspace, geometry, n_threads):
    """input (N, C, H, W) -> sums (C,): over images and cells."""
    sums[...] = input.sum(axis=(2, 3)).sum(axis=0)


def non_finite(input, found, workspace, geometry, n_threads):
    """found, of any length: of each of so many parts of input, 0 where all is finite, else NaN."""
    part = -(-input.size // found.size)
    for i in range(found.size):
        found[i] = 0 if np.isfinite(input[i * part : (i + 1) * part]).all() else np.nan
