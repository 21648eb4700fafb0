"""The command line: exit codes, messages without tracebacks, results on standard output."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from support.paths import CONFIGS
from support.small_runs import quick_settings
from visionkit.cli.main import main
from visionkit.runs import files


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A Mask R-CNN run of a few steps, trained by the command."""
    output = tmp_path_factory.mktemp("cli") / "run"
    config = "instance_segmentation.yaml"
    words = [str(CONFIGS / config), *quick_settings(config), f"output={output}"]
    assert main(["train", *words, "head.box_score_threshold=0.0"]) == 0
    return output


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    assert (
        main(["data", "shapes", str(folder), "--images", "5", "--size", "64", "--seed", "9"]) == 0
    )
    return folder


@pytest.mark.parametrize("config", sorted(p.name for p in CONFIGS.glob("*.yaml")))
def test_every_shipped_config_trains_as_it_stands(config, tmp_path, capsys):
    settings = [*quick_settings(config), "train.steps=1", f"output={tmp_path / 'run'}"]
    words = ["train", str(CONFIGS / config), *settings]
    assert main(words) == 0
    assert f"run: {tmp_path / 'run'}" in capsys.readouterr().out


@pytest.mark.parametrize("config", sorted(p.name for p in CONFIGS.glob("*.yaml")))
def test_every_shipped_config_prints_what_reloads_to_the_same(config, tmp_path, capsys):
    assert main(["config", str(CONFIGS / config), "train.lr=1e-3"]) == 0
    first = capsys.readouterr().out
    (tmp_path / config).write_text(first)
    assert main(["config", str(tmp_path / config)]) == 0
    assert capsys.readouterr().out == first and "lr: 0.001" in first


def test_commands_take_the_name_of_a_shipped_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "autoencoder").mkdir()  # a folder of that name is not a config
    settings = [*quick_settings("autoencoder.yaml"), "train.steps=1"]
    assert main(["train", "autoencoder", *settings]) == 0
    assert "run: runs/autoencoder-001" in capsys.readouterr().out
    words = ["train", "--resume", "autoencoder", *settings, "output=runs/autoencoder-001"]
    (tmp_path / "autoencoder").rmdir()
    assert main(words) == 0
    assert main(["config", "autoencoder"]) == 0
    assert main(["check", "autoencoder", *settings]) == 0
    assert main(["check", "autoencodr"]) == main(["bench", "autoencodr"]) == 2
    assert "did you mean 'autoencoder'?" in capsys.readouterr().err


def test_a_run_of_a_config_with_a_base_stands_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "autoencoder", "base.yaml"]) == 0
    settings = [*quick_settings("autoencoder.yaml"), "output=run"]
    Path("mine.yaml").write_text("base: base.yaml\ntrain: {lr: 0.001}\n")
    assert main(["train", "mine.yaml", *settings, "train.steps=1"]) == 0
    Path("base.yaml").unlink()
    config = Path("run/config.yaml").read_text()
    assert config.startswith("version: 1\nname: mine\n") and "base" not in config.split("head")[0]
    assert main(["train", "--resume", "run", "train.steps=2"]) == 0
    assert main(["config", "run/config.yaml"]) == 0
    assert "lr: 0.001" in capsys.readouterr().out
    assert main(["config", "mine.yaml"]) == 2
    assert "mine.yaml:1: base: base.yaml: not found" in capsys.readouterr().err
    Path("run/config.yaml").write_text(f"base: ../mine.yaml\n{config}")
    assert main(["train", "--resume", "run", "train.steps=3"]) == 2
    assert "run/config.yaml: its config names a base" in capsys.readouterr().err


def test_init_writes_a_copy_that_trains_and_says_what_is_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my configs").mkdir()
    file = "my configs/street.yml"
    assert main(["init", "autoencoder", file]) == 0
    assert capsys.readouterr().out == (
        f"wrote {file}; edit it, then:\n  visionkit check '{file}'\n  visionkit train '{file}'\n"
    )
    assert f"#   visionkit train '{file}' data.train.root=DIR" in Path(file).read_text()
    settings = [*quick_settings("autoencoder.yaml"), "train.steps=1"]
    assert main(["check", file, *settings]) == 0
    assert main(["train", file, *settings]) == 0
    assert "run: runs/street-001" in capsys.readouterr().out
    assert main(["init", "autoencoder"]) == 0
    assert Path("autoencoder.yaml").is_file()


def test_init_changes_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("vae.yaml").write_text("mine")
    Path("link.yaml").symlink_to("nowhere.yaml")
    for words, expected in (
        (["vae"], "init: vae.yaml already exists and stays as it is; name another file: "),
        (["vae", "link.yaml"], "init: link.yaml already exists"),
        (["vae", "."], "init: . is a folder; name a file: vae.yaml"),
        (["vae", "nowhere/vae.yaml"], "init: the folder of nowhere/vae.yaml does not exist"),
        (["vae", "vae.json"], "init: got vae.json; a config is a .yaml file: vae.yaml"),
        (["vae", "run.v2"], "init: got run.v2; a config is a .yaml file: run.v2.yaml"),
        (["vae", "vae"], "init: got vae; a config is a .yaml file: vae.yaml"),
        (["vea"], "init: 'vea' is not a shipped config; did you mean 'vae'?"),
        (["vae.yaml"], "init: 'vae.yaml' is not a shipped config; did you mean 'vae'?"),
        (["configs/vae"], "init: 'configs/vae' is not a shipped config; did you mean 'vae'?"),
        ([""], "init: '' is not a shipped config; valid: "),
    ):
        assert main(["init", *words]) == 2
        assert expected in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.yaml", "vae.yaml"]
    assert Path("vae.yaml").read_text() == "mine" and not Path("nowhere.yaml").exists()


def test_eval_prints_one_json_object_that_pycocotools_confirms(run, shapes, capsys):
    data = [
        f"data.val.images={shapes / 'images'}",
        f"data.val.annotations={shapes / 'annotations.json'}",
    ]
    assert main(["eval", str(run), "--json", *data]) == 0
    printed = capsys.readouterr()
    metrics = json.loads(printed.out)
    for iou_type in ("bbox", "segm"):
        truth = COCO(str(shapes / "annotations.json"))
        found = truth.loadRes(str(run / f"eval/instance_segmentation_{iou_type}.json"))
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert metrics[f"instance_segmentation/{iou_type}/AP"] == evaluation.stats[0]
        assert metrics[f"instance_segmentation/{iou_type}/AR100"] == evaluation.stats[8]
    assert "instance_segmentation/loss/total" in metrics


def test_predict_writes_records_and_overlays_and_skips_unreadable_images(
    run, shapes, tmp_path, capsys
):
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (90, 60), "gray").save(tmp_path / "in" / name)
    Image.new("L", (50, 70)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "corrupt.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    out = tmp_path / "out"
    assert main(["predict", str(run), str(tmp_path / "in"), "--out", str(out)]) == 3
    printed = capsys.readouterr()
    assert "1 image could not be read" in printed.out
    records = json.loads((out / "predictions.json").read_text())
    assert {r["file_name"] for r in records} <= {"a.jpg", "b.png", "a.png"}
    record = records[0]
    assert {
        "image_id",
        "category_id",
        "category_name",
        "bbox",
        "score",
        "segmentation",
    } <= record.keys()
    assert record["segmentation"]["size"] in ([60, 90], [70, 50])
    assert sorted(p.name for p in out.glob("*.jpg")) == ["a.jpg", "a_2.jpg", "b.jpg"]


def test_predict_never_writes_over_images(run, shapes, capsys):
    assert main(["predict", str(run), str(shapes / "images"), "--out", str(shapes / "images")]) == 2
    assert "choose another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_predict_leaves_other_peoples_files_and_can_be_repeated(run, shapes, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "000001.jpg").write_bytes(b"mine")
    images = str(shapes / "images")
    assert main(["predict", str(run), images, "--out", str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "000001.jpg").read_bytes() == b"mine"
    for _ in range(2):
        assert main(["predict", str(run), images, "--out", str(tmp_path / "new")]) == 0
    assert len(list((tmp_path / "new").glob("*.jpg"))) == 5


def test_a_resume_that_does_not_fit_changes_nothing(run, capsys):
    before = (run / "config.yaml").read_text()
    assert main(["train", "--resume", str(run), "backbone.name=resnet34"]) == 4
    assert "does not fit the config" in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == before
    assert main(["train", "--resume", str(run), "--overwrite"]) == 2


def test_training_without_any_object_is_refused(shapes, tmp_path, capsys):
    truth = json.loads((shapes / "annotations.json").read_text())
    (tmp_path / "none.json").write_text(
        json.dumps(
            {
                **truth,
                "image_classes": [],
                "annotations": [],
                "images": [
                    {k: v for k, v in i.items() if k != "class_id"} for i in truth["images"]
                ],
            }
        )
    )
    (tmp_path / "semantic").symlink_to(shapes / "semantic")
    words = [
        f"data.train.images={shapes / 'images'}",
        f"data.train.annotations={tmp_path / 'none.json'}",
        "data.train.links=any",
    ]
    assert main(["train", str(CONFIGS / "detection.yaml"), *words, "data.val=null"]) == 3
    assert "nothing to learn" in capsys.readouterr().err


def test_a_resumed_run_stays_where_it_is(run, tmp_path, capsys):
    assert main(["train", "--resume", str(run), f"output={tmp_path / 'elsewhere'}"]) == 2
    assert "remove output=" in capsys.readouterr().err


def test_metrics_are_shown_though_the_run_cannot_be_written_to(run, capsys, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_text", full)
    assert main(["eval", str(run), "--json"]) == 0
    assert "AP" in capsys.readouterr().out and "cannot be written: " in caplog.text


def test_resume_of_a_finished_run(run, capsys):
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["train", "--resume", str(run), "train.steps=4"]) == 0
    assert json.loads((run / "status.json").read_text())["step"] == 4


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["train", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["train"], 2, "give a config, or --resume RUN"),
        (["train", str(CONFIGS / "detection.yaml"), "train.lrr=1"], 2, "did you mean 'lr'"),
        (["train", "--resume", "nowhere"], 2, "is not a run directory"),
        (["train", str(CONFIGS / "mlp_mnist.yaml"), "train.device=gpu"], 2, "expected auto"),
        (
            ["config", str(CONFIGS / "detection_small.yaml"), "data.train.images=."],
            2,
            "data.train.annotations: missing",
        ),
        (["eval", "nowhere"], 4, "nowhere: not found"),
        (["predict", "nowhere", "x.jpg", "--out", "y"], 4, "nowhere: not found"),
        (
            [
                "train",
                str(CONFIGS / "detection.yaml"),
                "data.train.images=no",
                "data.train.annotations=no",
            ],
            2,
            "no",
        ),
    ],
)
def test_mistakes_are_reported_without_a_traceback(
    words, code, says, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    printed = capsys.readouterr()
    assert says in printed.err and "Traceback" not in printed.err and not printed.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bench", "x.yaml", "--steps", "many"], "--steps: got many; expected an integer >= 1"),
        (["predict", "RUN", "x.jpg", "--out", "y", "--threshold", "q"], "got q; expected a number"),
    ],
)
def test_options_that_are_not_numbers_say_what_they_should_be(words, says, capsys):
    assert main(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk, where there is one")
def test_output_that_cannot_be_written_is_reported_without_a_traceback():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "visionkit", "list", "necks"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device\n"


def test_a_corrupt_annotation_file_is_a_data_error(tmp_path, capsys, shapes):
    bad = tmp_path / "bad.json"
    bad.write_text('{"images": [')
    words = [f"data.train.images={shapes / 'images'}", f"data.train.annotations={bad}"]
    code = main(["train", str(CONFIGS / "detection.yaml"), *words, f"output={tmp_path / 'r'}"])
    assert code == 3 and "bad.json" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_training_on_new_data_and_validating_on_generated_data_is_reported(
    tmp_path, capsys, shapes
):
    truth = json.loads((shapes / "annotations.json").read_text())
    for category in truth["categories"]:
        category["name"] = category["name"].upper()
    (shapes / "upper.json").write_text(json.dumps(truth))
    words = [
        f"data.train.images={shapes / 'images'}",
        f"data.train.annotations={shapes / 'upper.json'}",
    ]
    assert main(["train", str(CONFIGS / "detection.yaml"), *words, "data.val.num_images=6"]) == 3
    printed = capsys.readouterr().err
    assert "data.val" in printed and "CIRCLE" in printed


def test_help_is_quick_and_list_names_the_components(capsys):
    result = subprocess.run(
        [sys.executable, "-m", "visionkit", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0 and "predict" in result.stdout
    code = "import sys, visionkit.cli.main; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    named = {
        "heads": "MaskRCNN",
        "backbones": "Torchvision",
        "necks": "FPN",
        "datasets": "Coco",
        "transforms": "HorizontalFlip",
    }
    for section, component in named.items():
        assert main(["list", section]) == 0
        assert component in capsys.readouterr().out
    assert main(["list"]) == 0
    everything = capsys.readouterr().out
    assert all(component in everything for component in named.values())
    assert main(["trian", "x"]) == 2


def test_settings_that_fit_another_dataset_replace_the_generated_one(capsys):
    config = str(CONFIGS / "classification.yaml")
    assert main(["config", config, "data.train.images=a.gz", "data.train.labels=b.gz"]) == 0
    printed = capsys.readouterr().out
    assert "train: {type: Idx, images: a.gz, labels: b.gz}" in printed
    assert "val: {type: Shapes" in printed
    assert main(["config", config, "data.train.root=DIR"]) == 0
    assert "train: {type: ImageFolder, root: DIR}" in capsys.readouterr().out


@pytest.mark.slow
def test_an_unreadable_image_ends_the_process_with_its_workers(shapes, tmp_path):
    (tmp_path / "images").mkdir()
    for image in (shapes / "images").iterdir():
        (tmp_path / "images" / image.name).write_bytes(image.read_bytes())
    corrupt = sorted((tmp_path / "images").iterdir())[2]
    corrupt.write_bytes(b"corrupt")
    words = ["train", str(CONFIGS / "detection_fcos.yaml"), "data.image_size=64", "train.steps=2"]
    for split in ("train", "val"):
        words += [f"data.{split}.images={tmp_path / 'images'}"]
        words += [f"data.{split}.annotations={shapes / 'annotations.json'}"]
    words += ["data.workers=2", "data.batch_size=4", f"output={tmp_path / 'run'}"]
    words += ["data.check_images=false"]  # or it were found before
    command = [sys.executable, "-m", "visionkit", *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 3
    assert corrupt.name in result.stderr and "Traceback" not in result.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"
