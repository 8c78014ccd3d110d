"""Which layers of two networks are the same: by name, without what wrappers put before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_WRAPPERS = ("_orig_mod", "module", "model", "net", "network", "backbone", "encoder")


def align(reference: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], str]:
    """Match the names of layers with those of a reference. If none is the same, prefixes are left out.

    Args:
        reference: the names that one side has.
        names: the names that another side has.

    Returns:
        For each name that matches, the reference's name; and which prefixes were left out, in words, empty for none.

    >>> align(["model.features.0", "model.features.3"], ["features.0", "features.3", "head"])
    ({'features.0': 'model.features.0', 'features.3': 'model.features.3'}, "without the prefix 'model.'")
    """
    plain = {_plain_name(name): name for name in reference}
    own = {_plain_name(name): name for name in names}
    choices = {("", "")}
    if not plain.keys() & own.keys():
        choices |= {(r[: -len(n)], "") for r in plain for n in own if r.endswith(f".{n}")}
        choices |= {("", n[: -len(r)]) for r in plain for n in own if n.endswith(f".{r}")}
        choices.add((_wrapped(plain), _wrapped(own)))

    def matched(choice: tuple[str, str]) -> dict[str, str]:
        ours, theirs = choice
        found = {n: ours + n[len(theirs) :] for n in own if n.startswith(theirs)}
        return {n: r for n, r in found.items() if r in plain}

    def rank(choice: tuple[str, str]) -> tuple[int, bool, int, tuple[str, str]]:
        usual = all(part in _WRAPPERS for prefix in choice for part in prefix.split(".")[:-1])
        return (-len(matched(choice)), not usual, len(choice[0]) + len(choice[1]), choice)

    best = min(choices, key=rank)
    pairs = {own[n]: plain[r] for n, r in matched(best).items()}
    prefixes = [repr(prefix) for prefix in best if prefix]
    if any("_orig_mod." in name for pair in pairs.items() for name in pair if pair[0] != pair[1]):
        prefixes.append("'_orig_mod.'")
    if not pairs or not prefixes:
        return pairs, ""
    return pairs, f"without the prefix{'es' if len(prefixes) > 1 else ''} {' and '.join(prefixes)}"


def _plain_name(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _wrapped(names: Mapping[str, str]) -> str:
    """The usual names of wrappers that all names begin with.

    Args:
        names: their keys are looked at: names of layers.
    """
    prefix = ""
    while True:
        heads = {name[len(prefix) :].split(".")[0] if "." in name[len(prefix) :] else "" for name in names}
        head = heads.pop() if len(heads) == 1 else ""
        if head not in _WRAPPERS:
            return prefix
        prefix += f"{head}."
