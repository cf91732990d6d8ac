"""The benchmark's command: what it measures by default, prints and writes."""

import json

from wtacrs_experiments.bench.__main__ import main


def test_selection_is_measured_for_both_estimators_that_choose_by_weight(tmp_path, capsys):
    main(["selection", "--pairs", "1", "--output", str(tmp_path)])
    ratios = json.loads((tmp_path / "selection.json").read_text())["ratio_to_full"]
    printed = capsys.readouterr().out
    assert [*ratios] == ["wtacrs@0.3", "pps@0.3"]
    for name, ratio in ratios.items():
        assert f"selection {name}: {ratio['median']:.3f} of full" in printed
