"""Lists of images: names that find them again, in folders, lists and shards, and what they change."""

import numpy as np
import pytest

from errors import UserError
from pipeline import name_lists
from pipeline.file_images import FileImages
from pipeline.samplers import TrainSampler
from pipeline.web_shards import WINDOW_SHARDS, WebShards
from tests.pipeline.test_left_out import photo, write_tar
from training import loaders

pytestmark = pytest.mark.quick


def open_files(root, *names):
    return FileImages([root / name for name in names], np.zeros(len(names), np.int64), root)


def write_list(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    return tmp_path / "list.txt"


def test_every_name_that_a_source_gives_finds_its_image_alone(tmp_path):
    source = open_files(tmp_path, "a/b/1.jpg", "c/b/1.jpg", "1.jpg", "# 2.jpg", "line\nbreak.jpg", "three\udcff.jpg")
    for index in range(len(source)):
        name_lists.write(tmp_path / "own.txt", [name_lists.as_line(source.name(index))], ["tool 1", "of\ntwo lines"])
        assert name_lists.find_listed(source, tmp_path / "own.txt", "-list").tolist() == [index]
    with pytest.raises(UserError, match=r"-list .*not one image of the train split each: b/1\.jpg"):
        name_lists.find_listed(source, write_list(tmp_path, "b/1.jpg"), "-list")


def test_names_that_differ_stay_different_in_a_list(tmp_path):
    source = open_files(tmp_path, " b/z.png", "b/z.png", "x\ny.png", "x\\ny.png", "./# a.png", "\u3000wide.png")
    for index in range(len(source)):
        name_lists.write(tmp_path / "own.txt", [name_lists.as_line(source.name(index))])
        assert name_lists.find_listed(source, tmp_path / "own.txt", "-list").tolist() == [index]
    hand_written = write_list(tmp_path, "b/z.png\nx\\ny.png")
    assert name_lists.find_listed(source, hand_written, "-list")[0] == 1


def test_each_line_takes_one_of_the_images_that_have_its_name(tmp_path):
    source = open_files(tmp_path, "a/1.png", "a/1.png", "a/2.png", "a/1.png")
    assert name_lists.find_listed(source, write_list(tmp_path, "a/1.png"), "-list").tolist() == [0]
    assert name_lists.find_listed(source, write_list(tmp_path, "a/1.png\na/2.png\na/1.png"), "-list").tolist() == [
        0,
        1,
        2,
    ]


def test_comments_are_skipped_before_the_names_only(tmp_path):
    source = open_files(tmp_path, "1.jpg", "2.jpg")
    assert name_lists.find_listed(source, write_list(tmp_path, "# a tool\n# 0.9\n2.jpg\n"), "-list").tolist() == [1]
    with pytest.raises(UserError, match="each: # 1.jpg"):
        name_lists.find_listed(source, write_list(tmp_path, "2.jpg\n# 1.jpg\n"), "-list")
    with pytest.raises(UserError, match="empty"):
        name_lists.find_listed(source, write_list(tmp_path, "# nothing\n"), "-list")


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2 * WINDOW_SHARDS):
        members = {}
        for number in range(4):
            members |= {f"photo{number}.png": photo(10 * number), f"photo{number}.cls": b"1"}
        write_tar(folder / f"{shard:02d}.tar", members)
    return WebShards(folder, "train", "label")


def test_a_list_of_images_in_shards_keeps_their_order_by_windows(shards, tmp_path):
    chosen = np.flatnonzero(np.arange(len(shards)) % 3 == 0)
    name_lists.write(tmp_path / "keep.txt", shards.names(chosen))
    limited = name_lists.limit(shards, "train", tmp_path / "keep.txt", "DATA.TRAIN_LIST")
    assert limited.indices.tolist() == chosen.tolist()
    assert limited.read(3) == shards.read(9)
    epoch = limited.order(seed=3, epoch=1)[np.arange(len(limited))]
    assert sorted(epoch.tolist()) == list(range(len(limited)))
    shard_of = chosen[epoch] // 4
    halves = [set(part.tolist()) for part in np.split(shard_of, [int(np.isin(shard_of, shard_of[:20]).sum())])]
    assert len(halves[0]) <= WINDOW_SHARDS + 1, "the first window reads a part of the shards only"
    first = {key[1] for batch in TrainSampler(len(limited), 4, seed=3, order=limited.order) for key in batch}
    assert len(first) == len(limited)


def test_an_image_of_a_shard_has_one_name_whatever_is_needed(shards):
    everything = WebShards(shards.origin, "train", "none")
    assert list(everything.names(np.arange(9))) == list(shards.names(np.arange(9)))
    assert shards.name(5) == "01.tar/1/photo1.png"


def test_val_lists_are_in_every_score(image_folder, tmp_path, tiny_run):
    from methods import dispatch

    names = ["0 0.jpg", "1 1.jpg", "2 2.jpg", "3 2.jpg"]
    clean = write_list(tmp_path, "\n".join(names))
    opts = ["DATA.DATASET", "imagenet2012", "DATA.DATA_PATH", str(image_folder), "MODEL.NUM_CLASSES", 3]
    run = tiny_run("finetune", *opts, "DATA.VAL_LIST", str(clean), "TRAIN.NUM_EPOCHS", 1)
    assert len(loaders.open_source(run.config, "train", "label")) == 24
    dispatch.train_or_evaluate(run)
    log = (run.directory / "log.txt").read_text()
    (scores,) = [line for line in log.splitlines() if "evaluation after" in line]
    assert scores.endswith(f"(DATA.VAL_LIST {clean}: 4 of 12 images)")
    evaluated = tiny_run("finetune", *opts, "DATA.VAL_LIST", str(clean), "EVAL", True)
    evaluated.config.defrost()
    evaluated.config.MODEL.PRETRAINED = str(run.directory)
    evaluated.config.freeze()
    dispatch.train_or_evaluate(evaluated)
    assert "on 4 images (DATA.VAL_LIST" in (evaluated.directory / "log.txt").read_text()
    write_list(tmp_path, "0 0.jpg\nnowhere.jpg")
    with pytest.raises(UserError, match=r"DATA\.VAL_LIST .*not one image of the val split each: nowhere\.jpg"):
        loaders.open_source(run.config, "val", "label")
