# SPDX-License-Identifier: Apache-2.0
"""What images are called in compiled pipelines and manifests, and what they are made from."""

import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kfloop.components import FAMILIES
from kfloop.components.contracts.errors import InputError
from kfloop.components.images import IMAGES, VERSION, image, image_digests, reference
from kfloop.pipelines.local.environments import family_of_image

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "0123456789abcdef" * 4
# Where images are named, or a person reads what to name them.
PLACES = ("components", "docs", "pipelines", "scripts", "serving", "tests/e2e", ".ci")
SUFFIXES = {".json", ".md", ".py", ".sh", ".yaml", ".yml", ""}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("PREFIX", "VARIANTS", "DIGESTS"):
        monkeypatch.delenv(f"KFLOOP_IMAGE_{name}", raising=False)


@pytest.fixture
def digests(tmp_path, monkeypatch):
    file = tmp_path / "digests.json"
    monkeypatch.setenv("KFLOOP_IMAGE_DIGESTS", str(file))

    def write(content):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    return write


def texts():
    for place in PLACES:
        for path in (ROOT / place).rglob("*"):
            if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                yield path, path.read_text(encoding="utf-8")
    for name in ("README.md", "CHANGELOG.md", "loop.yaml"):
        yield ROOT / name, (ROOT / name).read_text(encoding="utf-8")


def named_images(document):
    """Every value of a key `image` in a YAML document."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == "image" and isinstance(value, str):
                yield value
            yield from named_images(value)
    elif isinstance(document, list):
        for value in document:
            yield from named_images(value)


def test_the_tag_is_the_version_of_the_package():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert settings["metadata"]["version"] == VERSION
    assert image("data") == f"kfloop/data:{VERSION}"


def test_every_family_has_an_image_and_every_image_a_lock_with_hashes():
    assert {*FAMILIES, "serving"} == {name for name in IMAGES if "-" not in name}
    for name, lock in IMAGES.items():
        text = (ROOT / lock).read_text()
        pins = re.findall(r"^[\w.-]+(?:\[[^]]+\])?==\S+", text, re.MULTILINE)
        assert pins, lock
        assert text.count("--hash=sha256:") >= len(pins), lock
        assert family_of_image(reference(name)) == name.partition("-")[0]


def test_the_prefix_is_the_registrys(monkeypatch):
    monkeypatch.setenv("KFLOOP_IMAGE_PREFIX", "registry.example.com/ml/")
    assert image("serving") == f"registry.example.com/ml/serving:{VERSION}"


def test_a_variant_takes_its_familys_place(monkeypatch):
    monkeypatch.setenv("KFLOOP_IMAGE_VARIANTS", "training=cuda, validation=fallback")
    assert image("training") == f"kfloop/training:{VERSION}-cuda"
    assert image("validation") == f"kfloop/validation:{VERSION}-fallback"
    assert image("data") == f"kfloop/data:{VERSION}"


def test_an_unknown_variant_is_told_with_those_there_are(monkeypatch):
    monkeypatch.setenv("KFLOOP_IMAGE_VARIANTS", "training=rocm")
    with pytest.raises(InputError, match=r"training=rocm.*training=cuda"):
        image("data")


def test_a_digest_takes_the_tags_place(digests, monkeypatch):
    digests({"data": DIGEST, "training-cuda": DIGEST})
    assert image("data") == f"kfloop/data@{DIGEST}"
    assert family_of_image(image("data")) == "data"
    monkeypatch.setenv("KFLOOP_IMAGE_VARIANTS", "training=cuda")
    assert image("training") == f"kfloop/training@{DIGEST}"


def test_an_image_without_a_digest_is_an_error_when_there_are_digests(digests):
    digests({"data": DIGEST})
    with pytest.raises(InputError, match=r"no digest of the image 'features'.*images push"):
        image("features")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("nonsense", "is not JSON"),
        ("[]", "names no image"),
        ({}, "names no image"),
        ({"datum": DIGEST}, "names 'datum', which is no image"),
        ({"data": "sha256:12"}, "is 'sha256:12'; a digest is sha256: and 64"),
        ({"data": 5}, "is 5; a digest"),
    ],
)
def test_a_wrong_file_of_digests_is_told(digests, content, told):
    digests(content)
    with pytest.raises(InputError, match=re.escape(told)):
        image("data")


def test_a_missing_file_of_digests_is_told(tmp_path):
    with pytest.raises(InputError, match=r"gone\.json cannot be read \(No such file"):
        image_digests(tmp_path / "gone.json")


def test_a_pipeline_is_compiled_with_prefix_and_digests(tmp_path, digests):
    file = digests({name: DIGEST for name in IMAGES})
    code = (
        "import sys; from kfp import compiler; from kfloop.pipelines.rollback import rollback; "
        "compiler.Compiler().compile(rollback, sys.argv[1])"
    )
    target = tmp_path / "rollback.yaml"
    settings = {"KFLOOP_IMAGE_PREFIX": "registry.example.com/ml", "KFLOOP_IMAGE_DIGESTS": str(file)}
    subprocess.run(
        [sys.executable, "-c", code, str(target)], env={**os.environ, **settings}, check=True
    )
    found = set(named_images(yaml.safe_load(target.read_text())))
    assert found == {f"registry.example.com/ml/deployment@{DIGEST}"}


def test_no_image_is_called_latest_anywhere():
    word = ":" + "latest"
    assert [str(path) for path, text in texts() if word in text] == []


def test_every_image_that_yaml_names_has_a_version():
    unnamed = [
        (str(path), each)
        for path, text in texts()
        if path.suffix in {".yaml", ".yml"}
        for document in yaml.safe_load_all(text)
        for each in named_images(document)
        if not re.search(r":\d[\w.-]*$|@sha256:[0-9a-f]{64}$", each)
    ]
    assert unnamed == []


def dockerfile():
    """The instructions of the Dockerfile, one a line."""
    text = (ROOT / "components" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.strip().startswith("#")]
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


def test_the_dockerfile_installs_only_what_a_lock_or_this_checkout_holds():
    installs = [
        part
        for line in dockerfile()
        for part in re.split(r"&&|;", line)
        if re.search(r"\b(pip|uv) (pip )?(install|sync)\b|uv build", part)
    ]
    assert len(installs) >= 5
    for part in installs:
        assert "--require-hashes" in part or "--no-index" in part, part


def test_the_dockerfile_copies_every_folder_that_kfloop_is_installed_from():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    mapped = settings["options"]["package_dir"].split("\n")
    folders = [line.partition("=")[2].strip() for line in mapped if line]
    copied = [
        word for line in dockerfile() if line.startswith("COPY") for word in line.split()[1:-1]
    ]
    for folder in folders:
        assert any(f"{folder}/".startswith(f"{place}/") for place in copied), folder


def test_the_dockerfiles_base_has_a_version_and_its_user_is_a_number_other_than_root():
    lines = dockerfile()
    (base,) = (line.partition("=")[2] for line in lines if line.startswith("ARG BASE="))
    assert re.search(r":\d", base)
    (user,) = (line.split()[1] for line in lines if line.startswith("USER"))
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    # A run-as-non-root pod is refused when the last word is a name, or nothing.
    stages = [line for line in lines if line.startswith(("FROM", "USER"))]
    assert stages[-1] == "FROM image"


def test_a_model_records_the_commit_that_its_image_was_built_from():
    lines = dockerfile()
    stage = lines[lines.index("FROM whole AS image") :]
    stage = stage[: next(at for at, line in enumerate(stage[1:], 1) if line.startswith("FROM"))]
    assert stage.index("ARG REVISION") < stage.index("ENV KFLOOP_GIT_COMMIT=${REVISION}")
    recorded = (ROOT / "components" / "training" / "record.py").read_text()
    assert 'git_commit=os.environ.get("KFLOOP_GIT_COMMIT", "")' in recorded


def test_the_build_context_is_an_allow_list():
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line[:1] not in ("#", "")
    ]
    assert lines[0] == "*"
    for entry in lines[1:]:
        assert entry[0] == "!" or entry.startswith("**/"), entry
    for secret in (".git", ".venv", ".kfloop", "data"):
        assert f"!{secret}" not in lines
