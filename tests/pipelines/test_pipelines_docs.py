# SPDX-License-Identifier: Apache-2.0
"""What the docs, the generated pages and the workflows say is so."""

import ast
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from kfp import compiler
from kfp.dsl.graph_component import GraphComponent

from kfloop.components import BETA, FAMILIES, stability
from kfloop.components import __all__ as COMPONENTS
from kfloop.components.images import IMAGES
from kfloop.pipelines.catalogue import (
    PIPELINES,
    compiled_path,
    component_summaries,
    pipeline_stability,
)
from kfloop.pipelines.local import environments
from kfloop.pipelines.local.pipeline_spec import load_pipeline
from kfloop.pipelines.loop import load_loop
from kfloop.scripts.catalogue import catalogue
from kfloop.scripts.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


# As the docs' hook does.
sys.path.append(str(DOCS / "generator"))


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def component_pages():
    return load(DOCS / "generator" / "component_pages.py")


@pytest.fixture(scope="module")
def error_pages():
    return load(DOCS / "generator" / "error_pages.py")


@pytest.fixture(scope="module")
def pages(component_pages):
    return {page.name: page for page in component_pages.all_pages()}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_compiles(path, tmp_path):
    found = [each for each in vars(load(path)).values() if isinstance(each, GraphComponent)]
    assert len(found) == 1
    compiler.Compiler().compile(found[0], str(tmp_path / "pipeline.yaml"))


def test_every_component_has_a_page_with_an_example(component_pages, pages):
    assert set(pages) == set(COMPONENTS)
    for name, page in pages.items():
        assert f"{name}(" in component_pages.render(page).partition("## Example")[2], name


def test_every_input_and_output_is_described(pages):
    for page in pages.values():
        ports = [*page.input_artifacts, *page.parameters, *page.output_artifacts]
        assert not [port.name for port in ports if not port.description], page.name
        assert page.returns or not page.output_parameters, page.name
        assert page.failures, f"the core of {page.name} has no Raises section"


def test_a_page_tells_types_defaults_layout_and_rights(component_pages, pages):
    page = component_pages.render(pages["train_model"])
    assert "| `label` | str | required |" in page
    assert "| `epochs` | int | `20` |" in page
    assert "| `best_parameters` (optional) | Artifact |" in page
    assert "`1/`, `model.json`, `reference/`" in page
    assert "kfloop/training:0.1.0" in page
    assert "| `steps` | list | `[5, 25, 50, 100]` |" in component_pages.render(
        pages["roll_out_model"]
    )
    assert "## Rights" not in page
    page = component_pages.render(pages["promote_model"])
    assert "inferenceservices" in page.partition("## Rights")[2]
    assert "trainjobs" in component_pages.render(pages["submit_train_job"])


def test_the_failures_on_a_page_are_those_of_the_core():
    source = (
        "def wrapper(path):\n"
        "    from kfloop.components.data.split import split\n"
        "    from kfloop.components.evaluation import compare as core\n"
        "    split(path)\n"
        "    core.compare_models(path)\n"
        "    core.CompareSettings()\n"
    )
    assert len(load(DOCS / "generator" / "docstrings.py").failures(source)) == 2


def test_the_page_of_pipelines_tells_levels_and_parameters():
    page = load(DOCS / "generator" / "pipeline_pages.py").render()
    for name in PIPELINES:
        assert f"## {name}\n" in page
    assert "| `service` | str | required |" in page.partition("## rollback")[2]
    assert "| `dry_run` | bool | `False` | Print what would change, and change nothing. |" in page
    assert page.count("[beta](versioning.md)") == len(PIPELINES) - 1


def test_messages_are_collected_with_their_placeholders(error_pages):
    page = error_pages.render("# Troubleshooting")
    assert "`There is no loop file {file}; give its path with --config.`" in page
    for family in FAMILIES:
        assert len(error_pages.sentences(f"components/{family}")) > 3


def test_the_levels_are_of_components_that_exist():
    assert set(COMPONENTS) >= BETA
    assert stability("train_model") == "stable"
    assert stability("submit_train_job") == "beta"
    assert pipeline_stability("backtest") == "stable"
    assert pipeline_stability("training") == "beta"


def test_the_catalogue_lists_everything_with_its_level():
    assert set(component_summaries()) == set(COMPONENTS)
    shown = CliRunner().invoke(catalogue, env={"COLUMNS": "200"}).output
    lines = {line.split()[1]: line.split()[2] for line in shown.splitlines()[1:] if line.strip()}
    assert lines == {
        **{name: pipeline_stability(name) for name in PIPELINES},
        **{name: stability(name) for name in COMPONENTS},
    }


def test_the_catalogue_lists_the_parameters_of_a_pipeline():
    shown = CliRunner().invoke(catalogue, ["training"], env={"COLUMNS": "200"}).output
    rows = {line.split()[0]: line for line in shown.splitlines()[1:] if line[:1].strip()}
    declared = load_pipeline(compiled_path("training")).root["inputDefinitions"]["parameters"]
    assert set(rows) == set(declared)
    assert " ".join(rows["label"].split()) == "label required Column to predict; no nulls."
    assert "[20]" in rows["canary_steps"]


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags name Python objects."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def test_every_page_is_in_the_navigation_once():
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)["nav"]
    found = re.findall(r"[\w/-]+\.md", yaml.safe_dump(nav))
    assert sorted(found) == sorted(
        [*(path.name for path in DOCS.glob("*.md")), "components/index.md", "pipelines.md"]
    )


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_blocks_of_python_and_yaml_can_be_read(path):
    for block in blocks(path, "python"):
        ast.parse(block)
    for block in blocks(path, "yaml"):
        list(yaml.safe_load_all(block))


@pytest.mark.parametrize(
    "path",
    [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"],
    ids=lambda path: path.stem,
)
def test_commands_in_the_docs_exist(path):
    for command in re.findall(r"kfloop ([a-z][a-z-]+)", " ".join(_code(path))):
        assert command in COMMANDS, f"{path.name}: kfloop {command}"


def _code(path: Path) -> list[str]:
    text = path.read_text()
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    lines = [
        line.partition("#")[0]
        for language in ("bash", "console", "sh", "groovy", "")
        for block in blocks(path, language)
        for line in block.splitlines()
    ]
    return [each for each in [*inline, *lines] if re.match(r"\s*(\S*/bin/|\$ )?kfloop ", each)]


def test_the_loop_file_of_the_guide_is_read(tmp_path):
    (tmp_path / "trips.csv").write_text("started_at,station,minutes\n")
    (tmp_path / "loop.yaml").write_text(blocks(DOCS / "own-data.md", "yaml")[0])
    loop, _ = load_loop(tmp_path / "loop.yaml")
    assert loop.label_keys == ["station", "started_at"]


def test_argo_cd_is_given_manifests_and_options_that_exist():
    documents = [
        document
        for block in blocks(DOCS / "gitops.md", "yaml")
        for document in yaml.safe_load_all(block)
    ]
    (overlay,) = [document for document in documents if "images" in document]
    for resource in overlay["resources"]:
        if resource.startswith("manifests"):
            assert (ROOT / "serving" / resource / "kustomization.yaml").is_file(), resource
    (job,) = [document for document in documents if document["kind"] == "Job"]
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    apply = importlib.import_module(COMMANDS["schedule"][0]).schedule.commands["apply"]
    options = {option for parameter in apply.params for option in parameter.opts}
    assert arguments[:2] == ["schedule", "apply"]
    assert {argument for argument in arguments if argument.startswith("--")} <= options


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request):
    return yaml.safe_load(request.param.read_text()), request.param.read_text()


def steps(document):
    return [step for job in document["jobs"].values() for step in job["steps"]]


def test_actions_are_named_by_commit_and_release(workflow):
    document, text = workflow
    used = [step["uses"] for step in steps(document) if "uses" in step]
    assert used
    pinned = re.findall(r"uses: (\S+@[0-9a-f]{40}) # v\d+\.\d+\.\d+$", text, re.MULTILINE)
    assert used == pinned
    # One commit for each release everywhere.
    everywhere = re.findall(r"uses: (\S+)@(\S+)", "".join(p.read_text() for p in WORKFLOWS))
    assert len(dict(everywhere)) == len(set(everywhere))


def test_workflows_have_no_more_rights_than_they_need(workflow):
    document, text = workflow
    assert document["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in text
    for name, job in document["jobs"].items():
        assert "timeout-minutes" in job, name
        written = [key for key, value in job.get("permissions", {}).items() if value == "write"]
        # What a pull request starts can write nothing.
        assert not written or name in ("publish", "notes"), name
    for step in steps(document):
        if "actions/checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
        # A name that somebody else chose must not become shell.
        assert "${{" not in step.get("run", ""), step


def test_workflows_run_what_exists(workflow):
    document, _ = workflow
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for step in steps(document):
        run = step.get("run", "")
        assert set(re.findall(r"\bmake (\w+)", run)) <= targets, run
        assert set(re.findall(r"bin/kfloop (\S+)", run)) <= set(COMMANDS), run
        for script in re.findall(r"bin/python (\S+\.py)", run):
            assert (ROOT / script).is_file(), script


def test_workflows_cover_every_section_and_every_image():
    jobs = {path.stem: yaml.safe_load(path.read_text())["jobs"] for path in WORKFLOWS}
    sections = re.findall(r"Section\(\"(\w+)\"", (ROOT / "tests" / "run.py").read_text())
    tested = jobs["ci"]["test"]["strategy"]["matrix"]["section"]
    assert sorted(tested) == sorted([*sections, *environments.FAMILIES])
    for job in ("build", "publish"):
        assert set(jobs["images"][job]["strategy"]["matrix"]["image"]) == set(IMAGES)
