"""Files of weights and checkpoints, read without running what a pickle asks for."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from cnnlog.messages import some

StateDict = dict[str, torch.Tensor]
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_WHERE_STATE_LIES = ("state_dict", "model_state_dict", "model", "module", "net")
_PICKLED = re.compile(r"GLOBAL ([\w.]+)")  # in torch's refusal


# torchvision's own DenseNet files have names from before PyTorch 0.4.1
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\..*)")


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Read tensors by name, and nothing else. No pickled object is ever run.

    Args:
        path: of a file of weights or a checkpoint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, of another format, or holds other objects than tensors.
    """
    content = read_checkpoint(path)
    for key in _WHERE_STATE_LIES:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not state:
        raise ValueError(f"{path} holds no tensors by name: expected a state dict in it.")
    return state


def read_checkpoint(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read everything that is in a file of weights: tensors and plain values. No pickled object is ever run.

    Args:
        path: of a file of weights or a checkpoint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, of another format, or holds objects that only running code from it would give.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"Expected weights as DEFAULT, none, or a file ({', '.join(SUFFIXES)}), but got {path}.")
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file of weights at {path}, but there is none.")
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is truncated or no safetensors file ({error}); get it again.") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            # mmap: what is not looked at, an optimiser's state above all, is not read. It needs the zip format.
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        names = dict.fromkeys(_PICKLED.findall(str(error)))
        what = f"other objects than tensors ({', '.join(names)})" if names else "other objects than tensors"
        raise ValueError(
            f"{path} is damaged, or holds {what}, which are never loaded because that would run "
            "code from the file; save model.state_dict() instead."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is truncated or no PyTorch file ({type(error).__name__}); get it again.") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds no tensors by name: expected a state dict, but got a {type(content).__name__}.")
    return content


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Copy weights into a model. Types may differ (half precision), names and shapes may not.

    A prefix that all names of the model share in the state (`model.`, `module.`) is stripped. Whatever else is in such
    a checkpoint (the buffers of a loss, say) is left out.

    Args:
        model: what they are copied into.
        state: name -> tensor.
        source: where they are from, which a message names.

    Raises:
        ValueError: names are missing or too many, or shapes differ; the model is then unchanged.
    """
    wanted = model.state_dict()
    found = without_prefix(state, wanted)
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    surplus = [name for name in found if name not in wanted]
    if missing or surplus:
        parts = [f"{len(missing)} missing ({some(missing)})"] if missing else []
        parts += [f"{len(surplus)} unexpected ({some(surplus)})"] if surplus else []
        raise ValueError(
            f"{source} does not fit {type(model).__name__}: of its {len(wanted)} names {' and '.join(parts)}; "
            "give the architecture that the weights are of."
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"{source} does not fit {type(model).__name__}: expected {name} of shape {list(wanted[name].shape)}, "
                f"but got {list(value.shape)}; give the architecture that the weights are of."
            )
    model.load_state_dict(found, strict=False)


def without_prefix(state: Mapping[str, torch.Tensor], wanted: Mapping[str, Any]) -> StateDict:
    """The state under the names that a network wants, without what trainers and compilers put before them.

    Args:
        state: name -> tensor.
        wanted: the names that the network wants, as keys.
    """
    first = next(iter(wanted))
    plain = {_OLD_DENSENET.sub(r"\1\2", key).replace("_orig_mod.", ""): value for key, value in state.items()}
    prefixes = sorted({key[: -len(first)] for key in plain if key.endswith(f".{first}")}, key=len)
    if first in plain or not prefixes:
        return plain
    prefix = max(prefixes, key=lambda prefix: sum(prefix + name in plain for name in wanted))
    return {key[len(prefix) :]: value for key, value in plain.items() if key.startswith(prefix)}
