"""The first promise over networks that are drawn at random: none is disturbed without a word."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support import awkward
from support.family import IMAGE, KINDS, PLACES, Drawn, Net, careless, trained
from torch import nn

import cnnlog
from cnnlog import Probe

SEED = int(os.environ.get("CNNLOG_FAMILY_SEED", "20261127"))
NETWORKS = int(os.environ.get("CNNLOG_FAMILY", "300"))


def drawn_networks() -> list[Drawn]:
    draw = random.Random(SEED)
    return [Drawn.by(draw) for _ in range(NETWORKS)]


def watching(folder: Path) -> Callable[[Net], Callable[[int], None]]:
    probe = Probe(torch.rand(1, *IMAGE, generator=torch.Generator().manual_seed(1)))

    def watch(net: Net) -> Callable[[int], None]:
        watched = cnnlog.watch(net, probe, folder, tensorboard=False, on_error="raise")

        def look(step: int) -> None:
            watched.snapshot(step)
            if step == 5:
                watched.close()

        return look

    return watch


@pytest.mark.timeout(600)
def test_none_is_disturbed_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: Counter[str] = Counter()
    wrong = []
    for number, drawn in enumerate(drawn_networks()):
        monkeypatch.setattr("cnnlog.capture.lent_tensors.COPIED_WHOLE", number % 2 * 2_000_000)  # half as if large
        plain, _ = trained(drawn, None)
        facts, said = trained(drawn, watching(tmp_path / str(number)))
        differ = sorted(key for key in plain if plain[key] != facts[key])
        told = [text for text in said if "nobody can give back" in text]
        end = "identical" if not differ else "warned" if told else "silent"
        ends[end] += 1
        if end == "silent" or (end == "warned") > KINDS[drawn.kind].told or (told and not KINDS[drawn.kind].told):
            wrong.append(f"{number}: {drawn.name}: {end}, {differ[:3]}, {said[:1]}")
    print(f"\nseed {SEED}: {NETWORKS} drawn, {dict(ends)}, silent: {ends['silent']}")
    assert wrong == []
    assert ends["identical"] > NETWORKS / 2


def test_the_comparison_sees_a_careless_look_at_each_kind_and_place() -> None:
    seen: set[str] = set()
    for drawn in drawn_networks():
        if {drawn.kind, drawn.place} <= seen:
            continue
        plain, _ = trained(drawn, None)
        facts, _ = trained(drawn, careless)
        if plain["state of the drawn kind"] != facts["state of the drawn kind"] or plain["loss 4"] != facts["loss 4"]:
            seen |= {drawn.kind, drawn.place}
    assert seen == {*KINDS, *PLACES}


def looking(folder: Path) -> Callable[[nn.Module], awkward.Look]:
    probe = Probe(torch.rand(1, *awkward.IMAGE, generator=torch.Generator().manual_seed(1)))

    def watch(net: nn.Module) -> awkward.Look:
        watched = cnnlog.watch(net, probe, folder, tensorboard=False, on_error="raise")
        steps = iter(range(100))

        def look() -> None:
            step = next(steps)
            watched.snapshot(step)
            if step == 6:
                watched.close()

        return look

    return watch


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("name", awkward.GIVEN_BACK)
def test_awkward_networks_are_given_back(
    name: str, small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:  # as a large one: what it writes is copied as it begins to
        monkeypatch.setattr("cnnlog.capture.lent_tensors.COPIED_WHOLE", 0)
    build = awkward.GIVEN_BACK[name]
    assert awkward.left_behind(build, looking(tmp_path)) == awkward.left_behind(build, None)


@pytest.mark.parametrize("name", awkward.TOLD)
def test_what_cannot_be_given_back_is_warned_of_once(name: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="changes what nobody can give back afterwards") as said:
        awkward.left_behind(awkward.TOLD[name], looking(tmp_path))
    assert len(said) == 1


@pytest.mark.parametrize("name", awkward.GIVEN_BACK)
def test_a_careless_look_changes_them(name: str) -> None:
    """But for those that change only what a look does not see, or that begin after it."""
    build = awkward.GIVEN_BACK[name]

    def careless_look(net: nn.Module) -> awkward.Look:
        look = careless(net)
        return lambda: look(0)

    same = False
    with suppress(RuntimeError):  # TurnsSwitches cannot go on
        same = awkward.left_behind(build, careless_look) == awkward.left_behind(build, None)
    assert same == (name == "AsksTheSystem")
