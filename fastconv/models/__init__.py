"""Networks of the literature, ready to train or to load: torchvision's structure and names of parameters.

================  ===========================================================
article.py        `article_net`: two units of convolution, ReLU and max-pool
alexnet.py        `alexnet`, `zfnet`
vgg.py            `vgg16`
resnet.py         `resnet18`, `resnet50`
mobilenet.py      `mobilenet_v2`
_common.py        arguments that all of them check
================  ===========================================================

Each function returns a `fastconv.Sequential` with random weights. ``filters`` is the number of filters of the first
convolution; all other widths follow in proportion.

>>> import fastconv
>>> fastconv.summary(fastconv.models.article_net(), (1, 28, 28)).parameters
34826
"""

from fastconv.models.alexnet import alexnet, zfnet
from fastconv.models.article import article_net
from fastconv.models.mobilenet import mobilenet_v2
from fastconv.models.resnet import resnet18, resnet50
from fastconv.models.vgg import vgg16

__all__ = ["alexnet", "article_net", "mobilenet_v2", "resnet18", "resnet50", "vgg16", "zfnet"]
