# SPDX-License-Identifier: Apache-2.0
"""`kfloop images`: commands of the engines, their failures, and the bill of materials."""

import json
import os
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from kfloop.components.contracts.errors import InputError
from kfloop.components.image_check import conflicts, import_all, main, modules_of
from kfloop.components.image_inventory import inventory
from kfloop.components.images import IMAGES, VERSION, image
from kfloop.pipelines.local.environment_build import uv_path
from kfloop.scripts.image_engine import index_settings, secrets
from kfloop.scripts.image_sbom import bill_of_materials
from kfloop.scripts.images import checkout, images, source_of

DIGEST = "sha256:" + "f" * 64


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("PREFIX", "VARIANTS", "DIGESTS", "BASE"):
        monkeypatch.delenv(f"KFLOOP_IMAGE_{name}", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """Puts shell scripts where docker, podman and buildah would be, and nothing else."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))

    def install(name, script):
        path = place / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return install


def call(*arguments):
    return CliRunner().invoke(images, arguments, catch_exceptions=False)


def commands(*arguments):
    return [shlex.split(line) for line in call(*arguments, "--dry-run").output.splitlines()]


def test_a_build_is_told_the_lock_the_version_and_the_commit():
    (command,) = commands("build", "serving", "--engine", "podman")
    assert command[:2] == ["podman", "build"]
    assert {
        f"--tag=kfloop/serving:{VERSION}",
        "--target=image",
        "--build-arg=FAMILY=serving",
        "--build-arg=LOCK=serving/requirements.txt",
        f"--build-arg=VERSION={VERSION}",
    } <= set(command)
    assert command[-1] == str(checkout())
    assert Path(checkout(), "components", "Dockerfile").is_file()


def test_without_a_name_every_family_is_built_and_no_variant():
    tags = [
        word for each in commands("build", "--engine", "docker") for word in each if "--tag" in word
    ]
    assert len(tags) == 8
    assert not [tag for tag in tags if tag.count("-") > 2]


def test_buildah_keeps_the_packages_in_a_layer_of_their_own():
    (command,) = commands("build", "data", "--engine", "buildah")
    assert command[:2] == ["buildah", "build"]
    assert "--layers" in command


def test_variants_bases_networks_and_tests_are_passed_on(monkeypatch):
    monkeypatch.setenv("KFLOOP_IMAGE_PREFIX", "registry.example.com/ml")
    (command,) = commands(
        *("build", "training-cuda", "--engine", "docker", "--base", "mine:1", "--network", "host"),
        "--test",
    )
    assert {
        f"--tag=registry.example.com/ml/training:{VERSION}-cuda-test",
        "--target=test",
        "--network=host",
        "--build-arg=BASE=mine:1",
        "--build-arg=LOCK=components/training/requirements-cuda.txt",
        "--build-arg=PREFIX=registry.example.com/ml",
    } <= set(command)


def test_a_dry_run_names_the_secrets_of_a_build_and_shows_none(monkeypatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://me:hunter2@packages.example.com/simple")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/certificates.pem")
    (command,) = commands("build", "data", "--engine", "podman")
    assert {"--secret=id=packages", "--secret=id=certificates"} <= set(command)
    assert "packages.example.com" not in str(command) and "hunter2" not in str(command)


def test_an_image_that_does_not_exist_is_told():
    with pytest.raises(InputError, match=r"no image 'dta'; there is data, validation"):
        call("build", "dta")


def test_without_an_engine_one_sentence_says_what_to_install(engines):
    with pytest.raises(InputError, match=r"none of them is installed here; install one"):
        call("build", "data")
    with pytest.raises(InputError, match=r"buildah is not installed here"):
        call("build", "data", "--engine", "buildah")


def test_an_engine_that_does_not_work_is_passed_over_for_one_that_does(engines):
    engines("docker", "echo 'Cannot connect to the daemon.' >&2; exit 1")
    with pytest.raises(InputError, match=r"docker is installed but .* \(Cannot connect to the d"):
        call("build", "data", "--dry-run")
    engines("podman", "exit 0")
    assert call("build", "data", "--dry-run").output.startswith("podman build")


def test_a_build_that_fails_is_told_with_its_command(engines):
    engines("podman", '[ "$1" = info ] || exit 125')
    with pytest.raises(
        InputError, match=r"`podman build` ended with status 125.*--tag=kfloop/data"
    ):
        call("build", "data")


def test_a_push_without_a_registry_is_refused(engines):
    engines("podman", "exit 0")
    with pytest.raises(InputError, match=r"KFLOOP_IMAGE_PREFIX is not set"):
        call("push", "data")


def test_digests_of_what_was_pushed_are_kept_for_the_compiler(engines, tmp_path, monkeypatch):
    # What `podman push` does with the file it is told, without a registry.
    engines(
        "podman", f'for a; do case $a in --digestfile=*) printf {DIGEST} >"${{a#*=}}";; esac; done'
    )
    monkeypatch.setenv("KFLOOP_IMAGE_PREFIX", "registry.example.com/ml")
    file = tmp_path / "digests.json"
    other = "sha256:" + "1" * 64
    file.write_text(json.dumps({"training": other}))
    assert DIGEST in call("push", "data", "--digests", str(file)).output
    assert json.loads(file.read_text()) == {"data": DIGEST, "training": other}
    monkeypatch.setenv("KFLOOP_IMAGE_DIGESTS", str(file))
    assert image("data") == f"registry.example.com/ml/data@{DIGEST}"


def test_two_pushes_at_once_keep_each_others_digests(engines, tmp_path, monkeypatch):
    file = tmp_path / "digests.json"
    # Another push ends while this one is at work.
    engines(
        "podman",
        f"""[ "$1" != push ] || printf '{{"training": "{DIGEST}"}}' >{file}
        for a; do case $a in --digestfile=*) printf {DIGEST} >"${{a#*=}}";; esac; done""",
    )
    monkeypatch.setenv("KFLOOP_IMAGE_PREFIX", "registry.example.com/ml")
    call("push", "data", "--digests", str(file))
    assert json.loads(file.read_text()) == {"data": DIGEST, "training": DIGEST}


def test_docker_tells_the_digest_of_this_push_and_not_of_another(engines, monkeypatch):
    engines("docker", f"echo '{VERSION}: digest: {DIGEST} size: 1060'")
    monkeypatch.setenv("KFLOOP_IMAGE_PREFIX", "registry.example.com/ml")
    told = call("push", "data", "--engine", "docker").output
    assert told.splitlines()[-1] == f"registry.example.com/ml/data:{VERSION}  {DIGEST}"
    engines("docker", "exit 0")
    with pytest.raises(InputError, match=r"docker has pushed .*/data.* but tells no digest"):
        call("push", "data", "--engine", "docker")


def test_the_list_names_every_image_and_says_why_it_knows_no_sizes(engines):
    told = call("list").output
    assert f"kfloop/training:{VERSION}-cuda" in told
    assert f"kfloop/validation:{VERSION}-fallback" in told
    assert "sizes are not known: Images are built by docker" in told


def test_the_list_leaves_nothing_out_however_long_it_is(engines, tmp_path, monkeypatch):
    monkeypatch.setenv("KFLOOP_IMAGE_PREFIX", "registry.example.com/a-long-name/of-a-team")
    file = tmp_path / "digests.json"
    file.write_text(json.dumps(dict.fromkeys(IMAGES, DIGEST)))
    monkeypatch.setenv("KFLOOP_IMAGE_DIGESTS", str(file))
    engines("podman", """echo '[{"Size": 12345678901}]'""")
    lines = call("list").output.splitlines()[1:]
    assert len(lines) == len(IMAGES)
    assert all(line.split()[-3:] == [DIGEST, "12,346", "MB"] for line in lines)


def test_the_list_tells_the_size_of_what_is_here(engines):
    engines(
        "podman", """case "$*" in *data*) echo '[{"Size": 412345678}]';; info) ;; *) exit 1; esac"""
    )
    (line,) = (line for line in call("list").output.splitlines() if line.startswith("data "))
    assert line.split()[-2:] == ["412", "MB"]


def test_credentials_of_an_index_are_in_no_command_and_gone_afterwards(tmp_path):
    certificates = tmp_path / "own.pem"
    environment = {
        "UV_INDEX_URL": "https://me:it's secret@index.example.com/simple",
        "UV_INDEX_INTERNAL_PASSWORD": "hidden",
        "PIP_FIND_LINKS": "/opt/wheels",
        "HOME": "/root",
        "SSL_CERT_FILE": str(certificates),
    }
    with secrets(environment) as options:
        assert not any("secret@" in option or "hidden" in option for option in options)
        assert f"--secret=id=certificates,src={certificates}" in options
        (file,) = (Path(each.partition("src=")[2]) for each in options if "id=packages" in each)
        told = subprocess.run(
            [
                "sh",
                "-c",
                '. "$0"; printf %s "$UV_INDEX_URL|$UV_INDEX_INTERNAL_PASSWORD|$PIP_CERT"',
                file,
            ],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout == f"{environment['UV_INDEX_URL']}|hidden|/run/secrets/certificates"
        assert "FIND_LINKS" not in file.read_text()
    assert not file.exists()


def test_without_settings_nothing_is_passed_to_a_build():
    assert index_settings({"PATH": "/bin"}) == ""
    with secrets({"PATH": "/bin"}) as options:
        assert options == []


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        ("https://example.com/kfloop.git", "https://example.com/kfloop.git"),
        ("https://me:password@example.com/kfloop.git", ""),
        ("git@example.com:kfloop.git", ""),
        ("/srv/kfloop", ""),
    ],
)
def test_only_a_public_origin_becomes_a_label(tmp_path, origin, told):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", origin], check=True)
    assert source_of(tmp_path) == told


# The bill of materials, of this very environment


@pytest.fixture(scope="module")
def here():
    return inventory()


@pytest.fixture(scope="module")
def bill(here):
    # A machine has far more of the system's packages than an image.
    return bill_of_materials(
        f"kfloop/data:{VERSION}", {**here, "debian": here["debian"][:20]}, "abc123"
    )


def test_the_bill_of_materials_is_cyclonedx(bill):
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(bill) is None
    wrong = json.loads(bill)
    wrong["components"] = [{**wrong["components"][0], "type": "nonsense"}]
    assert validator.validate_str(json.dumps(wrong)) is not None


def test_the_bill_of_materials_holds_every_package_with_its_licence_and_needs(bill):
    document = json.loads(bill)
    components = {each["bom-ref"]: each for each in document["components"]}
    click = components["pypi-click"]
    assert click["purl"] == f"pkg:pypi/click@{click['version']}"
    assert click["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]
    assert components["python"]["version"] == sys.version.split()[0]
    needs = {each["ref"]: each.get("dependsOn", []) for each in document["dependencies"]}
    assert {"pypi-click", "pypi-kfp"} <= set(needs["pypi-kfloop"])
    assert "pypi-kfloop" in needs["image"]
    assert {ref for refs in needs.values() for ref in refs} <= {*components, "image"}


def test_the_bill_of_materials_holds_the_systems_packages(here):
    if here["system"]["id"] != "debian":
        pytest.skip(f"this system is {here['system']['id'] or 'unknown'}, not Debian")
    libc = [each for each in here["debian"] if each["name"] == "libc6"]
    assert libc
    document = json.loads(bill_of_materials("x", {**here, "packages": [], "debian": libc}))
    purls = [each.get("purl", "") for each in document["components"]]
    assert any(purl.startswith("pkg:deb/debian/libc6@") and "arch=" in purl for purl in purls)


# The check at the end of a build


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment in which `asker` needs three packages, of which one is there in 1.0."""
    path = tmp_path_factory.mktemp("environment") / "env"
    venv.create(path)
    (packages,) = path.glob("lib/python*/site-packages")

    def install(name, *needs):
        folder = packages / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
        (folder / "METADATA").write_text(
            "\n".join([*lines, *(f"Requires-Dist: {n}" for n in needs)])
        )
        (folder / "RECORD").write_text("")
        (folder / "WHEEL").write_text("Wheel-Version: 1.0\nTag: py3-none-any\n")

    install("asker", "missing-one", "py_farm>=2", "py-farm>=1")
    install("py-farm")
    install("kfp", "kubernetes")
    return path / "bin" / "python"


def test_unmet_requirements_are_found_but_not_those_of_kfp(environment, tmp_path):
    told = conflicts(uv_path(), str(environment), tmp_path / "none.txt")
    assert len(told) == 2
    assert any("`asker` requires `missing-one`" in line for line in told)
    assert any("`asker` requires `py-farm>=2`" in line for line in told)


def test_what_the_overrides_name_is_meant_to_differ(environment, tmp_path):
    overrides = tmp_path / "requirements-overrides.txt"
    overrides.write_text("# missing-one is a comment here\nPy.Farm>=0.5\n")
    (told,) = conflicts(uv_path(), str(environment), overrides)
    assert "missing-one" in told


def test_an_interpreter_that_is_not_there_is_told(tmp_path):
    (told,) = conflicts(uv_path(), str(tmp_path / "python"), tmp_path / "none.txt")
    assert told.startswith("`uv pip check` ended with status 2")


def test_modules_that_cannot_be_imported_are_told(tmp_path, monkeypatch):
    (tmp_path / "needy_module.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    (told,) = import_all(["json", "needy_module"])
    assert told.startswith("needy_module cannot be imported: No module named 'not_installed")


def test_the_check_takes_every_module_but_the_one_that_needs_all_of_kfp():
    modules = modules_of("data")
    assert "kfloop.components.data.ingest" in modules
    assert "kfloop.components.data.component" not in modules
    assert "kfloop.serving.model_server" in modules_of("serving")


def test_the_check_imports_the_modules_it_is_given():
    # In the order of the Dockerfile.
    told = main(["training", "--uv", uv_path(), "not_installed_anywhere"])
    assert "not_installed_anywhere cannot be imported" in str(told)
