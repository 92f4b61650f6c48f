"""Plans: which algorithm is chosen and why, what it needs, and that forcing one means it."""

import copy
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest

import fastconv as fc
from fastconv import _arena, _plan
from fastconv._algorithms import direct, im2col
from fastconv._problem import PoolProblem
from problems import BY_NAME, CASES, integers, solved
from tolerance import assert_same

OPS = ("forward", "grad_input", "grad_weight")

# Layers of well-known networks: (N, IC, H, W, OC, KH, KW, stride, padding, dilation, groups)
LAYERS = [
    (1, 3, 224, 224, 64, 7, 7, 2, 3, 1, 1),
    (1, 3, 224, 224, 64, 3, 3, 1, 1, 1, 1),
    (8, 64, 56, 56, 64, 3, 3, 1, 1, 1, 1),
    (1, 64, 224, 224, 64, 3, 3, 1, 1, 1, 1),
    (1, 512, 7, 7, 512, 3, 3, 1, 1, 1, 1),
    (16, 256, 56, 56, 64, 1, 1, 1, 0, 1, 1),
    (1, 32, 112, 112, 32, 3, 3, 1, 1, 1, 32),
    (1, 2048, 7, 7, 512, 1, 1, 1, 0, 1, 1),
    (1, 64, 64, 64, 64, 3, 3, 2, 2, 2, 1),
    (1, 512, 28, 28, 512, 3, 3, 1, 1, 1, 1),
    (64, 16, 32, 32, 16, 3, 3, 1, 1, 1, 1),
]


def layer(N, IC, H, W, OC, KH, KW, stride, padding, dilation, groups):
    weight = (OC, IC // groups, KH, KW)
    return fc.ConvProblem.from_args("t", (N, IC, H, W), weight, "float32", stride, padding, dilation, groups)


def test_the_list_of_algorithms():
    forced = ["winograd_f2", "winograd_f4", "winograd_f6"]
    assert list(_plan.ALGORITHMS) == [*_plan.AUTOMATIC, *forced]
    assert _plan.AUTOMATIC == ("im2col", "direct", "winograd", "winograd_wide")
    for algorithm, module in _plan.ALGORITHMS.items():
        ops = OPS if algorithm in ("im2col", "direct") else OPS[:2]
        for name in ("refusal", "cost", *ops):
            assert callable(getattr(module, name)), name


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("algorithm", ["im2col", "direct"])
def test_a_forced_algorithm_is_the_one_that_runs(engine, algorithm, op, monkeypatch):
    """The other family's kernels are not touched."""
    ran = []
    k = engine.k

    class Spy:
        def __init__(self, stem):
            self.stem = stem

        def __getattr__(self, name):
            value = getattr(getattr(k, self.stem), name)
            if name.startswith("conv2d") and not name.endswith("_workspace"):
                return lambda *arguments: (ran.append(self.stem), value(*arguments))[1]
            return value

    class Table:
        backend, isa, workspace = k.backend, k.isa, k.workspace

        def __getattr__(self, stem):
            return Spy(stem)

    monkeypatch.setattr(_plan._backends, "resolve", lambda backend="auto": Table())
    data = solved(BY_NAME["stride2"], "float32", "integers")
    plan = fc.plan_conv2d(BY_NAME["stride2"].problem(), algorithm, op=op)
    operands, name = {
        "forward": ((data["x"], data["w"], None), "conv"),
        "grad_input": ((data["grad_output"], data["w"], None), "grad_input"),
        "grad_weight": ((data["x"], data["grad_output"]), "grad_weight"),
    }[op]
    assert_same(plan(*operands), data[name].astype("float32"))
    assert plan.algorithm == algorithm and set(ran) == {algorithm}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_auto_always_finds_one(case, op):
    plan = fc.plan_conv2d(case.problem(), backend="reference", op=op)
    assert plan.algorithm in _plan.ALGORITHMS and plan.op == op and plan.isa is None
    inner = case.problem()
    assert plan.output_shape == {
        "forward": inner.output_shape, "grad_input": inner.input_shape, "grad_weight": inner.weight_shape,
    }[op]  # fmt: skip


def test_auto_takes_the_cheapest_of_those_that_do_not_refuse(monkeypatch):
    problem = BY_NAME["article"].problem()
    for cheap, dear, name in ((direct, im2col, "direct"), (im2col, direct, "im2col")):
        monkeypatch.setattr(cheap, "cost", lambda problem, op, packed: 1.0)
        monkeypatch.setattr(dear, "cost", lambda problem, op, packed: 2.0)
        plan = fc.plan_conv2d(problem, backend="reference")
        assert plan.algorithm == name
        assert f"not {'direct' if name == 'im2col' else 'im2col'}: estimated 0.0 us" in plan.explain()
        monkeypatch.setattr(cheap, "refusal", lambda problem, op: "it is Sunday")
        plan = fc.plan_conv2d(problem, backend="reference")
        assert plan.algorithm != name
        assert f"not {name}: it is Sunday" in plan.explain()
        monkeypatch.undo()


def test_of_equals_the_first_of_the_list_wins(monkeypatch):
    for module in (direct, im2col):
        monkeypatch.setattr(module, "cost", lambda problem, op, packed: 1.0)
    assert fc.plan_conv2d(BY_NAME["article"].problem(), backend="reference").algorithm == "im2col"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda d: fc.conv2d(d["x"], d["w"], algorithm="direct"), "conv2d"),
        (
            lambda d: fc.conv2d_grad_input(d["x"].shape, d["w"], d["grad_output"], algorithm="direct"),
            "conv2d_grad_input",
        ),
        (
            lambda d: fc.conv2d_grad_weight(d["x"], d["w"].shape, d["grad_output"], algorithm="direct"),
            "conv2d_grad_weight",
        ),
        (lambda d: fc.conv2d_backward(d["grad_output"], d["x"], d["w"], algorithm="direct"), "conv2d_backward"),
        (lambda d: fc.conv_transpose2d(d["grad_output"], d["w"], algorithm="direct"), "conv_transpose2d"),
    ],
)
def test_a_forced_algorithm_that_refuses_raises_its_reason(function, name, monkeypatch):
    _plan.known_plans.clear()
    monkeypatch.setattr(direct, "refusal", lambda problem, op: "stride is 2, it needs 1")
    with pytest.raises(ValueError, match=rf"^{name}: direct: stride is 2, it needs 1$"):
        function(solved(BY_NAME["article"], "float32", "integers"))
    _plan.known_plans.clear()


def test_explain(engine):
    problem = layer(1, 64, 56, 56, 64, 3, 3, 1, 1, 1, 1)
    for op in OPS:
        for algorithm in ("auto", "im2col", "direct", "winograd", "winograd_f2"):
            plan = fc.plan_conv2d(problem, algorithm, op=op)
            text = plan.explain()
            assert text.startswith(f"{op} of ConvProblem(N=1, IC=64,")
            assert f"algorithm  {plan.algorithm}" in text and engine.backend in text and (engine.isa or "") in text
            assert f"workspace  {plan.workspace_bytes} bytes" in text
            for other in {*_plan.AUTOMATIC} - {plan.algorithm}:
                assert f"not {other}: " in text
            assert ("not asked for" in text) == (algorithm != "auto")
            assert plan.algorithm in repr(plan) and op in repr(plan)
            tile = {"winograd": "tile       4 x 4", "winograd_f2": "tile       2 x 2"}.get(plan.algorithm)
            assert ("tile" in text) == (tile is not None) and (tile is None or tile in text)


def test_large_plans_use_the_threads_there_are(engine):
    """And small ones one thread, whatever there is: starting a second one costs more than it brings."""
    with fc.config(num_threads=3):
        assert "  threads    3\n" in fc.plan_conv2d(layer(*LAYERS[2])).explain()
        assert "  threads    1\n" in fc.plan_conv2d(BY_NAME["article"].problem()).explain()
        seen = []
        plan = fc.plan_conv2d(BY_NAME["filters-49"].problem())
        plan._most_workers, plan._run = 3, lambda *arguments: seen.append(arguments[-1])
        plan(np.zeros(plan.problem.input_shape, "float32"), np.zeros(plan.problem.weight_shape, "float32"), None)
    assert seen == [3]


@pytest.mark.parametrize(
    ("shape", "packed", "chosen"),
    [
        ((1, 64, 56, 56, 64, 3, 3, 1, 1, 1, 1), False, "winograd 4"),
        ((1, 128, 28, 28, 128, 3, 3, 1, 1, 1, 1), False, "winograd 4"),
        ((1, 256, 56, 56, 256, 3, 3, 1, 1, 1, 1), False, "winograd 4"),
        ((1, 64, 224, 224, 64, 3, 3, 1, 1, 1, 1), False, "winograd 4"),
        ((1, 512, 14, 14, 512, 3, 3, 1, 1, 1, 1), False, "winograd 2"),
        ((1, 512, 7, 7, 512, 3, 3, 1, 1, 1, 1), False, "im2col"),
        ((1, 512, 7, 7, 512, 3, 3, 1, 1, 1, 1), True, "winograd"),
        ((8, 512, 7, 7, 512, 3, 3, 1, 1, 1, 1), False, "winograd 4"),
        ((1, 3, 224, 224, 64, 3, 3, 1, 1, 1, 1), False, "im2col"),
        ((1, 32, 112, 112, 32, 3, 3, 1, 1, 1, 32), False, "direct"),
        ((1, 64, 56, 56, 64, 3, 3, 2, 1, 1, 1), True, "im2col"),
    ],
)
def test_what_auto_takes(shape, packed, chosen):
    """Winograd where its call is faster, the transform of the weight included unless the caller has packed it."""
    plan = fc.plan_conv2d(layer(*shape), backend="reference", packed=packed)
    name, _, tile = chosen.partition(" ")
    assert plan.algorithm == name
    if not packed:
        assert plan._step.detail == (f"tile       {tile} x {tile}" if tile else "")


@pytest.mark.parametrize(("extent", "chosen"), [(224, "winograd"), (32, "im2col")])
def test_what_auto_takes_of_units_on_images(extent, chosen):
    """Maps that are pooled at once are worth the fewer products; stored whole, or small, they are not."""
    problem = layer(1, 3, extent, extent, 32, 3, 3, 1, 1, 1, 1)
    assert fc.plan_conv2d(problem, backend="reference").algorithm == "im2col"
    pool = PoolProblem.from_args("test", problem.output_shape, problem.dtype, 2)
    assert fc.plan_conv2d(replace(problem, pool=pool), backend="reference").algorithm == chosen


def test_estimates_leave_out_what_a_caller_has_packed():
    problem = layer(*LAYERS[4])
    for name, module in _plan.ALGORITHMS.items():
        for op in OPS[:2]:
            with_packing, without = (module.cost(problem, op, packed=packed) for packed in (False, True))
            assert without < with_packing or name == "direct" and without == with_packing


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", LAYERS, ids=lambda shape: "-".join(map(str, shape)))
def test_workspace_stays_in_bounds(engine, shape, op):
    """Of a plan that auto makes: 2 * (input + output) + 16 MiB, weights packed by the call apart."""
    problem = layer(*shape)
    allowed = 2 * 4 * (np.prod(problem.input_shape) + np.prod(problem.output_shape)) + 16 * 2**20
    for n_threads in (1, 2):
        with fc.config(num_threads=n_threads):
            plan = fc.plan_conv2d(problem, op=op)
            packed = plan._step.packed_elements * 4
            assert 0 <= packed <= plan.workspace_bytes
            assert plan.workspace_bytes - packed <= allowed


def test_auto_refuses_a_plan_with_too_much_workspace(engine, monkeypatch):
    problem = layer(1, 64, 56, 56, 64, 3, 3, 1, 1, 1, 1)
    monkeypatch.setattr(im2col, "cost", lambda problem, op, packed: 1.0)
    assert fc.plan_conv2d(problem).algorithm == "im2col"
    monkeypatch.setattr(_plan, "SPARE_BYTES", -(2**40))
    plan = fc.plan_conv2d(problem)
    assert plan.algorithm == "direct"
    assert "not im2col: it needs" in plan.explain() and "bytes of workspace" in plan.explain()
    assert fc.plan_conv2d(problem, "im2col").algorithm == "im2col"  # forcing overrides


@pytest.mark.parametrize("algorithm", ["im2col", "direct"])
def test_a_plan_is_called_with_its_own_out_and_workspace(engine, algorithm):
    case = BY_NAME["article"]
    data = solved(case, "float32", "integers")
    problem = case.problem(bias=True)
    plan = fc.plan_conv2d(problem, algorithm)
    exact = (data["conv"] + data["bias"][:, None, None]).astype("float32")
    out = np.full(plan.output_shape, np.nan, "float32")
    space = np.full(plan.workspace_bytes // 4, np.nan, "float32")
    assert plan(data["x"], data["w"], data["bias"], out=out, workspace=space) is out
    assert_same(out, exact)
    assert_same(plan(data["x"], data["w"], data["bias"]), exact)
    no_bias = fc.plan_conv2d(case.problem(), algorithm)
    assert_same(no_bias(data["x"], data["w"], None), data["conv"].astype("float32"))


def test_plans_are_kept_and_told_apart():
    """One plan for equal arguments; another one for 1 and True-like, for dtype, shape, back end."""
    _plan.known_plans.clear()
    x, w = integers((1, 2, 6, 6), "float32", 1), integers((3, 2, 3, 3), "float32", 2)
    with fc.config(backend="reference"):
        fc.conv2d(x, w)
        fc.conv2d(-x, w, stride=1, padding=0)
        assert len(_plan.known_plans) == 1
        fc.conv2d(x, w, stride=(1, 1))
        fc.conv2d(x[0], w)
        fc.conv2d(x.astype("float64"), w.astype("float64"))
        fc.conv2d(x, w, padding=[1, 1])
        fc.conv2d(x, w, np.ones(3, "float32"))
        assert len(_plan.known_plans) == 6
        with pytest.raises(TypeError):
            fc.conv2d(x, w, stride=True)  # equal to 1, and no integer
        with pytest.raises(TypeError):
            fc.conv2d(x, w, stride=1.0)
    backends = fc.available_backends()
    for backend in backends:
        fc.conv2d(x, w, backend=backend)
    assert len(_plan.known_plans) == 6 + len(backends)


def test_arguments_without_a_hash_work():
    x, w = integers((1, 2, 6, 6), "float32", 1), integers((3, 2, 3, 3), "float32", 2)
    assert_same(fc.conv2d(x, w, stride=np.array([2, 1])), fc.conv2d(x, w, stride=(2, 1)))


def test_plans_do_not_grow_without_end(monkeypatch):
    monkeypatch.setattr(fc.functional, "MOST_PLANS", 5)
    _plan.known_plans.clear()
    for width in range(3, 30):
        fc.conv2d(np.ones((1, 1, 3, width), "float32"), np.ones((1, 1, 3, 3), "float32"), backend="reference")
        assert len(_plan.known_plans) <= 5


# --------------------------------------------------------------------------------------------------- workspaces


def test_workspaces_are_aligned_and_grow():
    fc.clear_workspaces()
    small = _arena.workspace(10, "float32")
    assert small.size >= 10 and small.dtype == np.float32 and small.ctypes.data % 64 == 0
    _arena.keep(small, "float32")
    large = _arena.workspace(1000, "float32")
    assert large.size >= 1000 and large.ctypes.data % 64 == 0
    other = _arena.workspace(1000, "float64")
    assert other.size >= 1000 and other.dtype == np.float64 and not np.shares_memory(other, large)
    _arena.keep(large, "float32")
    again = _arena.workspace(500, "float32")
    assert np.shares_memory(again, large), "a smaller request allocates again"
    assert not np.shares_memory(again, _arena.workspace(500, "float32")), "two calls at once have one workspace"


def test_clear_workspaces_drops_every_threads_buffer():
    fc.clear_workspaces()
    first = _arena.workspace(100, "float32")
    _arena.keep(first, "float32")
    fc.clear_workspaces()
    assert not np.shares_memory(first, _arena.workspace(100, "float32"))
    asked, cleared, found = threading.Event(), threading.Event(), []

    def other():
        mine = _arena.workspace(100, "float32")
        _arena.keep(mine, "float32")
        asked.set()
        cleared.wait(60)
        found.append(np.shares_memory(mine, _arena.workspace(100, "float32")))

    thread = threading.Thread(target=other)
    thread.start()
    asked.wait(60)
    fc.clear_workspaces()
    cleared.set()
    thread.join()
    assert found == [False]


def test_threads_do_not_share_workspaces():
    mine, theirs = _arena.workspace(100, "float32"), []
    _arena.keep(mine, "float32")
    thread = threading.Thread(target=lambda: theirs.append(_arena.workspace(100, "float32")))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, theirs[0])


@pytest.mark.parametrize("packed", [False, True])
def test_plans_can_be_copied_and_pickled(engine, packed):
    problem = fc.ConvProblem.from_args("t", (1, 3, 9, 9), (8, 3, 3, 3), "float32", padding=1, padding_mode="reflect")
    plan = fc.plan_conv2d(problem, packed=packed)
    x, w = np.ones(problem.input_shape, "float32"), np.ones(problem.weight_shape, "float32")
    expected = plan(x, plan.pack(w) if packed else w, None)
    for twin in (copy.copy(plan), copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert twin.explain() == plan.explain() and repr(twin) == repr(plan)
        np.testing.assert_array_equal(twin(x, twin.pack(w) if packed else w, None), expected)
