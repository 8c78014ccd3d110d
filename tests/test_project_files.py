"""The files that hosts and tools read: the commands in them exist, and they say what the rest of the project says."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import pytest
import yaml
from support.places import ROOT

FORMS = ("bug_report", "feature_request")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def usage() -> str:
    return subprocess.run([ROOT / "scripts" / "test", "--help"], capture_output=True, text=True, check=True).stdout


def test_the_workflow_runs_commands_that_the_usage_names() -> None:
    cases = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["include"]
    commands = [command for case in cases for command in case["command"].split(" && ")]
    tests = [command for command in commands if command.startswith("scripts/test")]
    assert sorted(tests) == ["scripts/test", "scripts/test --all", "scripts/test --lowest"]
    assert sorted({*commands} - {*tests}) == ["scripts/docs", "scripts/setup --trackio"]
    assert all(re.search(rf"^ +{command}  ", usage(), re.MULTILINE) for command in tests)
    assert os.access(ROOT / "scripts" / "docs", os.X_OK)


def test_every_tracker_is_tested_by_the_workflow_and_by_ci_alike() -> None:
    cases = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["include"]
    (every,) = [case["command"].split(" && ") for case in cases if "--all" in case["command"]]
    run = re.findall(r"^scripts/(?:setup --trackio|test --all)\b", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert every == run == ["scripts/setup --trackio", "scripts/test --all"]


def test_the_hooks_check_what_the_tests_check() -> None:
    (local,) = read(".pre-commit-config.yaml")["repos"]
    hooks = {re.sub(r" --force-exclude$", "", hook["entry"]) for hook in local["hooks"]}
    said = re.findall(r"^ +\$python (-m (?!pytest).*)$", (ROOT / "scripts" / "test").read_text(), re.MULTILINE)
    assert hooks == {f".venv/bin/python {re.sub(' [.]$', '', line)}" for line in said}


def test_the_citation_names_the_licence_of_the_project() -> None:
    citation = read("CITATION.cff")
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text()
    assert citation["title"].partition(":")[0] == "cnnlog"


@pytest.mark.parametrize("form", FORMS)
def test_a_form_asks_under_names_of_its_own(form: str) -> None:
    asked = [part for part in read(f".github/ISSUE_TEMPLATE/{form}.yml")["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in asked}) == len({part["attributes"]["label"] for part in asked}) == len(asked)
    assert any(part.get("validations", {}).get("required") for part in asked)


def test_the_changelog_has_the_sections_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert text.index("## Unreleased") < text.index("### ")
    assert set(sections) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
