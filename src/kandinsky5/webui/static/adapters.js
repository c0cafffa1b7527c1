// Adapters that the server offers, each with a weight; one that is left at none is not worn.

import { byId, make } from "./dom.js";

export class Adapters {
  // `names` as the API lists them, `most` the largest weight either way.
  constructor(names, most) {
    byId("adapters").hidden = names.length === 0;
    this.weights = new Map(names.map((name) => [name, weight(most)]));
    const labels = [...this.weights].map(([name, input]) => make("label", {}, make("span", {}, name), input));
    byId("weights").replaceChildren(...labels);
  }

  // Names and weights; null is none of them.
  read() {
    const worn = [...this.weights].filter(([, input]) => Number(input.value)).map(([name, input]) => [name, Number(input.value)]);
    return worn.length ? Object.fromEntries(worn) : null;
  }

  // The inverse of `read`.
  write(worn) {
    for (const [name, input] of this.weights) input.value = worn?.[name] ?? "";
  }
}

// In the words of the gallery; empty for none.
export function toldAdapters(worn) {
  return Object.entries(worn ?? {}).map(([name, weight]) => `${name} × ${weight}`).join(", ");
}

function weight(most) {
  return make("input", { type: "number", inputmode: "decimal", min: -most, max: most, step: "any", placeholder: "none" });
}
