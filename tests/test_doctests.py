"""The examples of the docstrings run and are right."""

import doctest
import importlib
import pkgutil

import pytest

import fastconv
from fastconv import datasets, layers, models, see, train

PACKAGES = (datasets, layers, models, see, train)

MODULES = [
    "fastconv", "fastconv.functional", "fastconv._arena", "fastconv._arrays", "fastconv._backends",
    "fastconv._plan", "fastconv._problem", "fastconv._threads",
]  # fmt: skip
for package in PACKAGES:
    MODULES += [package.__name__]
    MODULES += sorted(found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, capsys):
    before = fastconv.get_num_threads()
    try:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        results = doctest.testmod(importlib.import_module(name), optionflags=flags)
    finally:
        fastconv.set_num_threads(before)
    assert results.failed == 0, capsys.readouterr().out


def test_every_public_function_has_an_example_that_runs():
    finder = doctest.DocTestFinder(recurse=False)
    without = [
        name for name in fastconv.functional.__all__
        if not any(test.examples for test in finder.find(getattr(fastconv, name), name))
    ]  # fmt: skip
    assert not without
