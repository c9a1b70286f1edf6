"""model.yml: what is read, what is refused, and where each mistake is said to stand."""

import copy
import hashlib
import json
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
import yaml
from conftest import comes_to_an_end
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omz_tools.descriptors import descriptor, located_yaml, reading, zoo
from omz_tools.errors import DescriptorError
from omz_tools.system.files import RelativeName

SHIPPED = sorted(zoo.shipped().glob("*/model.yml"))
FUZZ = settings(deadline=None, derandomize=True, max_examples=200)

DIGEST = "0123456789abcdef" * 4
REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
HEAD = "description: A model\ntask_type: text_prediction\nlicense: https://example.org/license\n"
MODEL = f"""\
{HEAD}framework: pytorch
files:
  - name: m/config.json
    size: 2
    checksum: {{$type: sha256, value: {DIGEST}}}
    source: {{$type: hugging_face, repo: some/model, file: config.json, revision: {REVISION}}}
  - name: m/model.safetensors
    size: 9
    checksum: {{$type: sha256, value: {DIGEST}}}
    source: {{$type: local, path: model.safetensors}}
export:
  checkpoint: m
  model_class: GPT2LMHeadModel
  inputs: [{{name: input, type: i64, shape: [B, L]}}]
  outputs: [{{name: output, type: f32, shape: [B, L, 7]}}]
precisions: [FP16, FP32]
"""

Place = tuple[int, int]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.yml"


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def mistakes(path: Path, text: str | bytes) -> list[tuple[int, int, str]]:
    """Line, column and text of each mistake that loading `text` reports."""
    with pytest.raises(DescriptorError) as caught:
        reading.load(write(path, text))
    title, *lines = caught.value.what.split("\n")
    found = [re.fullmatch(rf"{re.escape(str(path))}:(\d+):(\d+): (.+)", line) for line in lines]
    assert found, caught.value
    assert all(found), caught.value
    assert title == f"the descriptor has {'a mistake' if len(found) == 1 else f'{len(found)} mistakes'}:"
    return [(int(match[1]), int(match[2]), match[3]) for match in found if match]


def places(path: Path, text: str) -> list[Place]:
    return [(line, column) for line, column, _ in mistakes(path, text)]


def place_of(text: str, part: str) -> Place:
    """Line and column, from 1, of the only place where `part` stands in `text`; a | in `part` marks a later place."""
    before, _, after = part.rpartition("|")
    assert text.count(before + after) == 1, part
    before = text[: text.index(before + after) + len(before)]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def changed(old: str, new: str, text: str = MODEL) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


# What is read


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_each_shipped_descriptor_loads_and_its_files_say_where_to_get_them(path: Path) -> None:
    model = reading.load(path)
    assert model.export
    assert model.precisions == ("FP16", "FP32")
    assert f"{model.export.checkpoint}/model.safetensors" in [entry.name for entry in model.files]
    for entry in model.files:
        assert entry.sources
        assert entry.digest.algorithm == "sha256"
        assert len(entry.digest.value) == 64


def test_gpt_2_and_its_small_sister_are_shipped() -> None:
    assert [path.parent.name for path in SHIPPED] == ["gpt-2", "gpt-2-mini"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_files_that_travel_with_a_descriptor_are_the_pinned_ones(path: Path) -> None:
    for entry in reading.load(path).pinned:
        for source in entry.sources:
            if isinstance(source, descriptor.Local):
                data = (path.parent / source.path).read_bytes()
                assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.size, entry.digest.value)


def test_what_was_read_cannot_be_changed(path: Path) -> None:
    model = reading.load(write(path, MODEL))
    assert model.export
    entry, spec = model.files[0], model.export.inputs[0]
    for value in (model, entry, entry.digest, entry.sources[0], model.export, spec):
        for name in value.__struct_fields__:
            with pytest.raises(AttributeError):
                setattr(value, name, None)
    lists = (model.files, model.precisions, entry.sources, model.export.inputs, model.export.outputs, spec.shape)
    assert {type(value) for value in lists} == {tuple}


def test_each_value_arrives_where_it_belongs(path: Path) -> None:
    model = reading.load(write(path, MODEL))
    source = descriptor.HuggingFace("some/model", REVISION, RelativeName("config.json"))
    assert model.files == (
        descriptor.FileEntry(RelativeName("m/config.json"), 2, descriptor.Sha256(DIGEST), source),
        descriptor.FileEntry(
            RelativeName("m/model.safetensors"), 9, descriptor.Sha256(DIGEST), descriptor.Local("model.safetensors")
        ),
    )
    assert model.export == descriptor.Export(
        checkpoint=RelativeName("m"),
        model_class="GPT2LMHeadModel",
        inputs=(descriptor.TensorSpec("input", "i64", ("B", "L")),),
        outputs=(descriptor.TensorSpec("output", "f32", ("B", "L", 7)),),
    )


def test_plain_checksums_and_sources_mean_what_they_mean_in_open_model_zoo(path: Path) -> None:
    entry = f"files:\n  - {{name: a, size: 1, checksum: {'ab' * 48}, source: http://example.org/a}}\n"
    [read] = reading.load(write(path, HEAD + entry)).files
    assert read.digest == descriptor.Sha384("ab" * 48)
    assert read.sources == (descriptor.Http("http://example.org/a"),)


CORPUS = f"""\
{MODEL}accuracy:
  - metric: perplexity
    value: 29
    dataset: a text
    method: by windows
    source: a page
    tolerance: 0.5
    corpus:
      file:
        name: texts.zip
        size: 3
        checksum: {{$type: sha256, value: {DIGEST}}}
        source: {{$type: hugging_face, repo_type: dataset, repo: some/texts, file: t.zip, revision: {REVISION}}}
      member: folder/text.txt
      sha256: {DIGEST[::-1]}
"""


def test_a_figure_names_the_text_that_it_was_measured_on(path: Path) -> None:
    model = reading.load(write(path, CORPUS))
    [accuracy] = model.accuracy
    assert accuracy.corpus
    assert (accuracy.value, accuracy.tolerance, accuracy.corpus.member) == (29.0, 0.5, "folder/text.txt")
    assert accuracy.corpus.digest == descriptor.Sha256(DIGEST[::-1])
    assert accuracy.corpus.file.sources == (descriptor.HuggingFace("some/texts", REVISION, "t.zip", "dataset"),)
    assert [entry.name for entry in model.pinned] == ["m/config.json", "m/model.safetensors", "texts.zip"]
    plain = changed("      member: folder/text.txt\n", "", changed(f"      sha256: {DIGEST[::-1]}\n", "", CORPUS))
    [accuracy] = reading.load(write(path, plain)).accuracy
    assert accuracy.corpus
    assert accuracy.corpus.digest == descriptor.Sha256(DIGEST)


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        ("tolerance: 0.5", "tolerance: -1", "tolerance: |-1", ">= 0"),
        ("      member: folder/text.txt\n", "", "corpus:\n      |file:", "needs both"),
        (f"      sha256: {DIGEST[::-1]}\n", "", "corpus:\n      |file:", "needs both"),
        ("member: folder/text.txt", "member: ../text.txt", "member: |../text.txt", "a path must name a file below"),
        ("repo_type: dataset", "repo_type: space", "repo_type: |space", "must be one of model, dataset"),
    ],
)
def test_a_mistake_about_a_text_is_reported_where_it_stands(path: Path, old: str, new: str, at: str, said: str) -> None:
    text = changed(old, new, CORPUS)
    [(line, column, told)] = mistakes(path, text)
    assert (line, column) == place_of(text, at)
    assert said in told


def test_a_text_without_a_source_is_reported(path: Path) -> None:
    before, _, after = CORPUS.rpartition("source: {")
    text = f"{before}source: []{after.partition('}')[2]}"
    [(_, _, told)] = mistakes(path, text)
    assert told == "the list of sources is empty"


def test_sources_are_kept_in_their_order(path: Path) -> None:
    sources = "source: [https://example.org/a, {$type: local, path: b}, {$type: google_drive, id: c}]"
    text = changed("source: {$type: local, path: model.safetensors}", sources)
    assert reading.load(write(path, text)).files[1].sources == (
        descriptor.Http("https://example.org/a"), descriptor.Local("b"), descriptor.GoogleDrive("c")
    )  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "\ufeff", "# a comment\n", "---\n", "%YAML 1.1\n---\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_comments_and_line_ends_change_nothing(path: Path, prefix: str, end: str) -> None:
    plain = reading.load(write(path, MODEL))
    assert reading.load(write(path, (prefix + MODEL).replace("\n", end))) == plain


def test_what_may_be_left_out_may_be_null(path: Path) -> None:
    text = f"{HEAD}export: null\ninput_info: [{{name: input, shape: ~, layout: }}]\n"
    model = reading.load(write(path, text))
    assert model.export is None
    assert model.input_info == (descriptor.InputInfo("input"),)


def test_data_that_is_only_kept_may_have_any_form(path: Path) -> None:
    model = reading.load(write(path, f"{HEAD}model_info: {{a: [1, {{b: null}}]}}\n"))
    assert model.model_info == {"a": [1, {"b": None}]}


# Mistakes and where they stand


def test_everything_wrong_is_reported_at_once_with_line_and_column(path: Path) -> None:
    text = f"""\
# broken on purpose
description: 5
task_type: Text Prediction
framwork: pytorch
files:
  - name: ../config.json
    size: "12"
    checksum: {{$type: sha256, value: {DIGEST.upper()}}}
    source: {{$type: local, path: config.json}}
  - name: é.json
    size: -1
    checksum: {{$type: md5, value: 00}}
    source: /vocab.json
  - size: 3
    checksum: {{$type: sha256, value: {DIGEST}, kind: hex}}
    source: [https://example.org/x, {{$type: http, url: ftp://example.org/x}}, {{url: https://example.org/x}}]
precisions: [FP16, FP8]
quantizable: maybe
accuracy: none
input_info:
  - [input]
"""
    text = text.replace("value: 00", 'value: "00"')
    found = mistakes(path, text)
    expected = [
        (2, 1, "'license' is missing"),
        (2, 14, "quote it"),
        (3, 12, "Text Prediction"),
        (4, 1, "unknown key 'framwork'"),
        (6, 11, "'..'"),
        (7, 11, "Expected `int`, got `str`"),
        (8, 38, DIGEST.upper()[:20]),
        (11, 11, ">= 0"),
        (12, 23, "sha256, sha384"),
        (13, 13, "/vocab.json"),
        (14, 5, "'name' is missing"),
        (15, 104, "unknown key 'kind'"),
        (16, 56, "ftp://example.org/x"),
        (16, 78, "$type"),
        (17, 20, "FP8"),
        (18, 14, "maybe"),
        (19, 11, "a list is needed"),
        (21, 5, "a mapping is needed"),
    ]
    assert [(line, column) for line, column, _ in found] == [(line, column) for line, column, _ in expected]
    for (_, _, said), (_, _, part) in zip(found, expected, strict=True):
        assert part in said


def test_what_does_not_fit_together_is_reported_beside_wrong_values_and_refused_yaml(path: Path) -> None:
    text = changed("name: m/model.safetensors", "name: M/CONFIG.json")
    text = changed("precisions: [FP16, FP32]", "precisions: [FP32, FP32, INT8]", text)
    text = changed("model_class: GPT2LMHeadModel", "model_class: os.system", text)
    bound = "{precision: FP16, difference: 1.0, divergence: 1.0, reason: why}"
    text += f"bounds: [{bound}, {bound}]\nvariants: [stateful, stateless, stateful]\n"
    text = changed("shape: [B, L, 7]", "shape: [B]", text)
    said = "\n".join(what for _, _, what in mistakes(path, f"{text}quantizable: &q no\n"))
    for part in ("twice (capitals", "FP32 stands here twice", "bounds of FP16 stand here twice", "FP16-INT8",
                 "stateful stands here twice", "'stateless'", "GPT2LMHeadModel", "its first two axes",
                 "an anchor (&q)", "'no' does not mean"):  # fmt: skip
        assert part in said


def test_everything_refused_about_the_yaml_is_reported_at_once(path: Path) -> None:
    text = HEAD + "description: again\nfiles: &all []\naccuracy: *all\nframework: !!str onnx\nquantizable: no\n1: one\n"
    assert places(path, text) == [(4, 1), (5, 8), (6, 11), (7, 12), (8, 14), (9, 1)]


@pytest.mark.parametrize("value", ["words", "[words]", "[[]]", "{0: 1}", "~", "&a []"])
def test_an_export_section_of_other_kinds_is_explained(path: Path, value: str) -> None:
    text = changed("inputs: [{name: input, type: i64, shape: [B, L]}]", f"inputs: {value}")
    assert mistakes(path, text)


def test_all_contradictions_are_reported_at_once(path: Path) -> None:
    text = changed("checkpoint: m", "checkpoint: n")
    text = changed("precisions: [FP16, FP32]", "precisions: [FP16, FP16]", text)
    text = changed("shape: [B, L, 7]", "shape: [B, X, 7]", text)
    text = changed("m/model.safetensors", "M/CONFIG.json", text)
    found = mistakes(path, text)
    assert [(line, column) for line, column, _ in found] == [(10, 11), (15, 15), (15, 15), (18, 13), (19, 20)]


def test_an_unknown_key_is_reported_where_the_key_stands(path: Path) -> None:
    [(line, column, said)] = mistakes(path, HEAD + "filez:\n  - name: a\n")
    assert (line, column) == (4, 1)
    assert "'filez'" in said
    assert "files" in said


def test_a_list_of_wrong_length_is_reported_beside_other_mistakes(path: Path) -> None:
    alone = changed("[{name: input, type: i64, shape: [B, L]}]", "[]")
    place = place_of(alone, "[]")
    assert places(path, alone) == [place]
    assert place in places(path, changed("size: 2", "size: two", alone))


def test_columns_count_characters_and_not_bytes(path: Path) -> None:
    text = HEAD + "input_info: [{name: éé𝛑, shape: [-1]}]\n"
    assert places(path, text) == [place_of(text, "-1")]


@pytest.mark.parametrize("tag", ["[sha256]", "{a: b}", "5", "null", "Sha256"])
def test_a_type_of_any_kind_that_is_not_known_is_a_mistake(path: Path, tag: str) -> None:
    text = changed("$type: hugging_face", f"$type: {tag}")
    [(line, column, said)] = mistakes(path, text)
    assert (line, column) == place_of(text, f"{tag}, repo")
    assert "hugging_face" in said


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("size: 2", "size: |2.0"),
        ("size: 2", "size: |true"),
        ("size: 2", "size: |1125899906842625"),
        ("size: 2", "size: |9999999999999999999"),
        ("size: 2", "size:|"),
        (REVISION, "|" + REVISION[:-1]),
        (REVISION, "|main"),
        ("some/model", "|../model"),
        ("some/model", "|some/model/deeper"),
        ("framework: pytorch", "framework: |keras"),
        ("license: https://example.org/license", "license: |file:///license"),
        ("description: A model", "description: |''"),
        ("model_class: GPT2LMHeadModel", "model_class: |os.system"),
        ("precisions: [FP16, FP32]", "precisions: |FP16"),
        ("i64, shape: [B, L]", "|i32, shape: [B, L]"),
        ("path: model.safetensors", "path: |[model.safetensors]"),
    ],
)
def test_a_wrong_value_is_reported_where_the_value_stands(path: Path, old: str, new: str) -> None:
    line, column = place_of(MODEL, old)
    assert places(path, changed(old, new.replace("|", ""))) == [(line, column + new.index("|"))]


def test_quotes_are_advised_only_where_they_help(path: Path) -> None:
    [(_, _, said)] = mistakes(path, changed("size: 2", "size: 2.5"))
    assert "quote it" not in said
    [(_, _, said)] = mistakes(path, changed("A model", "2.5"))
    assert "quote it" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("..", "'..'"),
        ("../x", "'..'"),
        ("a/../../x", "'..'"),
        ("/etc/passwd", "not a relative path"),
        ("C:\\x", "character"),
        ("a\\..\\x", "character"),
        ("a//x", "''"),
        ("./x", "'.'"),
        ("x/", "''"),
        ("", "not a relative path"),
        ("a\x00b", "character"),
        ("a\nb", "character"),
        ("a\x1b[2J", "character"),
        ("a\x85b", "character"),
        ("aux.json", "device"),
        ("COM1", "device"),
        ("a/nul/b", "device"),
        ("con .txt", "device"),
        ("COM¹.txt", "device"),
        ("conin$", "device"),
        ("CONOUT$.log", "device"),
        ("a.", "Windows"),
        ("a ", "Windows"),
        (" a", "Windows"),
        ("a" * 201, "200 bytes"),
        ("é" * 101, "200 bytes"),
        ("abc/" * 250 + "d", "1000 bytes"),
    ],
)
def test_a_file_name_that_is_unsafe_somewhere_is_refused_where_it_stands(path: Path, name: str, said: str) -> None:
    text = changed("name: m/config.json", f"name: {json.dumps(name)}")
    found = mistakes(path, text)
    assert [(line, column) for line, column, _ in found] == [(6, 11)]
    assert said in found[0][2]


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "a/b.c",
        "..a",
        "a..b",
        ".hidden",
        "con_",
        "communion.txt",
        "com10",
        "é/𝛑",
        "a b",
        "é" * 100,
        "abc/" * 249 + "abcd",
    ],
)
def test_a_harmless_file_name_is_kept_as_it_is(name: str) -> None:
    assert RelativeName.parse(name) == name


@pytest.mark.parametrize(
    "other", ["a/b.txt", "A/B.TXT", "a/b.txt/c", "A/B.txt/c/d", "a", "A", "straße/é", "STRASSE/É", "straße/e\u0301"]
)
def test_file_names_that_are_one_on_some_system_collide(path: Path, other: str) -> None:
    entry = "  - {{name: {}, size: 1, checksum: {}, source: https://example.org/x}}\n"
    given = ["straße/é" if "/é" in other.lower() or "\u0301" in other else "a/b.txt", "between", other]
    text = HEAD + "files:\n" + "".join(entry.format(name, "ab" * 48) for name in given)
    assert places(path, text) == [(7, 12)]


def test_file_names_that_only_begin_alike_do_not_collide(path: Path) -> None:
    entry = "  - {{name: {}, size: 1, checksum: {}, source: https://example.org/x}}\n"
    names = ["a", "a.txt", "ab/a", "b/a", "b/ab"]
    text = HEAD + "files:\n" + "".join(entry.format(name, "ab" * 48) for name in names)
    assert [file.name for file in reading.load(write(path, text)).files] == names


INPUT, OUTPUT = "{name: input, type: i64, shape: [B, L]}", "{name: output, type: f32, shape: [B, L, 7]}"


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        (INPUT, INPUT.replace("i64", "f32"), "{name: input", "i64"),
        (INPUT, INPUT.replace("[B, L]", "[B]"), "{name: input", "two axes"),
        (INPUT, INPUT.replace("[B, L]", "[]"), "{name: input", "two axes"),
        (INPUT, f"{INPUT}, {INPUT}", "[{name: input", "length"),
        (INPUT, "", "[]", "length"),
        (OUTPUT, OUTPUT.replace("f32", "i64"), "{name: output", "f32"),
        (OUTPUT, OUTPUT.replace("[B, L, 7]", "[B, L]"), "{name: output", "first two axes"),
        (OUTPUT, OUTPUT.replace("[B, L, 7]", "[L, B, 7]"), "{name: output", "first two axes"),
        (OUTPUT, OUTPUT.replace("7", "V"), "V]", "a third is a number"),
        (OUTPUT, OUTPUT.replace("7", "0"), "0]", ""),
        (OUTPUT, f"{OUTPUT}, {OUTPUT}", "[{name: output", "length"),
        ("model_class:", "opset: 17\n  model_class:", "17", "18"),
        ("[FP16, FP32]", "[FP16, FP32-INT8]", "FP32-INT8", "cannot be made"),
        ("[FP16, FP32]", "[FP32, FP16, FP32]", "FP32]", "twice"),
        ("[FP16, FP32]", "[FP16, FP64]", "FP64", "FP64"),
        ("{$type: local, path: model.safetensors}", "[]", "[]", "empty"),
        ("m/config.json", "m/other.json", "checkpoint: |m", "m/config.json"),
        ("m/model.safetensors", "m/pytorch_model.bin", "checkpoint: |m", "m/model.safetensors"),
        ("m/model.safetensors", "m/model-1.safetensors", "checkpoint: |m", "nor m/model.safetensors.index.json"),
        ("m/model.safetensors", "m/model.safetensors.index.json", "checkpoint: |m", "is called m/….safetensors"),
    ],
)
def test_a_contradiction_is_reported_where_it_stands(path: Path, old: str, new: str, at: str, said: str) -> None:
    text = changed(old, new)
    [(line, column, what)] = mistakes(path, text)
    assert (line, column) == place_of(text, at)
    assert said in what


def another_file(name: str) -> str:
    """The model with an index in place of its weights, and a third file."""
    text = changed("m/model.safetensors", "m/model.safetensors.index.json")
    first = text[text.index("  - name: m/config.json") : text.index("  - name: m/model")]
    return changed(first, first + first.replace("m/config.json", name), text)


def test_an_index_with_a_file_that_it_may_name_is_accepted(path: Path) -> None:
    model = reading.load(write(path, another_file("m/any.safetensors")))
    assert list(model.checkpoint_files) == ["config.json", "any.safetensors", "model.safetensors.index.json"]


@pytest.mark.parametrize("name", ["any.safetensors", "m/deeper/any.safetensors", "n/any.safetensors", "m/any.bin"])
def test_files_that_no_index_may_name_are_not_taken_for_weights(path: Path, name: str) -> None:
    text = another_file(name)
    [(line, column, what)] = mistakes(path, text)
    assert (line, column) == place_of(text, "checkpoint: |m")
    assert "no file of this model is called m/….safetensors" in what


def test_the_files_of_a_checkpoint_are_those_in_its_folder_itself(path: Path) -> None:
    text = changed("m/model.safetensors.index", "m/deeper/model.safetensors.index", another_file("m/model.safetensors"))
    model = reading.load(write(path, text))
    assert model.checkpoint_files == {Path(entry.name).name: entry for entry in model.files[:2]}
    assert reading.load(write(path, HEAD)).checkpoint_files == {}


def test_fixed_axes_that_should_be_dynamic_are_reported_each(path: Path) -> None:
    text = changed("[B, L]", "[1, L]", changed("[B, L, 7]", "[1, L, 7]"))
    assert places(path, text) == [place_of(text, "1, L]"), place_of(text, "1, L, 7]")]


@pytest.mark.parametrize(
    ("line", "at", "said"),
    [
        ("model_info: [a]", "[a]", "a mapping is needed here, not a list"),
        ("model_info:", None, "a mapping is needed here, not nothing"),
        ("postprocessing: [unpack]", "unpack", "a mapping is needed here, not 'unpack'"),
        ("postprocessing: {a: b}", "{a", "a list is needed here, not a mapping"),
        ("export: {}", "{}", "is missing"),
        ("export: [a]", "[a]", "a list does not fit here"),
        ("input_info: [{name: a, layout: {b: c}}]", "{b", "a mapping does not fit here"),
        ("input_info: [{name: a, shape: {b: c}}]", "{b", "a mapping does not fit here"),
        ("input_info: [{name: a, shape: 5}]", "5", "5 does not fit here"),
    ],
)
def test_one_kind_of_value_in_place_of_another_is_called_by_its_name(
    path: Path, line: str, at: str | None, said: str
) -> None:
    text = f"{HEAD}{line}\n"
    found = mistakes(path, text)
    assert {place[:2] for place in found} == {place_of(text, at) if at else (4, 12)}
    assert said in found[0][2]


def test_two_axes_of_one_name_are_a_mistake(path: Path) -> None:
    text = changed("[B, L]", "[B, B]", changed("[B, L, 7]", "[B, B, 7]"))
    [(line, column, said)] = mistakes(path, text)
    assert (line, column) == place_of(text, "[B, B]")
    assert "same name" in said


# YAML that is refused


def test_a_bomb_of_aliases_is_refused_at_once(path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    with comes_to_an_end():
        found = mistakes(path, "\n".join(lines))
    assert (1, 5, "an anchor (&a0); write the value out") in found
    assert (2, 10, "an alias (*a0); write the value out") in found


@pytest.mark.parametrize(
    ("lines", "place", "said"),
    [
        ("quantizable: &q true", (4, 14), "anchor"),
        ("quantizable: *q", (4, 14), "alias"),
        ("model_info: {<<: {a: b}}", (4, 14), "merge key"),
        ("<<: {framework: onnx}", (4, 1), "merge key"),
        ("framework: !!str onnx", (4, 12), "tag"),
        ("framework: !framework onnx", (4, 12), "tag"),
        ("files: !!python/object/apply:os.system [exit 1]", (4, 8), "tag"),
        ("model_info: !!set {a, b}", (4, 13), "tag"),
        ("framework: !!binary b25ueA==", (4, 12), "tag"),
        ("%TAG !e! tag:yaml.org,2002:python/\n---\na: !e!none x", None, ""),
        ("framework: onnx\nframework: onnx", (5, 1), "twice"),
        ("model_info: {a: 1, b: 2, a: 3}", (4, 26), "twice"),
        ('model_info: {a: 1, "a": 3}', (4, 20), "twice"),
        ("---\ndescription: Another", (4, 1), "second document"),
        ("...\n---\n{}", (5, 1), "second document"),
        ("5: five", (4, 1), "word"),
        ("null: nothing", (4, 1), "word"),
        ("? [a, b]\n: c", (4, 3), "word"),
        ("framework: onnx: x", (4, 16), "not YAML: mapping values are not allowed"),
        ("\tframework: onnx", (4, 1), "not YAML"),
        ("files: [1, 2", (5, 1), "not YAML"),
        ("framework: 'onnx", (5, 1), "not YAML"),
        ("framework: @onnx", (4, 12), "not YAML"),
    ],
)
def test_what_makes_yaml_dangerous_or_surprising_is_refused(
    path: Path, lines: str, place: Place | None, said: str
) -> None:
    found = mistakes(path, f"{HEAD}{lines}\n")
    assert said in found[0][2]
    if place:
        assert found[0][:2] == place
        assert len(found) == 1


@pytest.mark.parametrize("nested", ["[", "{", "[{", "{a: ", "- ", "? ", "- - ? "])
def test_a_hundred_thousand_levels_are_refused_without_a_crash(path: Path, nested: str) -> None:
    with comes_to_an_end():
        [(line, _, said)] = mistakes(path, nested * 100_000)
    assert (line, said) == (1, f"nested deeper than {located_yaml.MAX_DEPTH} levels")


def test_nesting_is_allowed_up_to_the_limit_and_refused_where_it_is_exceeded(path: Path) -> None:
    lists = located_yaml.MAX_DEPTH - 2
    text = HEAD + "model_info: {a: " + "[" * lists + "]" * lists + "}\n"
    read: Any = reading.load(write(path, text)).model_info["a"]
    for _ in range(lists - 1):
        [read] = read
    assert read == []
    lists += 1
    text = HEAD + "model_info: {a: " + "[" * lists + "]" * lists + "}\n"
    assert places(path, text) == [(4, len("model_info: {a: ") + lists)]


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "\ufeff"])
def test_an_empty_file_is_called_empty(path: Path, text: str) -> None:
    assert mistakes(path, text) == [(1, 1, "the file is empty")]


@pytest.mark.parametrize(("text", "place"), [("---\n", (2, 1)), ("[]", (1, 1)), ("text", (1, 1)), ("# x\n5", (2, 1))])
def test_a_file_that_is_no_mapping_is_refused(path: Path, text: str, place: Place) -> None:
    [(line, column, said)] = mistakes(path, text)
    assert (line, column) == place
    assert "a mapping is needed" in said


@pytest.mark.parametrize("data", [b"\xff", MODEL.encode("utf-16"), b"description: caf\xe9", b"a: \xed\xa0\x80"])
def test_text_in_another_encoding_is_refused(path: Path, data: bytes) -> None:
    with pytest.raises(DescriptorError, match="not UTF-8") as caught:
        reading.load(write(path, data))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\x7f", "\x9b", "\ufffe"])
def test_a_control_character_is_refused_where_it_stands(path: Path, character: str) -> None:
    text = f"{HEAD}framework: on{character}nx\n"
    assert places(path, text) == [(4, 14)]


def test_a_file_of_more_than_a_megabyte_is_refused(path: Path) -> None:
    filler = "# " + "x" * (located_yaml.MAX_BYTES - len(HEAD) - 2)
    assert reading.load(write(path, HEAD + filler)).description == "A model"
    [(_, _, said)] = mistakes(path, HEAD + filler + "x")
    assert "longer than" in said


@pytest.mark.parametrize(
    "word", ["no", "Yes", "off", "0x10", "017", "0b1", "1_000", "1:30", "2024-01-01", ".inf", ".5", "="]
)
def test_words_that_yaml_takes_for_something_else_must_be_quoted(path: Path, word: str) -> None:
    text = changed("A model", word)
    [(line, column, said)] = mistakes(path, text)
    assert (line, column) == (1, 14)
    assert f"{word!r} does not mean the same" in said
    assert "quote it" in said
    assert reading.load(write(path, changed("A model", f"'{word}'"))).description == word


@pytest.mark.parametrize("word", ["12", "-1", "1.5", "1.0e3", "2e-05", "true", "false"])
def test_a_number_or_bool_where_text_is_needed_must_be_quoted(path: Path, word: str) -> None:
    [(line, column, said)] = mistakes(path, changed("A model", word))
    assert (line, column) == (1, 14)
    assert "quote it" in said
    assert reading.load(write(path, changed("A model", f"'{word}'"))).description == word


@pytest.mark.parametrize("word", ["1e10", "0x10", "no", "2024-01-01", "null", "~", "1.5", "true", "12", "main"])
def test_no_revision_is_read_from_what_is_no_commit(path: Path, word: str) -> None:
    assert places(path, changed(REVISION, word)) == [place_of(MODEL, REVISION)]


@pytest.mark.parametrize("revision", ["1234567890" * 4, "0" * 40])
def test_a_commit_of_digits_alone_must_be_quoted(path: Path, revision: str) -> None:
    [(line, column, said)] = mistakes(path, changed(REVISION, revision))
    assert (line, column) == place_of(MODEL, REVISION)
    assert said.endswith("quote it")
    [source] = reading.load(write(path, changed(REVISION, f'"{revision}"'))).files[0].sources
    assert isinstance(source, descriptor.HuggingFace)
    assert source.revision == revision


def test_a_number_that_no_float_holds_is_a_mistake(path: Path) -> None:
    entry = "accuracy: [{metric: m, value: 1.0e999, dataset: d, method: m, source: s}]\n"
    assert places(path, HEAD + entry) == [place_of(HEAD + entry, "1.0e999")]


@pytest.mark.parametrize("missing", ["", "model.yml"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, missing: str) -> None:
    path = tmp_path / missing if missing else tmp_path
    with pytest.raises(DescriptorError, match="cannot be read") as caught:
        reading.load(path)
    assert str(path) in str(caught.value)


def test_a_file_full_of_mistakes_is_refused_quickly(path: Path) -> None:
    with comes_to_an_end(), pytest.raises(DescriptorError):
        reading.load(write(path, f"{HEAD}precisions: [{','.join(['FP16'] * 120_000)}]"))


# Composite models


def test_a_composite_descriptor_names_its_stages_in_order(path: Path) -> None:
    text = HEAD + "stages_order: [b, a]\n"
    assert reading.load_composite(write(path, text)).stages_order == ("b", "a")


@pytest.mark.parametrize(("value", "said"), [("[]", "length"), ("a", "a list"), ("[a, '']", "length")])
def test_a_composite_descriptor_without_usable_stages_is_refused(path: Path, value: str, said: str) -> None:
    with pytest.raises(DescriptorError, match=rf"model\.yml:4:\d+: .*{said}"):
        reading.load_composite(write(path, f"{HEAD}stages_order: {value}\n"))


# Open Model Zoo and the published files


@pytest.fixture
def data() -> Path:
    folder = os.environ.get("OMZ_TEST_DATA")
    if not folder:
        pytest.skip("OMZ_TEST_DATA names no folder with Open Model Zoo's descriptors and the published files of gpt2")
    return Path(folder)


def test_every_descriptor_of_open_model_zoo_loads(data: Path) -> None:
    paths = sorted((data / "omz_sample" / "models").rglob("model.yml"))
    assert len(paths) >= 20
    for path in paths:
        assert reading.load(path).files, path


def test_composite_models_of_open_model_zoo_select_their_stages(data: Path) -> None:
    models = data / "omz_sample" / "models"
    entries = zoo.find([models])
    composites = [entry for entry in entries.values() if entry.is_composite]
    assert len(composites) == len(list(models.rglob("composite-model.yml"))) > 0
    for composite in composites:
        stages = yaml.safe_load(composite.path.read_text(encoding="utf-8"))["stages_order"]
        selected = zoo.select(entries, [composite.name])
        assert [entry.name for entry in selected] == stages
        assert all(entry.subdirectory == f"{composite.subdirectory}/{entry.name}" for entry in selected)
        assert all(entry.load().descriptor.files for entry in selected)


def test_descriptors_of_open_model_zoo_say_what_its_own_tools_say_of_them(data: Path) -> None:
    expected = json.loads((data / "omz_sample" / "info_dumper_expected.json").read_text(encoding="utf-8"))
    entries = zoo.find([data / "omz_sample" / "models"])
    compared = 0
    for said in expected:
        entry = entries[said["name"]]
        if entry.is_composite:
            continue
        compared += 1
        read = entry.load().descriptor
        assert entry.subdirectory == said["subdirectory"]
        assert (read.framework, read.task_type, read.license) == (
            said["framework"], said["task_type"], said["license_url"]
        )  # fmt: skip
        assert read.description == said["description"]
        assert [info.name for info in read.input_info] == [info["name"] for info in said["input_info"] or []]
    assert compared >= 20


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "merges.txt"])
def test_the_published_files_are_the_ones_that_gpt_2_pins(data: Path, name: str) -> None:
    published = (data / "gpt2" / name).read_bytes()
    pinned = reading.load(zoo.shipped() / "gpt-2" / "model.yml")
    [entry] = [entry for entry in pinned.files if entry.name == f"gpt2/{name}"]
    assert (len(published), hashlib.sha256(published).hexdigest()) == (entry.size, entry.digest.value)


# Inputs no one thought of


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.yml"


def check_loads_or_explains(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    explained = ""
    try:
        with comes_to_an_end():
            assert isinstance(reading.load(path), descriptor.Descriptor)
    except DescriptorError as error:
        explained = str(error)
    assert not explained or str(path) in explained


@FUZZ
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_file_loads_or_is_explained(scratch: Path, data: bytes) -> None:
    check_loads_or_explains(scratch, data)


SNIPPETS = st.sampled_from(
    [
        "\n",
        "\n  ",
        "|\n",
        "---\n",
        ": ",
        "- ",
        "&a ",
        "!!x ",
        "<<: ",
        "? ",
        "# ",
        "$type: ",
        "9" * 30,
        "\u2028",
        "\ufeff",
    ]
) | st.sampled_from([*"[]{}'\"*%@&!?#\0\t\r\x85é", "null", "no", "0x1", "1.5", "../", "..."])


@FUZZ
@given(
    text=st.sampled_from([MODEL, *(path.read_text(encoding="utf-8") for path in SHIPPED)]),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 40), SNIPPETS | st.text(max_size=3)), min_size=1, max_size=5
    ),
)
def test_a_shipped_descriptor_with_edited_text_loads_or_is_explained(
    scratch: Path, text: str, edits: list[tuple[float, int, str]]
) -> None:
    for where, removed, inserted in edits:
        start = int(where * len(text))
        text = text[:start] + inserted + text[start + removed :]
    check_loads_or_explains(scratch, text.encode("utf-8", "surrogatepass"))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["sha256", "local"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("$type"), inner, max_size=3)
    ),
    max_leaves=5,
)


def nodes_of(value: Any) -> list[tuple[Any, Any]]:
    """Each container below `value` with each of its keys or indices."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [pair for key in keys for pair in [(value, key), *nodes_of(value[key])]]


@FUZZ
@given(where=st.lists(st.floats(0, 0.999), min_size=1, max_size=3), values=st.lists(VALUES, min_size=3, max_size=3))
@example(where=[0.2], values=[["sha256"], None, None])
def test_a_descriptor_with_values_of_other_kinds_loads_or_is_explained(
    scratch: Path, where: list[float], values: list[Any]
) -> None:
    model = copy.deepcopy(yaml.safe_load(MODEL))
    for place, value in zip(where, values, strict=False):
        nodes = nodes_of(model)
        container, key = nodes[int(place * len(nodes))]
        container[key] = copy.deepcopy(value)
    check_loads_or_explains(scratch, yaml.safe_dump(model, allow_unicode=True).encode("utf-8", "surrogatepass"))


DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$", *(p + n for p in ("com", "lpt") for n in "123456789¹²³")}
PARTS = st.sampled_from(
    [
        "",
        ".",
        "..",
        "...",
        "a",
        "A.b",
        "con",
        "NUL.txt",
        "aux .x",
        "COM1",
        "lpt9.a.b",
        "COM²",
        "CONIN$",
        "C:",
        "\\",
        "..\\..",
    ]
) | st.sampled_from(
    ["a\\b", "a ", " a", "a.", "~", "\0", "\n", "\x7f", "\x9f", "a:b", "*", "x" * 200, "x" * 201, "\ud800", "é", "ſ"]
)


@settings(FUZZ, max_examples=500)
@given(name=st.lists(PARTS | st.text(max_size=6), max_size=6).map("/".join) | st.text(max_size=30))
@example(name="con .txt")
@example(name="a/LPT³")
def test_names_that_are_accepted_stay_below_their_folder_on_every_system(name: str) -> None:
    try:
        accepted = RelativeName.parse(name)
    except ValueError:
        return
    assert accepted == name
    assert Path(os.path.normpath(Path("/base/folder") / accepted)).is_relative_to("/base/folder")
    windows = PureWindowsPath("C:/base") / accepted
    assert windows.parts[:2] == ("C:\\", "base")
    assert windows.parts[2:] == PurePosixPath(accepted).parts == tuple(accepted.split("/"))
    for part in windows.parts[2:]:
        assert part not in ("", ".", "..")
        assert part == part.rstrip(". ")
        assert part.partition(".")[0].rstrip(" ").lower() not in DEVICES
        assert all(character.isprintable() or ord(character) >= 0xA0 for character in part)
        assert len(os.fsencode(part)) <= 255
