"""How the command line reads specs that are not as they should be."""

import warnings
from pathlib import Path

import pytest
from gatekey.cli.problems import Failure
from gatekey.cli.specs import read_spec


def test_an_anchor_that_is_given_again_is_no_news(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("product: &a one\ndisplayName: &a Two\ntenantNoun: *a\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = read_spec(path)
    assert (spec.product, spec.display_name, spec.tenant_noun) == ("one", "Two", "Two")


@pytest.mark.parametrize(("count", "told"), [(50, 50), (51, 50), (5_000, 50)])
def test_of_very_many_problems_the_first_are_told(tmp_path: Path, count: int, told: int) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("".join(f"field{number}: 1\n" for number in range(count)))
    with pytest.raises(Failure) as raised:
        read_spec(path)
    first, *lines = raised.value.lines
    assert first == f"{path} has {count} problems (SPEC_MALFORMED)"
    assert len([line for line in lines if "FIELD_UNKNOWN" in line]) == told
    assert lines[told:] == ([f"and {count - told} more"] if count > told else [])


@pytest.mark.parametrize(
    "text",
    [
        "%YAML 1.3\n---\nproduct: one",
        "%YAML 9.9\n---\nproduct: one",
        "roles:\n%YAML 9.9\n  - role: one",
        "a: {\n%YAML 9.9\n}",
    ],
)
def test_what_the_parser_does_not_foresee_is_a_problem_of_the_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(Failure) as raised:
        read_spec(path)
    assert raised.value.reason == "SPEC_MALFORMED"
    assert all("(SYNTAX)" in line for line in raised.value.lines[1:])


@pytest.mark.parametrize("value", ["!!float ee", "!!float .", "!!int +", "!!float <&4*nbE", "!!bool x"])
@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_a_value_that_is_not_what_its_tag_says_is_a_problem_of_the_field(
    tmp_path: Path, version: str, value: str
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"%YAML {version}\n---\nproduct: {value}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Failure, match="has a problem") as raised:
            read_spec(path)
    assert raised.value.lines[1].startswith("spec.product: line 3: text, in quotes if need be, is needed, not `")
