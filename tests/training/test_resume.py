"""Real runs, stopped and resumed as a cluster does it: by signals, with other numbers of workers, on a full disk."""

import json
import pickle
import resource
import signal
import subprocess
import sys
import time

import pytest

import runtime
from runtime import ROOT
from storage.run_files import optimizer_files
from training.log import read_log

UPDATES = 18
OPTIONS = ["TRAIN.NUM_EPOCHS", 6, "REPORT_FREQ", 1, "TRAIN.EMA_DECAY", 0.9, "TRAIN.ACCUM_ITER", 2, "KEEP_LAST", 99]


class Runs:
    """Finetuning of the tiny model on generated photos: 24 images, 8 per update, so 3 updates an epoch."""

    def __init__(self, tmp_path, cfg, data, ranks):
        self.folder = tmp_path
        self.command = [sys.executable, str(ROOT / "main_multi_gpu_finetune.py"), "-cfg", cfg, "-device", "cpu"]
        self.command += ["-data_path", str(data), "-nproc", str(ranks), "-batch_size", str(4 // ranks)]

    def start(self, name, workers, *flags, **options):
        return subprocess.Popen(
            [*self.command, *flags, "-output", str(self.folder / name), "-opts", "DATA.NUM_WORKERS", str(workers)],
            env=runtime.original_environment(),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def finish(self, name, workers, *flags, code=0, **options):
        process = self.start(name, workers, *flags, **options)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == code, output
        return output

    def stop_after(self, name, workers, updates, *flags):
        """Let a run continue until it has done some updates, then ask it to stop."""
        process = self.start(name, workers, *flags)
        while process.poll() is None and self.step(name) < updates:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 75, output
        return output

    def run_dir(self, name):
        return next((self.folder / name).glob("finetune-*"))

    def step(self, name):
        logs = list((self.folder / name).glob("*/log.jsonl"))
        lines = logs[0].read_text().splitlines(keepends=True) if logs else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)

    def result(self, name):
        """Return all that a run leaves: weights, averaged weights, optimizer, and what it logged."""
        last = self.run_dir(name) / "latest"
        assert last.resolve().name == f"step-{UPDATES:08d}"
        files = [(last / file).read_bytes() for file in ("model.pdparams", "ema.pdparams")]
        optimizer = {}
        for part in optimizer_files(last):
            optimizer |= pickle.loads(part.read_bytes())["optimizer"]
        files.append({name: value.tobytes() for name, value in optimizer.items()})
        timed = ("images_per_sec", "data_wait")
        return files, [{k: v for k, v in record.items() if k not in timed} for record in read_log(self.run_dir(name))]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_stops_and_other_numbers_of_workers_change_no_bit(tmp_path, tiny_yaml, image_folder, ranks):
    """With two ranks, the stopped run shares its optimizer's state out between them; the straight one does not."""
    options = [*OPTIONS, "DATA.DATASET", "imagenet2012"]
    Runs(tmp_path, tiny_yaml("finetune", *options), image_folder, ranks).finish("straight", 0)
    cfg = tiny_yaml("finetune", *options, "TRAIN.SHARDING", "optimizer" if ranks > 1 else "none")
    runs = Runs(tmp_path, cfg, image_folder, ranks)
    output = runs.stop_after("stopped", 1, 1)
    assert "SIGTERM: the run stops and saves after this update" in output
    runs.stop_after("stopped", 4, 8, "-resume", "auto")
    assert "resumed" in runs.finish("stopped", 0, "-resume", "auto")
    straight, stopped = runs.result("straight"), runs.result("stopped")
    assert stopped[0] == straight[0]
    assert stopped[1] == straight[1]


def test_a_disk_without_room_ends_the_run_and_loses_nothing(tmp_path, tiny_yaml, image_folder):
    cfg = tiny_yaml("finetune", *OPTIONS, "DATA.DATASET", "imagenet2012", "SAVE_FREQ_STEPS", 4)
    runs = Runs(tmp_path, cfg, image_folder, 1)
    runs.finish("straight", 0)
    runs.stop_after("full", 0, 4)
    saved = (runs.run_dir("full") / "latest").resolve()
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    no_room = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))  # logs fit, weights do not
    output = runs.finish("full", 0, "-resume", "auto", code=2, preexec_fn=no_room)
    assert "the checkpoint cannot be written: File too large; the ones before it are intact" in output
    assert (runs.run_dir("full") / "latest").resolve() == saved
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    runs.finish("full", 0, "-resume", "auto")
    assert runs.result("full")[0] == runs.result("straight")[0]
