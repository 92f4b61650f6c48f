"""Build of the compiled kernels: every stem of src_cython, once per ISA level. Metadata: pyproject.toml.

Environment: FASTCONV_NO_EXTENSION=1 builds none (Numba or the NumPy reference then serve);
FASTCONV_BOUNDSCHECK=1 checks every memoryview index (slow, for tests).
"""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

STEMS = sorted(path.stem for path in Path("src_cython").glob("*.pyx"))
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

CHECKED = os.environ.get("FASTCONV_BOUNDSCHECK") == "1"
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": CHECKED,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "freethreading_compatible": True,
}


def accepted(flag: str) -> list[str]:
    """``flag`` if a program compiles and links with it here, else none."""
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.errors import CompileError, LinkError
    from setuptools._distutils.sysconfig import customize_compiler

    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("int main(void) { return 0; }\n")
        try:
            objects = compiler.compile([str(source)], output_dir=folder, extra_postargs=[flag])
            compiler.link_executable(objects, "probe", output_dir=folder, extra_postargs=[flag])
        except (CompileError, LinkError):
            return []
    return [flag]


class BuildKernels(build_ext):
    """build_ext on all CPUs, of which each stem's C source serves every ISA."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self) -> None:
        with ThreadPoolExecutor(self.parallel) as pool:
            made = dict(zip(STEMS, pool.map(c_source, STEMS), strict=True))
        for extension in self.extensions:
            source = made[Path(extension.sources[0]).stem]
            extension.sources, extension.depends = [own_source(extension.name, source)], [*extension.depends, source]
        super().build_extensions()


def c_source(stem: str) -> str:
    """Path of the C source: that of an earlier build where it is younger than every source."""
    made = Path("build/cython_checked" if CHECKED else "build/cython", f"{stem}.c")
    newest = max(path.stat().st_mtime for path in [Path(__file__), *Path("src_cython").iterdir()])
    if not made.is_file() or made.stat().st_mtime <= newest:
        made.parent.mkdir(parents=True, exist_ok=True)
        directives = [word for name, value in DIRECTIVES.items() for word in ("--directive", f"{name}={value}")]
        names = ["--module-name", f"fastconv._cython.{stem}", "--include-dir", "src_cython", "--output-file", str(made)]
        subprocess.run([sys.executable, "-m", "cython", *directives, *names, f"src_cython/{stem}.pyx"], check=True)
    return str(made)


def own_source(name: str, source: str) -> str:
    """A file that includes ``source``, for the extension ``name`` alone: two that share one share its object file, too."""
    own = Path(source).parent / name.split(".")[-2] / Path(source).name
    text = f'#include "../{own.name}"\n'
    if not own.is_file() or own.read_text() != text:
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(text)
    return str(own)


def extensions() -> list[Extension]:
    """All compiled modules."""
    # GCC would fill a tile's sums with zeros by a call of memset, which takes them out of their registers; Clang has no such flag
    optimisation = [*FLAGS, *accepted("-fno-tree-loop-distribute-patterns")]
    threads = accepted("-pthread")
    link = [*threads, "-Wl,-s"] if platform.system() == "Linux" else threads  # -s: no symbols

    def extension(name: str, stem: str, flags: Sequence[str] = (), macros: Sequence[tuple[str, str]] = ()) -> Extension:
        return Extension(
            f"fastconv._cython.{name}",
            [f"src_cython/{stem}.pyx"],
            include_dirs=["src_cython"],
            depends=["setup.py", *HEADERS],
            extra_compile_args=[*optimisation, *flags, *threads],
            extra_link_args=link,
            define_macros=list(macros),
        )

    kernels = [
        extension(f"{isa}.{stem}", stem, flags, [("FASTCONV_VL", str(vl))])
        for stem in STEMS
        if stem != "cpu"
        for isa, (vl, flags) in ISAS.items()
    ]
    return [*kernels, extension("cpu", "cpu")]


without = os.environ.get("FASTCONV_NO_EXTENSION") == "1"
setup(ext_modules=[] if without else extensions(), cmdclass={"build_ext": BuildKernels})
