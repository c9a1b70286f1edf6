"""omz_text_prediction: the text is that of transformers' `generate`, token for token, and every error is one."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
import transformers
from conftest import BIN, Command, Converted
from hypothesis import given, settings
from hypothesis import strategies as st
from openvino import opset13 as ov

from omz_tools.commands import text_prediction
from omz_tools.descriptors import zoo
from omz_tools.errors import ModelError
from omz_tools.export.tokenizer import Tokenizer
from omz_tools.generation import continuing, places, predictors, sampling
from omz_tools.generation.continuing import Model, Step, Wish
from omz_tools.generation.sampling import Sampling
from omz_tools.generation.streaming import Stream

MINI = zoo.shipped() / "gpt-2-mini" / "gpt2-mini"
TOKENIZER = Tokenizer((MINI / "tokenizer.json",))
POSITIONS = 256
PROMPT = "If the class defines a"
# Of one token up to many, and one that stands for the beginning of a document.
PROMPTS = (
    PROMPT,
    "The",
    "",
    "Changed in version 3.12: Added the parameters of the naïve 本 function.\n\n   >>> import",
)
IRS = ("FP32", "stateful/FP32")
DRAWN = Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=7)


@pytest.fixture(scope="module")
def reference() -> Any:
    return transformers.GPT2LMHeadModel.from_pretrained(MINI).eval()


@pytest.fixture(scope="module")
def models(stateful: Converted) -> dict[str, Model]:
    """gpt-2-mini's FP32 IRs: one computes each text anew, the other one keeps a state."""
    return {ir: continuing.load(places.of_path(stateful.folder / ir)) for ir in IRS}


@pytest.fixture(params=IRS)
def model(models: dict[str, Model], request: pytest.FixtureRequest) -> Model:
    found: Model = models[request.param]
    return found


def greedy(max_tokens: int) -> Wish:
    return Wish(max_tokens, Sampling(temperature=0))


def generated(reference: Any, ids: list[int], sampling: Sampling, **settings: Any) -> Any:
    """What transformers' own generation gives for a prompt; `sequences` has the prompt, too."""
    if sampling.temperature:
        torch.manual_seed(sampling.seed)
        settings |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return reference.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones((1, len(ids)), dtype=torch.int64),
        do_sample=sampling.temperature > 0,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )


def steps(model: Model, prompts: list[str], wish: Wish) -> list[list[Step]]:
    """The steps of each prompt."""
    found: list[list[Step]] = [[] for _ in prompts]
    for step in continuing.continued(model, [model.encode(prompt) for prompt in prompts], wish):
        found[step.row].append(step)
    return found


def tokens(row: list[Step]) -> list[int]:
    return [step.choice.token for step in row]


# ---- the text is that of transformers


@pytest.mark.parametrize(("prompt", "most"), [(PROMPT, 1000), *((prompt, 40) for prompt in PROMPTS[1:])])
def test_greedy_tokens_are_those_of_transformers_up_to_the_end_of_the_context(
    models: dict[str, Model], reference: Any, prompt: str, most: int
) -> None:
    ids = models["FP32"].encode(prompt)
    count = min(most, POSITIONS - len(ids))
    assert count == 40 or count > 200
    wanted = generated(reference, ids, Sampling(temperature=0), max_new_tokens=count).sequences[0]
    for model in models.values():
        [row] = steps(model, [prompt], greedy(most))
        assert ids + tokens(row) == wanted.tolist()
        assert [step.ended for step in row] == [None] * (count - 1) + ["context" if most > count else "length"]
        assert "".join(step.text for step in row) == TOKENIZER.decode(tokens(row))


def test_the_token_that_ends_a_document_ends_the_text_and_is_not_shown(tmp_path: Path) -> None:
    # After each token comes the next one, and after the last the first, which ends a document.
    xml = an_ir(
        tmp_path / "counting.xml",
        [-1, -1],
        lambda x: ov.one_hot(ov.mod(ov.add(x, np.int64(1)), np.int64(2048)), 2048, 1.0, 0.0, -1),
    )
    counting = continuing.load(places.of_path(xml, files=(MINI / "tokenizer.json",)))
    assert counting.tokenizer.end == 0
    row = list(continuing.continued(counting, [[2045]], greedy(9)))
    assert [(step.choice.token, step.ended) for step in row] == [(2046, None), (2047, None), (0, "end")]
    assert "".join(step.text for step in row) == TOKENIZER.decode([2046, 2047])


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 5.0, 50.0])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 0.999])
def test_of_a_large_vocabulary_those_tokens_may_come_that_transformers_leaves(spread: float, top_p: float) -> None:
    logits = np.random.default_rng(3).normal(0.0, 1.0, 50_257).astype(np.float32) * np.float32(spread)
    warper = transformers.TopPLogitsWarper(top_p)
    wanted = warper(None, torch.from_numpy(logits)[None])[0].softmax(dim=-1).numpy()
    told = sampling.chooser(Sampling(1.0, 0, top_p, seed=2, alternatives=50_257))(logits)
    odds = np.zeros_like(wanted)
    for token, probability in told.alternatives:
        odds[token] = probability
    # Sums of so many numbers are rounded: of the tokens at the border, some more or less may come.
    assert np.abs(odds - wanted).sum() < 1e-4
    choose, generator = sampling.chooser(Sampling(1.0, 0, top_p, seed=2)), torch.Generator().manual_seed(2)
    drawn = [int(torch.multinomial(torch.from_numpy(wanted), 1, generator=generator)) for _ in range(30)]
    assert [choose(logits).token for _ in drawn] == drawn


def test_drawn_tokens_are_those_of_transformers_with_the_same_seed_and_so_are_their_alternatives(
    model: Model, reference: Any
) -> None:
    ids, how = model.encode(PROMPT), Sampling(0.8, 40, 0.95, seed=1, alternatives=5)
    wanted = generated(reference, ids, how, max_new_tokens=80)
    [row] = steps(model, [PROMPT], Wish(80, how))
    assert tokens(row) == wanted.sequences[0, len(ids) :].tolist()
    for step, scores in zip(row, wanted.scores, strict=True):
        odds, order = scores[0].softmax(-1).topk(5)
        known = [(token, value) for token, value in zip(order.tolist(), odds.tolist(), strict=True) if value]
        assert [token for token, _ in step.choice.alternatives] == [token for token, _ in known]
        assert [value for _, value in step.choice.alternatives] == pytest.approx(
            [value for _, value in known], rel=1e-3
        )
        odds = scores[0].softmax(-1)[step.choice.token]
        assert step.choice.probability == pytest.approx(float(odds), rel=1e-3)


def test_a_state_changes_no_answer_whatever_was_asked_before(models: dict[str, Model]) -> None:
    anew, kept = (models[ir].predictor for ir in IRS)
    draw, rows = random.Random(3), [[1]]
    for _ in range(80):
        # Rows of the last call in any order and number, each with some tokens more, as many or not; or others.
        begun = draw.choices([*rows, *([[5], []] if draw.random() < 0.3 else [])], k=draw.randint(1, 4))
        counts = draw.choice([[1], [1], [2], [1, 2, 5]])
        rows = [[*row, *draw.choices(range(9), k=draw.choice(counts))] for row in begun]
        assert kept.logits(rows) == pytest.approx(anew.logits(rows), abs=2e-4)


def test_a_model_with_a_state_is_given_what_is_new_alone(tmp_path: Path) -> None:
    # The likeliest token is the number of those that this run was given, and the state is there in name alone.
    ids, mask = (ov.parameter([-1, -1], np.int64, name=name) for name in ("input_ids", "attention_mask"))
    for port in (ids, mask):
        port.output(0).set_names({port.get_friendly_name()})
    state = ov.read_value(ov.constant(np.zeros(1, np.float32)), "state", openvino.Type.f32, [1])
    count = ov.gather(ov.shape_of(ids, "i64"), ov.constant([1]), ov.constant(0))
    given = ov.add(ov.multiply(ids, ov.constant(np.int64(0))), count)
    logits = ov.add(ov.one_hot(given, 16, np.float32(1), np.float32(0), -1), state)
    openvino.save_model(
        openvino.Model([ov.result(logits)], [ov.assign(state, "state")], [ids, mask]), tmp_path / "counting.xml"
    )
    predictor = predictors.load(tmp_path / "counting.xml", POSITIONS)

    def given_to(*rows: list[int]) -> list[int]:
        return predictor.logits(rows).argmax(-1).tolist()

    assert given_to([1, 2, 3], [4]) == [3, 3]
    assert given_to([1, 2, 3, 5], [4, 5]) == [1, 1]
    assert given_to([4, 5, 6, 7]) == [2]
    assert given_to([4, 5, 6, 7]) == [4]
    assert given_to([4, 5, 6, 8]) == [4]


def test_alternatives_without_a_temperature_are_the_models_own(model: Model, reference: Any) -> None:
    ids = model.encode(PROMPT)
    wanted = generated(reference, ids, Sampling(temperature=0), max_new_tokens=5)
    [row] = steps(model, [PROMPT], Wish(5, Sampling(temperature=0, alternatives=3)))
    for step, scores in zip(row, wanted.scores, strict=True):
        odds, order = scores[0].softmax(-1).topk(3)
        assert [token for token, _ in step.choice.alternatives] == order.tolist()
        assert [value for _, value in step.choice.alternatives] == pytest.approx(odds.tolist(), rel=1e-3)
        assert step.choice.token == order[0]
        assert step.choice.probability == pytest.approx(float(odds[0]), rel=1e-3)


def test_tokens_that_cannot_come_are_no_alternatives() -> None:
    logits = np.array([0, 3, 1, 2], np.float32)
    found = sampling.chooser(Sampling(top_k=2, alternatives=4))(logits).alternatives
    assert [token for token, _ in found] == [1, 3]
    assert sum(value for _, value in found) == pytest.approx(1)
    assert sampling.chooser(Sampling(top_k=2))(logits).alternatives == ()


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(temperature: float, value: float) -> None:
    with pytest.raises(ModelError, match="infinite or no numbers"):
        sampling.chooser(Sampling(temperature))(np.array([0, value, 1], np.float32))


@pytest.mark.parametrize("how", [Sampling(temperature=0), DRAWN])
def test_prompts_that_are_continued_together_give_what_each_gives_alone(model: Model, how: Sampling) -> None:
    together = steps(model, list(PROMPTS), Wish(30, how))
    alone = [steps(model, [prompt], Wish(30, how))[0] for prompt in PROMPTS]
    assert together == [[replace(step, row=row) for step in steps] for row, steps in enumerate(alone)]
    assert len({len(model.encode(prompt)) for prompt in PROMPTS}) > 2


# ---- streaming


@given(st.lists(st.integers(0, 2047), max_size=40))
@settings(deadline=None)
def test_the_parts_of_a_text_are_the_text(ids: list[int]) -> None:
    stream = Stream(TOKENIZER.decode)
    assert "".join([*map(stream.add, ids), stream.end()]) == TOKENIZER.decode(ids)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=12), st.integers(1, 5))
def test_each_part_is_whole_characters_as_soon_as_they_are_whole(text: str, size: int) -> None:
    data = text.encode()
    pieces = [data[begin : begin + size] for begin in range(0, len(data), size)]
    stream = Stream(lambda ids: b"".join(pieces[number] for number in ids).decode(errors="replace"))
    shown = ""
    for number in range(len(pieces)):
        shown += stream.add(number)
        assert shown == data[: (number + 1) * size].decode(errors="ignore")
    assert shown == text
    assert stream.end() == ""


def test_a_character_of_four_tokens_comes_with_the_last() -> None:
    stream, ids = Stream(TOKENIZER.decode), TOKENIZER.encode("😀")
    assert len(ids) == 4
    assert list(map(stream.add, ids)) == ["", "", "", "😀"]


def letters(ids: Any) -> str:
    return "".join(map(chr, ids))


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_before_the_first_stop_string_and_holds_back_no_more_than_needed(
    text: str, stops: list[str]
) -> None:
    stream = Stream(letters, stops)
    ends = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    # Which of several comes first is seen when the first of them is whole.
    whole = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
    shown = ""
    for count, letter in enumerate(map(ord, text), 1):
        shown += stream.add(letter)
        if stream.stopped:
            assert count == whole
            break
        assert len(shown) >= count - max(map(len, stops), default=1) + 1
    shown += stream.end()
    assert stream.stopped == bool(ends)
    if whole is None:
        assert shown == text
    else:
        found = [text[:whole].find(stop) for stop in stops if stop in text[:whole]]
        assert shown == text[: min(found)]


# ---- the command


@dataclass(frozen=True)
class Done:
    """What a command has done."""

    returncode: int
    stdout: str
    stderr: str


Predict = Callable[..., Done]


@pytest.fixture
def predict(stateful: Converted, capsys: pytest.CaptureFixture[str]) -> Predict:
    """The command on gpt-2-mini, in this process, which has loaded all it needs."""

    def predict(*words: str) -> Done:
        capsys.readouterr()
        status = text_prediction.main(["--name", "gpt-2-mini", "-d", str(stateful.folder.parents[1]), *words])
        return Done(status, *capsys.readouterr())

    return predict


def test_the_text_alone_is_on_standard_output_and_what_it_took_on_standard_error(
    predict: Predict, stateful: Converted, reference: Any
) -> None:
    done = predict("-i", PROMPT, "--temperature", "0", "--max_tokens", "50", "--max-seq-len", "30")
    assert done.returncode == 0, done.stderr
    ids = TOKENIZER.encode(PROMPT)
    wanted = generated(reference, ids, Sampling(temperature=0), max_new_tokens=30 - len(ids)).sequences[0]
    assert done.stdout == TOKENIZER.decode(wanted.tolist()) + "\n"
    lines = done.stderr.splitlines()
    xml = stateful.folder / "stateful" / "FP32" / "openvino_model.xml"
    assert lines[0].startswith(f"{xml} on CPU, with a key/value cache in f32; loaded in ")
    assert re.fullmatch(rf"{30 - len(ids)} tokens, [\d.,]+ tokens/s, the first after \d+\.\d{{3}} s", lines[1])
    assert lines[2:] == ["The context of 30 tokens is full: the text ends there."]


def test_a_seed_gives_the_same_text_again_and_one_that_was_not_given_is_told(predict: Predict) -> None:
    first = predict("-i", PROMPT, "--precision", "FP16")
    assert "/stateful/FP16/openvino_model.xml on CPU, with a key/value cache in f16; " in first.stderr
    [seed] = re.findall(r"^--seed (\d+) gives the same text again$", first.stderr, re.M)
    words = ("-i", PROMPT, "--precision", "FP16", "--max_tokens", "40", "--top_p", "0.9")
    again = predict(*words, "--seed", seed)
    other = predict(*words, "--seed", str(int(seed) + 1))
    assert first.stdout == again.stdout != other.stdout
    assert "--seed" not in again.stderr
    assert re.findall(r"^--seed (\d+)", predict("-i", PROMPT, "--max_tokens", "1").stderr, re.M) != [seed]


def test_several_prompts_come_one_after_the_other_whether_computed_together_or_not(
    predict: Predict,
) -> None:
    inputs = [word for prompt in PROMPTS for word in ("-i", prompt)]
    how = ("--seed", "5", "--max_tokens", "10")
    done = {size: predict(*inputs, *how, "--batch_size", size) for size in ("1", "3")}
    alone = [predict("-i", prompt, *how).stdout for prompt in PROMPTS]
    assert {one.stdout for one in done.values()} == {"\n".join(alone)}
    # What is computed together is counted together.
    counts = {size: re.findall(r"^(\d+) tokens, ", one.stderr, re.M) for size, one in done.items()}
    assert counts == {"1": ["10", "10", "10", "10"], "3": ["30", "10"]}


def test_a_prompt_must_leave_room_for_one_token(predict: Predict) -> None:
    words = " the" * (POSITIONS - 1)
    assert len(TOKENIZER.encode(words)) == POSITIONS - 1
    done = predict("-i", words, "--temperature", "0")
    assert done.returncode == 0
    assert re.search(r"^1 token, ", done.stderr, re.M)
    assert done.stdout.startswith(words)
    full = predict("-i", words + " the", "--temperature", "0")
    assert (full.returncode, full.stdout) == (1, "")
    assert "the prompt has 256 tokens, and the text may have 256, the prompt counted" in full.stderr


def test_a_bad_prompt_stops_none_of_those_that_are_computed_with_it(
    predict: Predict,
) -> None:
    words = ("--temperature", "0", "--max_tokens", "5", "--batch_size", "3")
    done = predict("-i", PROMPT, "-i", "word " * 300, "-i", "The", *words)
    assert done.returncode == 1
    assert done.stdout == predict("-i", PROMPT, "-i", "The", *words).stdout
    assert re.findall(r"Error: the prompt has \d+ tokens, and the text may have 256", done.stderr)


def test_a_stop_string_ends_the_text(predict: Predict) -> None:
    whole = predict("-i", PROMPT, "--temperature", "0").stdout.removesuffix("\n")
    stop = whole[-30:-25]
    cut = predict("-i", PROMPT, "--temperature", "0", "--stop", "never ever", "--stop", stop).stdout
    assert cut == PROMPT + whole[len(PROMPT) :].split(stop)[0] + "\n"


def test_the_command_line_of_open_model_zoos_demo(mini: Converted, run: Command, tmp_path: Path) -> None:
    shutil.copytree(mini.folder / "FP16", tmp_path / "ir")
    shutil.copytree(MINI, tmp_path / "words")
    words = ("-m", "ir/gpt-2-mini.xml", "-v", "words/vocab.json", "--merges", "words/merges.txt", "-i", PROMPT)
    demo = run(
        "omz_text_prediction", *words, "--max_sample_token_num", "9", "--top_k", "1", "--top_p", "1.0",
        "--dynamic_shape", "--max_seq_len", "1024", "--device", "cpu",
    )  # fmt: skip
    assert demo.returncode == 0, demo.stderr
    assert "gpt-2-mini.xml on CPU, no key/value cache: the whole text is computed anew for each token; " in demo.stderr
    ours = run("omz_text_prediction", "-m", mini.folder / "FP16", "-i", PROMPT, "--max_tokens", "9", "--temperature=0")
    assert demo.stdout == ours.stdout
    (tmp_path / "words" / "config.json").unlink()
    assert "says how many positions the model has\nSay it: --max_seq_len N" in run("omz_text_prediction", *words).stderr


def test_lines_of_standard_input_are_prompts_and_a_bad_one_stops_no_other(mini: Converted) -> None:
    words = [BIN / "omz_text_prediction", "-m", mini.folder, "--temperature", "0", "--max_tokens", "5"]
    lines = f"{PROMPT}\n\n{'word ' * 300}\nThe\r\n"
    done = subprocess.run(words, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    first, second = done.stdout.removesuffix("\n").split("\n\nThe")
    assert first.startswith(PROMPT)
    assert second
    assert re.search(r"Error: the prompt has \d+ tokens, and the text may have 256, the prompt counted\n", done.stderr)
    nothing = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "there is no prompt" in nothing.stderr
    broken = subprocess.run(
        words, input=b"\xff\n", capture_output=True, check=False, env=os.environ | {"PYTHONUTF8": "0"}
    )
    assert broken.returncode == 1
    assert b"UTF-8" in broken.stderr
    assert b"Traceback" not in broken.stderr


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal: the person's and the program's."""
    pty = pytest.importorskip("pty")
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize(
    ("typed", "prompts"), [(f"{PROMPT}\nThe\n\n", [PROMPT, "The"]), ("The\n\x04", ["The"]), ("\x04", [])]
)
def test_on_a_terminal_it_asks_until_an_empty_line_or_the_end(
    mini: Converted, predict: Predict, terminal: tuple[int, int], typed: str, prompts: list[str]
) -> None:
    person, program = terminal
    os.write(person, typed.encode())
    how = ("--temperature", "0", "--max_tokens", "5")
    words = [BIN / "omz_text_prediction", "-m", mini.folder, *how]
    done = subprocess.run(words, stdin=program, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    inputs = [word for prompt in prompts for word in ("-i", prompt)]
    assert done.stdout == (predict(*inputs, *how).stdout if inputs else "")
    assert done.stderr.count("> ") == typed.count("\n") + typed.count("\x04")
    assert done.stderr.endswith("> \n" if "\x04" in typed else "> ")
    assert "Error" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("closed", [False, True])
def test_an_interrupt_and_a_reader_that_goes_end_it_in_the_midst_of_a_text(mini: Converted, closed: bool) -> None:
    many = [word for _ in range(50) for word in ("-i", PROMPT)]
    words = [BIN / "omz_text_prediction", "-m", mini.folder, "--temperature", "0", "--max_tokens", "250", *many]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stderr
            assert process.stdout.read(len(PROMPT) + 5).startswith(PROMPT.encode())
            if closed:
                process.stdout.close()
            else:
                process.send_signal(signal.SIGINT)
                assert process.stdout.read().endswith(b"\n")
            said = process.stderr.read().decode()
            assert process.wait(300) == (1 if closed else 130)
        finally:
            process.kill()
    assert said.count("tokens/s") < 50
    assert said.endswith("Interrupted.\n") == (not closed)
    assert "Traceback" not in said
    assert "Error" not in said


def test_a_terminal_is_not_steered_by_a_text(mini: Converted, terminal: tuple[int, int]) -> None:
    person, program = terminal
    words = [BIN / "omz_text_prediction", "-m", mini.folder, "-i", "\x1b[31mThe", "--max_tokens=1", "--temperature=0"]
    done = subprocess.run(words, stdout=program, stderr=subprocess.PIPE, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert os.read(person, 1000).startswith(rb"\x1b[31mThe")


def test_who_draws_nothing_does_not_wait_for_torch(mini: Converted, tmp_path: Path) -> None:
    code = (
        "import sys; from omz_tools.commands.text_prediction import main; status = main(sys.argv[1:]);"
        "print([name for name in ('torch', 'transformers') if name in sys.modules], status)"
    )
    words = ["-m", mini.folder, "-i", PROMPT, "--temperature", "0", "--max_tokens", "2"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("\n[] 0\n"), done.stderr


# ---- what is wrong


def an_ir(path: Path, shape: list[int], output: Callable[[Any], Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    given = ov.parameter(shape, np.int64, name="input")
    openvino.save_model(openvino.Model([output(given)], [given]), path)
    return path


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def rewritten(path: Path, change: Callable[[Any], None]) -> None:
    said = json.loads(path.read_text(encoding="utf-8"))
    change(said)
    path.write_text(json.dumps(said), encoding="utf-8")


def renumber(tokenizer: Any) -> None:
    """Give a token of the prompt an id that the model does not know."""
    words = tokenizer["model"]["vocab"]
    words["Ġclass"], words["Ġx"] = 5000, words["Ġclass"]


XML, BIN_FILE, TOKENS = "FP32/gpt-2-mini.xml", "FP32/gpt-2-mini.bin", "gpt2-mini/tokenizer.json"
NAMED = "--name gpt-2-mini -d {folder}"
# What is done to the folder of the model, the words of the command, and what it says.
WRONG: list[tuple[Callable[[Path], object] | None, str, str]] = [
    (None, "-m {folder}/other.xml", r"other\.xml is not there\nGive the \.xml"),
    (lambda model: (model / "empty").mkdir(), "-m {folder}/model/empty", r"An IR in \S+empty is not there\nGive the"),
    (lambda model: (model / XML).write_text("text"), "", r"gpt-2-mini\.xml is no OpenVINO IR"),
    (lambda model: cut(model / XML, 20_000), "", r"OpenVINO could not read \S+gpt-2-mini\.xml: "),
    (lambda model: cut(model / BIN_FILE, 1000), "", "An IR is two files"),
    (lambda model: (model / BIN_FILE).unlink(), "", "An IR is two files"),
    (
        lambda model: shutil.copy(model / XML, model / "FP32" / "other.xml"), "",
        r"has several IRs: gpt-2-mini\.xml, other\.xml\nSay which one",
    ),
    (lambda model: shutil.rmtree(model / "gpt2-mini"), "", r"no tokenizer lies near \S+gpt-2-mini\.xml\nSay which"),
    (
        lambda model: shutil.copytree(model / "gpt2-mini", model / "other"), "",
        r"several tokenizers lie near \S+: \S+gpt2-mini, \S+other\nSay which",
    ),
    (lambda model: (model / TOKENS).write_text("{}"), "", r"tokenizer\.json in \S+ cannot be used"),
    (
        lambda model: rewritten(model / TOKENS, renumber), "",
        "the tokenizer gives token 5000, and the model knows those below 2,048",
    ),
    (
        lambda model: rewritten(model / "gpt2-mini/config.json", lambda said: said.update(n_positions="many")), "",
        "the model has 'many' positions",
    ),
    (
        lambda model: an_ir(model / XML, [-1, 3, 4], lambda x: ov.convert(x, "f32")), "",
        "takes input, which is no text alone",
    ),
    (
        lambda model: an_ir(model / XML, [-1, -1], lambda x: ov.convert(x, "f32")), "",
        r"does not give logits \[B, L, vocabulary\], but \[\?,\?\]",
    ),
    (
        lambda model: an_ir(model / XML, [-1, -1], lambda x: ov.unsqueeze(ov.convert(x, "f32"), 0)), "",
        r"does not give logits \[B, L, vocabulary\], but \[1,\?,\?\]",
    ),
    (None, "-m {folder}/model/FP32/gpt-2-mini.xml --precision FP16", "is one IR, and FP16 is asked for"),
    (None, "-m {folder}/model --precision FP16-INT8", "An IR in .*FP16-INT8 is not there"),
    (None, "-m {folder}/model --device NPX", r"There is no device 'NPX'\nThere are: CPU"),
    (
        None, "-m {folder}/model -v {folder}/vocab.json --merges {folder}/merges.txt",
        r"vocab\.json and merges\.txt in .* cannot be used",
    ),
    (None, "--name gpt-2*", r"names several models: gpt-2, gpt-2-mini\nChoose one"),
    (None, "--name gpt-3", 'No matching models: "gpt-3"'),
    (None, NAMED, r"In model gpt-2-mini: An IR in .*\nConvert it first: omz_converter --name gpt-2-mini -d "),
    (None, NAMED + " --precision FP16-INT8", r"omz_converter --name gpt-2-mini -d .* --precisions FP16-INT8\n"),
    (
        lambda model: shutil.copytree(model / "FP16", model.parent / "out/public/gpt-2-mini/FP16"),
        NAMED + " -o {folder}/out", r"gpt2-mini is not there\nomz_downloader --name gpt-2-mini -o ",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "words", "says"), WRONG, ids=[says[:30] for _, _, says in WRONG])
def test_what_is_wrong_is_one_clear_error(
    mini: Converted,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object] | None,
    words: str,
    says: str,
) -> None:
    model = shutil.copytree(mini.folder, tmp_path / "model")
    if damage:
        damage(model)
    given = (words or "-m {folder}/model --precision FP32").format(folder=tmp_path).split()
    assert text_prediction.main([*given, "-i", PROMPT, "--temperature", "0", "--max_tokens", "1"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(says, shown.err)
    assert shown.err.count("Error: ") == 1


def test_a_prompt_that_is_no_text(mini: Converted, run: Command) -> None:
    done = run("omz_text_prediction", "-m", mini.folder, "-i", os.fsdecode(b"a\xff"), "--temperature=0")
    assert done.returncode == 1
    assert r"Error: the prompt 'a\udcff' is not UTF-8" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "one of the arguments --name -m/--model is required"),
        (["--name", "a", "-m", "b"], "not allowed with"),
        (["-m", "a", "-d", "CPU"], "a device is said with --device"),
        (["-m", "a", "-v", "b"], "--vocab and --merges go together"),
        (["-m", "a", "--merges", "b"], "--vocab and --merges go together"),
        (["-m", "a", "--temperature", "-1"], "'-1' is neither 0 nor a number from 0.01 to 100"),
        (["-m", "a", "--temperature", "nan"], "'nan' is neither"),
        (["-m", "a", "--temperature", "warm"], "'warm' is neither"),
        (["-m", "a", "--top_p", "1.1"], "'1.1' is not a number from 0 to 1"),
        (["-m", "a", "--top_p", "nan"], "'nan' is not"),
        (["-m", "a", "--top_k", "-1"], "'-1' is no whole number"),
        (["-m", "a", "--seed", str(1 << 64)], "is no whole number from 0 to"),
        (["-m", "a", "--stop", ""], "an empty text is everywhere"),
        (["-m", "a", "--max_tokens", "0"], "'0' is not a positive number"),
        (["-m", "a", "--precision", "FP8"], "invalid choice: 'FP8'"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    with pytest.raises(SystemExit) as caught:
        text_prediction.main(words)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
