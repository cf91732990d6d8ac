"""The configuration: frozen, checked where it is made, with errors that say what to do."""

import dataclasses

import pytest

from wtacrs import ESTIMATORS, SamplingConfig
from wtacrs.config import GRAD_NORM_SOURCES


@pytest.mark.parametrize("name", ["full", *ESTIMATORS])
def test_every_estimator_has_a_config(name):
    assert SamplingConfig(estimator=name, budget=1.0, floor=0.0).estimator == name


def test_defaults_and_frozen():
    config = SamplingConfig()
    assert (config.estimator, config.budget, config.grad_norms) == ("wtacrs", 0.3, "auto")
    assert (config.floor, config.seed) == (0.01, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.budget = 0.5


@pytest.mark.parametrize("source", GRAD_NORM_SOURCES)
def test_every_source_has_a_config(source):
    assert SamplingConfig(grad_norms=source).grad_norms == source


@pytest.mark.parametrize("name", ["include", "exclude"])
@pytest.mark.parametrize(
    "pattern", [["a.*"], ("a", "b"), lambda name: True], ids=["list", "tuple", "predicate"]
)
def test_patterns(name, pattern):
    assert getattr(SamplingConfig(**{name: pattern}), name) is pattern


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"estimator": "best"}, ["'best'", "unknown", "full", *ESTIMATORS]),
        ({"budget": 0.0}, ["budget=0.0", "(0, 1]", "for instance 0.3"]),
        ({"budget": -0.1}, ["budget=-0.1", "(0, 1]"]),
        ({"budget": 30}, ["budget=30", "(0, 1]"]),
        ({"budget": float("nan")}, ["budget=nan", "(0, 1]"]),
        ({"grad_norms": "best"}, ["'best'", "unknown", *GRAD_NORM_SOURCES]),
        ({"grad_norms": "oracle"}, ["'oracle'", "twice", "'auto'"]),
        ({"norm_table_limit_gib": 0.0}, ["norm_table_limit_gib=0.0", "above 0", "'position'"]),
        ({"floor": -0.1}, ["floor=-0.1", "[0, 1)", "0.01"]),
        ({"floor": 1.0}, ["floor=1.0", "[0, 1)", "0.01"]),
        ({"floor": float("nan")}, ["floor=nan", "[0, 1)", "0.01"]),
        ({"norm_table_limit_gib": "4"}, ["norm_table_limit_gib='4'", "a number"]),
        ({"include": "a.*"}, ["include='a.*'", "a string", "['a.*']"]),
        ({"exclude": "a.*"}, ["exclude='a.*'", "a string", "['a.*']"]),
    ],
)
def test_bad_input_is_named(options, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        SamplingConfig(**options)
    assert all(word in str(error.value) for word in words), str(error.value)
