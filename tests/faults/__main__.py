"""Kill, stop and resume real training processes many times, and compare with a run that nobody disturbed.

    python -m tests.faults [-kills 60] [-stops 20] [-hosts 4] [-jobs 2] [-seed 0] [-sharding gradients]

Every trial starts the pretraining script on a small model that saves after every second update, kills it (SIGKILL: at a
random moment, or as soon as a checkpoint is being written; SIGTERM: at a random moment, two ranks), and resumes with
`-resume auto` to the end. The weights must be bit-identical to those of the undisturbed run. With two hosts (network
namespaces; as root), one of them is cut off or killed, and the job must end on both within a minute. A table tells how
it went; the exit code is 1 if a single trial failed. Some minutes; not part of the test suite.
"""

import argparse
import concurrent.futures
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from config import get_config
from runtime import ROOT
from tests.conftest import MODES, TINY
from tests.faults import hosts

EXIT_STOPPED = 75
_SOON_SECS = 60
_SAVE_EVERY = 2  # updates
_OPTS = ["TRAIN.NUM_EPOCHS", 3, "SAVE_FREQ_STEPS", _SAVE_EVERY, "REPORT_FREQ", 1, "TRAIN.EMA_DECAY", 0.9, "RUN", "run"]


def command(cfg: Path, output: Path, ranks: int, *flags: str) -> list[str]:
    """Return the command line of a training; a batch of 32 per update, whatever the ranks."""
    batch = ["-batch_size", str(32 // ranks), "-nproc", str(ranks), "-device", "cpu"]
    return [sys.executable, "main_multi_gpu_pretrain.py", "-cfg", str(cfg), "-output", str(output), *batch, *flags]


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    """Start a process in a group of its own."""
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.Popen(arguments, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def final_sum(output: Path) -> str:
    """Return the sum of the final weights and averaged weights."""
    last = output / "run" / "latest"
    return hashlib.sha256((last / "model.pdparams").read_bytes() + (last / "ema.pdparams").read_bytes()).hexdigest()


def last_step(output: Path) -> int:
    """Return the updates done by the newest checkpoint, 0 if there is none."""
    return max((int(path.name[5:]) for path in (output / "run").glob("step-*")), default=0)


def steps_done(output: Path) -> int:
    """Return the last update that the run reported."""
    try:
        lines = (output / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return max((int(line.split('"step": ')[1].split(",")[0]) for line in lines if '"step": ' in line), default=0)


def is_running(process: subprocess.Popen, output: Path, updates: int) -> bool:
    """Return True if a run continues, and has not done that many updates."""
    return process.poll() is None and steps_done(output) < updates


class Trials:
    """Trials against one undisturbed run."""

    def __init__(self, folder: Path, ranks: int, sharding: str):
        self.folder, self.ranks = folder, ranks
        self.cfg = folder / "tiny.yaml"
        self.cfg.write_text(get_config(None, [*TINY, *MODES["pretrain"], *_OPTS, "TRAIN.SHARDING", sharding]).dump())
        started = time.monotonic()
        process = start(command(self.cfg, folder / "undisturbed", ranks), folder / "undisturbed.log")
        if process.wait() != 0:
            raise SystemExit(f"the undisturbed run failed:\n{(folder / 'undisturbed.log').read_text()}")
        self.secs = time.monotonic() - started
        self.wanted = final_sum(folder / "undisturbed")

    def disturb(self, number: int, how: str, rng: random.Random) -> tuple[bool, bool, str]:
        """Do one trial; returns whether it went well, whether it hit a save, and what happened."""
        output = self.folder / f"{how}-{number}"
        log = self.folder / f"{how}-{number}.log"
        process = start(command(self.cfg, output, self.ranks), log)
        hit_save = self._wait(process, output, how, rng)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL) if how != "stop" else process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        done, kept = steps_done(output), last_step(output)
        problem = ""
        if how == "stop" and code not in (EXIT_STOPPED, 0):
            problem = f"exit code {code} after SIGTERM"
        if how != "stop" and done - kept > _SAVE_EVERY + 1:  # one interval, and the save that was under way
            problem = f"{done} updates done, {kept} kept"
        resumed = start(command(self.cfg, output, self.ranks, "-resume", "auto"), log).wait()
        if resumed != 0:
            problem = f"resumed with exit code {resumed}"
        elif final_sum(output) != self.wanted:
            problem = "other weights than undisturbed"
        if not problem:
            shutil.rmtree(output)
        happened = f"{how} {number}: after {done} updates, {kept} kept, exit code {code}"
        return not problem, hit_save, f"{happened}: {problem}" if problem else happened

    def part_hosts(self, number: int, how: str, rng: random.Random) -> tuple[bool, bool, str]:
        """Do one trial with two hosts, of which one is cut off or killed."""
        output, names = self.folder / f"{how}-{number}", (hosts.FIRST, hosts.SECOND)

        def start_both(*flags: str) -> list[subprocess.Popen]:
            node = ["-nnodes", "2", "-nproc", "1", "-master", f"{hosts.FIRST_ADDRESS}:6170", *flags]
            job = command(self.cfg, output, self.ranks, *node)
            return [start(hosts.on(name, job), self.folder / f"{how}-{number}-{name}.log") for name in names]

        with hosts.two_hosts():
            nodes = start_both()
            wanted_updates = rng.randint(1, 80)
            while is_running(nodes[0], output, wanted_updates):
                time.sleep(0.01)
            started = time.monotonic()
            hosts.pull_out() if how == "cut off" else hosts.kill_all(rng.choice(names))
            done, problem = steps_done(output), ""
            try:
                codes = [node.wait(_SOON_SECS - (time.monotonic() - started)) for node in nodes]
            except subprocess.TimeoutExpired:
                return False, False, f"{how} {number}: a node still runs after {_SOON_SECS} seconds"
            secs = time.monotonic() - started
            hosts.plug_in()
            if 0 in codes and done < 80:
                problem = "a node ended as if all were well"
            resumed = [node.wait(300) for node in start_both("-resume", "auto")]
            if resumed != [0, 0]:
                problem = f"resumed with exit codes {resumed}"
            elif final_sum(output) != self.wanted:
                problem = "other weights than undisturbed"
        happened = f"{how} {number}: after {done} updates, exit codes {codes} after {secs:.0f} s"
        return not problem, False, f"{happened}: {problem}" if problem else happened

    def _wait(self, process: subprocess.Popen, output: Path, how: str, rng: random.Random) -> bool:
        """Wait for the moment; returns whether a checkpoint is being written."""
        moment = time.monotonic() + rng.uniform(0.6, 1.0) * self.secs
        wanted_saves, seen = rng.randint(1, 20), set()
        wanted_updates, pause = rng.randint(1, 80), rng.uniform(0, 0.05)
        while process.poll() is None and (how != "kill" or time.monotonic() < moment):
            if how == "stop" and steps_done(output) >= wanted_updates:
                time.sleep(pause)
                break
            writing = {path.name for path in (output / "run").glob(".writing-*")}
            seen |= writing
            if how == "kill in save" and writing and len(seen) >= wanted_saves:
                return True
            time.sleep(0.0005)
        return bool(list((output / "run").glob(".writing-*")))


def main() -> int:
    """Run all trials, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-kills", type=int, default=60)
    parser.add_argument("-stops", type=int, default=20)
    parser.add_argument("-hosts", type=int, default=4)
    parser.add_argument("-jobs", type=int, default=2)
    parser.add_argument("-seed", type=int, default=0)
    parser.add_argument("-sharding", choices=("none", "optimizer", "gradients"), default="none")
    args = parser.parse_args()
    killed_ranks = 1 if args.sharding == "none" else 2
    plan = [("kill in save" if number % 2 else "kill", number, killed_ranks) for number in range(args.kills)]
    plan += [("stop", number, 2) for number in range(args.stops)]
    if hosts.are_possible():
        plan += [("cut off" if number % 2 else "kill a host", number, 2) for number in range(args.hosts)]
    else:
        print("trials with two hosts are left out: they need root, and iproute2")
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        for ranks in sorted({ranks for _, _, ranks in plan}):
            folder = Path(name) / f"{ranks}-ranks"
            folder.mkdir()
            trials = Trials(folder, ranks, args.sharding)
            with concurrent.futures.ThreadPoolExecutor(args.jobs if ranks == 1 else 1) as pool:
                tasks = [
                    pool.submit(
                        trials.part_hosts if how in ("cut off", "kill a host") else trials.disturb,
                        number,
                        how,
                        random.Random(f"{args.seed} {how} {number}"),
                    )
                    for how, number, wanted in plan
                    if wanted == ranks
                ]
                results = [task.result() for task in tasks]
            failed += sum(not good for good, _, _ in results)
            for good, _, text in results:
                print("ok    " if good else "FAILED", text)
            hits = sum(hit for _, hit, _ in results)
            good = sum(good for good, _, _ in results)
            print(f"{ranks} rank(s): {good} of {len(results)} as undisturbed, {hits} in a save")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
