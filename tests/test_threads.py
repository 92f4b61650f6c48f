"""Threads: same bits for every count, several Python threads at once, the GIL, fork, and other people's settings."""

import importlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import convolution
import fastconv as fc
from conftest import ENGINES, Engine
from fastconv import _plan, _threads
from fastconv._problem import PoolProblem
from problems import Conv, integers, normals
from tolerance import assert_same

ROOT = Path(fc.__file__).parent.parent
COMPILED = [name for name in ENGINES if name != "reference"]
LARGE = Conv("large", 3, 13, 23, 25, 19, 3, 3, padding=1)  # beyond the size from which calls use threads
assert LARGE.problem().macs > 3 * _plan.THREAD_WORK


def engine_or_skip(name):
    chosen = Engine(name)
    if chosen.refusal:
        pytest.skip(f"{name}: {chosen.refusal}")
    return chosen


def everything():
    """Every public function on problems that are large enough for threads: (name, result)."""
    x, w = normals(LARGE.input_shape, "float32", 1), normals(LARGE.weight_shape, "float32", 2)
    b, g = normals((LARGE.OC,), "float32", 3), normals(LARGE.problem().output_shape, "float32", 4)
    for algorithm in ("im2col", "direct"):
        yield algorithm, fc.conv2d(x, w, b, padding=1, activation="relu", algorithm=algorithm)
        yield f"{algorithm} reflect", fc.conv2d(x, w, b, padding=2, padding_mode="reflect", algorithm=algorithm)
        yield f"{algorithm} strided", fc.conv2d(x, w, b, 2, algorithm=algorithm)
        for name, result in zip(
            ("grad_input", "grad_weight", "grad_bias"),
            fc.conv2d_backward(g, x, w, padding=1, algorithm=algorithm), strict=True,
        ):  # fmt: skip
            yield f"{algorithm} {name}", result
        yield f"{algorithm} transposed", fc.conv_transpose2d(g, w, stride=2, algorithm=algorithm)
        yield (
            f"{algorithm} depthwise",
            fc.conv2d(np.tile(x, (1, 8, 1, 1)), np.tile(w[:13, :1], (8, 1, 1, 1)), groups=104, algorithm=algorithm),
        )
    large = np.tile(x, (4, 8, 1, 1))
    pooled, indices = fc.max_pool2d(large, 3, 1, return_indices=True)
    assert PoolProblem.from_args("t", large.shape, "float32", 3, 1).macs > 3 * _plan.THREAD_WORK
    yield "max_pool2d", pooled
    yield "indices", indices
    yield "max_pool2d_backward", fc.max_pool2d_backward(pooled, indices, large.shape, 3, 1)
    yield "avg_pool2d", fc.avg_pool2d(large, 3, 1)
    yield "avg_pool2d_backward", fc.avg_pool2d_backward(pooled, large.shape, 3, 1)
    yield "max_unpool2d", fc.max_unpool2d(pooled, indices, 3, 1)
    cols = fc.im2col(large, 3)
    yield "columns", cols
    yield "columns back", fc.col2im(cols, large.shape[2:], 3)


def test_same_bits_for_every_thread_count(engine):
    with fc.config(num_threads=1):
        one = dict(everything())
    for n in (2, 3):
        with fc.config(num_threads=n):
            for name, result in everything():
                assert_same(result, one[name], f"{engine.name} {name} on {n} threads")


def test_plans_do_not_depend_on_threads(engine):
    for op in ("forward", "grad_input", "grad_weight"):
        texts = set()
        for n in (1, 2, 5):
            with fc.config(num_threads=n):
                plan = fc.plan_conv2d(LARGE.problem(), op=op)
                texts.add((plan.algorithm, plan.backend, plan.isa))
        assert len(texts) == 1


@pytest.mark.parametrize("num_threads", [1, 2])
def test_two_python_threads_at_once(engine, num_threads):
    """Each has its own workspace and its own results; neither disturbs the other."""
    cases = [LARGE, Conv("other", 2, 17, 21, 20, 23, 3, 3, stride=1, padding=1)]
    data, exact = [], []
    for case in cases:
        x, w = integers(case.input_shape, "float32", 1), integers(case.weight_shape, "float32", 2)
        data.append((x, w))
        exact.append(
            [fc.conv2d(x, w, padding=1, algorithm=name) for name in ("im2col", "direct")] + [fc.max_pool2d(x, 3, 1)]
        )
    barrier, failures = threading.Barrier(2), []

    def work(which):
        try:
            x, w = data[which]
            with engine.config(num_threads=num_threads):
                for _ in range(6):
                    barrier.wait(timeout=300)
                    for name, right in zip(("im2col", "direct"), exact[which], strict=False):
                        assert_same(fc.conv2d(x, w, padding=1, algorithm=name), right, f"thread {which} {name}")
                    assert_same(fc.max_pool2d(x, 3, 1), exact[which][2], f"thread {which} pool")
        except BaseException as error:
            barrier.abort()
            failures.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if failures:
        raise failures[0]


# ---------------------------------------------------------------------------------------------------------- the GIL


def long_and_short(engine, kernel, images):
    """Two calls of one kernel: on ``images`` images, and on very little."""

    def conv(stem, N, extent, channels):
        case = Conv("gil", N, channels, extent, extent, channels, 3, 3, padding=1)
        problem = case.problem()
        x, w = np.ones(case.input_shape, "float32"), np.ones(case.weight_shape, "float32")
        weight = convolution.weight_of(engine, stem, w, problem)
        none, indices, out = (
            np.zeros((0,) * 4, "float32"),
            np.zeros((0,) * 4, np.int64),
            np.zeros(problem.output_shape, "float32"),
        )
        return bound_call(
            engine,
            stem,
            "conv2d",
            problem.geometry(),
            x,
            weight,
            np.zeros(0, "float32"),
            -np.inf,
            np.inf,
            out,
            none,
            indices,
        )

    def pool(N, extent, channels):
        problem = PoolProblem.from_args("t", (N, channels, extent, extent), "float32", 5, 1, 2)
        x = np.ones(problem.input_shape, "float32")
        return bound_call(
            engine, "pool", "avg_pool2d", problem.geometry(), x, np.zeros(problem.output_shape, "float32")
        )

    def pad(N, extent, channels):
        case = Conv("gil", N, channels, extent, extent, channels, 1, 1, padding=3, groups=channels).problem()
        grad = np.ones((N, channels, extent + 6, extent + 6), "float32")
        return bound_call(
            engine, "pad", "pad2d_adjoint", case.border().geometry(), grad, np.zeros(case.input_shape, "float32")
        )

    make = {
        "direct": lambda *size: conv("direct", *size),
        "im2col": lambda *size: conv("im2col", *size),
        "pool": pool,
        "pad": pad,
    }[kernel]
    return make(images, 64, 16), make(1, 3, 1)


def bound_call(engine, stem, kernel, geometry, *arrays):
    """The kernel call alone, so that no Python code runs between its start and its end."""
    function = getattr(getattr(engine.k, stem), kernel)
    workspace = np.zeros(engine.k.workspace(stem, kernel, geometry, 1), "float32")
    return lambda: function(*arrays, workspace, geometry, 1)


@pytest.mark.parametrize("kernel", ["direct", "im2col", "pool", "pad"])
@pytest.mark.parametrize("name", COMPILED)
def test_kernels_release_the_gil(name, kernel):
    """While one thread is inside a single kernel call, another one completes calls.

    No Python thread is ever made to give up the GIL here (the switch interval is a day), so another thread runs only
    where the first lets go of it by itself. With the GIL kept, not one call could complete between "started" and
    "finished", however long the kernel runs. If the machine is busy the work is doubled until some did.
    """
    engine = engine_or_skip(name)
    images, wanted, completed = 4, 3, 0
    interval = sys.getswitchinterval()
    while completed < wanted and images <= 256:
        long, short = long_and_short(engine, kernel, images)
        short(), long()  # compile, and touch all memory
        state = {"started": False, "finished": False, "late": 0}

        def work(long=long, state=state):
            state["started"] = True
            long()
            state["finished"] = True

        thread = threading.Thread(target=work)
        sys.setswitchinterval(86400)
        try:
            thread.start()
            while not state["finished"]:
                started = state["started"]
                short()
                if started and not state["finished"]:
                    completed += 1
        finally:
            sys.setswitchinterval(interval)
            thread.join()
        images *= 4
    assert completed >= wanted, (
        f"{engine.name} {kernel}: only {completed} calls completed during a call on {images // 4} images"
    )


# -------------------------------------------------------------------------------------------------- new processes

FORK = """
import os, sys, time
import numpy as np
import fastconv as fc
backend, isa = sys.argv[1:]
x, w = np.ones((3, 13, 23, 25), "float32"), np.ones((19, 13, 3, 3), "float32")
def everything():
    with fc.config(backend=backend, isa=isa or None, num_threads=2):
        for algorithm in ("im2col", "direct"):
            out = fc.conv2d(x, w, padding=1, algorithm=algorithm)
            assert out[0, 0, 5, 5] == 117 and out[2, 18, 0, 0] == 52
        assert (fc.max_pool2d(np.tile(x, (4, 8, 1, 1)), 3, 1) == 1).all()
everything()
for generation in range(2):
    child = os.fork()
    if child == 0:
        everything()
        if generation == 0:  # a child of the child works too
            grandchild = os.fork()
            if grandchild == 0:
                everything()
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
        os._exit(0 if backend == "reference" or len(os.listdir("/proc/self/task")) > 1 else 9)  # it has helpers of its own
    for _ in range(1200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        sys.exit("the child hangs")
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, f"the child ended with {code}"
    everything()  # the parent goes on
print("fine")
"""


def python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *arguments], capture_output=True, text=True,
        cwd=ROOT, env={**os.environ, **environment}, timeout=600,
    )  # fmt: skip


@pytest.mark.skipif(
    not hasattr(os, "fork") or not os.path.isdir("/proc/self/task"),
    reason="this system has no fork, or lists no threads",
)
@pytest.mark.parametrize("name", ENGINES)
def test_fork_after_use(name):
    engine = engine_or_skip(name)
    run = python(FORK, engine.backend, engine.isa or "")
    assert run.stdout == "fine\n", run.stderr[-2000:]


LOCKS = """
import os, signal, sys, threading
import numpy as np
import fastconv as fc
from fastconv import _packed, _tuned
locks = [_packed._lock, _tuned._lock]
if sys.argv[1] == "numba":
    from fastconv._numba import _late
    locks.append(_late.lock)
held, free = threading.Event(), threading.Event()
def hold():
    for lock in locks: lock.__enter__()
    held.set()
    free.wait(600)
    for lock in reversed(locks): lock.__exit__()
holder = threading.Thread(target=hold)
holder.start()
held.wait(600)
child = os.fork()
if child == 0:
    signal.alarm(300)  # which ends a child that waits
    w = fc.pack_conv2d_weight(np.ones((2, 3, 2, 2), "float32"))
    with fc.config(backend=sys.argv[1], isa=sys.argv[2] or None):
        out = fc.conv2d(np.ones((1, 3, 4, 4), "float32"), w, algorithm="im2col")
    os._exit(0 if (out == 12).all() else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
free.set()
holder.join()
print(code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("name", ENGINES)
def test_a_forked_child_needs_no_lock_that_another_thread_held(name):
    engine = engine_or_skip(name)
    run = python(LOCKS, engine.backend, engine.isa or "")
    assert run.stdout == "0\n", run.stderr[-2000:]


WITHIN = """
import signal, sys
import numpy as np
import fastconv as fc
backend, isa, algorithm, mode = sys.argv[1:]
rng = np.random.default_rng(0)
x, w = (rng.integers(-3, 4, shape).astype("float32") for shape in ((1, 16, 24, 24), (16, 16, 3, 3)))
other = 1000 * rng.standard_normal((1, 16, 20, 20)).astype("float32")
def call(x):
    return fc.conv2d(x, w, padding=1, padding_mode=mode, algorithm=algorithm)
runs, wrong = 0, 0
def handler(number, frame):
    global runs
    runs += 1
    call(other)
    if runs < 1000:  # once more, when this call is over: a slow one would be met by the next signal for ever
        signal.setitimer(signal.ITIMER_REAL, 3e-4)
with fc.config(backend=backend, isa=isa or None, num_threads=1):
    right = call(x)
    call(other)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 3e-4)
    while runs < 1000:
        wrong += not np.array_equal(call(x), right)
print(wrong)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer")
@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize(("algorithm", "mode"), [("im2col", "reflect"), ("winograd", "zeros")])
def test_a_call_within_a_call_has_memory_of_its_own(name, algorithm, mode):
    """A signal's handler runs between two steps of a call, and calls as well."""
    engine = engine_or_skip(name)
    run = python(WITHIN, engine.backend, engine.isa or "", algorithm, mode)
    assert run.stdout == "0\n", run.stderr[-2000:]


INTERRUPTS = """
import signal, sys, threading
import numpy as np
import fastconv as fc
x, w = np.ones((2, 8, 24, 24), "float32"), np.ones((8, 8, 3, 3), "float32")
rng, interrupts = np.random.default_rng(0), 0
def handler(number, frame):
    raise KeyboardInterrupt
with fc.config(backend=sys.argv[1], isa=sys.argv[2] or None, num_threads=2):
    right = fc.conv2d(x, w, padding=1)
    signal.signal(signal.SIGALRM, handler)
    while interrupts < 3000:
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-5, 3e-4))
                while True:
                    fc.conv2d(x, w, padding=1)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupts += 1
    print(np.array_equal(fc.conv2d(x, w, padding=1), right), sum(t.name == "fastconv" for t in threading.enumerate()))
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer")
@pytest.mark.parametrize("name", COMPILED)
def test_interrupted_calls_leave_no_threads_behind(name):
    engine = engine_or_skip(name)
    run = python(INTERRUPTS, engine.backend, engine.isa or "")
    helpers = 1 if engine.backend == "numba" else 0  # Cython's are none of Python's
    assert run.stdout == f"True {helpers}\n", run.stderr[-2000:]


POOL = """
import os, sys
import numpy as np
import fastconv as fc
backend, isa = sys.argv[1:]
x, w = np.ones((8, 13, 23, 25), "float32"), np.ones((19, 13, 3, 3), "float32")
def threads(n):
    with fc.config(backend=backend, isa=isa or None, num_threads=n):
        for algorithm in ("im2col", "direct"):
            fc.conv2d(x, w, padding=1, algorithm=algorithm)
    return len(os.listdir("/proc/self/task"))
print(threads(1), threads(1), threads(2))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not list a process's threads")
@pytest.mark.parametrize("name", COMPILED)
def test_two_threads_are_two_threads(name):
    """num_threads=1 starts none, num_threads=2 really starts one more."""
    engine = engine_or_skip(name)
    run = python(POOL, engine.backend, engine.isa or "", NUMBA_NUM_THREADS="2", OPENBLAS_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr[-2000:]
    first, second, parallel = map(int, run.stdout.split())
    assert first == second < parallel, run.stdout


LAYERS = """
import sys, threading
import numpy as np
import fastconv as fc, numba
@numba.njit(parallel=True)
def total(a):
    sums = np.zeros(a.shape[0])
    for i in numba.prange(a.shape[0]):
        sums[i] = a[i].sum()
    return sums.sum()
x, w = np.ones((3, 13, 23, 25), "float32"), np.ones((19, 13, 3, 3), "float32")
assert total(x) == x.size
barrier, right = threading.Barrier(3), []
def work():
    barrier.wait()
    with fc.config(backend="numba", num_threads=2):
        for _ in range(10):
            out = fc.conv2d(x, w, padding=1, algorithm="direct")
            assert out[0, 0, 5, 5] == 117
            out = fc.conv2d(x, w, padding=1, algorithm="im2col")
            assert out[0, 0, 5, 5] == 117
    right.append(True)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
barrier.wait()
for _ in range(100): assert total(x) == x.size
for thread in threads: thread.join()
print(len(right), numba.threading_layer())
"""


@pytest.fixture(params=["omppool", "tbbpool", "workqueue"])
def layer(request):
    """Numba's threading layers, those that are installed."""
    engine_or_skip("numba")
    try:
        importlib.import_module(f"numba.np.ufunc.{request.param}")
    except ImportError as error:
        pytest.skip(f"{request.param}: {error}")
    return request.param.removesuffix("pool")


def test_threads_beside_each_of_numbas_layers(layer):
    """The user's own parallel loops and ours, from three Python threads; workqueue bears one of them at a time."""
    run = python(LAYERS, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")
    assert run.stdout == f"2 {layer}\n", run.stderr[-2000:]


TEAMS = """
import os, random, sys, threading
import numpy as np
import fastconv as fc
from fastconv import _backends
x = np.arange(60 * 5 * 6, dtype="float32").reshape(1, 60, 5, 6)
right, failures = np.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2)), "edge"), []
problem = fc.ConvProblem.from_args(
    "t", x.shape, (60, 1, 1, 1), "float32", padding=(1, 2), padding_mode="replicate", groups=60
)
geometry = problem.border().geometry()
pad2d = _backends.kernels(sys.argv[1], sys.argv[2] or None).pad.pad2d
if sys.argv[1] == "cython":
    pad2d = pad2d["float"]
def work(seed):
    rng, out = random.Random(seed), np.empty_like(right)
    for _ in range(400):
        out[:] = 0
        pad2d(x, out, out[0, 0, 0, :0], geometry, rng.choice((1, 2, 2, 3, 5, 9, 70)))
        if not np.array_equal(out, right):
            failures.append(seed)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
work(3)
print(failures, 1 + 59 <= len(os.listdir("/proc/self/task")) <= 1 + 3 * 59)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not list a process's threads")
@pytest.mark.parametrize("name", COMPILED)
def test_teams_do_every_task_whatever_their_size(name):
    """More threads than CPUs and than tasks, teams that grow, no more of them than callers live, and a clean end."""
    engine = engine_or_skip(name)
    run = python(TEAMS, engine.backend, engine.isa or "", OPENBLAS_NUM_THREADS="1")
    assert (run.stdout, run.returncode) == ("[] True\n", 0), run.stderr[-2000:]


HELPERS = """
import os, signal, sys, threading
import numpy as np
import fastconv as fc
threading.stack_size(65536)
x, w = np.ones((1, 64, 40, 40), "float32"), np.ones((64, 64, 3, 3), "float32")
with fc.config(backend=sys.argv[1], isa=sys.argv[2] or None, num_threads=2):
    out = fc.conv2d(x, w, padding=1, algorithm="winograd")
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getpid(), signal.SIGTERM)
print(signal.sigwait([signal.SIGTERM]) == signal.SIGTERM, threading.stack_size(), round(float(out[0, 0, 5, 5])))
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system has no signals of threads")
@pytest.mark.parametrize("name", COMPILED)
def test_helpers_take_no_signals_and_have_stacks_of_their_own_size(name):
    engine = engine_or_skip(name)
    run = python(HELPERS, engine.backend, engine.isa or "", OPENBLAS_NUM_THREADS="1")
    assert (run.stdout, run.returncode) == ("True 65536 576\n", 0), run.stderr[-2000:]


# ------------------------------------------------------------------------------------------------------- settings


def test_numbas_own_setting_is_left_alone():
    engine = engine_or_skip("numba")
    import numba

    x, w = np.ones(LARGE.input_shape, "float32"), np.ones(LARGE.weight_shape, "float32")
    before = numba.get_num_threads()
    try:
        for mine in {1, before}:
            numba.set_num_threads(mine)
            for algorithm in ("im2col", "direct"):
                with engine.config(num_threads=2):
                    fc.conv2d(x, w, padding=1, algorithm=algorithm)
                assert numba.get_num_threads() == mine
    finally:
        numba.set_num_threads(before)


def test_set_num_threads_is_for_all_threads_and_config_for_one():
    before = fc.get_num_threads()
    try:
        fc.set_num_threads(5)
        seen = []
        with fc.config(num_threads=2):
            thread = threading.Thread(target=lambda: seen.append(fc.get_num_threads()))
            thread.start()
            thread.join()
            assert fc.get_num_threads() == 2
        assert seen == [5] and fc.get_num_threads() == 5
    finally:
        fc.set_num_threads(before)
    assert fc.get_num_threads() == before


def test_more_threads_than_work(engine):
    x, w = integers((1, 16, 40, 40), "float32", 1), integers((1, 16, 9, 9), "float32", 2)
    with fc.config(num_threads=1):
        one = [fc.conv2d(x, w, algorithm=name) for name in ("im2col", "direct")]
    with fc.config(num_threads=32):
        for right, name in zip(one, ("im2col", "direct"), strict=True):
            assert_same(fc.conv2d(x, w, algorithm=name), right)


def test_default_is_what_this_process_may_use(monkeypatch):
    monkeypatch.setattr(_threads, "_cgroup_quota", lambda: float("inf"))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert _threads.available_cpus() == cpus
    for quota, expected in ((0.5, 1), (1.0, 1), (1.5, min(2, cpus)), (1000.0, cpus)):
        monkeypatch.setattr(_threads, "_cgroup_quota", lambda quota=quota: quota)
        assert _threads.available_cpus() == expected


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, float("inf")),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, float("inf")),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "400000 200000\n",
                "sys/fs/cgroup/cpu.max": "max 100000\n",
            },
            2.0,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        (
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            float("inf"),
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, float("inf")),
    ],
)
def test_cgroup_quota(monkeypatch, tmp_path, files, quota):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(_threads, "Path", lambda name: tmp_path / name.lstrip("/"))
    assert _threads._cgroup_quota() == quota
