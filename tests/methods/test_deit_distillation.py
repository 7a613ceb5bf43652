"""Distillation while finetuning (DeiT): losses against torch, the second classifier, all teachers, and the script."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from yacs.config import CfgNode

import main_multi_gpu_finetune
from config import get_config
from errors import UserError
from measures import extraction
from methods import dispatch, load_models, teachers
from methods.finetune import distilled_loss
from optim import param_groups
from storage.run_files import MODEL_FILE
from tests.conftest import MODES, TINY, assert_close
from tests.helpers import script_runs
from tests.helpers.recipes import recipe
from tools import export
from training.log import read_log
from transformer import build_transformer

OPTS = [*TINY, *MODES["finetune"], "DATA.BATCH_SIZE", 128, "TRAIN.NUM_EPOCHS", 2, "REPORT_FREQ", 1]
OPTS += ["SAVE_FREQ_STEPS", 5, "KEEP_LAST", 9]
HEAD = ["MODEL.DISTILL_HEAD", True]


def train(folder, name, *flags, opts=()):
    return script_runs.train(main_multi_gpu_finetune.main, folder, name, [*OPTS, *opts], *flags)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the runs of a teacher and of a student with a second classifier."""
    folder = tmp_path_factory.mktemp("deit")
    teacher = train(folder, "teacher", opts=["MODEL.ENCODER.EMBED_DIM", 48])
    return teacher, train(folder, "student", "-teacher", str(teacher), opts=HEAD)


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("has_second", [True, False])
def test_losses_and_gradients_are_torchs(kind, has_second):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, second, teacher = (rng.standard_normal((6, 5)).astype(np.float32) * 3 for _ in range(3))
    targets = rng.dirichlet(np.ones(5), 6).astype(np.float32)
    settings = CfgNode({"KIND": kind, "ALPHA": 0.3, "TEMPERATURE": 2.5})
    ours = [paddle.to_tensor(array, stop_gradient=False) for array in (logits, second)]
    outputs = tuple(ours) if has_second else ours[0]
    loss, parts = distilled_loss(outputs, paddle.to_tensor(targets), paddle.to_tensor(teacher), settings)
    loss.backward()

    theirs = [torch.from_numpy(array).requires_grad_() for array in (logits, second)]
    learns, wanted = theirs[1 if has_second else 0], torch.from_numpy(teacher)
    own = -(torch.from_numpy(targets) * theirs[0].log_softmax(1)).sum(1).mean()
    if kind == "hard":
        follows = torch.nn.functional.cross_entropy(learns, wanted.argmax(1))
    else:
        pair = [(value / 2.5).log_softmax(1) for value in (learns, wanted)]
        follows = torch.nn.functional.kl_div(*pair, reduction="sum", log_target=True) * 2.5**2 / 30
    total = 0.7 * own + 0.3 * follows
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert parts["loss_teacher"].item() == pytest.approx(follows.item(), rel=1e-5)
    for mine, his in zip(ours[: 1 + has_second], theirs, strict=False):
        assert_close(mine.grad.numpy(), his.grad.numpy(), 1e-5)


@pytest.mark.quick
def test_both_classifiers_are_averaged_in_evaluation(runs):
    _, student = runs
    model, _ = load_models.load_classifier(student)
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32))
    tokens = model.forward_tokens(images)
    first = model.classifier(model.encoder_norm(tokens[:, 1:].mean(axis=1)))
    second = model.distill_classifier(model.distill_norm(tokens[:, 0]))
    assert_close(model(images).numpy(), ((first + second) / 2).numpy(), 1e-6)
    model.train()
    assert len(model(images)) == 2
    assert float((first - second).abs().max()) > 1e-3


@pytest.mark.quick
def test_a_stopped_run_is_bit_identical_and_evaluates_alone(runs, tmp_path):
    teacher, student = runs
    script_runs.stop_after_step(student, tmp_path)
    flags = ["-teacher", str(teacher), "-resume", "auto"]
    found = script_runs.assert_same(train(tmp_path, "again", *flags, opts=HEAD), student)
    assert f"{MODEL_FILE}/distill_classifier.weight" in found
    cfg = str(tmp_path / "again.yaml")
    scores = main_multi_gpu_finetune.main(["-cfg", cfg, "-eval", "-pretrained", str(student), "-output", str(tmp_path)])
    best = max(record["acc1"] for record in read_log(student) if record["event"] == "eval")
    assert scores["acc1"] == pytest.approx(best, abs=1e-4)
    # A run's own configuration has its name, under which the run is.
    again = main_multi_gpu_finetune.main(["-eval", "-resume", str(student), "-output", str(student.parent)])
    assert again["acc5"] == pytest.approx(100.0)
    text = (student / "log.txt").read_text()
    assert "hard distillation: the second classifier, on the class token, follows the teacher, weight 0.5" in text
    encoder, _ = load_models.load_encoder(student)
    assert extraction.extract(encoder, paddle.ones([2, 3, 16, 16])).shape == [2, 32]


class Convolutions(paddle.nn.Layer):
    """Some network of PaddleClas's kind: images to logits."""

    def __init__(self, classes):
        super().__init__()
        self.convolution = paddle.nn.Conv2D(3, 8, 3)
        self.linear = paddle.nn.Linear(8, classes)

    def forward(self, images):
        return self.linear(F.relu(self.convolution(images)).mean(axis=[2, 3]))


def save_program(path, classes=4):
    network = Convolutions(classes)
    network.eval()
    spec = paddle.static.InputSpec([None, 3, None, None], "float32", "images")
    paddle.jit.save(network, str(path), input_spec=[spec])
    return network


@pytest.mark.quick
@pytest.mark.parametrize("named", ["program", "parameters", "prefix"])
def test_an_inference_model_is_a_teacher(tmp_path, tiny_config, named):
    network = save_program(tmp_path / "net")
    program = next(
        tmp_path / f"net{suffix}" for suffix in (".json", ".pdmodel") if (tmp_path / f"net{suffix}").is_file()
    )
    path = {"program": program, "parameters": tmp_path / "net.pdiparams", "prefix": tmp_path / "net"}[named]
    teacher = teachers.open_classifier(str(path), tiny_config("finetune"))
    images = paddle.randn([2, 3, 16, 16])
    assert_close(teacher.network(images).numpy(), network(images).numpy(), 1e-5)
    assert "a Paddle inference model; frozen" in teacher.description


def test_an_exported_classifier_teaches_like_its_run(runs, tmp_path):
    """The same weights twice: as a run, and as the inference model that tools.export makes of it."""
    teacher, _ = runs
    export.main([str(teacher), "-out", str(tmp_path / "exported"), "-format", "paddle"])
    losses = []
    for name, path in (("run", teacher), ("program", tmp_path / "exported" / "model")):
        student = train(tmp_path, name, "-teacher", str(path), opts=[*HEAD, "TRAIN.NUM_EPOCHS", 1])
        losses.append([r["loss_teacher"] for r in read_log(student) if r["event"] == "train"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (["MODEL.NUM_CLASSES", 3], r"gives \[2, 4\] for two images, and \[2, 3\] is needed"),
        (["DATA.IMAGE_SIZE", 32], r"has DATA.IMAGE_SIZE \(16, 16\), and the student \(32, 32\)"),
        (["DATA.IMAGENET_MEAN", [0.5] * 3], "has DATA.IMAGENET_MEAN"),
    ],
)
def test_teachers_that_do_not_fit(runs, tmp_path, opts, said):
    with pytest.raises(UserError, match=said):
        train(tmp_path, "run", "-teacher", str(runs[0]), opts=opts)


@pytest.mark.quick
def test_what_else_cannot_work(runs, tmp_path, tiny_config):
    save_program(tmp_path / "net", classes=7)
    with pytest.raises(UserError, match=r"gives \[2, 7\] for two images"):
        teachers.open_classifier(str(tmp_path / "net"), tiny_config("finetune"))
    (tmp_path / "net.pdiparams").unlink()
    with pytest.raises(UserError, match="net.pdiparams is missing"):
        teachers.open_classifier(str(tmp_path / "net"), tiny_config("finetune"))
    with pytest.raises(UserError, match="name it with -teacher"):
        train(tmp_path, "run", opts=HEAD)
    with pytest.raises(UserError, match="set MODEL.GLOBAL_POOL True, too"):
        train(tmp_path, "run", opts=[*HEAD, "MODEL.GLOBAL_POOL", False])
    with pytest.raises(UserError, match="DISTILL.TEACHER: it is for MODEL.TYPE FINETUNE and PRETRAIN"):
        get_config(None, ["MODEL.TYPE", "LINEARPROBE", "DISTILL.TEACHER", "x"])


@pytest.mark.quick
def test_a_classifier_that_fits_is_kept_beside_a_new_one(runs, tiny_run):
    teacher, _ = runs
    sizes = ["MODEL.ENCODER.EMBED_DIM", 48, "MODEL.PRETRAINED", str(teacher), "DISTILL.TEACHER", str(teacher)]
    model = dispatch.build_task(tiny_run("finetune", *sizes, *HEAD)).network
    stored = load_models.load_classifier(teacher)[0]
    assert np.array_equal(model.classifier.weight.numpy(), stored.classifier.weight.numpy())
    assert float(model.distill_classifier.weight.abs().max()) < 1e-3  # initialised with the recipe's deviation


@pytest.mark.quick
def test_a_second_classifier_is_for_finetuning_only():
    for kind in ("LINEARPROBE", "PRETRAIN", "MOCO"):
        with pytest.raises(UserError, match=f"MODEL.DISTILL_HEAD=True: is not for MODEL.TYPE {kind}"):
            get_config(None, ["MODEL.TYPE", kind, *HEAD, "MODEL.GLOBAL_POOL", True])


# ---- optimizer tables of ViT-Tiny

DECAY, RATE = 0.05, 0.85
MATRICES = ("attn.qkv", "attn.out", "mlp.fc1", "mlp.fc2")
# 0.85 to the power of 13 minus the layer: embeddings, blocks 0 to 11.
SCALES = [0.1209, 0.1422, 0.1673, 0.1969, 0.2316, 0.2725, 0.3206, 0.3771, 0.4437, 0.5220, 0.6141, 0.7225, 0.85]


def expected_table(recipe: str) -> dict[str, tuple[float, float]]:
    """Return (multiplier, decay) of every parameter of a recipe."""
    table = {
        "cls_token": (SCALES[0], 0.0),
        "encoder_position_embedding": (SCALES[0], 0.0),
        "patch_embedding.patch_embedding.weight": (SCALES[0], DECAY),
        "patch_embedding.patch_embedding.bias": (SCALES[0], 0.0),
        "encoder_norm.weight": (1.0, 0.0),
        "encoder_norm.bias": (1.0, 0.0),
        "classifier.weight": (1.0, DECAY),
        "classifier.bias": (1.0, 0.0),
    }
    for block, scale in enumerate(SCALES[1:]):
        prefix = f"encoder.layers.{block}"
        table |= {f"{prefix}.{name}.weight": (scale, DECAY) for name in MATRICES}
        table |= {f"{prefix}.{name}.bias": (scale, 0.0) for name in (*MATRICES, "attn_norm", "mlp_norm")}
        table |= {f"{prefix}.{name}.weight": (scale, 0.0) for name in ("attn_norm", "mlp_norm")}
        if recipe == "rpe":
            table[f"{prefix}.attn.position_bias.table"] = (scale, DECAY)
    if recipe == "deit":
        table |= {f"distill_norm.{kind}": (1.0, 0.0) for kind in ("weight", "bias")}
        table |= {"distill_classifier.weight": (1.0, DECAY), "distill_classifier.bias": (1.0, 0.0)}
    return table


@pytest.mark.quick
@pytest.mark.parametrize("variant", ["default", "improved", "rpe", "deit"])
def test_rates_and_decays_of_every_parameter(variant):
    suffix = "" if variant == "improved" else f"_{variant}"
    small = ["MODEL.ENCODER.EMBED_DIM", 24, "DATA.IMAGE_SIZE", 32, "MODEL.NUM_CLASSES", 3]  # widths do not matter
    config = get_config(recipe(f"vit_tiny_patch16_224_finetune{suffix}"), small)
    model = build_transformer(config)
    found = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in param_groups(model, config.TRAIN.WEIGHT_DECAY, config.TRAIN.LAYER_DECAY):
        for parameter in group["params"]:
            found[names[id(parameter)]] = (round(group["learning_rate"], 4), group["weight_decay"])
    assert found == expected_table(variant)
    assert (config.TRAIN.BASE_LR * 1024 / 256, config.TRAIN.WARMUP_EPOCHS) == (4e-3, 5)
    assert (1000 if variant == "rpe" else 300) == config.TRAIN.NUM_EPOCHS
    task_names = {"default": (0.8, 1.0, 0.1, 0.25, 0.1), "improved": (0.2, 0.0, 0.0, 0.0, 0.0)}
    train = config.TRAIN
    regularisation = (
        train.MIXUP_ALPHA,
        train.CUTMIX_ALPHA,
        train.SMOOTHING,
        train.RANDOM_ERASE_PROB,
        config.MODEL.DROPPATH,
    )
    assert regularisation == task_names["default" if variant in ("default", "deit") else "improved"]


@pytest.mark.quick
def test_a_teacher_costs_no_more_names(tiny_run, runs):
    """The teacher is not part of what is saved."""
    task = dispatch.build_task(tiny_run("finetune", *HEAD, "DISTILL.TEACHER", str(runs[0])))
    assert not task.extra_state()
    assert set(task.model.state_dict()) == set(build_transformer(get_config(None, [*OPTS, *HEAD])).state_dict())
