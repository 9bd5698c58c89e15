"""report.html and the side-by-side video: whole, escaped, and loading nothing from anywhere."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from ipro_core.evaluation.charts import Line, line_chart, pair_chart
from ipro_core.evaluation.facesim import FaceSim
from ipro_core.evaluation.film import face_window, side_by_side, thumbnails
from ipro_core.evaluation.report import write_report
from ipro_core.evaluation.statistics import paired_gain
from ipro_core.evaluation.verdict import Comparison, PairResult, VideoResult
from ipro_core.types import StepRecord

NAN = float("nan")
EVIL = '<script>alert("1")</script>'
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that every tag closes in order, and keeps what is needed of the page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def sample(scenes=3, motion=0.3):
    generator = torch.Generator().manual_seed(0)

    def video(level, moved):
        cosine_T = level + 0.05 * torch.randn(9, generator=generator)
        cosine_T[4] = NAN
        facesim = FaceSim(cosine_T, ~cosine_T.isnan(), 1, f"toy {EVIL}")
        strip = torch.randint(0, 255, (3, 3, 16, 24), generator=generator, dtype=torch.uint8)
        return VideoResult(facesim, FaceSim(cosine_T - 0.1, facesim.seen_T, 1, "judge"), moved, 0.1, strip)

    pairs = tuple(
        PairResult(
            f"scene {k} {EVIL}",
            f"smiles & waves {EVIL}",
            k,
            video(0.5, 0.3),
            video(0.55 + 0.1 * k, motion),
            video(0.8, 0.3),
            normalize(torch.randn(8, generator=generator), dim=0),
            (0, 4, 8),
        )
        for k in range(scenes)
    )
    names = [pair.scene for pair in pairs]
    gain = paired_gain([p.base.facesim.all for p in pairs], [p.tuned.facesim.all for p in pairs], names)
    return Comparison(pairs, gain, gain, stranger_floor=0.04, kl=0.0321)


STEPS = [
    StepRecord(k, {"lr": 1e-4, "kl": 0.001 * k, EVIL: k**2, "reward": NAN if k == 2 else 0.4 + 0.01 * k})
    for k in range(6)
]


def report(path, comparison, **arguments):
    write_report(path, comparison, title=f"Run {EVIL}", **arguments)
    return path.read_text(encoding="utf-8")


def test_the_report_holds_the_figures_and_loads_nothing(tmp_path):
    result = sample()
    settings, environment = {"grad_steps": 4, EVIL: EVIL}, {"torch": "2.13.0"}
    text = report(tmp_path / "r.html", result, steps=STEPS, settings=settings, environment=environment)
    page = Page(text)
    words = " ".join(page.words)
    for value in (result.facesim_base, result.facesim_tuned, result.real_ceiling, result.gain.ci95[0]):
        assert f"{value:.3f}" in words
    for name in (
        "0.0321",
        "grad_steps",
        "2.13.0",
        "no face",
        "smiles & waves",
        "Head motion",
        "reward",
        "kl",
    ):
        assert name in words
    assert "script" not in page.tags
    assert EVIL in words, "strangers' text is shown, as text"
    assert page.addresses and all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not re.search(r"https?:|url\(|@import", text)
    # Three scenes of three rows of three pictures.
    assert page.tags.count("img") == 27
    picture = Image.open(BytesIO(base64.b64decode(page.addresses[0].split(",")[1])))
    assert picture.size == (24, 16)


def test_a_curve_is_drawn_for_every_metric_that_changes(tmp_path):
    text = report(tmp_path / "r.html", sample(), steps=STEPS)
    titles = re.findall(r'<figure><figcaption>(.*?)</figcaption><svg viewBox="0 0 320', text)
    # lr is constant; reward and kl come first.
    assert titles == ["reward", "kl", "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;"]
    assert "Training" not in Page(report(tmp_path / "r.html", sample())).words


def test_the_same_values_give_the_same_bytes(tmp_path):
    report(tmp_path / "a.html", sample(), steps=STEPS)
    report(tmp_path / "b.html", sample(), steps=STEPS)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_flags_stand_on_top_and_the_worst_scene_first(tmp_path):
    text = report(tmp_path / "r.html", sample(motion=0.1))
    assert "Signs of a hack" in text and "Head motion fell to 0.33" in text
    assert "No sign of a hack" not in text
    # Scene k gains about 0.05 + 0.1 k, more than the noise between scenes.
    assert re.findall(r"<h3>scene (\d)", text) == ["0", "1", "2"]
    assert text.index("Signs of a hack") < text.index("Summary") < text.index("<h3>scene 0")


def test_one_scene_and_no_judge_and_no_real_clip_still_make_a_report(tmp_path):
    from dataclasses import replace

    one = sample(scenes=1)
    pair = one.pairs[0]
    pair = replace(
        pair, real=None, base=replace(pair.base, judge=None), tuned=replace(pair.tuned, judge=None)
    )
    lone = replace(one, pairs=(pair,), judge_gain=None, stranger_floor=NAN, kl=None)
    text = report(tmp_path / "r.html", lone)
    Page(text)
    assert "no interval from one scene" in text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower()
    assert "judge" not in text and "below the real clips" not in text, "no check is claimed that was not made"


def test_the_report_shows_guards_scale_transfer_and_the_number_of_scenes(tmp_path):
    result = sample()
    words = " ".join(Page(report(tmp_path / "r.html", result)).words)
    assert "Guards" in words and words.count("head motion") == 1 and "not shown" in words
    assert f"({100 * result.scale.calibrated(result.facesim_base):.0f} %)" in words
    assert "transfer to the judge" in words and f"{result.transfer.value:.2f}" in words
    assert "3 scenes cannot tell any gain from chance; one of 0.05 needs" in words
    assert "No difference is shown" in words, "three scenes have no p below 0.25, whatever their interval"
    rows = (tmp_path / "r.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 3 and (tmp_path / "r.json").exists()


def test_several_people_have_their_table(tmp_path):
    from dataclasses import replace

    from ipro_core.evaluation.people import PeopleKept, PersonKept, Swap

    one = sample(scenes=1)
    pair = one.pairs[0]
    lost = FaceSim(torch.full((9,), NAN), torch.zeros(9, dtype=torch.bool), 1, "toy")
    people = PeopleKept(
        (
            PersonKept(EVIL, pair.tuned.facesim, 0.5, 0.3, 0.25, 0.0, {0: 0}),
            PersonKept("Bo", lost, 0.0, NAN, 0.0, 0.0, {}),
        ),
        (Swap(4, EVIL, "Bo"),),
        0.5,
        0.625,
        1,
    )
    told = replace(one, pairs=(replace(pair, tuned=replace(pair.tuned, people=people)),))
    page = Page(report(tmp_path / "r.html", told))
    words = " ".join(page.words)
    assert "identity F1 0.625" in words and "at frame 4" in words and "missing" in words and "25%" in words
    assert "script" not in page.tags and EVIL in words


def test_a_spreadsheet_runs_nothing(tmp_path):
    from dataclasses import replace

    one = sample(scenes=1)
    told = replace(one, pairs=(replace(one.pairs[0], prompt="=HYPERLINK(1)"),))
    report(tmp_path / "r.html", told)
    assert ",'=HYPERLINK(1)," in (tmp_path / "r.csv").read_text()


def test_lines_break_where_a_value_is_missing():
    chart = line_chart([Line("a", [0, 1, NAN, 1, NAN, 2, 3])], title="a")
    assert chart.count("<polyline") == 3
    assert chart.count("<circle") == 1, "a lone value is a dot"
    assert "nan" not in chart


@pytest.mark.parametrize("values", [[], [5.0], [0.0, 0.0], [1e-9, 2e-9], [-1e6, 1e6], [NAN, NAN]])
def test_any_values_make_a_finite_chart(values):
    for chart in (
        line_chart([Line("a", values)], title="a"),
        pair_chart([("a", v, v) for v in values], title="a"),
    ):
        assert not re.search(r"nan|inf", chart)
        Page(chart)


def test_a_loss_is_drawn_as_one():
    chart = pair_chart([("up", 0.1, 0.2), ("down", 0.2, 0.1)], title="pairs")
    assert re.findall(r"join (\w+)", chart) == ["rise", "fall"]


def test_videos_stand_side_by_side_under_their_names():
    base, tuned = torch.zeros(4, 3, 20, 30), torch.ones(6, 3, 20, 30)
    base[3] = 0.25
    shown = side_by_side({"base": base, "tuned": tuned})
    # 20 rows are enlarged 13 times to at least 256, below a title of 28; two columns and a gap of 8.
    assert shown.shape == (6, 3, 28 + 260, 2 * 390 + 8)
    assert (shown[:3, :, 28:, :390] == 0).all()
    assert (shown[3:, :, 28:, :390] == 0.25).all(), "the shorter one ends on its last frame"
    assert (shown[:, :, 28:, 398:] == 1).all()
    assert shown[0, 0, :28, :390].max() > 0.5, "a name is written there"


def test_the_window_holds_every_face_with_a_margin_and_stays_in_the_frame():
    boxes = torch.tensor([[100.0, 50, 140, 100], [120, 60, 160, 110]])
    # All boxes: 100 … 160 by 50 … 110; 0.45 × 60 = 27 more on each side.
    assert face_window(boxes, 480, 832) == (23, 138, 73, 188)
    assert face_window(boxes[:0], 480, 832) == (0, 480, 0, 832)
    assert face_window(torch.tensor([[2.0, 2, 60, 60]]), 64, 64) == (0, 64, 0, 64)
    pictures = thumbnails(torch.full((2, 3, 480, 832), 0.2), (23, 138, 73, 188), max_side=50)
    assert pictures.shape == (2, 3, 50, 50)
    assert np.unique(pictures.numpy()).tolist() == [51]
