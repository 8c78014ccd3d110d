"""`cnnlog.models` is for users, too: light to import, with the names that it promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cnnlog import models
from cnnlog.models import torchvision


def test_the_public_names_are_those_of_torchvisions_classifiers() -> None:
    assert models.load_classifier is torchvision.load_classifier
    assert models.replace_head is torchvision.replace_head
    assert models.architectures is torchvision.architectures
    assert models.Loaded is torchvision.Loaded
    assert set(models.__all__) <= set(dir(models))


def test_importing_them_loads_no_torch() -> None:
    code = "import sys, cnnlog.models; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="Loaded, architectures, load_classifier, replace_head"):
        models.load_clasifier  # noqa: B018
