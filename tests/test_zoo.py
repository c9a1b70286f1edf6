"""Which models are found, which of them a pattern means, and where their files go."""

from pathlib import Path

import pytest

from omz_tools.descriptors import zoo
from omz_tools.errors import DescriptorError, SelectionError

HEAD = "task_type: text_prediction\nlicense: https://example.org/license\n"


def add_model(folder: Path, description: str = "a model") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yml").write_text(f"description: {description}\n{HEAD}", encoding="utf-8")
    return folder


def add_composite(folder: Path, stages: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = f"description: several models\n{HEAD}stages_order: {stages}\n"
    (folder / "composite-model.yml").write_text(text, encoding="utf-8")
    return folder


def selected(entries: dict[str, zoo.Entry], *patterns: str) -> list[str]:
    return [entry.name for entry in zoo.select(entries, patterns)]


def description_of(entry: zoo.Entry) -> str:
    return entry.load().descriptor.description


@pytest.fixture
def animals(tmp_path: Path) -> dict[str, zoo.Entry]:
    for name in ("cat", "cow", "dog"):
        add_model(tmp_path / name)
    return {name: entry for name, entry in zoo.find([tmp_path]).items() if not name.startswith("gpt-2")}


# find


def test_the_shipped_models_are_found_without_any_folder() -> None:
    entries = zoo.find()
    assert list(entries) == ["gpt-2", "gpt-2-mini"]
    for name, entry in entries.items():
        model = entry.load()
        assert (model.name, model.subdirectory) == (name, f"public/{name}")
        assert model.folder == zoo.shipped() / name
        assert model.descriptor.export


def test_models_at_any_depth_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    add_model(tmp_path / "z")
    add_model(tmp_path / "some" / "where" / "a")
    add_model(tmp_path / "some" / "where" / "a" / "inside")
    assert list(zoo.find([tmp_path])) == ["a", "gpt-2", "gpt-2-mini", "inside", "z"]


def test_a_folder_that_is_itself_a_model_is_found(tmp_path: Path) -> None:
    folder = add_model(tmp_path / "mine")
    assert zoo.find([folder])["mine"].path == folder / "model.yml"


def test_a_folder_named_relative_to_the_current_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_model(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert zoo.find([Path()])["mine"].path == tmp_path.resolve() / "mine" / "model.yml"


def test_own_models_go_before_the_shipped_ones(tmp_path: Path) -> None:
    add_model(tmp_path / "gpt-2", "my own")
    entries = zoo.find([tmp_path])
    assert description_of(entries["gpt-2"]) == "my own"
    assert entries["gpt-2-mini"].path.is_relative_to(zoo.shipped())


def test_of_several_folders_the_first_wins(tmp_path: Path) -> None:
    for folder in ("first", "second", "third"):
        add_model(tmp_path / folder / "shared", folder)
    add_model(tmp_path / "second" / "pair", "second")
    add_model(tmp_path / "third" / "pair", "third")
    add_model(tmp_path / "third" / "alone", "third")
    entries = zoo.find([tmp_path / "first", tmp_path / "second", tmp_path / "third"])
    found = {name: description_of(entries[name]) for name in ("shared", "pair", "alone")}
    assert found == {"shared": "first", "pair": "second", "alone": "third"}


def test_folders_may_come_from_an_iterator(tmp_path: Path) -> None:
    add_model(tmp_path / "mine")
    assert "mine" in zoo.find(iter([tmp_path]))


@pytest.mark.parametrize("second", ["model", "composite"])
def test_two_models_of_one_name_in_one_folder_are_refused(tmp_path: Path, second: str) -> None:
    one = add_model(tmp_path / "public" / "twin")
    other = tmp_path / "intel" / "twin"
    add_model(other) if second == "model" else add_composite(other, "[twin]")
    with pytest.raises(DescriptorError, match="two models are called twin") as caught:
        zoo.find([tmp_path])
    assert str(one) in str(caught.value)
    assert str(other) in str(caught.value)


def test_a_folder_with_two_descriptors_is_refused(tmp_path: Path) -> None:
    add_composite(add_model(tmp_path / "both"), "[gpt-2]")
    with pytest.raises(DescriptorError, match="two models are called both"):
        zoo.find([tmp_path])


@pytest.mark.parametrize("name", ["aux", "a b ", "trailing.", "x:y", "new\nline"])
def test_a_folder_whose_name_no_model_can_have_is_refused(tmp_path: Path, name: str) -> None:
    folder = add_model(tmp_path / name)
    with pytest.raises(DescriptorError, match="no model can have the name") as caught:
        zoo.find([tmp_path])
    assert str(folder) in str(caught.value)


def test_a_folder_without_any_descriptor_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.yaml").write_text("")
    with pytest.raises(SelectionError, match=r"no model\.yml") as caught:
        zoo.find([tmp_path])
    assert str(tmp_path) in str(caught.value)


def test_each_folder_must_hold_a_descriptor(tmp_path: Path) -> None:
    add_model(tmp_path / "good" / "mine")
    (tmp_path / "empty").mkdir()
    for folders in (["good", "empty"], ["empty", "good"]):
        with pytest.raises(SelectionError, match="empty"):
            zoo.find([tmp_path / folder for folder in folders])


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SelectionError, match="is not a folder") as caught:
        zoo.find([tmp_path / name])
    assert str(tmp_path / name) in str(caught.value)


# Where the files go


@pytest.mark.parametrize(
    ("folder", "subdirectory"),
    [
        ("m", "public/m"),
        ("some/where/m", "public/m"),
        ("public/m", "public/m"),
        ("public/group/m", "public/group/m"),
        ("intel/m", "intel/m"),
        ("intel/group/m", "intel/group/m"),
        ("some/intel/m", "public/m"),
        ("Intel/m", "public/m"),
    ],
)
def test_subdirectories_are_those_of_open_model_zoo_and_public_for_all_else(
    tmp_path: Path, folder: str, subdirectory: str
) -> None:
    add_model(tmp_path / folder)
    entry = zoo.find([tmp_path])["m"]
    assert entry.subdirectory == subdirectory
    assert entry.load().subdirectory == subdirectory


def test_the_folder_of_the_descriptor_travels_with_the_model(tmp_path: Path) -> None:
    folder = add_model(tmp_path / "intel" / "m")
    assert zoo.find([tmp_path])["m"].load().folder == folder


# select


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["cat"], ["cat"]),
        (["c*"], ["cat", "cow"]),
        (["?o?"], ["cow", "dog"]),
        (["[!c]*"], ["dog"]),
        (["*"], ["cat", "cow", "dog"]),
        (["dog", "cat"], ["dog", "cat"]),
        (["dog", "*"], ["dog", "cat", "cow"]),
        (["*", "dog"], ["cat", "cow", "dog"]),
        (["cat", "c*", "cat"], ["cat", "cow"]),
        ([], []),
    ],
)
def test_patterns_choose_models_once_in_the_order_of_the_patterns(
    animals: dict[str, zoo.Entry], patterns: list[str], names: list[str]
) -> None:
    assert selected(animals, *patterns) == names


@pytest.mark.parametrize("pattern", ["", "ca", "CAT", "Cat", "cat ", "[", "*x*", "cat,dog", "./cat"])
def test_a_pattern_that_matches_nothing_is_named_with_what_there_is(
    animals: dict[str, zoo.Entry], pattern: str
) -> None:
    with pytest.raises(SelectionError) as caught:
        zoo.select(animals, ["dog", pattern])
    assert caught.value.what == f'No matching models: "{pattern}"'
    assert "cat, cow, dog" in caught.value.hint


def test_many_models_are_counted_and_not_listed(tmp_path: Path) -> None:
    for number in range(19):
        add_model(tmp_path / f"m{number:02}")
    with pytest.raises(SelectionError, match="21 models, listed by --print_all") as caught:
        zoo.select(zoo.find([tmp_path]), ["none"])
    assert "m00" not in str(caught.value)


def test_a_broken_descriptor_matters_only_when_it_is_read(tmp_path: Path) -> None:
    broken = add_model(tmp_path / "broken", "[")
    add_model(tmp_path / "whole")
    entries = zoo.find([tmp_path])
    [whole] = zoo.select(entries, ["w*"])
    assert description_of(whole) == "a model"
    [entry] = zoo.select(entries, ["broken"])
    with pytest.raises(DescriptorError, match=r"^In model broken: .*") as caught:
        entry.load()
    assert f"{broken / 'model.yml'}:" in str(caught.value)


def test_a_broken_composite_descriptor_matters_only_when_it_is_chosen(tmp_path: Path) -> None:
    broken = add_composite(tmp_path / "broken", "5")
    add_model(tmp_path / "whole")
    entries = zoo.find([tmp_path])
    assert selected(entries, "whole") == ["whole"]
    with pytest.raises(DescriptorError) as caught:
        zoo.select(entries, ["broken"])
    assert f"{broken / 'composite-model.yml'}:4:15:" in str(caught.value)


# Composite models


def test_a_composite_model_gives_its_stages_in_their_order(tmp_path: Path) -> None:
    composite = add_composite(tmp_path / "intel" / "duo", "[duo-second, duo-first]")
    for stage in ("duo-first", "duo-second"):
        add_model(composite / stage)
    entries = zoo.find([tmp_path])
    assert entries["duo"].is_composite
    assert not entries["duo-first"].is_composite
    assert selected(entries, "duo") == ["duo-second", "duo-first"]
    assert [entry.subdirectory for entry in zoo.select(entries, ["duo"])] == [
        "intel/duo/duo-second",
        "intel/duo/duo-first",
    ]


def test_a_stage_that_is_chosen_as_well_comes_once(tmp_path: Path) -> None:
    add_composite(tmp_path / "duo", "[two, one]")
    add_model(tmp_path / "one")
    add_model(tmp_path / "two")
    entries = zoo.find([tmp_path])
    assert selected(entries, "one", "duo") == ["one", "two"]
    assert selected(entries, "duo", "one") == ["two", "one"]


def test_the_stages_of_a_composite_model_may_be_shipped_models(tmp_path: Path) -> None:
    add_composite(tmp_path / "duo", "[gpt-2-mini, gpt-2]")
    assert selected(zoo.find([tmp_path]), "duo") == ["gpt-2-mini", "gpt-2"]


def test_stages_that_do_not_exist_are_all_named(tmp_path: Path) -> None:
    composite = add_composite(tmp_path / "duo", "[gpt-2, ghost, phantom]")
    with pytest.raises(DescriptorError, match="there is no model ghost, phantom") as caught:
        zoo.select(zoo.find([tmp_path]), ["duo"])
    assert str(composite / "composite-model.yml") in str(caught.value)


@pytest.mark.parametrize("stage", ["duo", "trio"])
def test_a_stage_that_is_a_composite_model_is_refused(tmp_path: Path, stage: str) -> None:
    composite = add_composite(tmp_path / "duo", f"[gpt-2, {stage}]")
    add_composite(tmp_path / "trio", "[gpt-2, duo]")
    with pytest.raises(DescriptorError, match=stage) as caught:
        zoo.select(zoo.find([tmp_path]), ["duo"])
    assert str(composite / "composite-model.yml") in str(caught.value)
