"""Pretrain a masked autoencoder (arXiv 2111.06377, Sec. 3).

    python main_multi_gpu_pretrain.py -cfg configs/vit_base_patch16_224_pretrain.yaml -data_path DIR

Uses every visible GPU, or the CPU. Writes config.yaml, log.txt, log.jsonl and checkpoints to
<output>/pretrain-<time>/.
"""

import runtime

runtime.prepare()

from launch import command_line
from methods import dispatch


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run with these arguments (default: the command line's), and return the last metrics."""
    return dispatch.run_script("pretrain", __doc__, argv)


if __name__ == "__main__":
    command_line.run(main)
