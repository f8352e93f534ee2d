"""Reading YAML files, their bases and overrides. Messages are compared in full."""

from pathlib import Path
from typing import Any

import pytest

from train.config.config_file import read_config_tree


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "run.yaml") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def values(path: str, *overrides: str) -> Any:
    reading = read_config_tree(path, overrides)
    assert reading.faults == []
    assert reading.tree is not None
    return reading.tree.plain()


def faults(path: str, *overrides: str) -> list[str]:
    return [str(fault) for fault in read_config_tree(path, overrides).faults]


def where(path: str, *keys: str | int, overrides: tuple[str, ...] = ()) -> str:
    tree = read_config_tree(path, overrides).tree
    assert tree is not None
    return str(tree.find(keys)[0])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 0.0005),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("010", 10),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("true", True),
        ("False", False),
        ("", None),
        ("~", None),
        ("null", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("n", "n"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("90ep", "90ep"),
        ('"5"', "5"),
        ("'true'", "true"),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
    ],
)
def test_a_value_is_read_as_in_yaml_1_2_in_files_and_overrides(text: str, value: object) -> None:
    from_file = values(write(f"key: {text}\n"))["key"]
    from_override = values(write("other: 1\n"), f"key={text}")["key"]
    assert [from_file, from_override] == [value, value]
    assert [type(from_file), type(from_override)] == [type(value), type(value)]


def test_maps_merge_and_lists_replace_over_several_bases() -> None:
    write("a: {x: 1, y: {p: 1, q: 2}}\nl: [1, 2, 3]\nn: null\n", "deep/first.yaml")
    write("base: deep/first.yaml\na: {y: {q: 3}}\nn: {m: 1}\n", "second.yaml")
    write("base: ../second.yaml\na: {x: 5}\nl: [9]\n", "runs/third.yaml")
    assert values("runs/third.yaml") == {"a": {"x": 5, "y": {"p": 1, "q": 3}}, "l": [9], "n": {"m": 1}}


def test_overrides_merge_maps_replace_lists_and_the_later_one_counts() -> None:
    path = write("a: {x: 1, y: 2}\nl: [1, 2]\n")
    assert values(path, "a.x=3", "a={y: 4}", "l=[]", "b.c.d=text", "a.x=5") == {
        "a": {"x": 5, "y": 4},
        "l": [],
        "b": {"c": {"d": "text"}},
    }


def test_an_override_reaches_into_a_list_by_place(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("algorithms:\n- {name: ema, half_life: 8ba}\n- {name: mixup}\nmilestones: [30ep, 60ep]\n")
    overrides = ["algorithms.0.half_life=2ba", "algorithms.1.alpha=1", "milestones.1=50ep", "milestones.-1=9ep"]
    reading = read_config_tree(path, overrides[:3])
    assert reading.tree is not None and reading.faults == []
    assert reading.tree.plain() == {
        "algorithms": [{"name": "ema", "half_life": "2ba"}, {"name": "mixup", "alpha": 1}],
        "milestones": ["30ep", "50ep"],
    }
    assert str(reading.tree.find(["algorithms", 0, "half_life"])[0]) == "override 'algorithms.0.half_life=2ba'"
    outside = read_config_tree(path, ["algorithms.2.alpha=1", "milestones.0=1ep"])
    assert [str(fault) for fault in outside.faults] == [
        "override 'algorithms.2.alpha=1': the list has no place 2; places count from 0, and the last one is 1"
    ]
    assert outside.tree is not None and outside.tree.plain()["milestones"] == ["1ep", "60ep"]
    counted_from_the_end = read_config_tree(path, overrides[3:])
    assert counted_from_the_end.tree is not None
    assert counted_from_the_end.tree.plain()["milestones"] == {"-1": "9ep"}  # not a place: refused as no list


def test_each_value_knows_its_file_and_line_or_its_override() -> None:
    write("a:\n  x: 1\n  y:\n    p: 1\nl:\n  - 1\n  - k: 2\n    m: 3\n", "base.yaml")
    path = write("base: base.yaml\n\na:\n  y:\n    q: 2\n")
    overrides = ("a.x=7", "b.c=1")
    assert [where(path, *keys, overrides=overrides) for keys in (["a", "y", "p"], ["a", "y", "q"], ["a", "y"])] == [
        "base.yaml:4",
        "run.yaml:5",
        "run.yaml:4",
    ]
    assert [where(path, *keys, overrides=overrides) for keys in (["l", 0], ["l", 1, "m"], ["a", "x"], ["b"])] == [
        "base.yaml:6",
        "base.yaml:8",
        "override 'a.x=7'",
        "override 'b.c=1'",
    ]
    assert where(path, "a", "missing", overrides=overrides) == "run.yaml:3"


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('', ['run.yaml:1: the file is empty; a configuration is a map, one `key: value` per line']),
        ('# x\n', ['run.yaml:1: the file is empty; a configuration is a map, one `key: value` per line']),
        ('- 1\n- b\n', ["run.yaml:1: the file holds [1, 'b']; a configuration is a map, one `key: value` per line"]),
        ('a: 1\nb: [1,\nc: 2\n', ["run.yaml:4: not YAML: while parsing a flow sequence, expected ',' or ']', "
                                  "but got '<stream end>'"]),
        ('a: 1\n---\nb: 2\n', ['run.yaml:2: not YAML: expected a single document in the stream, '
                               'but found another document']),
        ('a: 1\nb: "\x07"\n', ['run.yaml:2: not YAML: the character #x0007 is not allowed']),
        ('a: 1\nb: *gone\n', ["run.yaml:2: not YAML: found undefined alias 'gone'"]),
        ('a: 1\nb: &x [*x]\n', ['run.yaml:2: an alias inside its own anchor; write the value out']),
        ('a: 1\n? [b]\n: 2\n', ['run.yaml:2: a key must be plain text']),
        ('a: !!python/name:os.system\n', ["run.yaml:1: the tag in front of '' does not fit; remove it"]),
        ('a: !thing {b: 1}\n', ['run.yaml:1: the tag !thing is not supported; remove it']),
        ('a: 1\nb: {c: 1, c: 2}\na: 2\n', ['run.yaml:2: c: given twice, first in line 2; remove one of the two',
                                           'run.yaml:3: a: given twice, first in line 1; remove one of the two']),
        ('a: 1\nbase: gone.yaml\n', ["run.yaml:2: base: 'gone.yaml' is not a file; the path is relative to ./"]),
        ('base: 3\n', ['run.yaml:1: base: 3 must be the path of a YAML file']),
        ('base: run.yaml\n', ['run.yaml:1: base: run.yaml -> run.yaml is a circle; remove one of these base keys']),
    ],
)  # fmt: skip
def test_a_file_that_is_not_a_map_of_yaml_is_named_with_its_line(text: str, expected: list[str]) -> None:
    assert faults(write(text)) == expected


def test_a_file_that_cannot_be_read_is_named() -> None:
    assert faults("gone.yaml") == ["gone.yaml: cannot be read: No such file or directory; give a YAML file that exists"]
    Path("latin.yaml").write_bytes(b"a: \xe9\n")
    assert faults("latin.yaml") == ["latin.yaml: cannot be read: not UTF-8 text; give a YAML file that exists"]


@pytest.mark.parametrize("text", ["s3://b/exp #1", "s3://b/exp#1", "#1", "a # b", "1 # one", "what?/x#"])
def test_an_override_has_no_comments_and_is_literal_to_its_last_character(text: str) -> None:
    assert values(write("a: 1"), f"a={text}") == {"a": text}


def test_what_is_in_quotes_or_brackets_is_still_yaml() -> None:
    assert values(write("a: 1"), "a='x #1'") == {"a": "x #1"}
    assert values(write("a: 1"), "a=[x#1, y]") == {"a": ["x#1", "y"]}


def test_aliases_that_make_billions_of_values_are_refused_at_once() -> None:
    """Each line doubles the one before it ten times over: "billion laughs"."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    message = "it has more than 10,000 values, aliases written out"
    assert faults(write("\n".join(lines))) == [f"run.yaml:1: {message}"]
    assert faults(write("seed: 1"), f"x=[{', '.join(['1'] * 10_001)}]")[0].endswith(message)


def test_lists_that_are_nested_without_end_are_refused() -> None:
    assert faults(write("a: " + "[" * 5000)) == ["run.yaml:1: not YAML: lists or maps are nested too deeply"]


def test_a_circle_of_bases_is_a_fault_of_the_file_that_closes_it() -> None:
    write("base: two.yaml\n", "one.yaml")
    write("a: 1\nbase: one.yaml\n", "two.yaml")
    assert faults("one.yaml") == [
        "two.yaml:2: base: one.yaml -> two.yaml -> one.yaml is a circle; remove one of these base keys"
    ]


def test_a_wrong_override_is_named_and_the_others_are_still_read() -> None:
    path = write("a: 1\n")
    assert faults(path, "a", "a..b=1", "=1", "b=[1", "c={d: 1, d: 2}", "e=1") == [
        "override 'a': must be key.path=value, e.g. optimizer.lr=0.1",
        "override 'a..b=1': must be key.path=value, e.g. optimizer.lr=0.1",
        "override '=1': must be key.path=value, e.g. optimizer.lr=0.1",
        "override 'b=[1': not YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'",
        "override 'c={d: 1, d: 2}': d: given twice; remove one of the two",
    ]
    tree = read_config_tree(path, ["a", "e=1"]).tree
    assert tree is not None
    assert tree.plain() == {"a": 1, "e": 1}
