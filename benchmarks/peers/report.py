"""Tables of a race, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..shapes import CLASSES, NETWORKS, TRAINING_CLASSES
from .contestants import MACHINE, OURS

CYTHON, NUMBA = OURS[:2]
MOVES_BYTES = ("maxpool", "max_pool2d_backward")  # classes whose work is counted in bytes
TITLES = {**CLASSES, **TRAINING_CLASSES}
LONG = 1e-3  # seconds: layers above this tell how well threads scale

RULES = """\
Every contestant runs in its own process, pinned to the same CPUs, with as many threads, on the same numbers, in turns;
a result counts once it agrees with {expected_by} (of a training step: the gradients of all parameters). Every
convolution has bias and ReLU, but for gradients and transposed ones. Cells: best (median) over {rounds} turns of
{milliseconds:.0f} ms. Nobody's layout conversion is timed; allocation of results and call overhead are. GFLOP/s count
the definition's flops, taps that lie in the padding too: a library that skips those, or uses Winograd's algorithm, may
pass the FMA peak. "wrong" and "-" (not offered) are explained below each table. Wall time, batch 1 unless a row says
more, float32.
"""


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table, first column left, the rest right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def mean(values: Iterable[float | None]) -> float | None:
    """Geometric mean; None of nothing."""
    logs = [math.log(value) for value in values if value]
    return math.exp(sum(logs) / len(logs)) if logs else None


def show(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def rate(row: dict[str, Any], name: str, which: str = "best") -> float | None:
    """G flop/s (GB/s of a max-pool) of one contestant on one layer; None where it has no time."""
    result = row["results"].get(name, {})
    if which not in result:
        return None
    return float(result.get("work", row["work"]) / result[which] / 1e9)


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def peers(race: dict[str, Any]) -> list[str]:
    """Names of the libraries that took part and are not fastconv."""
    return [name for name in race["versions"] if name not in (*OURS, *MACHINE)]


def best_peer(row: dict[str, Any], names: list[str]) -> float | None:
    return max((value for name in names if (value := rate(row, name))), default=None)


def peak(race: dict[str, Any]) -> float | None:
    """The FMA peak: the best of all turns."""
    return max((value for row in race["rows"] if (value := rate(row, MACHINE[0]))), default=None)


# --------------------------------------------------------------------------------------------------- per class


def class_section(race: dict[str, Any], layer_class: str) -> str:
    """One class: every layer, then geometric means."""
    rows = [row for row in race["rows"] if row["class"] == layer_class]
    pools = layer_class in MOVES_BYTES
    ours = [name for name in OURS if name in race["versions"]]
    others = peers(race)
    limit = "memcpy" if pools else "FMA peak"
    head = ["layer", *ours, "numba / cython", *others, "cython / best peer", limit, f"cython / {limit}"]
    top = peak(race)

    def compared(row: dict[str, Any]) -> list[float | None]:
        cython = rate(row, CYTHON)
        bound = rate(row, limit) if pools else top
        return [ratio(rate(row, NUMBA), cython), ratio(cython, best_peer(row, others)), bound, ratio(cython, bound)]

    def cell(row: dict[str, Any], name: str) -> str:
        best, median = rate(row, name), rate(row, name, "median")
        if best is None or median is None:
            return "wrong" if "wrong" in row["results"].get(name, {}).get("failed", "") else "-"
        return f"{best:.1f} ({median:.1f})"

    body = []
    for row in rows:
        against_numba, against_peer, bound, of_bound = compared(row)
        body.append(
            [f"{row['text']} `{row['name']}`", *(cell(row, name) for name in ours), show(against_numba)]
            + [*(cell(row, name) for name in others), show(against_peer), show(bound, 1), show(of_bound)]
        )
    columns = [mean(values) for values in zip(*(compared(row) for row in rows), strict=True)]
    body.append(
        ["**geometric mean**", *(show(mean(rate(row, name) for row in rows), 1) for name in ours), show(columns[0])]
        + [*(show(mean(rate(row, name) for row in rows), 1) for name in others), show(columns[1])]
        + [show(columns[2], 1), show(columns[3])]
    )
    unit = "GB/s, read and written" if pools else "GFLOP/s of the definition's flops"
    parts = [f"### {TITLES[layer_class]}: {unit}", table(head, body), notes(rows)]
    missing = [name for name in (*ours, *others) if any(rate(row, name) is None for row in rows)]
    if missing:
        parts.append(f"Means over the layers that a contestant has: {', '.join(missing)} not all.")
    return "\n\n".join(part for part in parts if part)


def notes(rows: list[dict[str, Any]]) -> str:
    """What stands behind the cells: layout and packing, and why some are empty."""
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, result in row["results"].items():
            if name not in MACHINE:
                text = f"none: {result['failed']}" if "failed" in result else result["note"]
                text = text.partition(", ")[0] + ", layout conversion taken off" if "taken off" in text else text
                found[name, text] = found.get((name, text), 0) + 1
    by_name: dict[str, list[str]] = {}
    for (name, text), count in found.items():
        by_name.setdefault(name, []).append(text if count == len(rows) else f"{text} ({count} of {len(rows)})")
    return "\n".join(f"- {name}: {'; '.join(texts)}" for name, texts in by_name.items())


# ------------------------------------------------------------------------------------------------- per network


def network_section(race: dict[str, Any]) -> str:
    """Milliseconds of each network's layers, one after the other, and of the oracle: the best peer for each layer."""
    names = [name for name in race["versions"] if name not in MACHINE]
    others = peers(race)
    head = ["network", *names, "oracle", "oracle / cython", "oracle / numba", "best peer"]
    body = []
    for network in NETWORKS:
        layers = [row for row in race["rows"] if row["network"] == network]
        convolutions = [row for row in layers if row["class"] != "maxpool"]
        with_pools = layers if len(layers) > len(convolutions) else []
        for what, rows in (("convolutions", convolutions), ("with max-pools", with_pools)):
            if not rows:
                continue
            sums = {name: total(rows, lambda row, name=name: seconds(row, name)) for name in names}
            oracle = total(rows, lambda row: min((t for n in others if (t := seconds(row, n))), default=None))
            finishers = {name: sums[name] for name in others if sums[name]}
            winner = min(finishers, key=lambda name: finishers[name] or 0.0) if finishers else "-"
            body.append(
                [f"{network}, {what}", *(milliseconds(sums[name]) for name in names), milliseconds(oracle)]
                + [show(ratio(oracle, sums.get(CYTHON))), show(ratio(oracle, sums.get(NUMBA))), winner]
            )
    if not body:
        return ""
    return "\n\n".join(
        [
            "### Sums over the layers of each network, ms (each layer as often as the network runs it)",
            table(head, body),
            'Only layers that were raced count; "-": a layer is missing. oracle = the best peer for each layer.',
        ]
    )


def seconds(row: dict[str, Any], name: str) -> float | None:
    best = row["results"].get(name, {}).get("best")
    return None if best is None else float(best)


def total(rows: list[dict[str, Any]], time_of: Callable[[dict[str, Any]], float | None]) -> float | None:
    """Seconds of all rows, each times its count; None if one is missing."""
    parts = [(time_of(row), row["count"]) for row in rows]
    return None if any(time is None for time, _ in parts) else sum((time or 0.0) * count for time, count in parts)


def milliseconds(value: float | None) -> str:
    return show(None if value is None else value * 1e3, 2)


# -------------------------------------------------------------------------------------------------- per thread


def scaling_section(races: list[dict[str, Any]]) -> str:
    """How much faster each contestant is on more threads, over its layers of more than a millisecond."""
    if len(races) < 2:
        return ""
    first = races[0]
    parts = []
    for other in races[1:]:
        body = []
        for name in (name for name in first["versions"] if name in other["versions"] and name not in MACHINE):
            gains = {}
            for one, many in zip(first["rows"], other["rows"], strict=True):
                single, several = seconds(one, name), seconds(many, name)
                if single and several and single > LONG:
                    gains[one["name"]] = single / several
            if gains:
                worst = min(gains, key=gains.__getitem__)
                body.append([name, str(len(gains)), show(mean(gains.values())), f"{gains[worst]:.2f} {worst}"])
        title = f"### {other['threads']} threads against {first['threads']}: layers above {LONG * 1e3:.0f} ms"
        parts.append(title + "\n\n" + table(["", "layers", "speed-up, geometric mean", "worst"], body))
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------------------------- whole


def markdown(result: dict[str, Any]) -> str:
    """The whole report."""
    where, settings, races = result["machine"], result["settings"], result["races"]
    expected_by = next((row["expected_by"] for race in races for row in race["rows"] if row["expected_by"]), "-")
    parts = [
        "# fastconv beside other libraries",
        f"{where['cpu']}, {where['cpus']} CPUs, {where['system']}, Python {where['python']}.",
        RULES.format(
            rounds=settings["rounds"], milliseconds=settings["seconds"] * 1e3, expected_by=expected_by
        ).strip(),
    ]
    for race in races:
        versions = ", ".join(f"{name} {text}" for name, text in race["versions"].items() if name not in MACHINE)
        parts.append(f"## {race['threads']} thread{'s' * (race['threads'] > 1)}, CPUs {race['cpus']}")
        parts.append(f"FMA peak {show(peak(race), 1)} GFLOP/s. {versions}.")
        if race["absent"]:
            parts.append("Absent: " + "; ".join(f"{name} ({reason})" for name, reason in race["absent"].items()) + ".")
        classes = {row["class"] for row in race["rows"]}
        parts += [class_section(race, name) for name in TITLES if name in classes]
        parts.append(network_section(race))
    parts.append(scaling_section(races))
    return "\n\n".join(part for part in parts if part) + "\n"
