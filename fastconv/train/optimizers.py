"""Optimisers: torch's formulas, in place, by kernels on all threads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from fastconv import _backends
from fastconv._algorithms import elementwise
from fastconv._arrays import as_array, ready
from fastconv._problem import flag
from fastconv.layers import Layer
from fastconv.layers._base import number, refuse


class Optimizer:
    """What the optimisers share: whose parameters, and buffers of the same shapes."""

    _buffer_names: ClassVar[tuple[str, ...]] = ()
    _counts_each: ClassVar[bool] = False  # whether a step depends on how many a parameter has had

    def __init__(self, net_or_params: Any, lr: Any, weight_decay: Any) -> None:
        function = type(self).__name__
        self._net = net_or_params if isinstance(net_or_params, Layer) else None
        if self._net is None:
            if isinstance(net_or_params, np.ndarray) or not isinstance(net_or_params, Iterable):
                kind = type(net_or_params).__name__
                raise TypeError(f"{function}: net_or_params is a {kind}: it must be a Layer or a list of arrays")
            self._own = {str(i): array for i, array in enumerate(net_or_params)}
        self.lr = number(function, "lr", lr, 0)
        self.weight_decay = number(function, "weight_decay", weight_decay, 0)
        self.steps = 0
        parameters = self._parameters()
        if not parameters:
            raise ValueError(f"{function}: net_or_params: there are no parameters")
        for name, array in parameters.items():
            floats = isinstance(array, np.ndarray) and array.dtype in (np.float32, np.float64)
            if not floats or not array.flags.c_contiguous:
                raise TypeError(f"{function}: parameter {name!r}: it must be a C-contiguous float32 or float64 array")
        self._buffers = {
            kind: {name: np.zeros_like(array) for name, array in parameters.items()} for kind in self._buffer_names
        }
        self._counts = dict.fromkeys(parameters, 0) if self._counts_each else {}
        self._count = 0  # of the parameter that is being stepped

    def _parameters(self) -> dict[str, np.ndarray]:
        return self._own if self._net is None else dict(self._net.named_parameters())

    def owns_part_of(self, net: Layer) -> bool:
        """Whether all that `step` changes belongs to ``net``."""
        own = {id(array) for array in net.parameters()}
        return all(id(array) in own for array in self._parameters().values())

    def step(self, gradients: Iterable[Any] | None = None) -> None:
        """Change the parameters along their gradients, in place.

        Parameters
        ----------
        gradients : iterable of array or None, optional
            One for each parameter, in their order; by default what ``net.backward`` left. A parameter whose gradient
            is None stays as it is.

        Raises
        ------
        TypeError, ValueError
            If number, shapes or dtypes of the gradients do not fit, ``lr`` has been set to no number of 0 or more, or a
            parameter is read-only; nothing is changed then.
        """
        function = f"{type(self).__name__}.step"
        if gradients is None:
            if self._net is None:
                raise ValueError(f"{function}: gradients is None: an optimiser of arrays needs them")
            trained = list(self._net._trained())
            parameters = {key: getattr(layer, name) for key, layer, name in trained}
            gradients = [getattr(layer, f"grad_{name}", None) for _, layer, name in trained]
        else:
            parameters = self._parameters()
        if isinstance(gradients, (str, bytes)) or not isinstance(gradients, Iterable):
            raise TypeError(f"{function}: gradients is a {type(gradients).__name__}: it must be a list of arrays")
        given = list(gradients)
        if len(given) != len(parameters):
            raise ValueError(f"{function}: {len(given)} gradients: there are {len(parameters)} parameters")
        for at, (name, parameter) in enumerate(parameters.items()):
            if given[at] is not None:
                gradient = given[at] = _real(function, f"gradient of {name!r}", given[at], parameter.dtype)
                if gradient.shape != parameter.shape:
                    shape = gradient.shape
                    raise ValueError(
                        f"{function}: gradient of {name!r} has shape {shape}: it must be {parameter.shape}"
                    )
            if not parameter.flags.writeable:
                raise ValueError(f"{function}: parameter {name!r} is read-only: call train() on the network first")
        self.lr = number(function, "lr", self.lr, 0)  # anyone may have set it
        self.steps += 1
        kernels = _backends.resolve()
        for (name, parameter), gradient in zip(parameters.items(), given, strict=True):
            if gradient is None:
                continue
            if self._counts_each:
                self._count = self._counts[name] = self._counts[name] + 1
            buffers = (self._buffers[kind][name].reshape(-1) for kind in self._buffer_names)
            own = ready(parameter, parameter.shape)
            self._update(kernels, ready(gradient, parameter.shape).reshape(-1), own.reshape(-1), *buffers)
            if own is not parameter:  # its memory is not aligned
                parameter[...] = own

    def _update(self, k: Any, gradient: np.ndarray, parameter: np.ndarray, *buffers: np.ndarray) -> None:
        """Step one parameter; all arrays have one axis."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all that a step depends on beside parameters and gradients.

        Returns
        -------
        dict of str to array
            "steps", "lr", and buffers by the names of their parameters: "momentum.0.weight".
        """
        state = {"steps": np.array(self.steps), "lr": np.array(self.lr)}
        state.update({f"steps.{name}": np.array(count) for name, count in self._counts.items()})
        for kind, arrays in self._buffers.items():
            state.update({f"{kind}.{name}": array.copy() for name, array in arrays.items()})
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Parameters
        ----------
        state_dict : mapping of str to array

        Raises
        ------
        TypeError, ValueError
            If keys, shapes or dtypes do not fit; nothing is changed then.
        """
        function = f"{type(self).__name__}.load_state_dict"
        if not isinstance(state_dict, Mapping):
            kind = type(state_dict).__name__
            raise TypeError(f"{function}: state_dict is a {kind}: it must be a mapping of names to arrays")
        own = self.state_dict()
        faults = [f"key {key!r} is missing" for key in own if key not in state_dict]
        faults += [f"key {key!r} is unexpected" for key in state_dict if key not in own]
        refuse(function, faults)
        values = {name: _real(function, repr(name), state_dict[name], array.dtype) for name, array in own.items()}
        for name, array in own.items():
            if values[name].shape != array.shape:
                raise ValueError(f"{function}: {name!r} has shape {values[name].shape}: it must be {array.shape}")
        if values["steps"] < 0:
            raise ValueError(f"{function}: steps {values['steps']}: it must be at least 0")
        self.lr = number(function, "lr", values["lr"], 0)
        self.steps = int(values["steps"])
        self._counts = {name: int(values[f"steps.{name}"]) for name in self._counts}
        for kind, arrays in self._buffers.items():
            for name, array in arrays.items():
                array[...] = values[f"{kind}.{name}"]


def _real(function: str, name: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """``value`` as an array of ``dtype``; TypeError unless it holds real numbers, of a whole kind where that is asked."""
    array = as_array(function, name, value)
    if array.dtype.kind not in ("fiu" if dtype.kind == "f" else "iu"):
        raise TypeError(f"{function}: {name} has dtype {array.dtype}: it must hold {dtype} numbers")
    return array.astype(dtype, copy=False)


class SGD(Optimizer):
    r"""Stochastic gradient descent, with momentum if wanted.

    Parameters
    ----------
    net_or_params : Layer, or list of arrays
        Whose parameters `step` changes.
    lr : float
        Learning rate; the attribute may be changed between steps.
    momentum : float
        In 0 .. 1.
    nesterov : bool
        Look ahead along the momentum; needs one.
    weight_decay : float
        This times the parameter is added to its gradient.

    Raises
    ------
    TypeError, ValueError
        For numbers out of range, parameters that are no float arrays, or nesterov without momentum.

    Notes
    -----
    .. math::
        g \leftarrow g + \lambda w, \quad v \leftarrow \mu v + g, \quad w \leftarrow w - \eta v
        \quad (\text{Nesterov: } w \leftarrow w - \eta (g + \mu v))

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> w = np.array([1.0, 2.0])
    >>> sgd = fastconv.train.SGD([w], lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     sgd.step([np.array([1.0, 0.0])])
    >>> w.round(4)
    array([0.71, 2.  ])
    """

    def __init__(
        self, net_or_params: Any, lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        self.momentum = number("SGD", "momentum", momentum, 0, 1)
        self.nesterov = flag("SGD", "nesterov", nesterov)
        if self.nesterov and self.momentum == 0:
            raise ValueError("SGD: nesterov True: it needs a momentum above 0")
        self._buffer_names = ("momentum",) if self.momentum else ()  # type: ignore[misc]
        super().__init__(net_or_params, lr, weight_decay)

    def _update(self, k: Any, gradient: np.ndarray, parameter: np.ndarray, *buffers: np.ndarray) -> None:
        velocity = buffers[0] if buffers else elementwise.NONE[parameter.dtype]
        numbers = self.lr, self.momentum if buffers else 0.0, self.weight_decay, self.nesterov
        elementwise.sgd(k, gradient, numbers, parameter, velocity)


class Adam(Optimizer):
    r"""Adam (Kingma and Ba, arXiv 1412.6980).

    Parameters
    ----------
    net_or_params : Layer, or list of arrays
    lr : float
    betas : pair of float
        How slowly the means of the gradient and of its square follow.
    eps : float
    weight_decay : float
        This times the parameter is added to its gradient.

    Raises
    ------
    TypeError, ValueError
        For numbers out of range, or parameters that are no float arrays.

    Notes
    -----
    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        w \leftarrow w - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    t counts the steps in which the parameter had a gradient.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> w = np.array([1.0, 2.0])
    >>> fastconv.train.Adam([w], lr=0.1).step([np.array([3.0, -1e-3])])
    >>> w.round(4)
    array([0.9, 2.1])
    """

    _buffer_names = ("mean", "square")
    _counts_each = True
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        net_or_params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        function = type(self).__name__
        if not np.iterable(betas) or len(tuple(betas)) != 2:
            raise ValueError(f"{function}: betas {betas!r}: it must be two numbers")
        self.betas = tuple(number(function, "betas", beta, 0, 1 - 1e-12) for beta in betas)
        self.eps = number(function, "eps", eps, 0)
        super().__init__(net_or_params, lr, weight_decay)

    def _update(self, k: Any, gradient: np.ndarray, parameter: np.ndarray, *buffers: np.ndarray) -> None:
        beta1, beta2 = self.betas
        shrink, decay = (1 - self.lr * self.weight_decay, 0.0) if self._decoupled else (1.0, self.weight_decay)
        step, scale = self.lr / (1 - beta1**self._count), (1 - beta2**self._count) ** -0.5
        numbers = step, 1 - beta1, beta2, 1 - beta2, scale, self.eps, shrink, decay
        elementwise.adam(k, gradient, numbers, parameter, *buffers)


class AdamW(Adam):
    """Adam whose weight decay shrinks the parameters themselves (Loshchilov and Hutter, arXiv 1711.05101).

    Parameters
    ----------
    net_or_params : Layer, or list of arrays
    lr : float
    betas : pair of float
    eps : float
    weight_decay : float
        Each step multiplies the parameters by 1 - lr * weight_decay, whatever their gradients.

    Raises
    ------
    TypeError, ValueError
        As `Adam`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> w = np.array([1.0, 2.0])
    >>> fastconv.train.AdamW([w], lr=0.1, weight_decay=0.5).step([np.array([3.0, 0.0])])
    >>> w.round(4)
    array([0.85, 1.9 ])
    """

    _decoupled = True

    def __init__(
        self,
        net_or_params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(net_or_params, lr, betas, eps, weight_decay)
