"""What the curation of large sets costs: the search for pairs and neighbours, and the page in a browser.

    python -m benchmarks.curation -vectors 10000 100000 1000000      # each in a process of its own
    python -m benchmarks.curation -page 100000 -out DIR              # needs chromium and chromedriver

Vectors are float16 of 192 numbers around N / 200 centres; 5 % are near copies of others. Prints seconds, the exponent
of their growth, the share of the copies that is found, the agreement with brute force, and the resident memory.
"""

import runtime

runtime.prepare()

import math
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np

from arguments import Parser
from launch import command_line
from measures.curation import findings, image_facts, similar_rows
from measures.curation.images import Images
from pages import explorer
from pipeline.sources import ArrayImages

_WIDTH, _BLOCK = 192, 50_000


def make_vectors(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of length 1, [N, 192] float16, and the pairs of which one was made of the other."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(10, count // 200), _WIDTH)).astype(np.float32)
    rows = np.empty((count, _WIDTH), np.float16)
    for first in range(0, count, _BLOCK):
        number = min(_BLOCK, count - first)
        block = centres[rng.integers(0, len(centres), number)]
        rows[first : first + number] = _unit(block + rng.standard_normal((number, _WIDTH)).astype(np.float32))
    one, two = rng.permutation(count)[: count // 20 * 2].reshape(2, -1)
    rows[two] = _unit(rows[one].astype(np.float32) + 0.02 * rng.standard_normal((len(one), _WIDTH)).astype(np.float32))
    return rows, np.sort(np.stack([one, two], axis=1), axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure_vectors(count: int, send) -> None:
    """Search the vectors in this process, and send what it took."""
    unit, planted = make_vectors(count)
    started = time.monotonic()
    rows = similar_rows.Rows(unit)
    pairs, _, _ = similar_rows.pairs_above(rows, 0.9)
    paired = time.monotonic()
    places, _ = similar_rows.nearest(rows, 10)
    found = set(map(tuple, pairs.tolist()))
    share = np.mean([tuple(pair) in found for pair in planted.tolist()])
    values = {"pairs_secs": paired - started, "nearest_secs": time.monotonic() - paired}
    values |= {"copies found": float(share), "agreement": similar_rows.agreement(rows, places)}
    send.send(values | {"GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})


def bench_vectors(counts: list[int]) -> None:
    """Print what each number of vectors takes."""
    before = None
    for count in counts:
        receive, send = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=measure_vectors, args=(count, send))
        process.start()
        values = receive.recv()
        process.join()
        line = f"{count:>9,} vectors: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        total = values["pairs_secs"] + values["nearest_secs"]
        if before is not None:
            line += f", growth N^{math.log(total / before[1]) / math.log(count / before[0]):.2f}"
        print(line, flush=True)
        before = count, total


def bench_page(count: int, out: Path) -> None:
    """Write a page of `count` noise images, and print how long a browser takes to open it, and to select points."""
    from selenium import webdriver
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1000, count)
    source = ArrayImages(np.zeros((count, 1, 1), np.uint8), labels, "noise", [f"class {n}" for n in range(1000)])
    facts = np.zeros(count, image_facts.FACTS)
    facts["picture"] = rng.integers(0, 256, (count, 4, 4, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    facts["quality"] = rng.random((count, len(image_facts.QUALITY)))
    nothing = (np.empty((0, 2), np.int64), *(np.empty(0) for _ in range(5)))
    everything, pairs = np.arange(count), findings.Pairs(*nothing)
    typicality, images = rng.random(count), Images({"train": source})
    found = findings.Findings(
        images, facts, everything, pairs, everything, [], [], [], everything[:500], typicality, 1, 1
    )
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    explorer.write(out, found, everything, rng.standard_normal((count, 16)).astype(np.float32), {"notes": []}, "pca", 0)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{count:,} points: written in {time.monotonic() - started:.1f} s, {size:.1f} MB")
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,1400"):
        options.add_argument(flag)
    with webdriver.Chrome(options=options) as browser:
        started = time.monotonic()
        browser.get((out / explorer.PAGE).resolve().as_uri())
        chart = browser.find_element(By.ID, "map")
        print(f"open after {time.monotonic() - started:.2f} s")
        started = time.monotonic()
        steps = ActionChains(browser, duration=20).move_to_element_with_offset(chart, -100, -100).click_and_hold()
        for x, y in ((200, 0), (0, 200), (-200, 0), (0, -199)):
            steps = steps.move_by_offset(x, y)
        steps.release().perform()
        shown = browser.find_element(By.CSS_SELECTOR, ".side p").text
        print(f"{shown}, after {time.monotonic() - started:.2f} s")


def main(argv: list[str] | None = None) -> None:
    """Print the measurements that were asked for."""
    parser = Parser(prog="python -m benchmarks.curation", description=__doc__)
    parser.add("vectors", "numbers of vectors", type=int, nargs="+", default=[])
    parser.add("page", "points of a page", type=int)
    parser.add("out", "directory for the page", default="output/curation-page")
    args = parser.parse_args(argv)
    bench_vectors(args.vectors)
    if args.page is not None:
        bench_page(args.page, Path(args.out))


if __name__ == "__main__":
    command_line.run(main)
