"""Build of the compiled kernels: every stem of src_cython, once per ISA level. Metadata: pyproject.toml.

Environment: FASTCONV_NO_EXTENSION=1 builds none (Numba or the NumPy reference then serve);
FASTCONV_BOUNDSCHECK=1 checks every memoryview index (slow, for tests).
"""

import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = sorted({path.stem for path in Path("src_cython").glob("*.pyx")} - {"cpu"})
HEADERS = sorted(map(str, [*Path("src_cython").glob("*.h"), *Path("src_cython").glob("*.pxd")]))

# ISA level: floats in a vector, compiler flags. Only x86-64 has more than the baseline.
ISAS = {
    "baseline": (4, []),
    "x86_64_v3": (8, ["-march=x86-64-v3"]),
    "x86_64_v4": (16, ["-march=x86-64-v4", "-mprefer-vector-width=512"]),
}
if platform.machine().lower() not in ("x86_64", "amd64"):
    ISAS = {"baseline": ISAS["baseline"]}

# One fast-maths policy: contraction yes, but NaN, Inf, signed zeros and the order of sums stay as written. What is called
# inline is inlined (simd.h), nothing else: a tile that the compiler merges with its caller loses its registers.
FLAGS = [
    "-O3", "-g0", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-inline",
    "-Wno-unused-function",
]  # fmt: skip


def openmp_flags() -> list[str]:
    """Flags that compile and link an OpenMP program here; none if the compiler has no OpenMP."""
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.errors import CompileError, LinkError
    from setuptools._distutils.sysconfig import customize_compiler

    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
        try:
            objects = compiler.compile([str(source)], output_dir=folder, extra_postargs=["-fopenmp"])
            compiler.link_executable(objects, "probe", output_dir=folder, extra_postargs=["-fopenmp"])
        except (CompileError, LinkError):
            return []
    return ["-fopenmp"]


class BuildKernels(build_ext):
    """build_ext on all CPUs: two dozen independent files."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()


def cythonized(extensions: list[Extension], build_dir: str, checked: bool) -> list[Extension]:
    """`extensions` with C sources: those of an earlier build where they are younger than every source.

    cythonize() alone would write them again in every isolated build, as Cython's own .pxd files are new there.
    """
    from Cython.Build import cythonize

    newest = max(path.stat().st_mtime for path in [Path(__file__), *Path("src_cython").iterdir()])
    stale = []
    for extension in extensions:
        made = Path(build_dir, extension.sources[0]).with_suffix(".c")
        if made.is_file() and made.stat().st_mtime > newest:
            extension.sources = [str(made)]
        else:
            stale.append(extension)
    directives = {
        "language_level": 3,
        "boundscheck": checked,
        "wraparound": False,
        "cdivision": True,
        "initializedcheck": False,
        "freethreading_compatible": True,
    }
    # cythonize() remembers a .pyx: what it gives back may hold the macros and flags of an earlier ISA
    flags = {one.name: (list(one.define_macros), list(one.extra_compile_args)) for one in stale}
    new = cythonize(
        stale, build_dir=build_dir, include_path=["src_cython"], compiler_directives=directives, quiet=True, force=True
    )
    for one in new:
        one.define_macros, one.extra_compile_args = flags[one.name]
    return [extension for extension in extensions if extension not in stale] + new


def extensions() -> list[Extension]:
    """All compiled modules. One cythonize() call per ISA: one call cannot build one .pyx under two names."""
    openmp = openmp_flags()
    link = [*openmp, "-Wl,-s"] if platform.system() == "Linux" else openmp  # -s: no symbols
    checked = os.environ.get("FASTCONV_BOUNDSCHECK") == "1"
    folder = "build/cython_checked" if checked else "build/cython"

    def extension(name: str, stem: str, flags: Sequence[str] = (), macros: Sequence[tuple[str, str]] = ()) -> Extension:
        return Extension(
            f"fastconv._cython.{name}",
            [f"src_cython/{stem}.pyx"],
            include_dirs=["src_cython"],
            depends=["setup.py", *HEADERS],
            extra_compile_args=[*FLAGS, *flags, *openmp],
            extra_link_args=link,
            define_macros=list(macros),
        )

    built = cythonized([extension("cpu", "cpu")], f"{folder}/cpu", checked)
    for isa, (vl, flags) in ISAS.items():
        macros = [("FASTCONV_VL", str(vl))]
        kernels = [extension(f"{isa}.{stem}", stem, flags, macros) for stem in KERNELS]
        built += cythonized(kernels, f"{folder}/{isa}", checked)
    return built


without = os.environ.get("FASTCONV_NO_EXTENSION") == "1"
setup(ext_modules=[] if without else extensions(), cmdclass={"build_ext": BuildKernels})
