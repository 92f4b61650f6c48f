"""What `fastconv.tune` measured: nanoseconds of each algorithm for a problem, kept in one JSON file.

The file is a convenience. Whatever is wrong with it (corrupt, unreadable, in a read-only folder) costs one warning and
leaves the measurements of this process; a writer takes over what others wrote meanwhile and replaces it in one step.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fastconv._threads import Lock

FORMAT = 1
LONGEST = 1e18  # nanoseconds, thirty years: no NaN, no infinity, no number too large for a float passes
_lock = Lock()
_here: dict[str, dict[str, float]] = {}  # measured by this process
_filed: dict[str, dict[str, float]] | None = None  # read from the file; None: not yet


def path() -> Path:
    """The file, whether it exists or not; FileNotFoundError where there is no place for it."""
    folder = os.environ.get("FASTCONV_CACHE_DIR", "").strip()
    if folder:
        return Path(os.path.expanduser(folder)) / "tuned.json"
    cache_home = os.environ.get("XDG_CACHE_HOME", "").strip()
    base = cache_home if os.path.isabs(cache_home) else os.path.expanduser("~/.cache")
    if not os.path.isabs(base):  # a user without a home, as in some containers
        raise FileNotFoundError("there is no home folder: FASTCONV_CACHE_DIR can name another place")
    return Path(base) / "fastconv" / "tuned.json"


@cache
def machine() -> str:
    """CPU and version: measurements of another pair say nothing."""
    from fastconv import __version__

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("vendor_id", "cpu family", "model", "model name", "stepping")
        found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
        fields = {name.strip(): value.strip() for name, value in found.items()}
        model = " ".join(fields[name] for name in wanted if name in fields) or model
    except OSError:
        pass
    return f"{model}; fastconv {__version__}"


def lookup(key: str) -> dict[str, float] | None:
    """Nanoseconds by algorithm, if ``key`` was measured on this machine."""
    global _filed
    if key in _here:
        return _here[key]
    if _filed is None:
        with _lock:
            if _filed is None:
                _filed = _entries(_read()).get(machine(), {})
    return _filed.get(key)


def remember(key: str, nanoseconds: dict[str, float]) -> None:
    """Keep a measurement, in this process and in the file."""
    with _lock:
        _here[key] = dict(nanoseconds)
        try:
            with _alone(path()):
                entries = _entries(_read())
                entries.setdefault(machine(), {})[key] = dict(nanoseconds)
                _write({"format": FORMAT, "machines": entries})
        except OSError as error:
            warnings.warn(f"tune: tuned.json cannot be written ({error}): kept for this process alone", stacklevel=3)


def _read() -> Any:
    try:
        return json.loads(path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(f"{path()} is ignored ({error}): `fastconv.tune` writes a new one", stacklevel=4)
        return {}


def _entries(data: Any) -> dict[str, dict[str, dict[str, float]]]:
    """machine -> key -> algorithm -> ns: of ``data`` what has that form."""
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("machines"), dict):
        return {}
    return {
        machine: {key: times for key, times in keys.items() if _is_times(times)}
        for machine, keys in data["machines"].items()
        if isinstance(keys, dict)
    }


def _is_times(times: Any) -> bool:
    return (
        isinstance(times, dict)
        and bool(times)
        and all(type(value) in (int, float) and 0 < value < LONGEST for value in times.values())
    )


def _write(data: Any) -> None:
    """Replace the file: a reader sees the old one or the new one, never a part."""
    target = path()
    handle, name = tempfile.mkstemp(prefix=".tuned-", suffix=".json", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1, sort_keys=True)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Only one process at a time reads, adds and writes; where files cannot be locked the last writer wins."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(target.with_suffix(".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
