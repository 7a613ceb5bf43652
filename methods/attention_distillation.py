"""Distillation while an autoencoder is pretrained (MAE-Lite, arXiv 2205.14443, Sec. 5; its decoupled variant D2-MAE).

A frozen encoder, the teacher, sees the same visible patches. The student's attention scores before the softmax, mapped
by a 1x1 convolution over the heads, follow the teacher's; hidden states can follow, too. Layers are counted from 1.

Shapes: B images, K visible patches, T = 1 + K tokens, A heads, D width.
"""

import dataclasses
import math
from collections.abc import Collection

import paddle
from paddle import nn

from errors import UserError
from layers.basic import LayerNorm, Linear
from layers.heads import plain_linear
from mae import MAEPretrain, embed_visible
from transformer import Transformer, init_linear


@dataclasses.dataclass(frozen=True)
class Matches:
    """Pairs of a layer of the student and the layer of the teacher that it learns to match.

    Attributes:
        scores: (student's layer, teacher's layer) of attention scores, from 1.
        hidden: the same of hidden states: 0 is the embedding behind the first block's norm, i the output of block i
            behind the next block's norm, and the depth the last norm's output.
        scores_weight, hidden_weight: of each loss beside the reconstruction's.
    """

    scores: tuple[tuple[int, int], ...]
    hidden: tuple[tuple[int, int], ...] = ()
    scores_weight: float = 1.0
    hidden_weight: float = 1.0


class HeadMap(nn.Layer):
    """A linear map over the heads of scores, without bias; drawn like torch's convolution, within 1 / sqrt(heads).

    Args:
        heads: of the student.
        teacher_heads: of the teacher.
    """

    def __init__(self, heads: int, teacher_heads: int):
        super().__init__()
        bound = 1.0 / math.sqrt(heads)
        uniform = nn.initializer.Uniform(-bound, bound)
        self.weight = self.create_parameter([teacher_heads, heads], default_initializer=uniform)

    def forward(self, scores: paddle.Tensor) -> paddle.Tensor:
        """Map scores [B, A, T, T] to the teacher's heads."""
        batch, heads, rows, columns = scores.shape
        mapped = paddle.matmul(self.weight, scores.reshape([batch, heads, rows * columns]))
        return mapped.reshape([batch, -1, rows, columns])


class ScoresBlock(nn.Layer):
    """The part of a block that gives attention scores: norm, queries and keys; D2-MAE's extra block."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.attn_norm = LayerNorm(embed_dim)
        self.query_key = Linear(embed_dim, 2 * embed_dim)
        init_linear(self.query_key, nn.initializer.XavierUniform(fan_out=3 * embed_dim))  # as in a fused projection

    def forward(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """Return the scaled scores [B, A, T, T] of tokens [B, T, D]."""
        batch, num_tokens, dim = tokens.shape
        both = self.query_key(self.attn_norm(tokens)).reshape([batch, num_tokens, 2, self.num_heads, -1])
        query, key = both.transpose([2, 0, 3, 1, 4]).unbind(axis=0)  # [B, A, T, D/A]
        return paddle.matmul(query * (dim // self.num_heads) ** -0.5, key, transpose_y=True)


class AttentionDistillation(nn.Layer):
    """An autoencoder and what it needs to follow a teacher; the teacher is not part of its state.

    Args:
        student: its encoder and decoder train.
        teacher: a frozen network with the `patch_embedding`, `cls_token`, `encoder_position_embedding` and `encoder`
            of a ViT with the student's patches.
        matches: which layers; the student's layer after its last one is the extra block.
        maps_heads: map the student's scores over the heads; else heads must be as many.

    Raises:
        UserError: if a layer does not exist, or heads or widths do not fit.
    """

    def __init__(self, student: MAEPretrain, teacher: nn.Layer, matches: Matches, maps_heads: bool = True):
        super().__init__()
        self.student, self.matches = student, matches
        self._teacher = [teacher]  # in a list: no sublayer
        stack, other = student.encoder, teacher.encoder
        depth, embed_dim, heads = len(stack.layers), student.cls_token.shape[-1], stack.layers[0].attn.num_heads
        has_extra = any(own == depth + 1 for own, _ in matches.scores)
        _check_layers(matches, depth + has_extra, depth, len(other.layers))
        if student.decode_layer < depth and not has_extra:
            raise UserError(
                f"DISTILL.DECODE_LAYER={student.decode_layer}: the last block would give scores only, and the rest "
                "of it would not train; set DISTILL.EXTRA_BLOCK True, too"
            )
        self.extra = ScoresBlock(embed_dim, heads) if has_extra else None
        teacher_heads = other.layers[0].attn.num_heads
        if not maps_heads and teacher_heads != heads:
            raise UserError(f"DISTILL.MAP_HEADS=False: the student has {heads} heads, the teacher {teacher_heads}")
        maps = [HeadMap(heads, teacher_heads) for _ in matches.scores] if maps_heads else []
        self.head_maps = nn.LayerList(maps)
        width = teacher.cls_token.shape[-1]
        self.hidden_maps = nn.LayerList([plain_linear(embed_dim, width) for _ in matches.hidden])

    def forward(
        self, images: paddle.Tensor, noise: paddle.Tensor | None = None
    ) -> tuple[paddle.Tensor, dict[str, paddle.Tensor]]:
        """Return the loss of images [B, C, H, W], and its parts; `noise` as in `MAEPretrain.forward`."""
        student = self.student
        shuffle, restore, mask = student.choose_patches(len(images), noise=noise)
        with paddle.no_grad():
            theirs = self._outputs(self._teacher[0], images, shuffle, 1)
        ours = self._outputs(student, images, shuffle, 0)
        pred = student.decode(ours.decoded, restore)
        parts = {"loss_reconstruction": student.loss(images, pred, mask)}
        loss, maps = parts["loss_reconstruction"], self.head_maps or [_same] * len(self.matches.scores)
        for name, pairs, mappers, weight in (
            ("scores", self.matches.scores, maps, self.matches.scores_weight),
            ("hidden", self.matches.hidden, self.hidden_maps, self.matches.hidden_weight),
        ):
            if pairs:
                found, wanted = getattr(ours, name), getattr(theirs, name)
                errors = [
                    _mean_square(to_teacher(found[own]), wanted[other])
                    for (own, other), to_teacher in zip(pairs, mappers, strict=True)
                ]
                parts[f"loss_{name}"] = sum(errors)
                loss = loss + weight * parts[f"loss_{name}"]
        return loss, parts

    def describe(self) -> str:
        """Return a line that says what is matched."""
        pairs = [f"scores of layer {own} with the teacher's {other}" for own, other in self.matches.scores]
        pairs += [f"hidden state {own} with the teacher's {other}" for own, other in self.matches.hidden]
        return f"distillation matches {', '.join(pairs)}; the decoder reads layer {self.student.decode_layer}"

    def _outputs(self, network: nn.Layer, images: paddle.Tensor, shuffle: paddle.Tensor, side: int) -> "_Outputs":
        """Encode the visible patches, and keep what is matched; `side` is 0 for the student."""
        scores, hidden = ({pair[side] for pair in pairs} for pairs in (self.matches.scores, self.matches.hidden))
        decoder_reads = network.decode_layer if side == 0 else None
        tokens = embed_visible(network, images, shuffle)
        outputs = _walk(network.encoder, tokens, scores, hidden, decoder_reads)
        if side == 0 and self.extra is not None:
            outputs.scores[len(network.encoder.layers) + 1] = self.extra(outputs.last)
        return outputs


@dataclasses.dataclass
class _Outputs:
    """Scores and hidden states by layer, what the decoder reads, and the last block's output before its norm."""

    scores: dict[int, paddle.Tensor] = dataclasses.field(default_factory=dict)
    hidden: dict[int, paddle.Tensor] = dataclasses.field(default_factory=dict)
    decoded: paddle.Tensor | None = None
    last: paddle.Tensor | None = None


def _walk(
    stack: Transformer,
    tokens: paddle.Tensor,
    scores: Collection[int],
    hidden: Collection[int],
    decoder_reads: int | None,
) -> _Outputs:
    """Go through the blocks of an encoder once.

    Args:
        scores, hidden: layers whose outputs are wanted.
        decoder_reads: the block, counted from 1, whose normalised output the decoder reads; None: no decoder.
    """
    depth, outputs = len(stack.layers), _Outputs()
    for index in range(depth):
        if index in hidden:
            outputs.hidden[index] = stack.layers[index].attn_norm(tokens)
        tokens, found = stack.run_layer(index, tokens, return_logits=index + 1 in scores)
        if found is not None:
            outputs.scores[index + 1] = found
        if index + 1 == decoder_reads:
            outputs.decoded = stack.norm(tokens)
    outputs.last = tokens
    if depth in hidden:
        outputs.hidden[depth] = stack.norm(tokens)
    return outputs


def _same(scores: paddle.Tensor) -> paddle.Tensor:
    return scores


def _mean_square(found: paddle.Tensor, wanted: paddle.Tensor) -> paddle.Tensor:
    """Return the mean squared difference over all elements, in float32."""
    return (found.astype("float32") - wanted.astype("float32")).square().mean()


def _check_layers(matches: Matches, most_scores: int, depth: int, teacher_depth: int) -> None:
    for name, pairs, first, limits in (
        ("SCORES", matches.scores, 1, (most_scores, teacher_depth)),
        ("HIDDEN", matches.hidden, 0, (depth, teacher_depth)),
    ):
        for whose, side in (("STUDENT", 0), ("TEACHER", 1)):
            for layer in (pair[side] for pair in pairs):
                if not first <= layer <= limits[side]:
                    raise UserError(
                        f"DISTILL.{whose}_{name}: there is no layer {layer}; the {whose.lower()} has {first} to "
                        f"{limits[side]}"
                    )
