// Before and after in one place, with a slider between them.

import { make } from "./dom.js";

const SHAPES = { cover: "cover", pad: "contain", stretch: "fill" }; // how the source came to the size of the result

// `before` is the source's blob, `after` the element that shows the result.
export function comparison(before, after, fit) {
  const source = make("img", { class: "before", alt: "Before" });
  source.src = URL.createObjectURL(before);
  source.style.objectFit = SHAPES[fit];
  const slider = make("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Before and after" });
  const box = make("div", { class: "compare" }, make("div", { class: "both" }, after, source), slider);
  const split = () => box.style.setProperty("--split", `${slider.value}%`);
  slider.addEventListener("input", split);
  split();
  return box;
}
