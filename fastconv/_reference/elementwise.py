"""Work cell by cell: sums of two arrays, a rectifier's gradient, optimisers, sums and normalisation of maps, finiteness.

Arrays have one axis and one length, but where a shape is named. Nothing depends on the geometry.
"""

import numpy as np


def add(term, act_min, act_max, total, workspace, geometry, n_threads):
    """total = clamp(total + term, act_min, act_max); NaN stays NaN."""
    total += term
    np.clip(total, act_min, act_max, out=total)


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


def normalise(
    input, weight, bias, of_batch, eps, act_min, act_max, mean, variance, output, workspace, geometry, n_threads
):  # fmt: skip
    """output (N, C, H, W) = clamp(weight * (input - mean) / sqrt(variance + eps) + bias), all of them (C,).

    With ``of_batch`` mean and variance become the input's own, over images and cells, the variance divided by N*H*W.
    """
    if of_batch:
        mean[...] = input.mean(axis=(0, 2, 3))
        variance[...] = input.var(axis=(0, 2, 3))
    scale = weight / np.sqrt(variance + eps)
    output[...] = (input - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]
    np.clip(output, act_min, act_max, out=output)


def normalise_backward(
    grad_output, input, weight, mean, variance, of_batch, eps, grad_weight, grad_bias, grad_input, workspace, geometry,
    n_threads,
):  # fmt: skip
    """The three gradients of `normalise` without bounds; grad_input of length 0 is not wanted.

    With x = (input - mean) / sqrt(variance + eps): ``grad_bias = sum(grad_output); grad_weight = sum(grad_output * x);
    grad_input = weight / sqrt(variance + eps) * (grad_output - grad_bias / (N*H*W) - x * grad_weight / (N*H*W))``, the
    last two terms only ``of_batch``.
    """
    scale = 1 / np.sqrt(variance + eps)
    x = (input - mean[:, None, None]) * scale[:, None, None]
    grad_bias[...] = grad_output.sum(axis=(0, 2, 3))
    grad_weight[...] = (grad_output * x).sum(axis=(0, 2, 3))
    if grad_input.size:
        cells = input.size // input.shape[1]
        shift, slope = (grad_bias / cells, grad_weight / cells) if of_batch else (0 * grad_bias, 0 * grad_weight)
        grad_input[...] = grad_output - shift[:, None, None] - x * slope[:, None, None]
        grad_input *= (weight * scale)[:, None, None]


def non_finite(input, found, workspace, geometry, n_threads):
    """found, of any length: of each of so many parts of input, 0 where all is finite, else NaN."""
    part = -(-input.size // found.size)
    for i in range(found.size):
        found[i] = 0 if np.isfinite(input[i * part : (i + 1) * part]).all() else np.nan
