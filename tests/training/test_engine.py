import contextlib
import json
import math
import re
import shutil
import signal

import numpy as np
import paddle
import pytest

import checkpoint
from errors import UserError
from launch import run_directory
from methods import dispatch
from methods.classifier import count_correct
from pipeline import loading, transforms
from pipeline.samplers import EvalSampler, TrainSampler
from storage import run_state, weight_files
from storage.run_state import RunState
from tests.conftest import assert_close
from tests.helpers.joint_batch import comparable, image_masked_task, train
from tests.helpers.saved_runs import fit_pretrain, poison, stop_at, weights
from training import data_parallel, engine, loaders, resume
from training.engine import fit
from training.log import RunLog, read_log
from training.plan import Plan

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(("batch", "accum"), [(4, 2), (2, 4), (3, 3)])
def test_accumulation_is_the_large_batch_ragged_end_included(tiny_run, batch, accum):
    # 21 images: updates of 8, 8 and 5, or of 9, 9 and 3
    large, small = (
        train(tiny_run("pretrain", "DATA.BATCH_SIZE", size, "TRAIN.ACCUM_ITER", steps, "TRAIN.NUM_EPOCHS", 2))
        for size, steps in ((batch * accum, 1), (batch, accum))
    )
    for name, expected in large.items():
        assert_close(comparable(name, small[name]), comparable(name, expected), 1e-5, name)


def test_accumulated_finetuning_with_clipping_is_the_large_batch(tiny_run):
    options = ["MODEL.DROPPATH", 0.0, "TRAIN.MIXUP_PROB", 0.0, "TRAIN.GRAD_CLIP", 0.05, "TRAIN.NUM_EPOCHS", 2]
    options += ["TRAIN.RANDOM_ERASE_PROB", 0.0]
    results = []
    for batch, accum in ((8, 1), (2, 4)):
        run = tiny_run("finetune", *options, "DATA.BATCH_SIZE", batch, "TRAIN.ACCUM_ITER", accum)
        source = loaders.open_split(run, "train", "label")
        source.images, source.labels = source.images[:21], source.labels[:21]
        sampler = TrainSampler(21, batch, accum)
        loader = loading.Loader(source, transforms.eval_transform(run.config), sampler)
        task = dispatch.build_task(run)
        engine.fit(task, loader, None, run)
        results.append(weights(task))
    for name, expected in results[0].items():
        assert_close(comparable(name, results[1][name]), comparable(name, expected), 1e-5, name)


@pytest.mark.parametrize("mode", ["pretrain", "finetune", "linearprobe"])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resume_is_bit_identical(tiny_run, mode, stop):
    # 20 images in batches of 8: 3 updates an epoch, so 1 is in the middle of an epoch, 3 at its end
    options = [
        "SAVE_FREQ_STEPS",
        1,
        "KEEP_LAST",
        99,
        "TRAIN.ACCUM_ITER",
        2,
        "DATA.BATCH_SIZE",
        4,
        "TRAIN.EMA_DECAY",
        None if mode == "linearprobe" else 0.9,
    ]

    def fit(run):
        train_loader, eval_loader = dispatch.build_train_loader(run), None
        source = train_loader.source
        source.images, source.labels = source.images[:20], source.labels[:20]
        sampler = TrainSampler(20, 4, 2)
        train_loader = loading.Loader(source, dispatch.train_transform(run.config), sampler)
        if mode != "pretrain":
            eval_loader = loading.Loader(source, transforms.eval_transform(run.config), EvalSampler(20, 8))
        task = dispatch.build_task(run)
        engine.fit(task, train_loader, eval_loader, run)
        return task

    straight = tiny_run(mode, *options)
    expected = weights(fit(straight))
    resumed = tiny_run(mode, *options, resume_from=straight.directory / f"step-{stop:08d}")
    task = fit(resumed)
    for name, value in weights(task).items():
        assert np.array_equal(value, expected[name]), name
    states = [
        checkpoint.read_weights(run.directory / "step-00000006" / "model.pdparams") for run in (straight, resumed)
    ]
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    records = [
        [(r["event"], r["step"], r.get("loss"), r.get("acc1"), r.get("lr")) for r in read_log(run.directory)]
        for run in (straight, resumed)
    ]
    assert records[1] == [record for record in records[0] if record[1] > stop]


def test_resume_of_another_run_is_refused(tiny_run):
    first = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    train(first)
    step_zero = first.directory / "step-00000000"
    with pytest.raises(ValueError, match="has seed 0, this one 1; for a new run"):
        train(tiny_run("pretrain", "SEED", 1, resume_from=step_zero))


@pytest.fixture
def photos(image_folder, tmp_path):
    """Return the options of a run on a copy of the photos, of which a list names the first 20, and that list."""
    shutil.copytree(image_folder / "train", tmp_path / "photos" / "train")
    names = sorted(str(path.relative_to(tmp_path / "photos" / "train")) for path in tmp_path.rglob("photos/**/*.jpg"))
    (tmp_path / "list.txt").write_text("# the first\n" + "\n".join(names[:20]))
    opts = ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(tmp_path / "photos")]
    return [*opts, "DATA.TRAIN_LIST", str(tmp_path / "list.txt"), "TRAIN.NUM_EPOCHS", 1], names


def test_a_run_lists_its_images_and_resumes_on_these_only(tiny_run, photos, tmp_path):
    opts, names = photos
    first = tiny_run("pretrain", *opts)
    dispatch.train_or_evaluate(first)
    step, own = run_directory.find(first.directory), first.directory / "train_images.txt"
    assert own.read_text().splitlines() == ["# the 20 images that this run trains on", *names[:20]]
    dispatch.train_or_evaluate(tiny_run("pretrain", *opts, "DATA.TRAIN_LIST", str(own), resume_from=step))

    (tmp_path / "list.txt").write_text("\n".join([*names[:19], names[21]]))
    gone = re.escape(f"trains on other images: 1 of 20 are not there any more ({names[19]}), 1 are new ({names[21]})")
    with pytest.raises(UserError, match=gone):
        dispatch.train_or_evaluate(tiny_run("pretrain", *opts, resume_from=step))

    folder = tmp_path / "photos" / "train"
    (folder / "cat").rename(folder / "zebra")
    moved = r"8 of 20 are not there any more \(cat/0 0\.jpg, .* and 5 more\), 8 are new \(zebra/0 0\.jpg"
    (tmp_path / "list.txt").write_text("\n".join(name.replace("cat/", "zebra/") for name in names[:20]))
    with pytest.raises(UserError, match=moved):
        dispatch.train_or_evaluate(tiny_run("pretrain", *opts, resume_from=step))

    (folder / "zebra").rename(folder / "cat")
    (folder / names[3]).rename(folder / "cat" / "renamed.jpg")
    (tmp_path / "list.txt").write_text("\n".join([*names[:3], "cat/renamed.jpg", *names[4:20]]))
    with pytest.raises(UserError, match=rf"{names[3]}\), 1 are new \(cat/renamed\.jpg\); .*train_images\.txt"):
        dispatch.train_or_evaluate(tiny_run("pretrain", *opts, resume_from=step))
    own.unlink()
    with pytest.raises(
        UserError, match="trains on other images: 20 with other names now; .* is missing or not as it was"
    ):
        dispatch.train_or_evaluate(tiny_run("pretrain", *opts, resume_from=step))


def test_a_run_refuses_its_images_in_another_order(tiny_run, image_folder, tmp_path):
    for name in ("train_list.txt", "train"):
        (tmp_path / "set").mkdir(exist_ok=True)
        (shutil.copytree if name == "train" else shutil.copy)(image_folder / name, tmp_path / "set" / name)
    opts = ["DATA.DATASET", "imagenet2012", "DATA.DATA_PATH", str(tmp_path / "set"), "TRAIN.NUM_EPOCHS", 1]
    first = tiny_run("pretrain", *opts)
    dispatch.train_or_evaluate(first)
    lines = (tmp_path / "set" / "train_list.txt").read_text().splitlines()
    (tmp_path / "set" / "train_list.txt").write_text("\n".join([*lines[:3], lines[4], lines[3], *lines[5:]]))
    order = r"they are in another order, from image 3 on \(train/cat/3 0\.jpg, now train/cat/4 0\.jpg\)"
    with pytest.raises(UserError, match=order):
        dispatch.train_or_evaluate(tiny_run("pretrain", *opts, resume_from=run_directory.find(first.directory)))


def test_resume_with_another_epoch_length_optimizer_or_file_is_refused(tiny_run):
    first = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 1)
    train(first)
    (first.directory / "config.yaml").write_text("its own")
    step = run_directory.find(first.directory)
    lars = tiny_run("pretrain", "TRAIN.OPTIMIZER.NAME", "LARS", resume_from=step, directory=first.directory)
    with pytest.raises(ValueError, match="has optimizer AdamW, this one LARS"):
        train(lars)
    state = json.loads((step / "state.json").read_text())
    (step / "state.json").write_text(json.dumps({**state, "num_images": 20, "images": None}))
    with pytest.raises(ValueError, match="has training images 20, this one 21"):
        train(tiny_run("pretrain", resume_from=step))
    (step / "state.json").write_text(json.dumps(state))
    (step / "optimizer.pdopt").unlink()
    with pytest.raises(ValueError, match="optimizer.pdopt: No such file"):
        train(tiny_run("pretrain", resume_from=step))
    assert (first.directory / "config.yaml").read_text() == "its own", "a refused resume changes nothing"


def test_same_seed_same_bits_other_seed_other_masks(tiny_run):
    runs = [train(tiny_run("pretrain", "SEED", seed), given_masks=False) for seed in (0, 0, 1)]
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not np.array_equal(runs[0]["mask_token"], runs[2]["mask_token"])


def test_zero_epochs_save_the_initial_weights(tiny_run):
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    trained = train(run)
    saved = checkpoint.read_weights(run.directory)
    assert all(np.array_equal(saved[name], trained[name]) for name in trained)


@pytest.mark.parametrize("num_classes", [3, 7])
def test_evaluation_is_exact_over_ragged_batches(tiny_run, num_classes):
    run = tiny_run("finetune", "MODEL.NUM_CLASSES", num_classes)
    task = dispatch.build_task(run)
    source = loaders.open_split(run, "val", "label")
    source.images, source.labels = source.images[:11], source.labels[:11]
    results = [
        engine.evaluate(
            task.evaluation,
            task.model,
            loading.Loader(source, transforms.eval_transform(run.config), EvalSampler(11, size)),
            run,
        )
        for size in (11, 4)
    ]
    task.model.eval()
    transform = transforms.eval_transform(run.config)
    images = np.stack([transform(source.image(index), None) for index in range(11)])
    logits = task.model(paddle.to_tensor(images)).numpy().astype(np.float64)
    log_prob = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ranked = np.argsort(-logits, axis=1)
    expected = {
        "acc1": 100 * np.mean(ranked[:, 0] == source.labels),
        "acc5": 100 * np.mean((ranked[:, :5] == source.labels[:, None]).any(axis=1)),
        "loss": -log_prob[np.arange(11), source.labels].mean(),
    }
    for scores in results:
        assert scores == pytest.approx(expected, rel=1e-5)  # float32 logits


def test_count_correct_with_fewer_than_five_classes():
    logits, labels = paddle.to_tensor([[0.1, 0.9], [0.8, 0.2]]), paddle.to_tensor([0, 0])
    assert [count.item() for count in count_correct(logits, labels)] == [1.0, 2.0]


def test_best_is_kept_and_averaged_weights_are_evaluated(tiny_run):
    run = tiny_run("finetune", "TRAIN.EMA_DECAY", 0.999, "TRAIN.NUM_EPOCHS", 1)
    task = dispatch.build_task(run)
    before = task.ema.state_dict()["classifier.weight"].clone()
    loader = loaders.build_eval_loader(run)
    engine.fit(task, dispatch.build_train_loader(run), loader, run)
    assert (run.directory / "best" / "ema.pdparams").is_file()
    after = task.ema.state_dict()["classifier.weight"]
    assert 0 < (after - before).abs().max() < (task.model.head.weight - before).abs().max()


def test_numbers_that_are_not_finite_stop_the_run(tiny_run):
    run = tiny_run("pretrain", "SAVE_FREQ_STEPS", 1, "TRAIN.NUM_EPOCHS", 1)
    loader = dispatch.build_train_loader(run)
    with pytest.raises(
        UserError, match="not finite at update 4 on ranks .0., lr .*nonfinite-00000004.json.*TRAIN.BASE_LR"
    ):
        fit(poison(run, {4}), loader, None, run)
    details = json.loads((run.directory / "nonfinite-00000004.json").read_text())
    assert (details["step"], details["loss"]) == (4, "nan")
    assert details["images"]["0"] == [f"synthetic train image {index}" for index in loader.sampler.indices(3, 0)]
    assert run_directory.find(run.directory).name == "step-00000003"  # what was good is kept


def test_numbers_that_are_not_finite_leave_an_update_out(tiny_run):
    opts = ["TRAIN.NUM_EPOCHS", 1, "TRAIN.NONFINITE", "skip", "TRAIN.MAX_SKIPS", 2]
    run = tiny_run("pretrain", *opts)
    task = poison(run, {1, 2, 4})
    before = {name: value.numpy() for name, value in task.model.state_dict().items()}
    results = fit(task, dispatch.build_train_loader(run), None, run)
    assert math.isfinite(results["loss"])
    after = task.model.state_dict()
    assert all(np.isfinite(value.numpy()).all() for value in after.values())
    assert any((value.numpy() != before[name]).any() for name, value in after.items())
    assert len(list(run.directory.glob("nonfinite-*.json"))) == 3
    run = tiny_run("pretrain", *opts)
    with pytest.raises(UserError, match="not finite at update 5 .*and at the 2 updates before"):
        fit(poison(run, {3, 4, 5}), dispatch.build_train_loader(run), None, run)


def test_signals_stop_after_the_update_and_the_run_is_bit_identical_after_it(tiny_run):
    opts = ["TRAIN.NUM_EPOCHS", 2, "DATA.BATCH_SIZE", 64]
    undisturbed = fit_pretrain(tiny_run("pretrain", *opts))
    run = tiny_run("pretrain", *opts)
    task = stop_at(dispatch.build_task(run), 5)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        fit(task, dispatch.build_train_loader(run), None, run)
    assert stopped.value.code == 75
    assert "stopped by a signal after 5 of 32 updates; -resume continues" in str(stopped.value)
    assert signal.getsignal(signal.SIGTERM) is before
    step = run_directory.find(run.directory)
    assert step.name == "step-00000005"
    resumed = fit_pretrain(tiny_run("pretrain", *opts, directory=run.directory, resume_from=step))
    assert all(np.array_equal(undisturbed[name], resumed[name]) for name in undisturbed)


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_evaluation_that_a_stop_left_out_is_made_up_for(tiny_run, epoch):
    opts = ["TRAIN.NUM_EPOCHS", 2, "DATA.BATCH_SIZE", 128]  # 8 updates an epoch

    def train(run, stop=None):
        task = stop_at(dispatch.build_task(run), stop)

        train_loader, eval_loader = dispatch.build_train_loader(run), loaders.build_eval_loader(run)
        return fit(task, train_loader, eval_loader, run)

    undisturbed = tiny_run("finetune", *opts)
    wanted = train(undisturbed)
    run = tiny_run("finetune", *opts)
    with pytest.raises(SystemExit):
        train(run, stop=8 * epoch)
    assert len([record for record in read_log(run.directory) if record["event"] == "eval"]) == epoch - 1
    step = run_directory.find(run.directory)
    results = train(tiny_run("finetune", *opts, directory=run.directory, resume_from=step))
    assert results["acc1"] == wanted["acc1"]
    scores = [[r for r in read_log(each.directory) if r["event"] == "eval"] for each in (undisturbed, run)]
    assert scores[0] == scores[1]
    bests = [(each.directory / "best" / "model.pdparams").read_bytes() for each in (undisturbed, run)]
    assert bests[0] == bests[1]


def test_saves_by_the_clock(tiny_run):
    run = tiny_run(
        "pretrain", "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 256, "SAVE_EVERY_MINUTES", 0.0, "KEEP_LAST", 99
    )
    fit_pretrain(run)
    assert len(list(run.directory.glob("step-*"))) == 4  # after each update


def test_a_save_that_fails_ends_the_run_and_loses_nothing(tiny_run, monkeypatch):
    run = tiny_run("pretrain", "SAVE_FREQ_STEPS", 1, "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 64)
    write = weight_files.write_nested

    def full(path, wrapper, tensors):
        if "00000003" in str(path):
            raise OSError(28, "No space left on device")
        write(path, wrapper, tensors)

    monkeypatch.setattr(weight_files, "write_nested", full)
    with pytest.raises(UserError, match="step-00000003: the checkpoint cannot be written: No space left on device"):
        fit_pretrain(run)
    assert run_directory.find(run.directory).name == "step-00000002"
    assert not list(run.directory.glob(".writing-*"))


def test_amp_on_cpu_warns_once_and_computes_in_float32(tiny_run, capsys):
    run = tiny_run("pretrain", "AMP", "bf16")
    run.log = RunLog(run.directory)
    low = train(run)
    assert capsys.readouterr().out.count("-amp bfloat16 has no effect on CPU") == 1
    full = train(tiny_run("pretrain"))
    assert all(np.array_equal(low[name], full[name]) for name in full)


def test_plan_warns_of_an_untested_batch(tiny_run):
    run = tiny_run("pretrain", "TRAIN.TOTAL_BATCH_SIZE", 64)
    task, loader = image_masked_task(run), dispatch.build_train_loader(run)
    text = engine.describe_plan(engine.make_plan(run.config, loader), task, loader.sampler, run.config)
    assert "tuned for 64 images per update, not 8; -accum_iter 8 makes it so" in text
    run = tiny_run("pretrain", "TRAIN.TOTAL_BATCH_SIZE", 64, "TRAIN.ACCUM_ITER", None)
    assert dispatch.build_train_loader(run).sampler.accum_iter == 8


def test_linear_probe_trains_the_head_only(tiny_run):
    run = tiny_run("linearprobe")
    task = dispatch.build_task(run)
    before = weights(task)
    engine.fit(task, dispatch.build_train_loader(run), None, run)
    changed = {name for name, value in weights(task).items() if not np.array_equal(value, before[name])}
    assert changed == {"classifier.0._mean", "classifier.0._variance", "classifier.1.weight", "classifier.1.bias"}


def test_a_run_goes_on_with_other_images_per_update_and_sees_each_once(tiny_run, capsys):
    """21 images in updates of 4: stopped after 3 updates of the second epoch, continued in updates of 6, then of 5."""
    seen = []

    def go(updates, batch, resume_from=None, directory=None):
        options = ["DATA.BATCH_SIZE", batch, "TRAIN.NUM_EPOCHS", 3, "SAVE_FREQ_STEPS", 1]
        fields = {"directory": directory} if directory else {}
        run = tiny_run("pretrain", *options, resume_from=resume_from, **fields)
        run.log = RunLog(run.directory)
        source = loaders.open_split(run, "train", "label")
        source.images, source.labels = source.images[:21], source.labels[:21]
        loader = loading.Loader(source, transforms.eval_transform(run.config), TrainSampler(21, batch))
        task = stop_at(dispatch.build_task(run), updates)

        with contextlib.suppress(SystemExit):
            fit(task, loader, None, run)
        state = run_state.read_state(run_directory.find(run.directory))
        seen.append((state.epoch, state.images_done, state.step))
        return run.directory

    directory = go(9, 4)  # an epoch is 6 updates: 9 are one epoch and 12 images
    assert seen[-1] == (1, 12, 9)
    go(1, 6, run_directory.find(directory), directory)  # an epoch is 4 updates now; 9 images are 2 of them
    assert seen[-1] == (1, 18, 7)
    assert "1 ranks with 6 images per update resume where 1 with 4 ended" in capsys.readouterr().out
    go(1, 5, run_directory.find(directory), directory)  # 5 updates; the 3 images that are left are the last one
    assert seen[-1] == (2, 0, 10)
    go(99, 5, run_directory.find(directory), directory)
    assert seen[-1] == (3, 0, 15)


@pytest.mark.parametrize(("first", "then"), [((4, 1), (3, 2)), ((2, 2), (4, 1)), ((3, 2), (4, 1))])
def test_the_rest_of_an_epoch_is_dealt_once(first, then):
    for updates in range(1, 4):
        before = TrainSampler(23, first[0], world_size=first[1], seed=5)
        dealt = [
            index for update in range(updates) for rank in range(first[1]) for index in before.indices(update, rank)
        ]
        samplers = [TrainSampler(23, then[0], world_size=then[1], rank=rank, seed=5) for rank in range(then[1])]
        done = len(dealt)
        left = samplers[0].updates_left(done)
        for sampler in samplers:
            sampler.set_position(0, sampler.updates_per_epoch - left, done)
            sizes = [
                sum(sampler.micro_sizes(u)) for u in range(sampler.updates_per_epoch - left, sampler.updates_per_epoch)
            ]
            own = [index for batch in sampler for _, index in batch]
            assert sum(sizes) == len(own)
            dealt += own
        assert len(set(dealt)) == len(dealt) > 23 - then[1]  # fewer images than ranks are left out


@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_recomputation_changes_no_bit(tiny_run, mode):
    """Finetuning drops paths and tokens at random: what is computed again must draw the same."""
    results, passes = [], []
    for recomputes in (False, True):
        run = tiny_run(
            mode, "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 64, "MODEL.DROPOUT", 0.1, "TRAIN.RECOMPUTE", recomputes
        )
        task = dispatch.build_task(run)
        passes.append(0)

        def count(layer, inputs):
            passes[-1] += 1

        task.model.encoder.layers[0].register_forward_pre_hook(count)
        engine.fit(task, dispatch.build_train_loader(run), None, run)
        results.append(weights(task))
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])
    assert passes[1] == 2 * passes[0] > 0


@pytest.mark.parametrize(("options", "images_done"), [({"drop_last": True}, 88), ({"world_size": 8}, 96)])
def test_an_epoch_with_too_few_images_left_for_an_update_is_over(options, images_done):
    sampler = TrainSampler(100, 16 if "drop_last" in options else 1, **options)
    plan = Plan(100, sampler.images_per_update, sampler.updates_per_epoch, 3, 0, 1.0, 0.0, 0.0)
    state = RunState(9, epoch=1, images_done=images_done)
    assert resume.position(state, plan, sampler) == (2 * plan.updates_per_epoch, None)


def test_a_checkpoint_under_another_name_is_resumed(tiny_run, tmp_path):
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 1)
    fit_pretrain(run)
    shutil.copytree(run_directory.find(run.directory), tmp_path / "my favourite")
    assert run_directory.find_on_main(tmp_path / "my favourite") == tmp_path / "my favourite"


def test_the_gradient_norm_of_one_kernel_per_tensor_is_the_same(monkeypatch):
    paddle.seed(0)
    gradients = [paddle.randn([30, 20]), paddle.randn([7]), paddle.zeros([3]), paddle.full([2], 1e-8)]
    expected = np.sqrt(sum((gradient.numpy().astype(np.float64) ** 2).sum() for gradient in gradients))
    model = paddle.nn.Layer()
    for number, gradient in enumerate(gradients):
        parameter = model.create_parameter(gradient.shape)
        parameter.grad = gradient
        model.add_parameter(f"p{number}", parameter)
    for on_cpu in (True, False):
        monkeypatch.setattr(data_parallel, "is_on_cpu", lambda on_cpu=on_cpu: on_cpu)
        norm = data_parallel.Exchange(model).clip(None)
        assert norm.shape == []
        assert float(norm) == pytest.approx(expected, rel=1e-6)  # float32
