"""The files of a run, `<log_dir>/cnnlog/`. The only module that knows them.

    manifest.json                  what is watched and how (`Manifest`)
    probe.png, probe.safetensors   the probe as a picture and as the tensor the network gets
    step-00000000.safetensors ...  one `Record` a snapshot; the list of steps is the list of these files
    weights-baseline.safetensors   at the baseline: all filters of the pictured layers, the measured ones of the others
    weights-latest.safetensors     the same at the last snapshot before it was written, and at the end
    outputs-baseline.safetensors   the layers' outputs at the sampled positions at the baseline
    outputs-latest.safetensors     the same at the last snapshot, written at the end

Format 1 has `maps-baseline.safetensors` for the outputs of the pictured layers, and no outputs of the last snapshot.

Every file carries a format name and a version, is written to a temporary name and renamed, and is read without pickle.
Folders may be local or anything fsspec knows.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from cnnlog.kinds import Kind
from cnnlog.runs import writers
from cnnlog.runs.manifest import DELETE_IT, VERSION, Manifest, StoreError, refuse_newer
from cnnlog.runs.places import locate
from cnnlog.runs.whole_files import join, read_bytes, renamed, write_bytes
from cnnlog.snapshot import FloatArray, Record

FOLDER = "cnnlog"
MANIFEST = "manifest.json"
_STEP_FILE = re.compile(r"step-(\d{8,})\.safetensors")
_FILES = frozenset(
    {"probe.png", "probe.safetensors"}
    | {f"{what}-{which}.safetensors" for what in ("weights", "outputs") for which in ("baseline", "latest")}
)
_PNG_END = b"IEND\xaeB`\x82"
_Arrays = dict[str, npt.NDArray[Any]]
_T = TypeVar("_T")


def folder_of_format(folder: str) -> str:
    """Where a run in this folder goes on: there, or beside it if it is of an older format.

    Args:
        folder: of a run's files; a path, or an address that fsspec knows. It need not exist.

    Raises:
        StoreError: the manifest there is damaged, or not ours.
    """
    if RunStore.exists(folder) and RunStore.open(folder).manifest.version < VERSION:
        return f"{folder.rstrip('/')}-{VERSION}"
    return folder


class RunStore:
    """One run's folder, to write and to read.

    Args:
        folder: the folder itself (`<log_dir>/cnnlog`), a path or an fsspec URL.
        manifest: what stands, or will stand, in its `manifest.json`.
    """

    def __init__(self, folder: str, manifest: Manifest) -> None:
        self.folder = folder
        self._manifest = manifest
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[RunStore], tuple[str, Manifest]]:
        return RunStore, (self.folder, self.manifest)  # a lock goes to no other process, and no copy needs this one

    @property
    def manifest(self) -> Manifest:
        """What stands, or will stand, in `manifest.json`."""
        with self._lock:
            return self._manifest

    def begin_at(self, step: int) -> None:
        """Make `step` the baseline in the manifest, for the file that `create` writes; any thread may.

        Args:
            step: the step of the first snapshot, later than planned if the probe could not run at first.
        """
        with self._lock:
            self._manifest = replace(self._manifest, baseline_step=step)

    @classmethod
    def open(cls, folder: str) -> RunStore:
        """Open an existing run.

        Args:
            folder: the run's own folder (`<log_dir>/cnnlog`), a path or an address that fsspec knows.

        Raises:
            FileNotFoundError: the folder holds no manifest.
            StoreError: its manifest is damaged, newer, or not ours.
        """
        where = join(folder, MANIFEST)
        try:
            text = read_bytes(where).decode("utf-8", errors="replace")
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder} holds no cnnlog run: expected a {MANIFEST} in it. Give the folder that the monitors "
                f"wrote, <log_dir>/{FOLDER}."
            ) from None
        return cls(folder, Manifest.from_json(text, where=where))

    @staticmethod
    def exists(folder: str) -> bool:
        """Whether there is a manifest in a folder.

        Args:
            folder: a path, or an address that fsspec knows.
        """
        fs, path = locate(join(folder, MANIFEST))
        return bool(fs.exists(path))

    def create(self) -> None:
        """Make the folder and write the manifest. If several runs do so at once, one succeeds.

        A run that has done so before may do so again; its manifest is then written anew.

        Raises:
            FileExistsError: another run is there, or a file where the folder should be.
            OSError: the folder cannot be written.
        """
        where, data = join(self.folder, MANIFEST), self.manifest.to_json().encode()
        try:
            write_bytes(where, data, new=True)
        except FileExistsError:
            if not self.is_begun():
                raise
            write_bytes(where, data)

    def is_begun(self) -> bool:
        """Whether the manifest in the folder is this run's."""
        try:
            return RunStore.open(self.folder).manifest.run_id == self.manifest.run_id
        except (OSError, StoreError):
            return False

    def delete(self) -> None:
        """Delete the files of the run, its manifest last, so that another one can begin in the folder."""
        fs, path = locate(self.folder)
        names = [str(name).rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)]
        for name in [*(name for name in names if _STEP_FILE.fullmatch(name) or name in _FILES), MANIFEST]:
            fs.rm(locate(join(self.folder, name))[1])

    def release(self, *, failed: bool) -> None:
        """Nobody writes here any more. If the folder is this run's and holds no snapshot, it is given up.

        A run of its baseline alone says how it ended, because one that failed may be begun anew.

        Args:
            failed: the training did not end as it should.
        """
        with contextlib.suppress(Exception):  # remote file systems raise errors of their own
            if not self.is_begun():
                return
            if not self.steps:
                self.delete()
            elif self._is_baseline_alone():
                with self._lock:
                    self._manifest = replace(self._manifest, writer=writers.FAILED if failed else writers.ENDED)
                write_bytes(join(self.folder, MANIFEST), self.manifest.to_json().encode())

    def is_abandoned(self) -> bool:
        """Whether nothing but a baseline is here, of a training that failed or whose process died."""
        return self._is_baseline_alone() and writers.is_gone(self.manifest.writer, self.manifest.run_id)

    def _is_baseline_alone(self) -> bool:
        return self.steps in ([], [self.manifest.baseline_step])

    @property
    def steps(self) -> list[int]:
        """The stored steps, rising."""
        fs, path = locate(self.folder)
        if not fs.exists(path):
            return []
        names = (str(name).rsplit("/", 1)[-1] for name in fs.ls(path, detail=False))
        return sorted(int(match[1]) for name in names if (match := _STEP_FILE.fullmatch(name)))

    def write_record(self, record: Record) -> int:
        """Write one step file.

        Args:
            record: what is kept of the step.

        Returns:
            How many bytes the file has.
        """
        arrays: _Arrays = {f"{kind}/{layer}": a for kind in Kind for layer, a in kind.of(record).items()}
        for name, by_layer in record.numbers.items():
            arrays.update({f"numbers/{name}/{layer}": a.astype(np.float32) for layer, a in by_layer.items()})
        for picture_kind, states in record.ranges.items():
            for layer, state in states.items():
                arrays.update({f"ranges/{picture_kind}/{part}/{layer}": a for part, a in state.items()})
        counts: dict[str, object] = {"step": record.step, "epoch": record.epoch, "global_step": record.global_step}
        if record.provisional:
            counts["provisional"] = 1
        if record.metrics:
            counts["metrics"] = json.dumps(dict(record.metrics))
        return self._write_arrays(_step_file(record.step), "cnnlog-step", arrays, counts)

    def read_record(self, step: int, *, numbers_only: bool = False) -> Record:
        """Read one step file.

        Args:
            step: its number.
            numbers_only: read the numbers, and leave all other arrays empty. The names of the layers are read all the
                same.

        Raises:
            FileNotFoundError: no such step.
            StoreError: the file is damaged, newer, or not ours.
        """
        only, counts = "numbers/" if numbers_only else "", ("step", "epoch", "global_step")
        arrays, texts = self._read_file(_step_file(step), "cnnlog-step", only=only)
        where = join(self.folder, _step_file(step))
        meta = _counts(texts, counts, where)
        shown: dict[str, dict[str, FloatArray]] = {kind.value: {} for kind in Kind}
        numbers: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
        ranges: dict[str, dict[str, dict[str, npt.NDArray[np.generic]]]] = {}
        for key, array in sorted(arrays.items()):
            what, _, rest = key.partition("/")
            if what in shown:
                shown[what][rest] = array
            elif what == "numbers":
                number, _, layer = rest.partition("/")
                numbers.setdefault(number, {})[layer] = array.astype(np.float64)
            elif what == "ranges":
                kind, _, rest = rest.partition("/")
                part, _, layer = rest.partition("/")
                ranges.setdefault(kind, {}).setdefault(layer, {})[part] = array
        return Record(
            step=meta["step"],
            epoch=meta["epoch"],
            global_step=meta["global_step"],
            filters=self._in_order(shown[Kind.FILTERS.value]),
            feature_maps=self._in_order(shown[Kind.FEATURE_MAPS.value]),
            numbers={number: self._in_order(by_layer) for number, by_layer in numbers.items()},
            ranges={kind: self._in_order(by_layer) for kind, by_layer in ranges.items()},
            metrics=_metrics(texts, where),
            provisional=texts.get("provisional") == "1",
        )

    def write_weights(self, which: Literal["baseline", "latest"], weights: Mapping[str, FloatArray], step: int) -> int:
        """Write the weights of all layers.

        Args:
            which: the weights at the baseline, or the latest.
            weights: layer -> `[O, I, kH, kW]`, or its measured filters `[k, ...]`.
            step: the step that they are of.

        Returns:
            How many bytes the file has.
        """
        return self._write_arrays(f"weights-{which}.safetensors", "cnnlog-weights", dict(weights), {"step": step})

    def read_weights(self, which: Literal["baseline", "latest"]) -> tuple[dict[str, FloatArray], int]:
        """Read what `write_weights` wrote.

        Args:
            which: the filters at the baseline, or the latest.

        Returns:
            Layer -> `[O, I, kH, kW]`, or its measured filters `[k, ...]`; and the step that they are of.
        """
        arrays, meta = self._read_arrays(f"weights-{which}.safetensors", "cnnlog-weights", ("step",))
        return self._in_order(arrays), meta["step"]

    def write_outputs(self, which: Literal["baseline", "latest"], outputs: Mapping[str, FloatArray], step: int) -> None:
        """Write the layers' outputs on the probe, at the sampled positions.

        Args:
            which: the outputs at the baseline, or the latest.
            outputs: layer -> `[samples, C]`.
            step: the step that they are of.
        """
        self._write_arrays(f"outputs-{which}.safetensors", "cnnlog-outputs", dict(outputs), {"step": step})

    def read_outputs(self, which: Literal["baseline", "latest"]) -> tuple[dict[str, FloatArray], int]:
        """Read what `write_outputs` wrote.

        Args:
            which: the outputs at the baseline, or the latest.

        Returns:
            Layer -> `[samples, C]`, and the step that they are of.
        """
        if which == "baseline" and self.manifest.version == 1:
            arrays, meta = self._read_arrays("maps-baseline.safetensors", "cnnlog-maps", ("step",))
        else:
            arrays, meta = self._read_arrays(f"outputs-{which}.safetensors", "cnnlog-outputs", ("step",))
        return self._in_order(arrays), meta["step"]

    def write_probe(self, tensor: FloatArray, picture: bytes) -> None:
        """Write the probe.

        Args:
            tensor: `[N, C, H, W]`, as the network gets it.
            picture: the bytes of a PNG file of it.
        """
        self._write_arrays("probe.safetensors", "cnnlog-probe", {"probe": tensor}, {})
        write_bytes(join(self.folder, "probe.png"), picture)

    def read_probe(self) -> FloatArray:
        """Read the probe's tensor `[N, C, H, W]`."""
        arrays, _ = self._read_arrays("probe.safetensors", "cnnlog-probe", ())
        if "probe" not in arrays:
            where = join(self.folder, "probe.safetensors")
            raise StoreError(f"{where} is not what cnnlog writes: it holds no array 'probe'; {DELETE_IT}")
        return cast("FloatArray", arrays["probe"])

    def read_probe_picture(self) -> npt.NDArray[np.uint8]:
        """Read the probe's picture `[H, W, 3]`."""
        where = join(self.folder, "probe.png")
        try:
            data = read_bytes(where)
        except FileNotFoundError:
            raise FileNotFoundError(f"{where} is not there; the run was written without a probe") from None
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
                picture.load()
                version = picture.info.get("cnnlog-probe")
                pixels = np.asarray(picture.convert("RGB"))
            if not data.endswith(_PNG_END):  # Pillow does not mind a missing end
                raise OSError("its end is missing")
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise StoreError(f"{where} is truncated or no PNG file ({error}); {DELETE_IT}") from error
        refuse_newer(version, where)
        return pixels

    def _in_order(self, by_layer: Mapping[str, _T]) -> dict[str, _T]:
        """The layers in the order of their tags, which is as they were written: safetensors reads in random order."""
        tags = {layer.name: layer.tag for layer in self.manifest.measured}
        tags |= {layer.name: layer.tag for layer in self.manifest.layers}
        in_order = sorted(tags, key=lambda name: (len(tags[name].partition("_")[0]), tags[name]))
        position = {name: number for number, name in enumerate(in_order)}
        return {name: by_layer[name] for name in sorted(by_layer, key=lambda name: (position.get(name, -1), name))}

    def _write_arrays(self, name: str, form: str, arrays: _Arrays, counts: Mapping[str, object]) -> int:
        metadata = {"format": form, "version": str(VERSION), **{k: str(v) for k, v in counts.items()}}
        contiguous = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        fs, path = locate(join(self.folder, name))
        fs.makedirs(os.path.dirname(path), exist_ok=True)
        if not isinstance(fs, LocalFileSystem):
            data = safetensors.numpy.save(contiguous, metadata)
            fs.pipe_file(path, data)
            return len(data)
        with renamed(path) as temporary:
            with open(temporary, "wb") as file:
                mode = os.fstat(file.fileno()).st_mode  # the user's umask; safetensors lets only the owner read
            try:
                safetensors.numpy.save_file(contiguous, temporary, metadata)  # a quarter of the cost of `save`
            except safetensors.SafetensorError as error:  # what it makes of a full disk, too
                raise OSError(f"{path} could not be written: {error}") from error
            os.chmod(temporary, mode)
        return os.path.getsize(path)

    def _read_arrays(self, name: str, form: str, counts: Sequence[str] = ("step",)) -> tuple[_Arrays, dict[str, int]]:
        arrays, meta = self._read_file(name, form)
        return arrays, _counts(meta, counts, join(self.folder, name))

    def _read_file(self, name: str, form: str, *, only: str = "") -> tuple[_Arrays, dict[str, str]]:
        where = join(self.folder, name)
        try:
            arrays, meta = _loaded(where, only)
        except FileNotFoundError:
            raise FileNotFoundError(f"{where} is not there; the run has the steps {self.steps}") from None
        except (safetensors.SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{where} is truncated or no safetensors file ({error}); {DELETE_IT}") from error
        if meta.get("format") != form:
            raise StoreError(
                f"{where} is not cnnlog's: expected the format {form!r} in it, got {meta.get('format')!r}; {DELETE_IT}"
            )
        refuse_newer(meta.get("version"), where)
        return arrays, meta


def _counts(meta: Mapping[str, str], counts: Sequence[str], where: str) -> dict[str, int]:
    try:
        return {count: int(meta[count]) for count in counts}
    except (KeyError, ValueError) as error:
        raise StoreError(
            f"{where} is not what cnnlog writes: expected whole numbers for {', '.join(counts)}, "
            f"got {dict(meta)}; {DELETE_IT}"
        ) from error


def _metrics(meta: Mapping[str, str], where: str) -> dict[str, float]:
    """The trainer's metrics of a step file; none in one that was written without."""
    try:
        return {name: float(value) for name, value in json.loads(meta.get("metrics", "{}")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{where} is not what cnnlog writes: expected metrics as names with numbers ({error}); {DELETE_IT}"
        ) from error


def _loaded(url: str, only: str) -> tuple[_Arrays, dict[str, str]]:
    """Arrays and metadata of a safetensors file; arrays whose name does not begin with `only` are left empty."""
    fs, path = locate(url)
    if only and isinstance(fs, LocalFileSystem):
        with safetensors.safe_open(path, framework="np") as file:  # finds a truncated file by its header
            names = file.keys()
            some = {name: file.get_tensor(name) if name.startswith(only) else np.empty(0) for name in names}
            return some, file.metadata() or {}
    data = read_bytes(url)  # a third faster than mapping the file into memory where everything is wanted
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # `load` does not give the metadata
    arrays = safetensors.numpy.load(data).items()
    return {k: a if k.startswith(only) else np.empty(0) for k, a in arrays}, header.get("__metadata__") or {}


def _step_file(step: int) -> str:
    return f"step-{step:08d}.safetensors"
