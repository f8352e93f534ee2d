"""What the repository says to GitHub, pre-commit and those who cite it agrees with the project's own commands."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import imagestream
from tests.conftest import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
FORMS = sorted((REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def jobs(workflow: Path) -> list[dict[str, Any]]:
    return list(read(workflow)["jobs"].values())


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_can_only_read_and_ends_in_time(workflow: Path) -> None:
    assert read(workflow)["permissions"] == {"contents": "read"}
    longest = 360 if workflow.name == "weekly.yml" else 90  # GitHub's own limit is 360
    assert all(0 < job["timeout-minutes"] <= longest and "permissions" not in job for job in jobs(workflow))
    assert "secrets." not in workflow.read_text()
    checkouts = [step for job in jobs(workflow) for step in job["steps"] if "checkout" in step.get("uses", "")]
    assert len(checkouts) == len(jobs(workflow))
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_ci_runs_what_has_to_pass_on_each_python() -> None:
    everything, _, newer = jobs(REPOSITORY / ".github/workflows/ci.yml")
    assert ".ci/run" in [step.get("run") for step in everything["steps"]]
    assert "make test-fast" in [step.get("run") for step in newer["steps"]]
    assert newer["strategy"]["matrix"]["python"] == ["3.12", "3.13"]


def test_coverage_is_on_the_page_of_the_run_and_no_part_of_make_test() -> None:
    _, coverage, _ = jobs(REPOSITORY / ".github/workflows/ci.yml")
    scripts = [step.get("run", "") for step in coverage["steps"]]
    assert "make coverage" in scripts and any("report.md" in text and "GITHUB_STEP_SUMMARY" in text for text in scripts)
    recipes = re.findall(r"^test[a-z-]*:.*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert len(recipes) > 5 and not any("coverage" in recipe for recipe in recipes)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_the_verbs_that_a_workflow_calls_are_the_makefiles(workflow: Path) -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    called = {verb for job in jobs(workflow) for step in job["steps"] for verb in made_by(step.get("run", ""))}
    called |= {verb for job in jobs(workflow) for verb in job.get("strategy", {}).get("matrix", {}).get("verb", [])}
    assert called and called <= verbs


def made_by(script: str) -> list[str]:
    """The verbs of a script's calls of make."""
    return [verb for words in re.findall(r"\bmake ([a-z -]+)", script) for verb in words.split()]


def test_pre_commit_fetches_nothing_and_calls_what_make_lint_calls() -> None:
    repositories = read(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    called = {hook["entry"].removeprefix(".venv/bin/").partition(" --")[0] for hook in hooks}
    assert {"ruff format", "ruff check", "mypy"} <= called


def test_the_bug_form_asks_for_what_a_report_needs() -> None:
    bug = next(form for form in FORMS if form.name == "bug.yml")
    asked = {field["id"] for field in read(bug)["body"] if field["type"] != "markdown"}
    assert {"command", "yaml", "run_json", "versions"} <= asked


def test_the_citation_is_of_this_version() -> None:
    citation = read(REPOSITORY / "CITATION.cff")
    version, released = citation["version"], citation["date-released"]
    assert version == imagestream.__version__
    assert f"\n## [{version}] - {released}\n" in (REPOSITORY / "CHANGELOG.md").read_text()
