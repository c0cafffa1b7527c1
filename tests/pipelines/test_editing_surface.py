"""What a caller of the editing pipeline sees: sizes, fits, outputs, processors, placement."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import kandinsky5
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.geometry import NATIVE_SIZES
from kandinsky5.pictures import fit_picture
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline

from .conftest import SHORT, picture
from .test_placement import _offload


def test_it_is_a_public_name():
    assert kandinsky5.Kandinsky5I2IPipeline is Kandinsky5I2IPipeline


class TestSize:
    @pytest.fixture
    def published(self, editing_components):
        """The pipeline of a checkpoint whose native size is the published one."""
        vae = copy.deepcopy(editing_components["vae"])
        vae.register_to_config(sample_size=1024)
        return Kandinsky5I2IPipeline(**{**editing_components, "vae": vae})

    @pytest.mark.parametrize("native", NATIVE_SIZES)
    def test_the_native_size_nearest_in_shape(self, published, native):
        width, height = native
        assert published.edit_size([(width * 3, height * 3)]) == native

    def test_of_a_checkpoint_with_one_size(self, editing):
        assert editing.edit_size([(300, 100)]) == (128, 128)
        assert editing(picture(300, 100), SHORT, num_inference_steps=1).images[0].size == (128, 128)

    @pytest.mark.parametrize(("source", "expected"), [
        ((3000, 2000), (1248, 832)), ((2000, 3000), (832, 1248)), ((500, 500), (1024, 1024)),
        ((1920, 1080), (1360, 768)), ((6000, 1000), (2048, 336)), ((1000, 9000), (224, 2048)),
    ])  # fmt: skip
    def test_the_sources_own_shape_at_native_area(self, published, source, expected):
        assert published.edit_size([source], size="source") == expected
        assert all(side % 16 == 0 and 16 <= side <= 2048 for side in expected)
        assert abs(expected[0] / expected[1] / (source[0] / source[1]) - 1) < 0.025

    def test_it_is_drawn(self, editing):
        output = editing(picture(300, 150), SHORT, size="source", num_inference_steps=1)
        assert output.images[0].size == output.fits[0].size == (176, 96)

    def test_one_side_keeps_the_shape(self, editing):
        assert editing.edit_size([(300, 100)], height=64) == (192, 64)
        assert editing.edit_size([(300, 100)], width=96) == (96, 32)
        assert editing.edit_size([(300, 100)], height=64, width=96) == (96, 64)

    def test_one_side_that_the_other_cannot_follow(self, editing):
        with pytest.raises(RequestError, match="largest width that keeps its shape is 1152"):
            editing.edit_size([(1080, 1920)], width=1536)
        with pytest.raises(RequestError, match="largest height that keeps its shape is 672"):
            editing(picture(300, 100), SHORT, height=1024)

    def test_sources_that_ask_for_several_sizes(self, published):
        assert published.edit_size([(1000, 1000), (1010, 1000)]) == (1024, 1024)
        with pytest.raises(RequestError, match="1024x1024, 1280x768"):
            published.edit_size([(1000, 1000), (1600, 1000)])
        assert published.edit_size([(1000, 1000), (1600, 1000)], 512, 512) == (512, 512)


class TestFit:
    def test_it_is_reported_a_source_each(self, editing):
        output = editing([picture(200, 100), picture(100, 100)], [SHORT] * 2, num_inference_steps=1)
        assert [(fit.kind, fit.source, fit.size) for fit in output.fits] == [
            ("cover", (200, 100), (128, 128)),
            ("cover", (100, 100), (128, 128)),
        ]
        assert output.fits[0].kept == (50, 0, 150, 100)
        assert [fit.changes for fit in output.fits] == ["100 of 200 columns cut off, left and right", ""]

    @pytest.mark.parametrize("kind", ["cover", "pad", "stretch"])
    def test_it_is_what_the_edit_is_made_of(self, editing, generator, kind):
        """The same as handing over the fitted picture: for the latents and for what the encoder is shown."""
        source = picture(220, 90)
        fitted, record = fit_picture(source, (128, 128), kind)
        by_call = editing(source, SHORT, fit=kind, generator=generator(0), output_type="pt")
        by_hand = editing(fitted, SHORT, generator=generator(0), output_type="pt")
        assert torch.equal(by_call.image, by_hand.image)
        assert by_call.fits == [record]

    def test_text_to_image_has_none(self, pipeline):
        assert pipeline(SHORT, num_inference_steps=1).fits is None


class TestOutput:
    def test_both_names_and_every_type(self, editing, generator):
        def edit(**arguments):
            return editing(picture(), SHORT, generator=generator(0), **arguments)

        output = edit()
        assert output.images is output.image and output.images[0].size == (128, 128)
        as_tensor, as_array = edit(output_type="pt").image, edit(output_type="np").image
        assert as_tensor.shape == (1, 3, 128, 128) and as_array.shape == (1, 128, 128, 3)
        assert edit(output_type="latent").image.shape == (1, 1, 16, 16, 16)
        assert np.array_equal(np.asarray(output.image[0]), (as_array[0] * 255).round().astype("uint8"))
        (images,) = edit(return_dict=False)
        assert images[0].tobytes() == output.images[0].tobytes()

    def test_a_source_is_never_written_to(self, editing):
        image = picture()
        values = torch.from_numpy(np.asarray(image, dtype=np.float32).copy() / 255).permute(2, 0, 1)
        before = image.tobytes(), values.clone()
        editing(image, SHORT, num_inference_steps=1)
        editing(values, SHORT, num_inference_steps=1)
        assert (image.tobytes(), True) == (before[0], torch.equal(values, before[1]))


class TestPictureProcessor:
    """Where the vision tower's pixel settings come from."""

    def test_the_published_ones_without_files(self, editing):
        processor = editing.picture_processor
        assert (processor.patch_size, processor.merge_size, processor.temporal_patch_size) == (14, 2, 2)
        assert processor.image_mean[0] == pytest.approx(0.48145466)

    @pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
    def test_the_files_of_a_folder(self, saved_editing_folder, tmp_path, name):
        """The index names the whole processor, which cannot be built here; its settings are followed all the same."""
        folder = shutil.copytree(saved_editing_folder, tmp_path / "copy")
        index = json.loads((folder / "model_index.json").read_text())
        index["tokenizer"] = ["transformers", "Qwen2_5_VLProcessor"]
        (folder / "model_index.json").write_text(json.dumps(index))
        settings = json.loads((folder / "tokenizer" / "preprocessor_config.json").read_text())
        (folder / "tokenizer" / "preprocessor_config.json").unlink()
        settings["image_mean"] = [0.1, 0.2, 0.3]
        stored = settings if name.startswith("pre") else {"image_processor": settings}
        (folder / "tokenizer" / name).write_text(json.dumps(stored))
        pipe = Kandinsky5I2IPipeline.from_pretrained(folder)
        assert list(pipe.picture_processor.image_mean) == [0.1, 0.2, 0.3]
        assert pipe.picture_processor.size["longest_edge"] == settings["size"]["longest_edge"]
        pipe.save_pretrained(tmp_path / "again")
        again = Kandinsky5I2IPipeline.from_pretrained(tmp_path / "again")
        assert list(again.picture_processor.image_mean) == [0.1, 0.2, 0.3]

    def test_a_processor_around_the_tokenizer(self, editing, generator):
        from .editing_peer import PictureProcessor, Qwen2VLImageProcessorPil

        expected = editing.encode_prompt(SHORT, picture())[0]
        own = Qwen2VLImageProcessorPil(image_mean=[0.0, 0.0, 0.0])
        editing.tokenizer = PictureProcessor(image_processor=own, tokenizer=editing.tokenizer)
        assert list(editing.picture_processor.image_mean) == [0.0, 0.0, 0.0]
        assert (editing.encode_prompt(SHORT, picture())[0] - expected).abs().max() > 1e-4

    def test_a_file_that_is_no_json(self, saved_editing_folder, editing):
        from kandinsky5.pipelines.processor_files import ProcessorFiles

        files = ProcessorFiles(
            tokenizer=editing.tokenizer, entry=("transformers", "x"), files={"preprocessor_config.json": b"{"}
        )
        with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
            files.picture_settings()


class TestPlacement:
    def test_the_vision_tower_is_loaded_and_brought_in(self, saved_editing_folder, generator):
        """By loading; and where text to image, which does without it, hands its components over."""
        loaded = Kandinsky5I2IPipeline.from_pretrained(saved_editing_folder)
        drawing = Kandinsky5T2IPipeline.from_pretrained(saved_editing_folder)
        assert not list(drawing.text_encoder.model.visual.parameters())
        taken_over = Kandinsky5I2IPipeline(**drawing.components, default_steps=3)
        images = []
        for pipe in (loaded, taken_over):
            pipe.set_progress_bar_config(disable=True)
            images.append(pipe(picture(), SHORT, generator=generator(0), output_type="pt").image)
        assert (images[0] - images[1]).abs().max() < 1e-5

    @pytest.mark.parametrize("enable", ["model", "sequential", "group", "group with leaves"])
    def test_offload_gives_the_same_picture(
        self, saved_editing_folder, editing, generator, monkeypatch, enable
    ):
        arguments = {"image": picture(), "prompt": SHORT, "output_type": "pt"}
        expected = editing(**arguments, generator=generator(0)).image
        pipe = Kandinsky5I2IPipeline.from_pretrained(Path(saved_editing_folder))
        pipe.set_progress_bar_config(disable=True)
        _offload(pipe, enable, monkeypatch)
        for _ in range(2):
            assert (pipe(**arguments, generator=generator(0)).image - expected).abs().max() < 1e-5

    def test_both_pipelines_over_the_same_components(self, editing, generator):
        """Drawing and editing with one set of weights in memory."""
        drawing = Kandinsky5T2IPipeline(**editing.components)
        drawing.set_progress_bar_config(disable=True)
        assert drawing.transformer is editing.transformer
        before = drawing.encode_prompt(SHORT)[0]
        drawn = drawing(SHORT, generator=generator(0), num_inference_steps=1).images[0]
        edited = editing(drawn, SHORT, generator=generator(1), num_inference_steps=1).images[0]
        assert edited.size == drawn.size
        after = drawing.encode_prompt(SHORT)[0]
        assert torch.equal(before, after), "positions of an edit must not stay in the shared encoder"
