"""The benchmark of drawing, with the embedded model: every section that a processor can run, and its last line."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """The program in this process, which has imported what it needs: what it printed, and its last line."""

    def run(*arguments):
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        program = str(BENCHMARKS / "generate.py")
        words = ["--tiny", "--device", "cpu", "--size", "64", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", [program, *words])
        runpy.run_path(program, run_name="__main__")
        out = capsys.readouterr().out
        return out, json.loads(out.splitlines()[-1])

    return run


def test_ways_are_compared_with_float32(benchmark, tmp_path):
    file = tmp_path / "rows.jsonl"
    steps = 2
    text, result = benchmark(
        *("--steps", str(steps), "--truth-steps", "2", "--repeats", "1", "--file", file),
        *("--only", "truth", "ways", "layers", "editing"),
    )
    assert not result["errors"] and not result["skipped"]
    ways = {row["way"]: row for row in result["sections"]["ways"]}
    assert list(ways) == ["ours exact", "ours fp8", "diffusers", "ours ordinary"]
    assert {row["rows"] for row in ways.values()} == {2 * steps}, "two rows a step, whoever computes"
    assert ways["ours exact"]["velocity_error"] < 1e-5 > ways["ours exact"]["run_error"]
    assert 1e-3 < ways["ours fp8"]["velocity_error"] < 0.105
    assert ways["diffusers"]["velocity_error"] < 0.01, "the same weights and inputs"
    assert all(row["seconds"] > 0 for row in ways.values())
    exact, theirs = ways["ours exact"]["seconds"], ways["diffusers"]["seconds"]
    assert result["times_faster"]["ours exact over diffusers"] == pytest.approx(theirs / exact, abs=0.01)
    assert [len(row["each"]) for row in result["sections"]["layers"]] == [10] * 8, "each layer of each block"
    assert len(result["sections"]["editing"]) == 3
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["section"] for line in lines].count("ways") == 4, "written as they come"
    assert "way=ours exact" in text


@pytest.mark.slow
def test_every_other_section_runs(benchmark):
    _, result = benchmark(
        "--only", "ceilings", "pieces", "profile", "sizes", "batches", "stages", "warm_up", "--budget", "250"
    )
    assert not result["errors"] and not result["skipped"]
    rows = result["sections"]
    assert {row["way"] for row in rows["sizes"]} == {row["way"] for row in rows["batches"]}
    assert {(row["piece"], row["float8"]) for row in rows["pieces"]} >= {
        ("gelu", True),
        ("norm_rotate", False),
    }
    stages = ["text encoding", "decoding, ordinary", "decoding, fast"]
    assert [row["stage"] for row in rows["stages"] if "stage" in row] == stages
    assert [row["kept_cache"] for row in rows["warm_up"]] == [False, True] * 2
    shares = [row["shares"] for row in rows["profile"] if "shares" in row]
    assert all(sum(each.values()) == pytest.approx(1, abs=0.01) for each in shares) and len(shares) == 2


def test_what_no_longer_fits_is_skipped_and_listed(benchmark):
    text, result = benchmark("--budget", "0")
    assert result["sections"] == {} and {"truth", "ways", "warm_up"} <= set(result["skipped"])
    assert "ways: skipped" in text


def test_the_full_size_parts_at_small_widths(monkeypatch):
    """What is built at full size only: the shrunk shapes go the same way."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import full_size_checkpoint as sizes
    import torch
    from drawing import bench as parts
    from drawing import sections, ways
    from drawing.ledger import Ledger

    for name in ("TEXT", "VISION", "CLIP", "VAE"):
        monkeypatch.setattr(parts, name, {**getattr(sizes, name), **sizes.SHRINK[name.lower()]})
    monkeypatch.setattr(ways, "NETWORK", {**sizes.NETWORK, **sizes.SHRINK["network"]})
    settings = {"size": 64, "tokens": 8, "steps": 2, "repeats": 1, "truth_steps": 2}
    bench = parts.Bench(
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        tiny=False,
        ledger=Ledger(100, None),
        **settings,
    )
    bench.build()
    network = bench.network
    assert network.dtype == torch.bfloat16
    assert network.visual_transformer_blocks[0].visual_modulation.out_layer.weight.dtype == torch.float32
    assert all(parameter.count_nonzero() > 0.9 * parameter.numel() for parameter in network.parameters())
    text, *decoding = sections.stages(bench)
    assert text["tokens"][0] > text["tokens"][1]
    timed = [row for row in decoding if "stage" in row]
    assert len(timed) == 2 and all(row["seconds"] > 0 and 0 < row["error"] < 0.05 for row in timed)
    assert next(iter(sections.truth(bench)))["steps"] == 2
    (exact,), (theirs,) = (list(sections.loop(bench, name)) for name in ("ours exact", "diffusers"))
    assert 0 < exact["velocity_error"] < 0.05 and 0 < theirs["velocity_error"] < 0.05
