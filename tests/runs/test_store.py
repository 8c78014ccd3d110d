"""The files of a run: what goes in comes out, what is not ours or not whole is refused, and half files never appear."""

from __future__ import annotations

import json
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from support.records import LAYERS, manifest, png, record, whole_run

from cnnlog.runs.manifest import StoreError
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import Record


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return whole_run(str(tmp_path / "run" / "cnnlog"))


@pytest.fixture
def memory_folder() -> Iterator[str]:
    yield "memory://runs/v0/cnnlog"
    memory = fsspec.filesystem("memory")
    if memory.exists("/runs"):
        memory.rm("/runs", recursive=True)


READERS: dict[str, Callable[[str], object]] = {
    "manifest.json": RunStore.open,
    "probe.png": lambda folder: RunStore(folder, manifest()).read_probe_picture(),
    "probe.safetensors": lambda folder: RunStore(folder, manifest()).read_probe(),
    "step-00000001.safetensors": lambda folder: RunStore(folder, manifest()).read_record(1),
    "weights-baseline.safetensors": lambda folder: RunStore(folder, manifest()).read_weights("baseline"),
    "weights-latest.safetensors": lambda folder: RunStore(folder, manifest()).read_weights("latest"),
    "outputs-baseline.safetensors": lambda folder: RunStore(folder, manifest()).read_outputs("baseline")[0],
}
ARRAY_FILES = [name for name in READERS if name.endswith(".safetensors")]


# --- round trips


def assert_same(read: Record, written: Record) -> None:
    assert (read.step, read.epoch, read.global_step) == (written.step, written.epoch, written.global_step)
    for group in ("filters", "feature_maps"):
        assert getattr(read, group).keys() == getattr(written, group).keys()
        for name, array in getattr(written, group).items():
            np.testing.assert_array_equal(getattr(read, group)[name], array, strict=True)
    for name, values in written.numbers["filter_norm"].items():
        np.testing.assert_array_equal(read.numbers["filter_norm"][name], values.astype(np.float32))
    for name, state in written.ranges["filters"].items():
        assert read.ranges["filters"][name].keys() == state.keys()
        for part, array in state.items():
            np.testing.assert_array_equal(read.ranges["filters"][name][part], array, strict=True)


@pytest.mark.parametrize("where", ["local", "memory"])
def test_what_goes_in_comes_out(where: str, tmp_path: Path, memory_folder: str) -> None:
    folder = memory_folder if where == "memory" else str(tmp_path / "run" / "cnnlog")
    whole_run(folder)
    run = RunStore.open(folder)
    assert RunStore.exists(folder)
    assert run.steps == [0, 1]
    assert tuple(layer.name for layer in run.manifest.layers) == LAYERS
    assert run.manifest == replace(manifest(), run_id=run.manifest.run_id)
    for step in run.steps:
        assert_same(run.read_record(step), record(step))
    weights, step = run.read_weights("latest")
    assert step == 1
    for name in LAYERS:
        np.testing.assert_array_equal(weights[name], record(1).filters[name], strict=True)
        np.testing.assert_array_equal(run.read_outputs("baseline")[0][name], np.ones((7, 4), np.float32), strict=True)
    np.testing.assert_array_equal(run.read_probe(), np.full((1, 3, 8, 8), 0.5, np.float32), strict=True)
    np.testing.assert_array_equal(run.read_probe_picture().ravel(), np.arange(192))


def test_layers_are_read_in_the_order_of_the_manifest(store: RunStore) -> None:
    for _ in range(3):  # safetensors gives them in another order each time
        read = store.read_record(1)
        by_layer = [read.filters, read.feature_maps, read.numbers["filter_norm"], read.ranges["filters"]]
        by_layer += [store.read_weights("latest")[0], store.read_outputs("baseline")[0]]
        assert [tuple(layers) for layers in by_layer] == [LAYERS] * 6


def test_values_that_are_not_numbers_come_out_as_they_are(store: RunStore) -> None:
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38], np.float32).reshape(1, 1, 2, 3)
    store.write_record(Record(5, 5, 5, filters={"conv": odd}))
    assert store.read_record(5).filters["conv"].tobytes() == odd.tobytes()


def test_a_view_is_written_in_its_own_order(store: RunStore) -> None:
    turned = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4).transpose(0, 1, 3, 2)
    store.write_record(Record(5, 5, 5, feature_maps={"conv": turned}))
    np.testing.assert_array_equal(store.read_record(5).feature_maps["conv"], turned)


def test_arrays_are_read_as_safetensors_reads_them(store: RunStore) -> None:
    numbers = np.arange(12)
    arrays: dict[str, npt.NDArray[Any]] = {
        f"{dtype}": numbers.astype(dtype).reshape(3, 4) for dtype in ("f8", "f4", "f2", "?")
    }
    arrays |= {f"{kind}{size}": numbers.astype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)}
    arrays |= {"none": np.zeros((0, 3), np.float32), "one": np.array(7.0), "last": np.zeros((2, 0), np.uint8)}
    path = Path(store.folder, "weights-latest.safetensors")
    safetensors.numpy.save_file(arrays, path, {"format": "cnnlog-weights", "version": "1", "step": "3"})
    read, step = store.read_weights("latest")
    assert step == 3
    assert read.keys() == arrays.keys()
    for name, array in safetensors.numpy.load_file(path).items():
        np.testing.assert_array_equal(read[name], array, strict=True)
        read[name][...] = 0  # a caller's own


@pytest.mark.parametrize("where", ["local", "memory"])
def test_the_numbers_of_a_step_are_read_alone(where: str, tmp_path: Path, memory_folder: str) -> None:
    run = whole_run(memory_folder if where == "memory" else str(tmp_path / "run" / "cnnlog"))
    whole, numbers = run.read_record(1), run.read_record(1, numbers_only=True)
    assert (numbers.step, numbers.epoch, numbers.global_step) == (1, 1, 4)
    assert numbers.numbers["filter_norm"].keys() == set(LAYERS)
    for name in LAYERS:
        np.testing.assert_array_equal(numbers.numbers["filter_norm"][name], whole.numbers["filter_norm"][name])
    for kind in ("filters", "feature_maps"):
        assert getattr(numbers, kind).keys() == set(LAYERS)
        assert not any(array.size for array in getattr(numbers, kind).values())


def test_a_later_baseline_is_in_the_manifest_and_in_a_copy_for_another_process(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "cnnlog"), manifest())
    store.create()
    store.begin_at(3)
    copy = pickle.loads(pickle.dumps(store))
    store.create()
    assert (
        RunStore.open(store.folder).manifest
        == copy.manifest
        == store.manifest
        == replace(manifest(), baseline_step=3, run_id=store.manifest.run_id)
    )


@pytest.mark.parametrize("lost", [1, 200, 2000])
def test_a_truncated_step_is_found_out_by_its_numbers(lost: int, store: RunStore) -> None:
    path = Path(store.folder, "step-00000001.safetensors")
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(StoreError, match=r"step-00000001\.safetensors is truncated or no safetensors file"):
        store.read_record(1, numbers_only=True)


def test_steps_are_numbers_not_texts(store: RunStore) -> None:
    for step in (100_000_000, 99_999_999):
        store.write_record(replace(record(), step=step))
    assert store.steps == [0, 1, 99_999_999, 100_000_000]
    assert store.read_record(100_000_000).step == 100_000_000


def test_a_folder_without_a_run_says_where_one_is(tmp_path: Path) -> None:
    assert not RunStore.exists(str(tmp_path))
    assert RunStore(str(tmp_path / "none"), manifest()).steps == []
    with pytest.raises(FileNotFoundError, match=r"holds no cnnlog run.*manifest\.json.*<log_dir>/cnnlog"):
        RunStore.open(str(tmp_path))


def test_a_step_that_is_not_there_is_named_with_those_that_are(store: RunStore) -> None:
    with pytest.raises(FileNotFoundError, match=r"step-00000007\.safetensors is not there; the run has the steps"):
        store.read_record(7)


# --- files that are refused


@pytest.mark.parametrize("name", READERS)
def test_a_truncated_file_is_refused_by_name(name: str, store: RunStore) -> None:
    path = Path(store.folder, name)
    data = path.read_bytes()
    lengths = {0, 1, 4, 7, 8, 9, 20, len(data) // 3, len(data) // 2, len(data) - 20, len(data) - 2, len(data) - 1}
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        with pytest.raises(
            StoreError, match=r"is (truncated or no|not readable as JSON, so it is truncated)"
        ) as caught:
            READERS[name](store.folder)
        assert str(path) in str(caught.value)
        assert "delete" in str(caught.value)
    path.write_bytes(data)
    READERS[name](store.folder)


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_something_else_is_refused_by_name(name: str, store: RunStore) -> None:
    path = Path(store.folder, name)
    others = [b"hello", pickle.dumps({"a": 1}), b"\x89PNG\r\n\x1a\n" + bytes(40), b"\xff" * 64, b"[1, 2]", b"{}"]
    others += [safetensors.numpy.save({"x": np.ones(3)}), png(None), Path(store.folder, "probe.png").read_bytes()]
    if name.endswith(".png"):
        others.pop()
    for other in others:
        path.write_bytes(other)
        with pytest.raises(StoreError, match=r"truncated|not cnnlog's") as caught:
            READERS[name](store.folder)
        assert str(path) in str(caught.value)


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
META = {"format": "cnnlog-weights", "version": "1", "step": "1"}


@pytest.mark.parametrize(
    "header",
    [
        {"a": {**ENTRY, "shape": [2, 2]}},
        {"a": {**ENTRY, "shape": [2, 4]}},
        {"a": {**ENTRY, "shape": [-2, -3]}},
        {"a": {**ENTRY, "shape": [2.0, 3.0]}},
        {"a": {**ENTRY, "shape": "23"}},
        {"a": {**ENTRY, "dtype": "F64"}},
        {"a": {**ENTRY, "dtype": "BF16"}},
        {"a": {**ENTRY, "data_offsets": [24, 0]}},
        {"a": {**ENTRY, "data_offsets": [-24, 24]}},
        {"a": {**ENTRY, "data_offsets": [0, 12]}},
        {"a": {**ENTRY, "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [6]}},
        {"a": [0, 24]},
        {"a": ENTRY, "b": ENTRY},
        {"a": {**ENTRY, "shape": [1], "data_offsets": [0, 4]}, "b": {**ENTRY, "shape": [1], "data_offsets": [20, 24]}},
        {"a": ENTRY, "__metadata__": ["format"]},
        {},
        [ENTRY],
    ],
)
def test_a_header_that_does_not_fit_its_bytes_is_refused(header: Any, store: RunStore) -> None:
    path = Path(store.folder, "weights-latest.safetensors")

    def write(content: Any) -> None:
        text = json.dumps({"__metadata__": META, **content} if isinstance(content, dict) else content).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + np.arange(6, dtype=np.float32).tobytes())

    write({"a": ENTRY})
    np.testing.assert_array_equal(store.read_weights("latest")[0]["a"], [[0, 1, 2], [3, 4, 5]])
    write(header)
    with pytest.raises(StoreError, match=r"weights-latest\.safetensors is truncated or no safetensors file"):
        store.read_weights("latest")


def rewrite(path: Path, **changes: Any) -> None:
    """Change the version, or another word, of a file that is otherwise as we write it."""
    if path.suffix == ".json":
        facts = {**json.loads(path.read_text(encoding="utf-8")), **changes}
        path.write_text(json.dumps({k: v for k, v in facts.items() if v is not None}), encoding="utf-8")
    elif path.suffix == ".png":
        path.write_bytes(png(changes["version"]))
    else:
        with safetensors.safe_open(path, "np") as file:
            meta = {**file.metadata(), **changes}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        safetensors.numpy.save_file(arrays, path, {k: v for k, v in meta.items() if v is not None})


@pytest.mark.parametrize("name", READERS)
def test_a_newer_version_is_refused_by_name(name: str, store: RunStore) -> None:
    rewrite(Path(store.folder, name), version=3 if name.endswith(".json") else "3")
    with pytest.raises(StoreError, match=r"has format version 3, and this cnnlog reads up to 2; upgrade") as caught:
        READERS[name](store.folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("version", ["one", "", "0", "-1", None])
@pytest.mark.parametrize("name", READERS)
def test_a_version_that_is_none_is_refused(name: str, version: str | None, store: RunStore) -> None:
    rewrite(Path(store.folder, name), version=version)
    with pytest.raises(StoreError, match=r"is not cnnlog's: expected a version number from 1 on"):
        READERS[name](store.folder)


@pytest.mark.parametrize("name", ARRAY_FILES)
def test_one_kind_of_file_is_not_taken_for_another(name: str, store: RunStore) -> None:
    rewrite(Path(store.folder, name), format="cnnlog-else")
    with pytest.raises(StoreError, match=r"expected the format 'cnnlog-\w+' in it, got 'cnnlog-else'; delete it"):
        READERS[name](store.folder)


@pytest.mark.parametrize("step", [None, "three"])
def test_a_step_file_without_its_step_is_refused(step: str | None, store: RunStore) -> None:
    rewrite(Path(store.folder, "step-00000001.safetensors"), step=step)
    with pytest.raises(StoreError, match=r"step-00000001\.safetensors is not what cnnlog writes: expected whole"):
        store.read_record(1)


def test_a_manifest_that_lacks_something_is_refused(store: RunStore) -> None:
    path = Path(store.folder, "manifest.json")
    whole = path.read_text(encoding="utf-8")
    for change in ({"layers": None}, {"unit": None}, {"layers": [{"nome": "x"}]}, {"layers": 3}, {"surplus": 1}):
        path.write_text(whole, encoding="utf-8")
        rewrite(path, **change)
        with pytest.raises(StoreError, match=r"manifest\.json is damaged.*restore it from a copy, or delete"):
            RunStore.open(store.folder)


class Trap:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("unpickled",))


@pytest.mark.parametrize("name", READERS)
def test_nothing_is_unpickled(name: str, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps(Trap())
    Path(store.folder, name).write_bytes(payload)
    with pytest.raises(StoreError):
        READERS[name](store.folder)
    assert not Path("unpickled").exists()
    pickle.loads(payload)
    assert Path("unpickled").exists(), "the trap would have shown it"


# --- writing


def files(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def fail(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("broken", ["os.replace", "safetensors.numpy.save_file", "os.chmod"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    broken: str, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(store.folder)
    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        with pytest.raises(OSError, match="No space left"):
            store.write_record(replace(record(2), step=1))
        with pytest.raises(OSError, match="No space left"):
            store.write_record(record(2))
    assert files(store.folder) == before
    assert_same(store.read_record(1), record(1))


def test_what_safetensors_makes_of_a_full_disk_is_an_os_error(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match=r"step-00000002\.safetensors could not be written.*No space left"):
        store.write_record(record(2))


def test_a_written_file_replaces_the_old_one_whole(store: RunStore) -> None:
    store.write_record(replace(record(9), step=1))
    assert_same(store.read_record(1), replace(record(9), step=1))
    assert not [name for name in files(store.folder) if "tmp" in name]


@pytest.mark.parametrize("where", ["local", "memory"])
def test_of_two_creators_the_second_is_refused(where: str, tmp_path: Path, memory_folder: str) -> None:
    folder = memory_folder if where == "memory" else str(tmp_path / "cnnlog")
    first, second = RunStore(folder, manifest()), RunStore(folder, manifest())
    first.create()
    with pytest.raises(FileExistsError):
        second.create()
    assert RunStore.open(folder).manifest.run_id == first.manifest.run_id
    first.delete()
    second.create()
    assert RunStore.open(folder).manifest.run_id == second.manifest.run_id


def test_of_two_creators_the_second_is_refused_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.link", fail)
    first, second = RunStore(str(tmp_path), manifest()), RunStore(str(tmp_path), manifest())
    first.create()
    with pytest.raises(FileExistsError):
        second.create()
    assert files(str(tmp_path)) == {"manifest.json"}
    assert RunStore.open(str(tmp_path)).manifest.run_id == first.manifest.run_id


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_modes_that_the_umask_gives(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        store = whole_run(str(tmp_path / "cnnlog"))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path(store.folder).iterdir()}
    assert set(modes) >= set(READERS)
    assert modes == dict.fromkeys(modes, mode)
