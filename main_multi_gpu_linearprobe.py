r"""Train a linear classifier over a frozen pretrained encoder, or evaluate one.

    python main_multi_gpu_linearprobe.py -cfg configs/vit_base_patch16_224_linearprobe.yaml \
        -data_path DIR -pretrained FILE
    python main_multi_gpu_linearprobe.py -cfg configs/vit_base_patch16_224_linearprobe.yaml \
        -data_path DIR -pretrained FILE -eval

Uses every visible GPU, or the CPU. Writes config.yaml, log.txt, log.jsonl and checkpoints to
<output>/linearprobe-<time>/.
"""

import runtime

runtime.prepare()

from launch import command_line
from methods import dispatch


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run with these arguments (default: the command line's), and return the last metrics."""
    return dispatch.run_script("linearprobe", __doc__, argv)


if __name__ == "__main__":
    command_line.run(main)
