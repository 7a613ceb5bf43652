"""Distillation while pretraining, against a torch implementation of networks and losses; and through the script."""

import numpy as np
import paddle
import pytest

import main_multi_gpu_finetune
import main_multi_gpu_pretrain
from errors import UserError
from launch.run_directory import find
from mae import MAEPretrain, embed_visible
from methods import load_models
from methods.attention_distillation import AttentionDistillation, Matches
from port_weights import port
from storage.run_files import EXTRA_FILE, MODEL_FILE
from tests.conftest import MODES, TINY, assert_close
from tests.helpers import script_runs
from tests.helpers.joint_batch import comparable
from tests.helpers.small_models import mae_architecture, make_vit
from tests.methods.test_toy_method import tensors
from training.log import read_log

BATCH, PATCH, SIDE, KEPT = 5, 4, 16, 4
# Float32 sums in another order through two networks: 1e-5 of each tensor's largest value.
RELATIVE = 1e-5


def make(matches, decode_layer=None, maps_heads=True):
    paddle.seed(0)
    student = MAEPretrain(mae_architecture((SIDE, SIDE), (16, 3, 2), patch_px=PATCH, decode_layer=decode_layer))
    teacher = make_vit((SIDE, SIDE), num_classes=0, embed_dim=24, depth=4, num_heads=4)
    model = AttentionDistillation(student, teacher, matches, maps_heads)
    for network in (model, teacher):
        for parameter in network.parameters():
            parameter.set_value(paddle.randn(parameter.shape) * 0.2)
    model.train()
    teacher.eval()
    return model, teacher


class Torch:
    """Encoder on visible patches, decoder, scores and losses, from the equations; parameters under our names."""

    def __init__(self, torch, network):
        self.torch, self.f = torch, torch.nn.functional
        self.state = {}
        trained = {name for name, value in network.named_parameters() if not value.stop_gradient}
        for name, value in network.state_dict().items():
            tensor = torch.from_numpy(value.numpy().copy())
            self.state[name] = tensor.requires_grad_() if name in trained else tensor

    def linear(self, inputs, name):
        bias = self.state.get(f"{name}.bias")
        product = inputs @ self.state[f"{name}.weight"]
        return product if bias is None else product + bias

    def norm(self, inputs, name):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return self.f.layer_norm(inputs, weight.shape, weight, bias, 1e-6)

    def heads(self, tokens, name, heads):
        """Return queries, keys and values [B, A, T, d]."""
        batch, num, dim = tokens.shape
        return self.linear(tokens, name).reshape(batch, num, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)

    def block(self, tokens, name, heads):
        query, key, value = self.heads(self.norm(tokens, f"{name}.attn_norm"), f"{name}.attn.qkv", heads)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        tokens = tokens + self.linear(mixed, f"{name}.attn.out")
        hidden = self.f.gelu(self.linear(self.norm(tokens, f"{name}.mlp_norm"), f"{name}.mlp.fc1"))
        return tokens + self.linear(hidden, f"{name}.mlp.fc2"), scores

    def patches(self, images):
        side = SIDE // PATCH
        cut = images.reshape(BATCH, 3, side, PATCH, side, PATCH)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(BATCH, side * side, -1)  # (channel, row, column)

    def encode(self, prefix, images, order, depth, heads):
        """Return the input of each block and the last output, and the scores of each block."""
        state = self.state
        weight = state[f"{prefix}patch_embedding.patch_embedding.weight"].flatten(1).T
        tokens = self.patches(images) @ weight + state[f"{prefix}patch_embedding.patch_embedding.bias"]
        table = state[f"{prefix}encoder_position_embedding"]
        tokens = tokens + table[:, 1:]
        kept = order[:, :KEPT, None].expand(-1, -1, tokens.shape[-1])
        first = (state[f"{prefix}cls_token"] + table[:, :1]).expand(BATCH, -1, -1)
        tokens = self.torch.cat([first, tokens.gather(1, kept)], dim=1)
        states, scores = [tokens], []
        for index in range(depth):
            tokens, found = self.block(tokens, f"{prefix}encoder.layers.{index}", heads)
            states.append(tokens)
            scores.append(found)
        return states, scores

    def reconstruction(self, images, latent, order):
        state, torch, prefix = self.state, self.torch, "student."
        tokens = self.linear(latent, f"{prefix}linear_projection")
        num, restore = self.patches(images).shape[1], order.argsort(1)
        hidden = state[f"{prefix}mask_token"].expand(BATCH, num - KEPT, -1)
        every = torch.cat([tokens[:, 1:], hidden], dim=1)
        every = every.gather(1, restore[..., None].expand(-1, -1, every.shape[-1]))
        tokens = torch.cat([tokens[:, :1], every], dim=1) + state[f"{prefix}decoder_position_embedding"]
        tokens, _ = self.block(tokens, f"{prefix}decoder.layers.0", 2)
        pred = self.linear(self.norm(tokens, f"{prefix}decoder.norm"), f"{prefix}decoder_pred")[:, 1:]
        side = SIDE // PATCH
        target = images.reshape(BATCH, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 3, 5, 1).reshape(BATCH, num, -1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        mask = (restore >= KEPT).float()
        return ((pred - target).square().mean(-1) * mask).sum() / mask.sum()


CASES = {
    "scores": (Matches(((3, 4),)), None, True),
    "two layers and hidden states": (Matches(((1, 2), (3, 4)), ((0, 0), (1, 2), (3, 4)), 0.7, 0.3), None, True),
    "extra block": (Matches(((4, 4),)), 2, True),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_torchs(case):
    torch = pytest.importorskip("torch")
    matches, decode_layer, maps_heads = CASES[case]
    model, teacher = make(matches, decode_layer, maps_heads)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH, 3, SIDE, SIDE)).astype(np.float32)
    noise = rng.random((BATCH, 16)).astype(np.float32)
    loss, parts = model(paddle.to_tensor(images), paddle.to_tensor(noise))
    loss.backward()

    student, other = Torch(torch, model), Torch(torch, teacher)
    pixels, order = torch.from_numpy(images), torch.from_numpy(noise).argsort(1)
    states, scores = student.encode("student.", pixels, order, 3, 2)
    with torch.no_grad():
        their_states, their_scores = other.encode("", pixels, order, 4, 4)
    read = states[2 if decode_layer else 3]
    expected = {
        "loss_reconstruction": student.reconstruction(pixels, student.norm(read, "student.encoder.norm"), order)
    }
    if case == "extra block":
        tokens = student.norm(states[3], "extra.attn_norm")
        both = student.linear(tokens, "extra.query_key").reshape(BATCH, KEPT + 1, 2, 2, 8).permute(2, 0, 3, 1, 4)
        scores.append(both[0] @ both[1].transpose(-1, -2) / 8**0.5)
    errors = []
    for number, (own, theirs) in enumerate(matches.scores):
        mapped = torch.einsum("ta,baqk->btqk", student.state[f"head_maps.{number}.weight"], scores[own - 1])
        errors.append((mapped - their_scores[theirs - 1]).square().mean())
    expected["loss_scores"] = sum(errors)
    total = expected["loss_reconstruction"] + matches.scores_weight * expected["loss_scores"]
    if matches.hidden:
        errors = []
        for number, (own, theirs) in enumerate(matches.hidden):
            name = f"encoder.layers.{own}.attn_norm" if own < 3 else "encoder.norm"
            their_name = f"encoder.layers.{theirs}.attn_norm" if theirs < 4 else "encoder.norm"
            mapped = student.linear(student.norm(states[own], f"student.{name}"), f"hidden_maps.{number}")
            errors.append((mapped - other.norm(their_states[theirs], their_name).detach()).square().mean())
        expected["loss_hidden"] = sum(errors)
        total = total + matches.hidden_weight * expected["loss_hidden"]
    total.backward()
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value.item(), rel=RELATIVE)
    assert loss.item() == pytest.approx(total.item(), rel=RELATIVE)
    for name, parameter in model.named_parameters():
        wanted = student.state[name].grad
        assert wanted is not None, f"{name} has no gradient"
        assert_close(comparable(name, parameter.grad.numpy()), comparable(name, wanted.numpy()), RELATIVE, name)
    assert all(parameter.grad is None for parameter in teacher.parameters())


OPTS = [*TINY, *MODES["pretrain"], "DATA.BATCH_SIZE", 64, "TRAIN.NUM_EPOCHS", 1, "REPORT_FREQ", 1]
OPTS += ["SAVE_FREQ_STEPS", 5, "KEEP_LAST", 9]
EXTRA = ["DISTILL.EXTRA_BLOCK", True, "DISTILL.DECODE_LAYER", 1]


def train(folder, name, *flags, opts=()):
    return script_runs.train(main_multi_gpu_pretrain.main, folder, name, [*OPTS, *opts], *flags)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the runs of a teacher, a distilled student, and one with the extra block."""
    folder = tmp_path_factory.mktemp("distilled")
    teacher = train(folder, "teacher", opts=["MODEL.ENCODER.EMBED_DIM", 48, "MODEL.ENCODER.DEPTH", 3])
    flags = ["-teacher", str(teacher)]
    return teacher, train(folder, "plain", *flags), train(folder, "extra", *flags, opts=EXTRA)


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["plain", "extra"])
def test_a_stopped_run_is_bit_identical(runs, tmp_path, kind):
    teacher, *students = runs
    run, opts = (students[0], ()) if kind == "plain" else (students[1], EXTRA)
    script_runs.stop_after_step(run, tmp_path)
    script_runs.assert_same(train(tmp_path, "again", "-teacher", str(teacher), "-resume", "auto", opts=opts), run)


@pytest.mark.quick
def test_the_encoder_is_ordinary_and_the_teacher_is_not_saved(runs, tmp_path, tiny_yaml):
    teacher, plain, extra = runs
    stored = tensors(find(extra))
    assert {name.partition("/")[2] for name in stored if name.startswith(EXTRA_FILE)} == {
        *(f"extra.{part}" for part in ("attn_norm.weight", "attn_norm.bias", "query_key.weight", "query_key.bias")),
        "head_maps.0.weight",
    }
    own = {name for name in tensors(find(plain)) if name.startswith(MODEL_FILE)}
    assert {name for name in stored if name.startswith(MODEL_FILE)} == own
    records = [record for record in read_log(plain) if record["event"] == "train"]
    assert all(abs(r["loss"] - r["loss_reconstruction"] - r["loss_scores"]) < 1e-5 for r in records)
    assert records[-1]["loss_scores"] < records[0]["loss_scores"]
    text = (plain / "log.txt").read_text()
    assert f"teacher {teacher}/latest/model.pdparams: encoder 48 wide, 3 deep, 4 heads; frozen" in text
    assert "scores of layer 2 with the teacher's 3" in text
    cfg = tiny_yaml("finetune", "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 256)
    flags = ["-cfg", cfg, "-pretrained", str(extra), "-output", str(tmp_path)]
    assert main_multi_gpu_finetune.main(flags)["loss"] > 0


@pytest.mark.quick
def test_a_decoder_of_a_lower_block_reads_that_block_everywhere(runs, tmp_path):
    _, plain, extra = runs
    model, config = load_models.load_autoencoder(extra)
    assert (model.decode_layer, load_models.load_autoencoder(plain)[0].decode_layer) == (1, 2)
    images, noise = paddle.randn([2, 3, 16, 16]), paddle.rand([2, 16])
    shuffle, restore, _ = model.choose_patches(2, noise=noise)
    read = model.encoder.norm(model.encoder.layers[0](embed_visible(model, images, shuffle)))
    assert_close(model(images, noise=noise)[1].numpy(), model.decode(read, restore).numpy(), 1e-6)
    report = port(extra, tmp_path / "extra.pth", target="official")
    assert report.architecture.decoder is None
    assert "decoder that was trained on a lower block" in str(report)
    assert port(plain, tmp_path / "plain.pth", target="official").architecture.decoder is not None
    assert config.DISTILL.DECODE_LAYER == 1


@pytest.mark.quick
@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (["DATA.IMAGE_SIZE", 32], r"has DATA.IMAGE_SIZE \(16, 16\), and the student \(32, 32\)"),
        (["MODEL.PATCH_SIZE", 2], "has MODEL.PATCH_SIZE 4, and the student 2"),
        (["DISTILL.TEACHER_SCORES", [9]], "DISTILL.TEACHER_SCORES: there is no layer 9; the teacher has 1 to 3"),
        (["DISTILL.STUDENT_SCORES", [3]], "the student has 2 layers; see DISTILL.EXTRA_BLOCK"),
        (["DISTILL.STUDENT_SCORES", [1, 2]], "must be lists of as many layers"),
        (["DISTILL.STUDENT_HIDDEN", [3], "DISTILL.TEACHER_HIDDEN", [1]], "the student has 0 to 2"),
        (["DISTILL.DECODE_LAYER", 1], "set DISTILL.EXTRA_BLOCK True, too"),
        (["DISTILL.MAP_HEADS", False, "MODEL.ENCODER.NUM_HEADS", 2], "the student has 2 heads, the teacher 4"),
        (["DISTILL.EXTRA_BLOCK", True, "DISTILL.STUDENT_SCORES", [1], "DISTILL.TEACHER_SCORES", [1]], "as layer 3"),
        (["TRAIN.VIEWS", 2], "with a teacher there is one view, mask and size"),
        (["DATA.IMAGENET_STD", [0.5] * 3], "has DATA.IMAGENET_STD"),
    ],
)
def test_what_cannot_work_is_refused(runs, tmp_path, opts, said):
    with pytest.raises(UserError, match=said):
        train(tmp_path, "run", "-teacher", str(runs[0]), opts=opts)


@pytest.mark.quick
def test_a_run_goes_on_with_the_same_teacher_only(runs, tmp_path):
    _, plain, extra = runs
    with pytest.raises(UserError, match="that run has teacher or tokenizer .*, this one "):
        train(tmp_path, "run", "-teacher", str(extra), "-resume", str(plain))
    with pytest.raises(UserError, match="that run has task pretrain_distilled, this one pretrain"):
        train(tmp_path, "other", "-resume", str(plain))
    with pytest.raises(UserError, match="-teacher .*nothing: .*no such file"):
        train(tmp_path, "third", "-teacher", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="-teacher: is empty"):
        train(tmp_path, "fourth", "-teacher", "")
    with pytest.raises(UserError, match="there is no teacher; name it with -teacher"):
        train(tmp_path, "fifth", opts=EXTRA)
    layers = ["DISTILL.STUDENT_SCORES", [1], "DISTILL.TEACHER_SCORES", [1]]
    with pytest.raises(UserError, match="scores of layer 2 .*, this one .*scores of layer 1"):
        train(tmp_path, "sixth", "-teacher", str(runs[0]), "-resume", str(plain), opts=layers)


def test_two_ranks_are_one_with_the_joint_batch(runs, tmp_path):
    """Every patch is visible, as ranks draw other masks; the order of the patches does not matter."""
    teacher = runs[0]
    opts = ["TRAIN.WARMUP_EPOCHS", 0, "TRAIN.OPTIMIZER.EPS", 1.0, "TRAIN.BASE_LR", 0.1, "MODEL.MASK_RATIO", 1e-9]
    opts += ["TRAIN.CROP_SCALE", [1.0, 1.0], *EXTRA]
    flags = ["-teacher", str(teacher)]
    one = train(tmp_path, "one", *flags, opts=opts)
    script_runs.compare_two_ranks(one, [*OPTS, *opts, "DATA.BATCH_SIZE", 32], *flags)
