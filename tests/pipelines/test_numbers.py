"""Numbers that change a picture: times, guidance, precision, the editing checkpoint's input."""

import copy

import pytest
import torch

from kandinsky5 import denoise, flow
from kandinsky5.pipelines import Kandinsky5T2IPipeline

from .conftest import SHORT, euler

UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


class TestTimes:
    @pytest.mark.parametrize("steps", [1, 3, 50])
    def test_they_are_the_authors(self, steps):
        """Through the scheduler: 1000 t with t from `flow.times`, and the last sigma of 50 steps from their code."""
        scheduler = euler()
        timesteps = denoise.set_times(scheduler, steps, "cpu")
        expected = flow.times(steps)
        torch.testing.assert_close(scheduler.sigmas, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(timesteps, 1000 * expected[:-1], atol=1e-3, rtol=0)
        if steps == 50:
            assert abs(float(scheduler.sigmas[-2]) - 0.0577) < 1e-4

    def test_a_scheduler_without_sigmas_keeps_its_own(self):
        from diffusers import FlowMatchHeunDiscreteScheduler

        scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
        assert len(denoise.set_times(scheduler, 4, "cpu")) == 7

    def test_euler_takes_the_array_as_it_took_the_list(self):
        for steps in (1, 3, 16, 50):
            ours, theirs = (
                euler(),
                euler(),
            )
            denoise.set_times(ours, steps, "cpu")
            theirs.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist())
            assert torch.equal(ours.sigmas, theirs.sigmas) and torch.equal(ours.timesteps, theirs.timesteps)

    @pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "FlowMatchLCMScheduler"])
    def test_other_schedulers_that_take_sigmas_get_the_same_times(self, name):
        import diffusers

        settings = {"UniPCMultistepScheduler": UNIPC, "FlowMatchLCMScheduler": {"shift": 3.0}}[name]
        scheduler = getattr(diffusers, name)(**settings)
        timesteps = denoise.set_times(scheduler, 5, "cpu")
        torch.testing.assert_close(timesteps.float(), 1000 * flow.times(5)[:-1], atol=1, rtol=0)

    @pytest.mark.filterwarnings("ignore:__array__ implementation")
    def test_a_scheduler_with_rounded_times_begins_with_the_first(self):
        """Of 1000 steps the first two have the timestep 999; where the path is straight, all of them arrive."""
        from diffusers import DPMSolverMultistepScheduler

        scheduler = DPMSolverMultistepScheduler(**UNIPC)
        timesteps = denoise.set_times(scheduler, 1000, "cpu")
        assert timesteps[0] == timesteps[1] == 999
        image, noise = torch.zeros(4), torch.ones(4)
        x = noise
        for timestep in timesteps:
            x = scheduler.step(flow.velocity(image, noise), timestep, x, return_dict=False)[0]
        torch.testing.assert_close(x, image, atol=2e-3, rtol=0)

    def test_unipc_draws_nearly_the_same_picture(self, pipeline, generator):
        from diffusers import UniPCMultistepScheduler

        euler = pipeline(SHORT, generator=generator(0), num_inference_steps=160, output_type="latent").image
        pipeline.scheduler = UniPCMultistepScheduler(**UNIPC)
        other = pipeline(SHORT, generator=generator(0), num_inference_steps=40, output_type="latent").image
        start = torch.randn(1, 1, 8, 8, 16, generator=generator(0))
        assert (euler - other).pow(2).mean() < 0.002 * (euler - start).pow(2).mean()

    def test_another_solver_draws_nearly_the_same_picture(self, pipeline, components, generator):
        """Heun's method at many steps and Euler's meet: the scheduler is a part that can be exchanged."""
        from diffusers import FlowMatchHeunDiscreteScheduler

        euler = pipeline(SHORT, generator=generator(0), num_inference_steps=160, output_type="latent").image
        pipeline.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
        heun = pipeline(SHORT, generator=generator(0), num_inference_steps=80, output_type="latent").image
        start = torch.randn(1, 1, 8, 8, 16, generator=generator(0))
        assert (euler - heun).pow(2).mean() < 0.002 * (euler - start).pow(2).mean()


class TestPrecision:
    def test_the_network_gets_float32_times_and_latents(self, components, generator):
        """bfloat16 network: 1000 t and the latents reach it unrounded, and latents stay float32 between steps."""
        network = copy.deepcopy(components["transformer"]).to(torch.bfloat16)
        pipe = Kandinsky5T2IPipeline(
            **{
                **components,
                "transformer": network,
                "scheduler": euler(),
            }
        )
        pipe.set_progress_bar_config(disable=True)
        seen = []
        network.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append(kwargs) or None, with_kwargs=True
        )
        latents = pipe(SHORT, num_inference_steps=7, generator=generator(0), output_type="latent").image
        assert latents.dtype == torch.float32
        times = torch.stack([kwargs["timestep"][0] for kwargs in seen])
        assert times.dtype == torch.float32
        torch.testing.assert_close(times, 1000 * flow.times(7)[:-1], atol=1e-3, rtol=0)
        assert {kwargs["hidden_states"].dtype for kwargs in seen} == {torch.float32}
        assert not torch.equal(latents, latents.to(torch.bfloat16).to(torch.float32))

    @pytest.mark.parametrize("vae_dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("network_dtype", [torch.float32, torch.bfloat16])
    def test_vae_and_network_of_different_dtypes(self, components, generator, vae_dtype, network_dtype):
        pipe = Kandinsky5T2IPipeline(
            **{
                **components,
                "transformer": copy.deepcopy(components["transformer"]).to(network_dtype),
                "vae": copy.deepcopy(components["vae"]).to(vae_dtype),
                "scheduler": euler(),
            }
        )
        pipe.set_progress_bar_config(disable=True)
        reference = Kandinsky5T2IPipeline(**{**components, "scheduler": euler()})
        reference.set_progress_bar_config(disable=True)
        images = [
            p(SHORT, num_inference_steps=3, generator=generator(0), output_type="pt").image
            for p in (pipe, reference)
        ]
        assert (images[0].float() - images[1]).pow(2).mean().sqrt() < 0.03

    def test_the_documented_move_to_bfloat16(self, saved_folder, generator):
        """`pipe.to(device, dtype=torch.bfloat16)` runs, and stays near the float32 picture."""
        pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder)
        pipe.set_progress_bar_config(disable=True)
        exact = pipe(SHORT, generator=generator(0), output_type="pt").image
        pipe = pipe.to("cpu", dtype=torch.bfloat16)
        rounded = pipe(SHORT, generator=generator(0), output_type="pt").image
        assert (rounded.float() - exact).pow(2).mean().sqrt() < 0.03


class TestEditingCheckpoint:
    def test_text_to_image_on_it_sees_zeros(self, components, editing_network, generator):
        """An editing network whose weights agree with the plain one draws the plain one's picture."""
        arguments = {"prompt": SHORT, "num_inference_steps": 3, "output_type": "pt"}
        images = []
        for network in (components["transformer"], editing_network):
            pipe = Kandinsky5T2IPipeline(
                **{
                    **components,
                    "transformer": network,
                    "scheduler": euler(),
                }
            )
            pipe.set_progress_bar_config(disable=True)
            images.append(pipe(**arguments, generator=generator(0)).image)
        assert (images[0] - images[1]).abs().max() < 1e-5

    def test_callbacks_see_the_16_channels(self, components, editing_network):
        pipe = Kandinsky5T2IPipeline(
            **{
                **components,
                "transformer": editing_network,
                "scheduler": euler(),
            }
        )
        shapes = []
        pipe(
            SHORT,
            num_inference_steps=1,
            callback_on_step_end=lambda _p, _i, _t, k: shapes.append(k["latents"].shape[-1]) or {},
        )
        assert shapes == [16]


def test_guidance_is_the_formula(pipeline, components, generator):
    """One step by hand: v = v_neg + g (v_pos - v_neg), x - v."""
    start = torch.randn(1, 1, 8, 8, 16, generator=generator(0))
    result = pipeline(
        SHORT, "grey", num_inference_steps=1, guidance_scale=2.5, latents=start, output_type="latent"
    ).image
    velocities = []
    for text in ("grey", SHORT):
        states, pooled, _ = pipeline.encode_prompt(text)
        velocities.append(
            components["transformer"](
                start,
                states,
                1000.0,
                pooled,
                [torch.arange(1), torch.arange(4), torch.arange(4)],
                torch.arange(states.shape[1]),
            ).sample
        )
    negative, positive = velocities
    expected = flow.step(start, negative + 2.5 * (positive - negative), 1.0, 0.0)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
