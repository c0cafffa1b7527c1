"""The fast way through the network against the ordinary one, and what it must not disturb."""

import copy
import logging
import threading
import time
from dataclasses import replace

import pytest
import torch
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode

from kandinsky5.denoise import Run, denoise, set_times
from kandinsky5.model import fast, prompt_table
from kandinsky5.model.attention import SoftmaxAttention
from kandinsky5.model.blocks import Modulation
from kandinsky5.model.fast import TEXT_MULTIPLE, FastPath, prepare_for_speed
from kandinsky5.model.graph import Replays
from kandinsky5.model.kernels import EAGER
from kandinsky5.model.products import joined
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.placement import use_mode
from kandinsky5.records import Conditioning

from . import reference
from .tiny import config_of, drawn, inputs_for, relative_rms


@pytest.fixture
def network(config):
    return drawn(Kandinsky5Transformer3DModel(**config))


@pytest.fixture
def inputs(config):
    return inputs_for(config).arguments()


def forward(network, inputs, path=None):
    network.fast_path = path
    with torch.no_grad():
        return network(**inputs).sample


class Counted(FastPath):
    """A fast path that knows how often it was taken."""

    taken = 0

    def __call__(self, *args):
        self.taken += 1
        return super().__call__(*args)


def adapt(network, seed=5):
    """Adapters on layers of the fast path, drawn, so that they change the result."""
    network.add_adapter(LoraConfig(r=2, target_modules=["to_query", "to_value", "in_layer"]))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return network


# --- the same velocity ---


@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
def test_the_same_velocity(network, inputs, together):
    expected = forward(network, inputs)
    if together:
        prepare_for_speed(network)
    path = Counted()
    assert relative_rms(forward(network, inputs, path), expected) < 1e-5
    assert path.taken == 1


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 1},
        {"text": 1},
        {"height": 2, "width": 2},
        {"batch": 3, "first_text": 4, "first_cell": (0, 3, 1)},
    ],
)
def test_the_same_velocity_at_other_sizes(network, config, change):
    inputs = inputs_for(config, **change).arguments()
    assert relative_rms(forward(network, inputs, FastPath()), forward(network, inputs)) < 1e-5


def test_padding_is_masked(network, inputs):
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])
    inputs |= {"encoder_attention_mask": mask}
    expected = forward(network, inputs)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].masked_fill(
        mask[..., None] == 0, torch.nan
    )
    assert relative_rms(forward(network, inputs, FastPath()), expected) < 1e-5


@pytest.mark.parametrize("timestep", [torch.tensor([917.3, 40.1]), torch.tensor(500.5), 500.5])
def test_every_kind_of_time(network, inputs, timestep):
    inputs["timestep"] = timestep
    assert relative_rms(forward(network, inputs, FastPath()), forward(network, inputs)) < 1e-5


def test_in_bfloat16_as_near_to_the_truth_as_the_ordinary_way(config):
    """The mean over draws of the error against float64, since a single one is luck."""
    ordinary, quick = [], []
    for seed in range(6):
        network = drawn(Kandinsky5Transformer3DModel(**config), seed).to(torch.bfloat16)
        inputs = inputs_for(config, seed=seed + 1).to(torch.bfloat16)
        truth = reference.velocity(network.state_dict(), config, **inputs.arguments())
        for errors, path in ((ordinary, None), (quick, FastPath())):
            errors.append(relative_rms(forward(network, inputs.arguments(), path), truth))
    assert sum(quick) <= 1.02 * sum(ordinary)
    assert sum(ordinary) > 0.005, "bfloat16 has an error to be compared"


# --- the table of prompt and times ---


@pytest.fixture
def products_of_modulation(monkeypatch):
    """Rows of each call of a visual block's modulation."""
    rows, ordinary = [], Modulation.forward
    monkeypatch.setattr(
        Modulation,
        "forward",
        lambda self, time: (rows.append(len(time)) if self.num_params == 9 else None, ordinary(self, time))[
            1
        ],
    )
    return rows


def run_of(inputs, guidance=3.0, seed=2):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(3, 5, 24, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    prompts = Conditioning(text=text, mask=mask, pooled=torch.randn(3, 20, generator=generator))
    latents = torch.randn(2, 1, 6, 8, 16, generator=generator)
    source = inputs["hidden_states"][..., 16:] if inputs["hidden_states"].shape[-1] == 33 else None
    return Run(
        latents=latents,
        positive=prompts.rows(0, 2),
        negative=prompts.rows(2, 3).repeat(2),
        guidance=guidance,
        source=source,
    )


def drawn_latents(network, inputs, path, *, steps=5, on_step=None, **changes):
    run = run_of(inputs)
    for name, value in changes.items():
        setattr(run, name, value)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    set_times(scheduler, steps, "cpu")
    network.fast_path = path
    return denoise(run, transformer=network, scheduler=scheduler, on_step=on_step)


@pytest.mark.parametrize("changes", [{}, {"batched_guidance": False}, {"guidance": 1.0}])
def test_a_run(network, inputs, products_of_modulation, changes):
    expected = drawn_latents(network, inputs, None, **changes)
    products_of_modulation.clear()
    found = drawn_latents(network, inputs, FastPath(), **changes)
    assert relative_rms(found, expected) < 1e-5
    rows = 2 if changes else 4
    prompts = 2 if "batched_guidance" in changes else 1
    assert products_of_modulation == [5 * rows] * 3 * prompts, (
        "each block's, once a prompt for all five steps"
    )


def test_a_window_holds_no_more_than_it_may(network, inputs, products_of_modulation, monkeypatch):
    expected = drawn_latents(network, inputs, None)
    monkeypatch.setattr(fast, "TABLE_BYTES", int(2.5 * 4 * (3 * 9 * 64 + 5 * 64) * 4))
    products_of_modulation.clear()
    assert relative_rms(drawn_latents(network, inputs, FastPath()), expected) < 1e-5
    assert products_of_modulation == [8] * 3 + [8] * 3 + [4] * 3, "two steps of four rows, two, and the last"


def test_never_two_windows_in_memory(network, inputs, monkeypatch):
    monkeypatch.setattr(fast, "TABLE_BYTES", 0)
    path, rows, held = FastPath(), prompt_table._rows, []
    monkeypatch.setattr(
        prompt_table, "_rows", lambda *args: (held.append(path._tables[0]._steps.copy()), rows(*args))[1]
    )
    drawn_latents(network, inputs, path)
    assert held == [{}] * 5


def test_a_callback_changes_the_prompt(network, inputs):
    def swap(i, timestep, run):
        if i == 1:
            run.positive = run.positive.rows(1, 2).repeat(2)
        if i == 2:
            run.guidance = 1.0
        if i == 3:
            run.latents = run.latents + 0.1

    expected = drawn_latents(network, inputs, None, on_step=swap)
    assert relative_rms(drawn_latents(network, inputs, FastPath(), on_step=swap), expected) < 1e-5


@pytest.fixture
def announced(inputs):
    """A fast path in a run of two times, and inputs at the first of them."""
    path = FastPath()
    inputs["timestep"] = torch.tensor(700.0)
    path.expect(torch.tensor([700.0, 300.0]))
    return path


@pytest.mark.parametrize("name", ["encoder_hidden_states", "pooled_projections"])
def test_what_was_written_into_a_tensor_is_seen(network, inputs, announced, name):
    before = forward(network, inputs, announced)
    inputs[name].mul_(-1)
    after = forward(network, inputs, announced)
    assert relative_rms(after, forward(network, inputs)) < 1e-5
    assert relative_rms(after, before) > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "time_embeddings.in_layer.bias",
        "pooled_text_embeddings.norm.weight",
        "text_embeddings.in_layer.weight",
        "text_transformer_blocks.1.feed_forward.in_layer.weight",
        "visual_transformer_blocks.2.visual_modulation.out_layer.weight",
    ],
)
def test_what_was_written_into_a_weight_is_seen(network, inputs, announced, name):
    before = forward(network, inputs, announced)
    with torch.no_grad():
        network.get_parameter(name).mul_(-1)
    after = forward(network, inputs, announced)
    assert relative_rms(after, forward(network, inputs)) < 1e-5
    assert relative_rms(after, before) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_cast_between_two_steps_is_seen(network, inputs, announced, dtype):
    forward(network, inputs, announced)
    network.to(dtype)
    inputs["hidden_states"] = inputs["hidden_states"].to(dtype)
    bound = 1e-5 if dtype == torch.float64 else 0.05
    assert relative_rms(forward(network, inputs, announced), forward(network, inputs)) < bound


def test_other_positions_of_the_text_are_seen(network, inputs, announced):
    forward(network, inputs, announced)
    inputs["text_rope_pos"] = inputs["text_rope_pos"] * 3
    assert relative_rms(forward(network, inputs, announced), forward(network, inputs)) < 1e-5


def test_nothing_is_kept_outside_a_run(network, inputs, announced):
    """Weights may change between two calls, by ways that leave no trace."""
    forward(network, inputs, announced)
    network.expect_times(torch.tensor([]))
    assert announced._tables == []
    network.visual_transformer_blocks[0].visual_modulation.out_layer.weight.data.mul_(2)
    assert relative_rms(forward(network, inputs, announced), forward(network, inputs)) < 1e-5
    drawn_latents(network, inputs, announced)
    assert announced._tables == [], "nor after a run"


def test_a_step_does_not_wait_for_the_device(network, inputs, monkeypatch):
    """Reading a tensor's numbers, or comparing tensors, would; a run does so once, when its times are announced."""
    read, real = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: read.append("tolist") or real(tensor))
    monkeypatch.setattr(torch, "equal", lambda *args: pytest.fail("tensors are compared"))
    drawn_latents(network, inputs, None)
    without, path = len(read), Counted()
    drawn_latents(network, inputs, path)
    assert path.taken == 5 and len(read) - without == without + 1


def test_rows_of_times_of_their_own_are_known_by_their_place(network, inputs, monkeypatch):
    """Steps of several pictures that are not at the same time, prepared together, without waiting for the device."""
    rows = len(inputs["hidden_states"])
    times = torch.stack([torch.linspace(900.0 - 50 * row, 100.0, 4) for row in range(rows)], dim=1)
    expected = [forward(network, {**inputs, "timestep": row.clone()}) for row in times]
    path = FastPath()
    path.expect(times)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: pytest.fail("a tensor's numbers are read"))
    for row, alone in zip(times, expected, strict=True):
        assert relative_rms(forward(network, {**inputs, "timestep": row}, path), alone) < 1e-5
    (table,) = path._tables
    assert len(table._steps) == len(times)


def test_masked_text_has_one_length_for_many_prompts(network, inputs):
    """Where graphs are replayed, which are of one length each; text without a mask stays as it is."""
    path, lengths = FastPath(graphs=True), []
    rows, tokens = inputs["encoder_hidden_states"].shape[:2]
    for shorter, masked in ((0, True), (2, True), (2, False)):
        L = tokens - shorter
        mask = torch.arange(L).expand(rows, L) < torch.tensor([[L], [L - 1]]) if masked else None
        given = {
            **inputs,
            "encoder_hidden_states": inputs["encoder_hidden_states"][:, :L],
            "text_rope_pos": torch.arange(L),
            "encoder_attention_mask": mask,
            "timestep": torch.tensor(700.0),
        }
        path.expect(torch.tensor([700.0]))
        assert relative_rms(forward(network, given, path), forward(network, given)) < 1e-5
        (step,) = path._tables[0]._steps.values()
        lengths.append(step.text.shape[1])
        assert (step.mask is None) == (mask is None)
    assert lengths == [TEXT_MULTIPLE, TEXT_MULTIPLE, tokens - 2] and tokens < TEXT_MULTIPLE


@pytest.mark.parametrize("timestep", [[700.0, 500.0], [300.0, 300.0]], ids=["a row's", "as numbers"])
def test_times_that_were_expected_otherwise(network, inputs, timestep):
    """A column of the expected times is no row of them; numbers are found wherever they stand."""
    assert len(inputs["hidden_states"]) == 2
    times = torch.tensor([[700.0, 300.0], [500.0, 300.0]])
    path = FastPath()
    path.expect(times)
    given = times[:, 0] if timestep[0] == 700.0 else torch.tensor(timestep)
    assert given.tolist() == timestep
    alone = forward(network, {**inputs, "timestep": given.clone()})
    assert relative_rms(forward(network, {**inputs, "timestep": given}, path), alone) < 1e-5


def test_graphs_hold_addresses_as_long_as_weights_stay(network):
    path = FastPath(graphs=True)
    path.expect(torch.tensor([700.0, 300.0]))
    assert path._weights_stay(network)
    path.replays._calls = {("a shape",): None}
    assert path._weights_stay(network) and len(path.replays), "in a run"
    network.double()
    assert path._weights_stay(network) and not len(path.replays), "moved by a callback"
    path.replays._calls = {("a shape",): None}
    path.expect(torch.tensor([700.0, 300.0]))
    network.visual_transformer_blocks[1].feed_forward.in_layer.weight.data = torch.zeros(3)
    assert path._weights_stay(network) and not len(path.replays), "between two runs"


def test_tensors_of_inference_mode(network, inputs, announced):
    expected = forward(network, inputs)
    network.fast_path = announced
    with torch.inference_mode():
        inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].clone()
        assert relative_rms(network(**inputs).sample, expected) < 1e-5


# --- what it must not disturb ---


def test_off_unless_it_is_asked_for(network):
    assert network.fast_path is None


def test_an_adapter_counts_and_can_be_merged_and_taken_out(config, inputs):
    network = drawn(Kandinsky5Transformer3DModel(**config))
    plain = forward(network, inputs)
    prepare_for_speed(network)
    adapt(network)
    path = Counted()
    adapted = forward(network, inputs)
    assert relative_rms(adapted, plain) > 0.01
    assert relative_rms(forward(network, inputs, path), adapted) < 1e-5
    network.fuse_lora()
    assert relative_rms(forward(network, inputs, path), adapted) < 1e-4
    network.unfuse_lora()
    network.unload_lora()
    assert relative_rms(forward(network, inputs, path), plain) < 1e-4
    assert path.taken == 3


def test_an_adapter_that_arrives_between_two_steps_counts_for_the_text_too(config, inputs, announced):
    """The text blocks' layers are adapted as well, and what the table holds of them is older."""
    network = drawn(Kandinsky5Transformer3DModel(**config))
    forward(network, inputs, announced)
    adapt(network)
    assert relative_rms(forward(network, inputs, announced), forward(network, inputs)) < 1e-5
    network.disable_adapters()
    assert relative_rms(forward(network, inputs, announced), forward(network, inputs)) < 1e-5


def test_an_adapter_that_is_merged_between_two_steps_stays(config, inputs, announced):
    """Merging writes to weights without a trace."""
    network = drawn(Kandinsky5Transformer3DModel(**config))
    before = forward(network, inputs, announced)
    adapt(network)
    forward(network, inputs, announced)
    network.fuse_lora()
    network.unload_lora()
    after = forward(network, inputs, announced)
    assert relative_rms(after, forward(network, inputs)) < 1e-5
    assert relative_rms(after, before) > 0.01


def test_a_copy_keeps_nothing_of_the_run(network, inputs, announced):
    expected = forward(network, inputs, announced)
    announced.replays = Replays(insisted=True, capture=None)
    announced.replays._calls["a shape"] = threading.Lock()  # as little to be copied as a CUDA graph
    other = copy.deepcopy(network)
    assert type(other.fast_path) is FastPath and not other.fast_path._tables
    with torch.no_grad():
        other.text_embeddings.in_layer.weight.mul_(-1)
        assert relative_rms(other(**inputs).sample, forward(other, inputs)) < 1e-5
    assert relative_rms(forward(network, inputs, announced), expected) < 1e-6


@pytest.mark.parametrize("mode", ["exact", "fp8", "fp8-attention"])
@pytest.mark.parametrize("graphs", [None, True, False])
def test_a_copy_has_the_settings(network, mode, graphs):
    use_mode(network, mode, graphs=graphs)
    mine, other = network.fast_path, copy.deepcopy(network).fast_path
    assert (other.mode, other.float8) == (mine.mode, mine.float8)
    assert [getattr(path.replays, "_insisted", None) for path in (mine, other)] == [
        None if graphs is False else graphs is True
    ] * 2


def test_threads_take_turns(network, inputs):
    """A graph reads its inputs from one place, and what is expected is one run's."""
    seen = []

    def gelu(x, quantise):
        seen.append(threading.get_ident())
        time.sleep(0.002)  # so that another thread would come between
        return EAGER.gelu(x, quantise)

    network.fast_path = FastPath(replace(EAGER, gelu=gelu))
    run = torch.no_grad()(lambda: [network(**inputs) for _ in range(3)])
    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    blocks = len(network.visual_transformer_blocks)
    evaluations = [set(seen[i : i + blocks]) for i in range(0, len(seen), blocks)]
    assert len(evaluations) == 9 and all(len(threads) == 1 for threads in evaluations)


def test_hooks_on_the_network_fire(network, inputs):
    seen = []
    network.register_forward_pre_hook(lambda *_: seen.append("before"))
    network.register_forward_hook(lambda *_: seen.append("after"))
    path = Counted()
    forward(network, inputs, path)
    assert seen == ["before", "after"] and path.taken == 1


@pytest.mark.parametrize("where", ["a block", "a layer"])
def test_hooks_inside_the_network_fire_by_the_ordinary_way(network, inputs, where, caplog):
    seen, block = [], network.visual_transformer_blocks[0]
    module = block if where == "a block" else block.feed_forward.in_layer
    handle = module.register_forward_hook(lambda *_: seen.append(1))
    path = Counted()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            forward(network, inputs, path)
    assert len(seen) == 3 and path.taken == 0
    assert len(caplog.records) == 1 and "hooked" in caplog.text, "said once"
    handle.remove()
    forward(network, inputs, path)
    assert path.taken == 1


def test_layers_offloaded_one_by_one(network, inputs):
    from accelerate import cpu_offload

    expected = forward(network, inputs)
    cpu_offload(network, execution_device=torch.device("cpu"))
    path = Counted()
    assert relative_rms(forward(network, inputs, path), expected) < 1e-5
    assert path.taken == 0


def test_groups_of_layers_offloaded(network, inputs):
    expected = forward(network, inputs)
    network.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )
    path = Counted()
    assert relative_rms(forward(network, inputs, path), expected) < 1e-5
    assert path.taken == 0


def test_compiled_blocks_are_run_as_compiled(network, inputs):
    network.compile_repeated_blocks(backend="eager")
    path = Counted()
    forward(network, inputs, path)
    assert path.taken == 0


def test_gradients_go_the_ordinary_way(network, inputs):
    network.fast_path = path = Counted()
    network(**inputs).sample.sum().backward()
    assert path.taken == 0
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_gradients_of_inputs_go_the_ordinary_way_too(network, inputs):
    network.requires_grad_(False)
    network.fast_path = path = Counted()
    for name in ("hidden_states", "encoder_hidden_states", "pooled_projections"):
        given = inputs[name].clone().requires_grad_()
        network(**{**inputs, name: given}).sample.sum().backward()
        assert path.taken == 0 and given.grad is not None
    network(**inputs)
    assert path.taken == 1


@torch.no_grad()
def test_a_network_compiled_as_a_whole_is_one_graph(config, inputs):
    network = drawn(Kandinsky5Transformer3DModel(**{**config, "num_visual_blocks": 1, "num_text_blocks": 1}))
    expected = forward(network, inputs)
    network.fast_path = path = Counted()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert relative_rms(compiled(**inputs).sample, expected) < 1e-6
    assert path.taken == 0


class NoFloat64(TorchDispatchMode):
    """A device such as MPS, which has no float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        assert getattr(found, "dtype", None) != torch.float64, func
        return found


def test_nothing_needs_float64(network, inputs, announced):
    expected = forward(network, inputs)
    with NoFloat64():
        found = forward(network, inputs, announced)
    assert relative_rms(found, expected) < 1e-5


def test_a_chosen_attention_back_end_is_used(network, inputs, back_end_restored):
    calls = []
    block = network.visual_transformer_blocks[1]
    ordinary = block.self_attention.processor
    block.self_attention.set_processor(lambda *args: (calls.append(1), ordinary(*args))[1])
    forward(network, inputs, FastPath())
    assert calls == [1]


# --- layers laid together ---


def weights_of(network):
    attention = network.visual_transformer_blocks[0].self_attention
    return [attention.to_query.weight, attention.to_key.weight, attention.to_value.weight]


def test_laid_together_the_checkpoint_is_the_same(network, inputs, tmp_path):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    size = sum(p.untyped_storage().nbytes() for p in network.parameters())
    prepare_for_speed(network)
    assert joined(weights_of(network)) is not None
    after = network.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in network.parameters()}
    assert sum(storages.values()) == size, "no byte more"
    network.save_pretrained(tmp_path)
    again = Kandinsky5Transformer3DModel.from_pretrained(tmp_path)
    assert torch.equal(forward(again, inputs), forward(network, inputs))


def test_moved_apart_the_result_is_the_same(network, inputs):
    prepare_for_speed(network)
    expected = forward(network, inputs)
    network.to(torch.float64).to(torch.float32)
    assert joined(weights_of(network)) is None
    assert relative_rms(forward(network, inputs, FastPath()), expected) < 1e-5


def test_a_training_step_reaches_layers_laid_together(config, inputs):
    network = drawn(Kandinsky5Transformer3DModel(**config))
    prepare_for_speed(network)
    before = forward(network, inputs)
    with torch.no_grad():
        for weight in weights_of(network):
            weight.mul_(1.5)
    after = forward(network, inputs, FastPath())
    assert relative_rms(after, before) > 1e-3
    assert relative_rms(after, forward(network, inputs)) < 1e-5


# --- on a card ---


@pytest.mark.gpu
@pytest.mark.parametrize("length", [15, 128, 131])
def test_masked_attention_at_the_published_width(length):
    """What an empty negative prompt beside a longer one makes of cross-attention; any back end but plain maths."""
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(2, 4096, 20, 128), (2, length, 20, 128), (2, length, 20, 128)]
    query, key, value = (torch.randn(s, generator=generator, device="cuda").bfloat16() for s in shapes)
    mask = torch.ones(2, length, dtype=torch.bool, device="cuda")
    mask[1, 2:] = False
    found = SoftmaxAttention()(query, key, value, mask).float()
    wide = [x.float().transpose(1, 2) for x in (query, key, value)]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = torch.nn.functional.scaled_dot_product_attention(*wide, attn_mask=mask[:, None, None])
    assert relative_rms(found, expected.transpose(1, 2)) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True, None], ids=["launched", "captured", "where there is room"])
def test_on_cuda_with_triton(graphs):
    from kandinsky5.model.kernels import kernels_for

    config = config_of("t2i", model_dim=256, axes_dims=(16, 24, 24), ff_dim=512)
    network = drawn(Kandinsky5Transformer3DModel(**config)).to("cuda")
    prepare_for_speed(network)
    path = FastPath(graphs=graphs)
    assert kernels_for(torch.device("cuda"), float8=False).name == "triton"
    for seed in (1, 2, 3, 4):
        for height in (6, 8, 2):
            inputs = inputs_for(config, height=height, seed=seed).arguments()
            inputs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            inputs["visual_rope_pos"] = [p.cuda() for p in inputs["visual_rope_pos"]]
            found, expected = forward(network, inputs, path), forward(network, inputs)
            assert relative_rms(found, expected) < 1e-4
    assert len(path.replays or ()) == (0 if graphs is False else 3)
    network.visual_transformer_blocks[0].feed_forward.in_layer.weight.data = torch.zeros_like(
        network.visual_transformer_blocks[0].feed_forward.in_layer.weight
    )
    assert relative_rms(forward(network, inputs, path), forward(network, inputs)) < 1e-4, "weights that moved"


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["exact", "fp8"])
def test_a_replay_is_what_is_launched(mode):
    """Bit for bit, and again with another prompt in the same memory."""
    config = config_of("t2i", model_dim=256, axes_dims=(16, 24, 24), ff_dim=512, num_visual_blocks=5)
    network = drawn(Kandinsky5Transformer3DModel(**config)).to("cuda", torch.bfloat16)
    use_mode(network, mode, graphs=False)
    launched, replayed = network.fast_path, FastPath(float8=mode == "fp8", graphs=True)
    for seed in range(6):
        inputs = inputs_for(config, height=32, width=32, seed=seed).arguments()
        inputs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        inputs["visual_rope_pos"] = [p.cuda() for p in inputs["visual_rope_pos"]]
        assert torch.equal(forward(network, inputs, replayed), forward(network, inputs, launched))
    assert len(replayed.replays) == 1
