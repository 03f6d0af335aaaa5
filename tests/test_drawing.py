"""What all figures share: every objective and OOD set has a colour of its own."""

from oodlib.encoders import OBJECTIVES
from oodlib.plots import style as drawing


def test_every_objective_has_a_colour_of_its_own():
    assert set(OBJECTIVES) <= drawing.COLORS.keys()
    assert set(OBJECTIVES) <= drawing.OBJECTIVE_NAMES.keys()
    assert len(set(drawing.COLORS.values())) == len(drawing.COLORS)
    assert drawing.objective_name("supcon") == "SupCon"
    assert drawing.objective_name("other") == "other"


def test_ood_sets_have_colours_of_their_own():
    colors = drawing.ood_colors(["a", "b", "c"])
    assert list(colors) == ["a", "b", "c"]
    assert len(set(colors.values())) == 3
