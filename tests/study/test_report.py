"""Comparisons of drawn studies, their records, and reports in three formats."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmc_fast import UserError
from hmc_fast.evaluation.comparison import FriedmanTest
from hmc_fast.evaluation.localisation import KIND, METRICS, SCHEMA
from hmc_fast.study import StudyRecord, compare, read_study, write_study_record, write_study_reports
from hmc_fast.study.conclusion import accuracy_caveat, conclusion
from hmc_fast.study.plots import _indistinguishable
from hmc_fast.study.report import comparison_json, escape_latex

Draw = Callable[..., StudyRecord]
SKILLS = {"hmc_net": 2.0, "resnet50": 0.0, "vgg16": 1.0}


def test_better_models_are_found_better(study: Draw) -> None:
    (group,) = compare([study(SKILLS)]).groups
    assert [result.label for result in group.results] == ["hmc_net", "resnet50", "vgg16"]
    pair = group.pairs[0]
    assert (pair.first, pair.second) == ("hmc_net", "resnet50")
    assert pair.auc_difference.low > 0
    assert pair.delong_p < 0.01
    assert pair.nadeau_bengio_p < 0.05
    best, worst = (r.pooled_auc.value for r in group.results[:2])
    assert pair.auc_difference.value == pytest.approx(best - worst)
    test = group.friedman["auc_roc"]
    assert isinstance(test, FriedmanTest)
    assert test.mean_ranks[0] < test.mean_ranks[1]
    assert np.sum(group.results[0].confusion) == 80


def test_ablations_share_a_group_and_say_what_changed(study: Draw) -> None:
    plain = study({"hmc_net": 0.0}, name="plain")
    cropped = study({"hmc_net": 1.0}, name="cropped", crop_breast=True, size=512)
    (group,) = compare([plain, cropped]).groups
    assert [result.label for result in group.results] == [
        "hmc_net",
        "hmc_net, size 512, crop_breast True",
    ]
    assert len(group.pairs) == 1
    with pytest.raises(UserError, match="has the same settings as plain"):
        compare([plain, study({"hmc_net": 1.0}, name="again")])
    other_folds = study({"hmc_net": 0.0}, folds=4)
    assert len(compare([plain, other_folds]).groups) == 2


def test_repeats_are_averaged_and_their_ensemble_stands_beside(study: Draw) -> None:
    (group,) = compare([study(SKILLS, repeats=3)]).groups
    result = group.results[0]
    assert len(result.folds) == 15
    assert result.ensemble_auc.value > result.pooled_auc.value
    assert result.ensemble_gain.value == pytest.approx(
        result.ensemble_auc.value - result.pooled_auc.value
    )
    test = group.friedman["accuracy"]
    assert isinstance(test, FriedmanTest)
    assert test.blocks == 5


def test_three_classes_and_two_models_have_fewer_tests(study: Draw) -> None:
    (group,) = compare([study({"hmc_net": 1.0, "vgg16": 0.0}, classes=3)]).groups
    assert group.pairs[0].delong_p is None
    assert group.pairs[0].nadeau_bengio_p is not None
    assert group.friedman["accuracy"] == "Friedman's test needs at least 2 folds and 3 models"


def test_records_come_back_as_they_were(study: Draw, tmp_path: Path) -> None:
    first = study(SKILLS, repeats=2)
    write_study_record(tmp_path / "study.jsonl", first)
    again = read_study(tmp_path / "study.jsonl")
    assert comparison_json(compare([again])) == comparison_json(compare([first]))


@pytest.mark.parametrize("label", [2, -1, 2**70])
def test_a_label_that_is_no_class_is_refused(study: Draw, tmp_path: Path, label: int) -> None:
    path = tmp_path / "study.jsonl"
    write_study_record(path, study(SKILLS))
    path.write_text(path.read_text().replace('"labels": [', f'"labels": [{label}, ', 1))
    lines = path.read_text().splitlines()
    changed = json.loads(lines[1])
    changed["labels"].pop()
    path.write_text("\n".join([lines[0], json.dumps(changed), *lines[2:]]))
    with pytest.raises(UserError, match="line 2: has a label that is none of 0 to 1"):
        read_study(path)


def test_damaged_and_unfinished_records(study: Draw, tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    whole = study(SKILLS)
    whole.jobs.pop()
    write_study_record(path, whole)
    with pytest.raises(UserError, match="vgg16 has no result for fold 4 of repeat 0"):
        compare([read_study(path)])
    path.write_text(path.read_text()[:-9])
    with pytest.raises(UserError, match="study.jsonl, a study record, line 1[0-9]: cannot be read"):
        read_study(path)
    with pytest.raises(UserError, match="neither a study folder nor a study record"):
        read_study(tmp_path / "none")
    with pytest.raises(UserError, match="study.json: cannot be read"):
        read_study(tmp_path)


class TagBalance(HTMLParser):
    """Fails on a table cell or row that is closed in the wrong place."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_reports_in_three_formats(study: Draw, tmp_path: Path) -> None:
    comparison = compare([study(SKILLS, repeats=2, phantoms=True)])
    markdown, html, latex = write_study_reports(comparison, tmp_path)
    texts = [path.read_text() for path in (markdown, html, latex)]
    for text in texts:
        for expected in ("procedural phantoms", "Patient-disjoint folds", "not a medical device"):
            assert expected in text
        assert "Smallest detectable gap of mean ranks with 3 models and 5 folds" in text
    for figure in re.findall(r"\]\((figures/[^)]+)\)", texts[0]):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    for line in re.findall(r"^\|.*\|$", texts[0], re.MULTILINE):
        assert line.count("|") > 3
    balance = TagBalance()
    balance.feed(texts[1])
    assert not balance.open
    assert "&lt;runs&gt;" in texts[1]
    assert "&lt;runs>" in texts[0]
    assert "<runs>" not in texts[0] + texts[1]
    assert texts[1].count("data:image/png;base64,") == 4
    assert 'src="figures' not in texts[1]
    assert r"mias\_films" in texts[2]
    assert texts[2].count(r"\begin{tabular}") == texts[2].count(r"\end{tabular}}") == 6
    assert "Â" not in texts[2]
    if shutil.which("pdflatex"):
        subprocess.run(
            ["pdflatex", "-interaction=batchmode", "-halt-on-error", latex.name],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip


def test_a_report_opens_with_its_conclusion_and_has_its_caveat_twice(
    study: Draw, tmp_path: Path
) -> None:
    (group,) = compare([study(SKILLS)]).groups
    assert re.fullmatch(
        r"Better than chance: hmc_net and vgg16; the best is hmc_net, pooled AUC .*\] *\. "
        r"3 of 3 pairs differ .* most of all hmc_net from resnet50, which is 0\.\d{3} lower\.",
        conclusion(group),
    )
    (weak,) = compare([study({"hmc_net": 0.0, "vgg16": 0.0})]).groups
    assert conclusion(weak).startswith("No model is better than chance; the highest is ")
    assert "No two models can be told apart" in conclusion(weak)
    (alone,) = compare([study({"hmc_net": 2.0})]).groups
    assert conclusion(alone).startswith("hmc_net ranks films better than chance: its pooled AUC")
    for path in write_study_reports(compare([study(SKILLS)]), tmp_path):
        text = path.read_text()
        assert text.count("A model that calls everything rest has an accuracy of 0.500 here") == 2
        assert text.index("Better than chance") < text.index("The last epoch counts")


def test_models_that_call_everything_rest_are_named(study: Draw) -> None:
    (group,) = compare([study({"hmc_net": 1.0, "vgg16": 0.0})]).groups
    useful, blind = group.results
    useful = replace(useful, confusion=[[193, 23], [34, 8]])
    blind = replace(blind, confusion=[[216, 0], [42, 0]])
    for result, accuracy in ((useful, 0.778), (blind, 0.837)):
        result.mean_std["accuracy"] = (accuracy, 0.01)
    assert accuracy_caveat(replace(group, results=[useful, blind])) == (
        "A model that calls everything rest has an accuracy of 0.837 here, the best accuracy of "
        "this table; vgg16 does just that. Accuracy and specificity alone say nothing of a model: "
        "read the AUC."
    )
    useful.mean_std["accuracy"] = (0.9, 0.01)
    assert "the best accuracy" not in accuracy_caveat(replace(group, results=[useful, blind]))


def test_a_fitted_lesion_head_has_no_last_epoch(study: Draw, tmp_path: Path) -> None:
    for path in write_study_reports(compare([study({"hmc_net_lesions": 1.0})]), tmp_path):
        assert "Lesion heads are fitted to the circles" in path.read_text()
        assert "last epoch" not in path.read_text()


def map_scores(model: str) -> dict[str, Any]:
    """What ``hmc-fast localise`` writes, drawn."""
    known, unknown = ({"value": v, "low": v, "high": v} for v in (0.25, None))
    method = {
        "layer": "layer4",
        "films": 4,
        "flat_maps": 0,
        **dict.fromkeys(METRICS, known),
        "deletion_curve": [0.9, 0.5, 0.1],
        "insertion_curve": [0.1, 0.5, 0.9],
        "sanity": {"films": 1, "undefined": 1, "rank_correlation": unknown, "changed": None},
    }
    baseline = {"pointing_game": known, "energy_in_lesion": unknown}
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "model": model,
        "task": "malignant",
        "films": 4,
        "patients": 3,
        "checkpoints": 1,
        "films_by_severity": {"malignant": 4},
        "left_out": {},
        "environment": {},
        "training": {},
        "settings": {"shares": [0, 0.5, 1]},
        "methods": {"gradcam": method, "scale": method},
        "baselines": {"uniform": baseline},
    }


def test_scores_of_the_maps_enter_records_and_reports(study: Draw, tmp_path: Path) -> None:
    drawn = study(SKILLS)
    drawn.localisation["vgg16"] = map_scores("vgg16")
    write_study_record(tmp_path / "study.jsonl", drawn)
    again = read_study(tmp_path / "study.jsonl")
    assert again.localisation == drawn.localisation
    assert len(again.jobs) == len(drawn.jobs)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text((tmp_path / "study.jsonl").read_text().replace('"left_out"', '"left"'))
    with pytest.raises(UserError, match=r"damaged.jsonl.*left_out"):
        read_study(damaged)
    for path in write_study_reports(compare([again]), tmp_path):
        assert "How good the maps are" in path.read_text()
    table = (tmp_path / "report.md").read_text()
    cell = "0.250 [0.250, 0.250]"
    assert f"| vgg16 | gradcam | {cell} | {cell} | {cell} | {cell} | – |" in table
    assert f"| vgg16 | uniform, no model | {cell} | – | – | – | – |" in table
    assert "films: vgg16 4 of 3 patients" in table
    assert (tmp_path / "figures" / "deletion-insertion-0.png").is_file()


def test_a_leaking_protocol_is_said_in_every_report(study: Draw, tmp_path: Path) -> None:
    leaking = study(SKILLS)
    leaking.settings["protocol"] = "augment-first"
    for path in write_study_reports(compare([leaking]), tmp_path):
        assert "This protocol leaks" in path.read_text()
    with pytest.raises(UserError, match="unknown metric 'auc'"):
        write_study_reports(compare([leaking]), tmp_path, metric="auc")


def test_a_subset_of_mias_is_said_in_every_report(study: Draw, tmp_path: Path) -> None:
    record = study({"hmc_net": 3.0, "resnet50": 1.0})
    record.data["missing"] = 7
    for path in write_study_reports(compare([record]), tmp_path):
        assert "a subset (7 films of Info.txt are missing)" in path.read_text()


def test_latex_has_no_bare_special_character() -> None:
    assert escape_latex("a_b & 5 % ± χ² {x}") == r"a\_b \& 5 \% $\pm$ $\chi^2$ \{x\}"


def test_bars_of_the_diagram_join_only_what_lies_within_the_difference() -> None:
    assert _indistinguishable([1.0, 1.5, 2.6, 4.0], 1.2) == [(1.0, 1.5), (1.5, 2.6)]
    assert _indistinguishable([1.0, 3.0], 1.0) == []
    assert _indistinguishable([1.0, 2.0, 3.0], 5.0) == [(1.0, 3.0)]
