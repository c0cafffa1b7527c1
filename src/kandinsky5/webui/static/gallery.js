// What came of it: pictures, what was asked for last first, each with the parameters that draw it again.

import { toldAdapters } from "./adapters.js";
import { comparison } from "./compare.js";
import { byId, make } from "./dom.js";
import { told } from "./form.js";

export class Gallery {
  // `again` is called with the fields and the source of a picture; `edit` with its blob, or is null.
  constructor(again, edit) {
    this.again = again;
    this.edit = edit;
  }

  // One picture: `fields` in the API's words with its own seed, `source` as it was sent, or null; it comes before those
  // of the same `place` and of lower ones.
  add(blob, fields, source, place) {
    byId("none").hidden = true;
    const url = URL.createObjectURL(blob);
    const image = make("img", { class: "after", src: url, alt: fields.prompt });
    const link = make("a", { href: url, download: `${fileName(fields)}.png` }, "Download");
    const again = make("button", { type: "button" }, "Use these again");
    again.addEventListener("click", () => this.again(fields, source));
    const buttons = make("div", { class: "row" }, again, link);
    if (this.edit) {
      const edit = make("button", { type: "button" }, "Edit this");
      edit.addEventListener("click", () => this.edit(blob));
      buttons.append(edit);
    }
    const shown = source ? comparison(source.file, image, source.fit) : image;
    const caption = make("figcaption", {}, make("p", { class: "prompt" }, fields.prompt), parameters(fields), buttons);
    const before = [...byId("gallery").querySelectorAll("figure")].find((one) => Number(one.dataset.place) <= place);
    byId("gallery").insertBefore(make("figure", { "data-place": place }, shown, caption), before ?? null);
  }
}

function parameters(fields) {
  const rows = {
    Size: told(fields.size),
    Steps: fields.steps,
    Guidance: fields.guidance,
    Seed: fields.seed,
    Without: fields.negative_prompt,
    Adapters: toldAdapters(fields.lora),
  };
  const given = Object.entries(rows).filter(([, value]) => value !== "");
  return make("dl", {}, ...given.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
}

function fileName({ prompt, seed }) {
  const words = prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40).replace(/^-|-$/g, "");
  return `${words || "picture"}-${seed}`;
}
