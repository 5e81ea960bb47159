"""Charts: axes that can be read, series that can be told apart, names that fit."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from build_engine import svg

NS = "{http://www.w3.org/2000/svg}"
# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency" (2009), at
# full severity: linear RGB as somebody without one kind of cone sees it.
SEEN_BY = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(colour: str) -> np.ndarray:
    """Linear RGB of #rrggbb."""
    values = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """As WCAG 2 computes it."""
    first, second = (float(np.dot(linear(colour), (0.2126, 0.7152, 0.0722))) for colour in (one, other))
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


def difference(one: str, other: str, seen: str) -> float:
    """Distance in CIE Lab (ΔE 1976)."""
    labs = []
    for colour in (one, other):
        rgb = np.clip(SEEN_BY[seen] @ linear(colour), 0, 1)
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
        f = np.cbrt(np.maximum(xyz / (0.9505, 1.0, 1.089), 0.008856))
        labs.append(np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]))
    return float(np.linalg.norm(labs[0] - labs[1]))


@pytest.mark.parametrize("seen", SEEN_BY)
def test_colours_can_be_told_apart_without_seeing_all_of_them(seen: str) -> None:
    for colours in (svg.COLOURS[:6], svg.DARK_COLOURS[:6], svg.ORDER, svg.DARK_ORDER):
        for one, other in itertools.combinations(colours, 2):
            assert difference(one, other, seen) > 20, (one, other)


def test_colours_stand_out_from_their_ground() -> None:
    assert min(contrast(colour, "#ffffff") for colour in (*svg.COLOURS, *svg.ORDER)) >= 3
    assert min(contrast(colour, svg.DARK_GROUND) for colour in (*svg.DARK_COLOURS, *svg.DARK_ORDER)) >= 3
    assert (len(svg.COLOURS), len(svg.ORDER)) == (len(svg.DARK_COLOURS), len(svg.DARK_ORDER))


def parse(drawn: str) -> ElementTree.Element:
    """The root of a chart."""
    return ElementTree.fromstring(drawn)


def labels(drawn: str, anchor: str) -> list[str]:
    """Texts that end ("end": those of y) or stand ("middle": those of x, and titles) at their place."""
    return [each.text or "" for each in parse(drawn).iter(f"{NS}text") if each.get("text-anchor") == anchor]


def test_a_logarithmic_axis_of_a_short_span_has_labels() -> None:
    """From 110 to 180 there is neither a 1, a 2 nor a 5."""
    points = [(1.0, 110.0), (2.0, 180.0)]
    drawn = svg.chart("t", svg.Axis("x"), svg.Axis("y", logarithmic=True), [svg.Series("s", points)])
    assert len(labels(drawn, "end")) >= 3


@pytest.mark.parametrize("low", [0.0003, 0.7, 3.0, 101.0, 9e5])
@pytest.mark.parametrize("factor", [1.0, 1.01, 1.5, 3.0, 40.0, 1e4, 1e9])
def test_axes_have_a_few_labels_whatever_they_span(low: float, factor: float) -> None:
    for logarithmic in (True, False):
        axis = svg.Axis("v", logarithmic)
        drawn = svg.chart("t", axis, axis, [svg.Series("s", [(low, low), (low * factor, low * factor)])])
        assert 2 <= len(labels(drawn, "end")) <= 16, (low, factor, logarithmic)
        for mark in parse(drawn).iter(f"{NS}circle"):
            assert 0 <= float(mark.attrib["cx"]) <= svg.WIDTH
            assert 0 <= float(mark.attrib["cy"]) <= svg.HEIGHT


def test_labels_stand_where_they_were_asked_for_and_do_not_touch() -> None:
    levels = [1.0, 2.0, 3.0, 4.0, 64.0, 65.0]
    axis = svg.Axis("in flight", logarithmic=True, ticks=levels)
    drawn = svg.chart("t", axis, svg.Axis("y"), [svg.Series("s", [(each, each) for each in levels])], svg.NARROW)
    assert labels(drawn, "middle")[:-1] == ["1", "2", "3", "4", "64"]  # 65 would stand upon 64


def test_series_have_marks_of_their_own_and_names_that_fit() -> None:
    series = [svg.Series(f"a rather long name {number}", [(1.0, 1.0 + number), (2.0, 2.0)]) for number in range(6)]
    drawn = svg.chart("t", svg.Axis("x"), svg.Axis("y"), series, svg.NARROW)
    keys = [each for each in parse(drawn) if each.tag in (f"{NS}circle", f"{NS}polygon")]
    assert len({(each.tag, re.sub(r"[\d.,-]+", "", each.get("points", ""))) for each in keys}) >= 2
    names = [each for each in parse(drawn).iter(f"{NS}text") if (each.text or "").startswith("a rather")]
    assert len(names) == 6
    assert all(float(each.attrib["x"]) + 20 * 13 * 0.55 <= svg.NARROW.width for each in names)
    assert len({(each.get("x"), each.get("y")) for each in names}) == 6
    top = min(float(line.attrib["y1"]) for line in parse(drawn).iter(f"{NS}line") if line.get("class") == "grid")
    assert all(float(each.attrib["y"]) < top for each in names)


def test_an_axis_is_logarithmic_only_where_values_span_much() -> None:
    """8.7 to 10.1 ms over a logarithmic axis looked like a cliff."""
    assert svg.fitting("ms", [8.7, 10.1]) == svg.Axis("ms", logarithmic=False, zero=True)
    assert svg.fitting("ms", [8.7, 90.0, math.nan]).logarithmic
    assert not svg.fitting("ms", [0.0, 90.0]).logarithmic  # zero has no place there
    assert not svg.fitting("ms", []).logarithmic


def test_labels_of_sizes_are_whole() -> None:
    sizes = [1.0, 256.0, 1024.0, 2048.0]
    axis = svg.Axis("streams", logarithmic=True, ticks=sizes)
    drawn = svg.chart("t", axis, svg.Axis("y"), [svg.Series("s", [(each, each * 1000) for each in sizes])])
    assert labels(drawn, "middle")[:4] == ["1", "256", "1,024", "2,048"]
    assert "2M" in labels(drawn, "end")


def test_a_rule_is_within_the_drawing_even_where_no_point_is() -> None:
    rules = [svg.Rule(500.0, "limit"), svg.Rule(9.0, "limit of x", upright=True), svg.Rule(-1.0, "cannot be shown")]
    y = svg.Axis("ms", logarithmic=True)
    drawn = svg.chart("t", svg.Axis("x"), y, [svg.Series("s", [(1.0, 10.0)])], rules=rules)
    level, upright = [each for each in parse(drawn) if each.get("class") == "rule"]
    assert svg.WIDE.top <= float(level.attrib["y1"]) <= svg.HEIGHT - svg.WIDE.bottom
    assert svg.WIDE.left <= float(upright.attrib["x1"]) <= svg.WIDTH - svg.WIDE.right
    assert "cannot be shown" not in drawn


@pytest.mark.parametrize("y", [svg.Axis("y", zero=True), svg.Axis("y", logarithmic=True)], ids=["zero", "logarithmic"])
def test_a_bar_of_an_uncertain_mean_ends_at_the_edge(y: svg.Axis) -> None:
    """Two runs give intervals that reach below zero."""
    one = svg.Series("s", [(1.0, 96.0), (2.0, 300.0)], errors=[200.0, 10.0], line=False)
    drawn = svg.chart("t", svg.Axis("x"), y, [one])
    bars = [line for line in parse(drawn).iter(f"{NS}line") if line.get("class") == "c0"]
    assert len(bars) == 2
    assert all(float(line.attrib["y2"]) <= svg.HEIGHT - svg.WIDE.bottom + 0.1 for line in bars)
    assert "-" not in "".join(labels(drawn, "end"))


def test_a_chart_says_what_it_is_and_styles_nothing() -> None:
    one = svg.Series("s", [(1.0, 1.0), (2.0, 4.0)], dashed=True, notes=["first & last"], rank=1)
    drawn = svg.chart('a "b" < c', svg.Axis("x", bounds=(0, 4)), svg.Axis("y", zero=True), [one])
    root = parse(drawn)
    assert (root.get("role"), root.get("aria-label")) == ("img", 'a "b" < c')
    assert [each.text for each in root.iter(f"{NS}title")] == ["first & last"]
    assert not [each for each in root.iter() if each.get("style") or each.tag.endswith(("style", "script"))]
    line = root.find(f"{NS}polyline")
    assert line is not None
    assert (line.get("class"), line.get("color")) == ("o1", svg.ORDER[1])
