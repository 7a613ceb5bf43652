"""The demo page: its models, and the page itself in a real browser."""

import base64
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import runtime
from clip import build_clip
from config import get_config
from errors import UserError
from methods import dispatch
from pages.demo_models import Autoencoder, Classifier, Segmenter, ZeroShot, read_painted
from pipeline import scenes
from runtime import ROOT
from storage import weight_files
from storage.stored_tensor import StoredTensor
from tests.conftest import TINY
from tests.helpers.sentences import make_tokenizer
from tests.methods.test_segmentation import SEG
from tools.demo import main

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture
def models(tiny_run):
    """Return run directories of an autoencoder and of a classifier whose images are larger."""
    folders = []
    for mode, size in (("pretrain", 16), ("finetune", 32)):
        run = tiny_run(mode, "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0, "DATA.IMAGE_SIZE", size)
        dispatch.train_or_evaluate(run)
        folders.append(str(run.directory))
    return folders


@pytest.fixture
def segmenter(tiny_run, monkeypatch):
    monkeypatch.setattr(scenes, "_NUM_IMAGES", {"train": 8, "val": 2})
    run = tiny_run("pretrain", *SEG, "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    dispatch.train_or_evaluate(run)
    return str(run.directory)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def pictures(page: str) -> list[np.ndarray]:
    """Return the images that are embedded in HTML."""
    encoded = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image in encoded]


@pytest.mark.quick
def test_pictures_masks_and_classes(models, photo, tmp_path):
    model, classifier = Autoencoder(models[0]), Classifier(models[1])
    first = pictures(model.reconstruct(photo, 0.75, 0, "random"))
    assert [picture.shape for picture in first] == [(16, 16, 3)] * 5
    original, masked, _, filled, _ = first
    visible = ~(masked == 128).all(axis=-1)
    assert visible.mean() == pytest.approx(0.25)
    assert np.array_equal(original[visible], filled[visible])
    drawn = np.zeros((256, 256), np.uint8)
    drawn[:64, :64] = 255
    masked = pictures(model.reconstruct_painted(photo, drawn))[1]
    assert (masked[:4, :4] == 128).all()
    assert (masked == 128).all(axis=-1).mean() == pytest.approx(1 / 16)
    strip = pictures(model.draw_strip(photo, 0, "random"))
    assert [(seen == 128).all(axis=-1).mean() for seen in strip[:4]] == pytest.approx([0.25, 0.5, 0.75, 15 / 16])
    assert np.array_equal(strip[6], filled), "0.75, as above"
    classes = classifier.classify(photo)
    assert len(classes) == 4
    assert sum(classes.values()) == pytest.approx(1.0)
    assert list(classes.values()) == sorted(classes.values(), reverse=True)
    assert len(pictures(model.attend(photo))) == 1 + 4
    canvas = np.asarray(model.canvas(photo))
    assert np.array_equal(canvas[::28, ::28], original), "the picture to paint on is what the model sees"


@pytest.mark.quick
def test_pixels_are_painted(segmenter, models, photo, tmp_path):
    page = Segmenter(segmenter).paint(photo)
    shown, over, classes = pictures(page)
    assert shown.shape == over.shape == classes.shape == (60, 80, 3)
    assert abs(over.astype(int) - (shown.astype(int) + classes) // 2).mean() < 8, "but for the compression"
    assert 'class="legend"' in page
    (tmp_path / "x.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"x\.jpg cannot be read as an image"):
        Segmenter(segmenter).paint(str(tmp_path / "x.jpg"))
    with pytest.raises(UserError, match="another kind of model"):
        Segmenter(models[1])


@pytest.mark.quick
def test_what_cannot_be_drawn_is_named(models, photo, tmp_path):
    model = Autoencoder(models[0])
    (tmp_path / "x.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"x\.jpg cannot be read as an image"):
        Classifier(models[1]).classify(str(tmp_path / "x.jpg"))
    Image.new("RGB", (1, 400000)).save(tmp_path / "line.png")
    with pytest.raises(UserError, match="too narrow"):
        model.attend(str(tmp_path / "line.png"))
    with pytest.raises(UserError, match="hides all of 16 patches"):
        model.reconstruct_painted(photo, np.full((8, 8), 255, np.uint8))
    with pytest.raises(UserError, match="hides none of 16 patches"):
        model.reconstruct_painted(photo, read_painted([]))
    with pytest.raises(UserError, match="keeps 0 of 16 patches"):
        model.reconstruct(photo, 0.95, 0, "random")
    with pytest.raises(UserError, match="-port 99999"):
        main([models[0], "-port", "99999"])
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"-port {port} is taken"):
            main([models[0], "-port", port])


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not CHROMIUM or not DRIVER:
        pytest.skip("Chromium and its driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-sync"):
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1300,1400")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return a run of LiT that has not begun, with its tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    opts = [*TINY, "MODEL.TYPE", "IMAGE_TEXT", "MODEL.NUM_CLASSES", 0, "DATA.CROP_PCT", 1.0, "LIT.EMBED_DIM", 12]
    opts += ["TEXT.EMBED_DIM", 16, "TEXT.DEPTH", 1, "TEXT.NUM_HEADS", 2, "TEXT.VOCAB_SIZE", 450, "TEXT.POSITIONS", 60]
    config = get_config(None, opts)
    weight_files.write_pdparams(
        folder / "clip.pdparams",
        {name: StoredTensor.of(value.numpy()) for name, value in build_clip(config).state_dict().items()},
    )
    (folder / "clip.yaml").write_text(config.dump())
    make_tokenizer(folder / "sentencepiece.bpe.model")
    return str(folder / "clip.pdparams")


@pytest.mark.quick
def test_texts_in_any_language(clip, photo):
    zero_shot = ZeroShot(clip)
    bars = zero_shot.classify(photo, "a cat\n\n  un chien \n一只猫\na cat")
    assert list(bars) == ["a cat", "un chien", "一只猫"]
    assert sum(bars.values()) == pytest.approx(1.0)
    for lines, words in (("", "a text in each line"), ("\n".join(map(str, range(51))), "At most 50 texts")):
        with pytest.raises(UserError, match=words):
            zero_shot.classify(photo, lines)
    with pytest.raises(UserError, match="-classifier, -segmenter or -clip RUN is needed"):
        main([])


@pytest.fixture
def address(models, segmenter, clip, tmp_path):
    """Serve the page, and return its host and port."""
    pytest.importorskip("gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tools.demo",
        models[0],
        "-classifier",
        models[1],
        "-segmenter",
        segmenter,
        "-clip",
        clip,
        "-port",
        str(port),
    ]
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=runtime.original_environment(), stdout=log, stderr=log)
    try:
        wait_for(lambda: answers(port), 120, tmp_path / "server.log")
        yield port
        assert server.poll() is None, "the server has ended"
    finally:
        server.kill()


def wait_for(what, secs, log=None):
    """Return what a function gives as soon as it is true."""
    until = time.monotonic() + secs
    while time.monotonic() < until:
        result = what()
        if result:
            return result
        time.sleep(0.1)
    raise AssertionError(log.read_text() if log else f"nothing came in {secs} seconds")


def answers(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False


def test_the_page_in_a_browser(address, browser, photo, tmp_path):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    def find(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def sources(selector="#pictures img"):
        try:
            return [image.get_attribute("src") for image in find(selector)]
        except StaleElementReferenceException:  # the page was being changed
            return []

    def upload(path):
        browser.get(f"http://127.0.0.1:{address}/")
        (field, *_) = wait_for(lambda: find("#photo input[type=file]"), 60)
        field.send_keys(str(path))

    def choose(name):
        next(tab for tab in find("button[role=tab]") if tab.text == name).click()

    upload(photo)
    first = wait_for(lambda: len(sources()) == 5 and sources(), 60)
    assert wait_for(lambda: len(sources("#strip img")) == 8, 60)
    slider = find("#ratio input[type=range]")[0]
    ActionChains(browser).drag_and_drop_by_offset(slider, -120, 0).perform()
    second = wait_for(lambda: len(sources()) == 5 and sources() != first and sources(), 60)
    assert second[0] == first[0]
    hosts = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => new URL(entry.name).host)"
    )
    assert set(hosts) <= {f"127.0.0.1:{address}", ""}, "the page asks other servers"

    find("#sketch, button.label-wrap")[0].click()
    canvas = wait_for(lambda: [shown for shown in find("#sketch canvas") if shown.is_displayed()], 60)[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    paint = ActionChains(browser).move_to_element(canvas).click_and_hold().move_by_offset(60, 60).release()
    paint.perform()
    wait_for(lambda: find("#sketch button[aria-label='Save changes']"), 60)[0].click()
    painted = wait_for(lambda: len(sources()) == 5 and sources() != second and sources(), 60)
    assert painted[0] == first[0]

    choose("Classification")
    wait_for(lambda: "%" in "".join(bar.text for bar in find("#classes")), 60)
    choose("Segmentation")
    wait_for(lambda: len(sources("#maps img")) == 3, 60)
    assert find("#maps .legend span")
    choose("Attention")
    wait_for(lambda: len(sources("#heads img")) == 5, 60)
    choose("Zero-shot")
    wait_for(lambda: "a ship" in "".join(bar.text for bar in find("#zs-bars")), 60)
    assert find("#zs-bars")[0].text.count("%") == 3, "texts of the languages that the model was made for"
    texts = find("#zs-texts textarea")[0]
    texts.clear()
    texts.send_keys("une grenouille\n马")
    find("#zs-button")[0].click()
    wait_for(lambda: "une grenouille" in "".join(bar.text for bar in find("#zs-bars")), 60)
    assert find("#zs-bars")[0].text.count("%") == 2
    choose("Reconstruction")
    next(button for button in find("button") if button.text == "temple").click()
    wait_for(lambda: len(sources()) == 5 and sources()[0] != first[0], 60)

    broken, large = tmp_path / "broken.jpg", tmp_path / "large.jpg"
    broken.write_bytes(b"this is not a photo")
    large.write_bytes(Path(photo).read_bytes() + bytes(11 << 20))
    for path, message in ((broken, "cannot be read as an image"), (large, "exceed the maximum allowed size")):
        upload(path)
        wait_for(lambda message=message: message in browser.find_element(By.TAG_NAME, "body").text.lower(), 60)
        assert answers(address)
    upload(photo)
    wait_for(lambda: len(sources()) == 5, 60)
    log = (tmp_path / "server.log").read_text()
    assert log.startswith(f"the page is at http://127.0.0.1:{address}; Ctrl-C ends it\n")
    assert not re.search("HTTP/|Traceback", log), log


# ---- strangers: the server as a program that knows its interface meets it


def ask(port, photo, layers=None):
    """Call a function of the page with paths of files; returns what the server says in the end."""
    name, data = "reconstruct", [{"path": str(photo)}, 0.5, 0, "random"]
    if layers is not None:
        editor = {"background": None, "layers": [{"path": str(path)} for path in layers], "composite": None, "id": None}
        name, data = "reconstruct_painted", [{"path": str(photo)}, editor]
    headers = {"Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", f"/gradio_api/call/{name}", json.dumps({"data": data}), headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    if answer.status != 200:
        return body
    connection.request("GET", f"/gradio_api/call/{name}/{json.loads(body)['event_id']}")
    return connection.getresponse().read().decode()


def test_no_file_is_opened_that_was_not_uploaded(address, photo, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link.jpg").symlink_to(photo)
    tries = [
        photo,
        tmp_path / "link.jpg",
        "/dev/zero",
        tmp_path / "fifo",
        "/etc/passwd",
        f"{tmp_path}/../{photo}",
        "\0",
    ]
    for path in tries:
        for answer in (ask(address, path), ask(address, photo, [path])):
            assert "event: error" in answer, answer
            assert "was not uploaded here" in answer or "null" in answer, answer
    for path in (photo, "/etc/passwd", ROOT / "README.md"):
        connection = http.client.HTTPConnection("127.0.0.1", address, timeout=10)
        connection.request("GET", f"/gradio_api/file={path}")
        assert connection.getresponse().status in (403, 404)
    assert answers(address)


def test_an_upload_that_breaks_off_is_no_error(address, tmp_path):
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n"
    head += b"Content-Type: multipart/form-data; boundary=----x\r\n\r\n------x\r\n"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", address)) as stranger:
            stranger.sendall(head + b'Content-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\nabc')
            time.sleep(0.5)
    assert answers(address)
    time.sleep(0.5)
    assert (tmp_path / "server.log").read_text() == f"the page is at http://127.0.0.1:{address}; Ctrl-C ends it\n"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:7860", "10.0.0.1"])
def test_other_host_names_are_not_served(address, host):
    connection = http.client.HTTPConnection("127.0.0.1", address, timeout=10)
    connection.request("GET", "/", headers={"Host": host})
    assert connection.getresponse().status == 400


def test_uploads_go_with_the_server(models, photo, tmp_path):
    pytest.importorskip("gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**runtime.original_environment(), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "tools.demo", models[0], "-port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: answers(port), 120)
    boundary, content = "----x", Path(photo).read_bytes()
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(
        "POST", "/gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    (upload,) = json.loads(connection.getresponse().read())
    assert Path(upload).read_bytes() == content
    assert "event: complete" in ask(port, upload)
    server.terminate()
    assert server.wait(30) == 143
    assert server.stderr.read().decode().splitlines()[-1] == "ended by SIGTERM"
    assert not list(tmp_path.glob("mae-demo-*"))
