"""See what a network's filters see: projections to pixels, the patches that excite a filter, its health, a report.

The second half of the article: Zeiler and Fergus, "Visualizing and understanding convolutional networks",
arXiv 1311.2901, for networks of `fastconv.layers`. Everything computes with NumPy and our kernels; pictures and pages
need the extra ``see`` (matplotlib, Pillow, Jinja2, tqdm), which is imported only where it is used.

================  ==================================================================
explain.py        explain(): what a filter makes of every channel
anatomy.py        anatomy(): the picture of a Conv-ReLU-MaxPool chain
deconvnet.py      deconvnet(): one activation projected to the pixels
patches.py        field(), top_patches(): what excites a filter most
occlusion.py      occlusion(): what the answer depends on
evolution.py      evolution(): a filter during training
health.py         health(): faults of filters, and a verdict with reasons
report.py         report(): one HTML page of all this
fetch.py          fetch(), pretrained(): real trained networks
networks.py       their architectures
_commands.py      fastconv see, explain, fetch
_figures.py       the pictures of report
_page.py          shared: figures measured in inches
_probe.py         shared: layers by name, outputs inside a network, backward from inside
================  ==================================================================
"""

from fastconv.see.anatomy import anatomy
from fastconv.see.deconvnet import deconvnet
from fastconv.see.evolution import Evolution, evolution
from fastconv.see.explain import Explanation, explain
from fastconv.see.fetch import Pretrained, fetch, pretrained
from fastconv.see.health import Health, health
from fastconv.see.networks import Preparation
from fastconv.see.occlusion import Occlusion, occlusion
from fastconv.see.patches import Field, Patch, field, top_patches
from fastconv.see.report import report

__all__ = [
    "Evolution",
    "Explanation",
    "Field",
    "Health",
    "Occlusion",
    "Patch",
    "Preparation",
    "Pretrained",
    "anatomy",
    "deconvnet",
    "evolution",
    "explain",
    "fetch",
    "field",
    "health",
    "occlusion",
    "pretrained",
    "report",
    "top_patches",
]
