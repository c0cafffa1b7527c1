// What is asked for: the fields, bounded by what the server says, read into the API's words and written from them.

import { Adapters } from "./adapters.js";
import { byId } from "./dom.js";

const OTHER = "other";
const AUTO = "auto";
const FIELD_OF = { negative_prompt: "negative", n: "count", image: "file", mask: "mask", lora: "adapters" };

export class RequestForm {
  // `model` as the API describes it, loaded.
  constructor(model) {
    this.limits = model.limits;
    this.defaults = model.defaults;
    byId("expand-row").hidden = !model.expands_prompts;
    this.adapters = new Adapters(model.loras, this.limits.max_lora_weight);
    this.#bound();
    this.#offerSizes();
    byId("steps").value = this.defaults.steps;
    byId("guidance").value = this.defaults.guidance;
    for (const id of ["size", "width", "height"]) byId(id).addEventListener("input", () => this.#checkSize());
    this.#checkSize();
  }

  // The fields in the API's words; null is what the server decides.
  read() {
    const seed = byId("seed").value;
    const size = byId("size").value;
    return {
      prompt: byId("prompt").value,
      expand_prompt: byId("expand").checked || null,
      negative_prompt: byId("negative").value,
      size: size === OTHER ? `${byId("width").value}x${byId("height").value}` : size,
      steps: Number(byId("steps").value),
      guidance: Number(byId("guidance").value),
      n: Number(byId("count").value),
      seed: seed === "" ? null : Number(seed),
      lora: this.adapters.read(),
    };
  }

  // The inverse of `read`.
  write(fields) {
    byId("prompt").value = fields.prompt;
    byId("expand").checked = Boolean(fields.expand_prompt);
    byId("negative").value = fields.negative_prompt;
    byId("steps").value = fields.steps;
    byId("guidance").value = fields.guidance;
    byId("count").value = fields.n;
    byId("seed").value = fields.seed ?? "";
    this.adapters.write(fields.lora);
    const offered = [...byId("size").options].some((option) => option.value === fields.size);
    byId("size").value = offered ? fields.size : OTHER;
    if (!offered) [byId("width").value, byId("height").value] = fields.size.split("x");
    this.#checkSize();
  }

  // Show what the server refused, at the field that it is about.
  refuse(error) {
    byId("problem").textContent = error.message;
    const name = error.param?.split(".")[0];
    const field = document.getElementById(FIELD_OF[name] ?? name ?? "");
    if (!field) return;
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }

  forgive() {
    byId("problem").textContent = "";
    for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  }

  // An edit has an instruction, and its size can follow the source.
  speakOfEditing(editing) {
    byId("prompt-label").textContent = editing ? "Instruction" : "Prompt";
    byId("draw").textContent = editing ? "Edit" : "Draw";
    byId("size").options[0].textContent = this.#auto(editing);
  }

  #auto(editing) {
    const several = this.defaults.sizes.length > 1;
    return editing && several ? "nearest to the source" : `the model's own (${told(this.defaults.size)})`;
  }

  #bound() {
    const { limits } = this;
    for (const id of ["prompt", "negative"]) byId(id).maxLength = limits.max_prompt_characters;
    byId("steps").max = limits.max_steps;
    byId("count").max = limits.max_n;
    byId("guidance").max = limits.max_guidance;
    byId("seed").max = Number.MAX_SAFE_INTEGER - limits.max_n; // larger ones would be rounded on the way
    for (const id of ["width", "height"]) {
      const side = byId(id);
      Object.assign(side, { min: limits.size_multiple, max: limits.max_side, step: limits.size_multiple });
    }
    [byId("width").value, byId("height").value] = this.defaults.size.split("x");
  }

  #offerSizes() {
    const others = this.defaults.sizes.filter((size) => pixels(size) <= this.limits.max_pixels);
    const options = [[AUTO, this.#auto(false)], ...others.map((size) => [size, told(size)]), [OTHER, "other"]];
    byId("size").replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  }

  #checkSize() {
    const other = byId("size").value === OTHER;
    for (const part of document.querySelectorAll(".other")) part.hidden = !other;
    for (const id of ["width", "height"]) Object.assign(byId(id), { disabled: !other, required: other });
    const wanted = Number(byId("width").value) * Number(byId("height").value);
    const most = this.limits.max_pixels;
    const words = `Width times height may be at most ${most.toLocaleString("en")} pixels.`;
    byId("height").setCustomValidity(other && wanted > most ? words : "");
  }
}

export function told(size) {
  return size.replace("x", " × ");
}

function pixels(size) {
  const [width, height] = size.split("x").map(Number);
  return width * height;
}
