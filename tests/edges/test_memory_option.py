"""`--memory`: what it makes of a request, what it refuses, and the picture of the embedded model within a budget."""

import json

import pytest

from kandinsky5.budget import Budget
from kandinsky5.cli.app import run
from kandinsky5.errors import RequestError


@pytest.mark.parametrize(
    ("words", "amount"),
    [
        ("8GB", 8 * 10**9),
        ("8 gb", 8 * 10**9),
        ("7.5GB", 7_500_000_000),
        ("6GiB", 6 * 2**30),
        ("800MB", 8 * 10**8),
        ("auto", None),
        (" AUTO ", None),
    ],
)
def test_amounts(words, amount):
    assert Budget.of(words).device_bytes == amount


def test_the_host_has_a_bound_of_its_own():
    assert Budget.of("8GB:16GB") == Budget(device_bytes=8 * 10**9, host_bytes=16 * 10**9)
    assert Budget.of("auto : 12GB") == Budget(host_bytes=12 * 10**9)


@pytest.mark.parametrize(
    "words",
    [
        "8GB:",
        ":8GB",
        "8GB:4GB:2GB",
        "",
        "8",
        "eight GB",
        "-4GB",
        "0GB",
        "8TBB",
        "8GB 2",
        "0.0000001MB",
        f"{'9' * 400}GB",
    ],
)
def test_what_is_no_amount(words):
    with pytest.raises(RequestError, match="no amount: say 8GB"):
        Budget.of(words)


@pytest.mark.parametrize(
    "numbers",
    [{"pictures": 0}, {"pictures": None}, {"width": -64}, {"height": 0}, {"device_bytes": float("nan")}],
)
def test_a_budget_is_of_whole_numbers(numbers):
    with pytest.raises(RequestError, match="of a budget must be a whole number from 1 on"):
        Budget(**numbers)


def test_the_budget_is_for_the_largest_of_the_requests(command):
    assert command("generate", "a star", "--memory", "8GB", "--size", "640x1408", "-n", "3").code == 0
    assert command("generate", "a star", "-o", "x.png").code == 0
    assert command.budgets == [
        Budget(device_bytes=8 * 10**9, width=640, height=1408, pictures=3),
        None,
    ]


def test_words_that_are_no_amount_end_before_the_model_is_read(command):
    done = command("generate", "a star", "--memory", "plenty")
    assert done.code == 2 and "no amount" in done.err
    assert command.opened == []


def test_the_embedded_model_within_a_budget(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "generate",
        "a red star",
        "--steps",
        "2",
        "--seed",
        "3",
        "--device",
        "cpu",
        "--precision",
        "bf16",
        "-q",
    ]
    assert run([*arguments, "-o", "plain.png"]) == 0
    assert run([*arguments, "-o", "planned.png", "--memory", "auto"]) == 0
    from PIL import Image, ImageChops

    plain, planned = (Image.open(tmp_path / name).convert("RGB") for name in ("plain.png", "planned.png"))
    assert ImageChops.difference(plain, planned).getbbox() is None, (
        "modulation kept in bfloat16 is widened at use"
    )
    capsys.readouterr()
    assert run([*arguments, "-o", "none.png", "--memory", "1MB"]) == 4
    assert "No plan fits" in capsys.readouterr().err and not (tmp_path / "none.png").exists()


def test_info_says_what_would_be_picked(capsys):
    assert run(["info", "--device", "cpu", "--precision", "bf16", "--memory", "20GB", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert [plan["task"] for plan in plans] == ["text-to-image", "editing"]
    assert all(plan["plan"] is None or plan["plan"]["width"] == 1024 for plan in plans)
    assert (
        run(["info", "--device", "cpu", "--precision", "bf16", "--memory", "2GB", "--size", "512x512"]) == 0
    )
    told = capsys.readouterr().out
    assert "No plan fits: 1 of 512x512" in told or "512x512" in told
    assert run(["info", "--memory", ""]) == 2
    assert "no amount" in capsys.readouterr().err
