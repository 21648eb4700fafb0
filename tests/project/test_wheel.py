"""What the wheel and the source distribution have, and that the wheel works without a clone."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from support.onnx_files import READ_ALL, check_written, folder_of_images, model_of_all_kinds
from support.paths import CONFIGS, ROOT
from visionkit.errors import DISTRIBUTION, install_hint

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NAME = DISTRIBUTION.replace("-", "_")
FOLDERS = ("visionkit", "configs", "tests")
STRAY = ["visionkit/notes.txt", "visionkit/ops/__pycache__/a.pyc", "configs/old.yaml.bak"]
STRAY += ["runs/run-001/config.yaml", "configs/empty/.keep"]


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the wheel and the source distribution of a copy of the repository."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    for name in FOLDERS:
        apart = shutil.ignore_patterns("__pycache__", "fixtures")
        shutil.copytree(ROOT / name, source / name, ignore=apart)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    for name in STRAY:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source))
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


def files(folder):
    """The files of a folder of the repository, relative to it."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(folder).as_posix() for path in found}


PACKAGE, SHIPPED = files(ROOT / "visionkit"), files(CONFIGS)


def test_the_wheel_has_each_file_of_the_package_and_each_config_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(
            f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info/METADATA"
        )
    info = {name for name in names if ".dist-info/" in name}
    expected = {f"visionkit/{name}" for name in PACKAGE}
    assert names - info == expected | {f"visionkit/configs/{name}" for name in SHIPPED}
    assert {"LICENSE", "METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"} == {
        Path(name).name for name in info
    }
    readme = (ROOT / "README.md").read_text()
    assert metadata.decode().replace("\r", "").endswith(readme)


def test_the_source_distribution_has_what_the_wheel_is_built_from(built):
    source = next(built.glob("*.tar.gz"))
    with tarfile.open(source) as archive:
        members = [member.name.partition("/")[2] for member in archive if member.isfile()]
    names = {name for name in members if f"{NAME}.egg-info/" not in name}
    top = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"}
    top |= {"pyproject.toml", "setup.cfg", "setup.py"}
    expected = top | {f"visionkit/{name}" for name in PACKAGE}
    assert names == expected | {f"configs/{name}" for name in SHIPPED}


def venv(folder, *options):
    """Its `python` and where it has its packages."""
    run(sys.executable, "-m", "venv", *options, str(folder))
    python = str(folder / "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return python, Path(run(python, "-c", code).strip())


DATA = {"DIR": "shapes", "images/": "shapes/images"}
QUICK = {"train.epochs=40": "train.steps=1 data.workers=0 data.image_size=64"}


def first_commands(images, size, settings):
    """Those of the README on generated images; `settings` replace what they have."""
    block = (ROOT / "README.md").read_text().split("```console\n")[2].split("```")[0]
    text = block.replace("\\\n", " ")
    for word, value in (DATA | settings).items():
        assert word in text
        text = text.replace(word, value)
    lines = [shlex.split(line, comments=True)[1:] for line in text.splitlines()]
    generate = ["data", "shapes", "shapes", "--images", images, "--size", size, "--seed", "0"]
    return [generate, *(words[1:] for words in lines if words[0] == "visionkit")]


def outside_of_the_clone(folder):
    return {
        "cwd": folder,
        "env": {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")},
    }


@pytest.mark.slow
def test_the_readmes_first_commands_need_no_clone(wheel, tmp_path):
    """In a venv with the wheel and, for the rest, the packages of this one; all in one process."""
    python, packages = venv(tmp_path / "venv", "--without-pip")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    run(*pip, "--no-deps", "--no-index", str(wheel))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    empty = tmp_path / "empty"
    empty.mkdir()
    settings = outside_of_the_clone(empty)
    command = str(tmp_path / "venv/bin/visionkit")
    assert run(command, "--version", **settings) == f"visionkit {VERSION}\n"
    code = f"""
import visionkit
from visionkit.cli.main import main
assert visionkit.__file__.startswith({str(packages)!r}), visionkit.__file__
for words in {first_commands("2", "64", QUICK)}:
    assert main(words) == 0, words
"""
    run(python, "-c", code, **settings)
    assert len([*(empty / "predictions").glob("*.jpg")]) == 2
    assert {path.name for path in empty.iterdir()} == {"shapes", "RUN", "predictions"}


@pytest.mark.slow  # downloads gigabytes
@pytest.mark.timeout(3600)
@pytest.mark.skipif("VISIONKIT_TEST_INDEX" not in os.environ, reason="needs a package index")
def test_the_readmes_first_commands_in_a_bare_venv(wheel, tmp_path):
    """As they are, with all packages from the index; prints when each was done."""
    python, _ = venv(tmp_path / "venv")
    empty = tmp_path / "empty"
    empty.mkdir()
    settings = outside_of_the_clone(empty)
    start = time.perf_counter()
    pip = [python, "-m", "pip", "install", "--quiet", f"{wheel}[plots]"]
    command = str(tmp_path / "venv/bin/visionkit")
    for words in [pip, *([command, *words] for words in first_commands("16", "320", {}))]:
        run(*words, **settings)
        print(f"{time.perf_counter() - start:6.0f} s  {' '.join(words)}")
    assert len([*(empty / "predictions").glob("*.jpg")]) == 16
    with pytest.raises(AssertionError, match="No module named 'timm'"):
        run(python, "-c", "import timm", **settings)
    extra = install_hint("plots").split('"')[1]  # installed already: found without an index
    run(python, "-m", "pip", "install", "--no-index", extra, **settings)


# What reading an exported model needs, by distribution, and their import packages.
READING = {"numpy": "numpy", "pillow": "PIL", "pycocotools": "pycocotools", "pyyaml": "yaml"}
READING |= {"tqdm": "tqdm", "onnxruntime": "onnxruntime"}


def read_all(python, folder):
    """Read an exported model in all ways with that Python."""
    words = [model_of_all_kinds(folder / "model.onnx"), folder_of_images(folder / "in")]
    words = [str(word) for word in (*words, folder / "out")]
    printed = run(python, "-c", READ_ALL, *words, **outside_of_the_clone(folder))
    check_written(folder / "out", printed)


def test_an_exported_model_is_read_without_torch(wheel, tmp_path):
    """In a venv with links to the packages that this needs, and no others."""
    python, packages = venv(tmp_path / "venv", "--without-pip")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    run(*pip, "--no-deps", "--no-index", str(wheel))
    ours = Path(sysconfig.get_path("platlib"))
    for name in READING.values():
        for path in [*ours.glob(name), *ours.glob(f"{name}.libs"), *ours.glob(f"_{name}")]:
            (packages / path.name).symlink_to(path)
    for path in ours.glob("pillow.libs"):
        (packages / path.name).symlink_to(path)
    read_all(python, tmp_path)


@pytest.mark.slow  # downloads packages
@pytest.mark.timeout(900)
@pytest.mark.skipif("VISIONKIT_TEST_INDEX" not in os.environ, reason="needs a package index")
def test_an_exported_model_is_read_in_a_bare_venv(wheel, tmp_path):
    """As the page on prediction says, with packages from the index."""
    python, _ = venv(tmp_path / "venv")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel))
    run(python, "-m", "pip", "install", "--quiet", *READING)
    read_all(python, tmp_path)
