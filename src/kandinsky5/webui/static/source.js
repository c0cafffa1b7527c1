// The picture to edit: chosen, dropped or pasted, shown under its mask, and given to the API with it.

import { byId, say } from "./dom.js";
import { Mask } from "./mask.js";

const SENT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp"];
const MOST_PIXELS = 16_000_000; // of what is sent; more than any result holds, and what a phone's canvas can

export class Source {
  // `changed` is called with whether there is one.
  constructor(limits, changed) {
    this.file = null;
    this.mask = new Mask(byId("mask"), byId("brush-ring"));
    this.#limits = limits;
    this.#changed = changed;
    byId("source").hidden = false;
    byId("file").addEventListener("change", (event) => this.#offered(event.target.files));
    byId("remove-source").addEventListener("click", () => this.remove());
    document.addEventListener("paste", (event) => this.#offered(event.clipboardData?.files));
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      this.#offered(event.dataTransfer?.files);
    });
  }

  #limits;
  #changed;

  // Take a blob as the source if it will do, and say what became of it. Returns whether it was taken.
  async offer(blob) {
    try {
      say(await this.#take(blob));
      byId("problem").textContent = "";
      return true;
    } catch (error) {
      byId("problem").textContent = error.message;
      return false;
    }
  }

  // Returns what to say about it. Throws an Error in words for what is no picture.
  async #take(blob) {
    const shown = await decoded(blob);
    let file = blob;
    const scale = Math.sqrt(MOST_PIXELS / (shown.naturalWidth * shown.naturalHeight));
    if (scale < 1 || blob.size > this.#limits.max_body_bytes * 0.9 || !SENT_AS_THEY_ARE.includes(blob.type)) {
      file = await redrawn(shown, Math.min(1, scale));
    }
    URL.revokeObjectURL(shown.src);
    if (file.size > this.#limits.max_body_bytes * 0.9) throw new Error("The picture is larger than the server reads.");
    this.file = file;
    await this.#show();
    return file === blob ? "The picture is ready to be edited." : "The picture is ready, converted for the server.";
  }

  remove() {
    this.file = null;
    URL.revokeObjectURL(byId("original").src);
    byId("original").removeAttribute("src");
    byId("file").value = "";
    this.#turn(false);
    byId("file").focus();
  }

  // What the API takes: {file, mask, fit}; null without a source. The mask is null where nothing is painted.
  async read() {
    if (!this.file) return null;
    const { naturalWidth, naturalHeight } = byId("original");
    return { file: this.file, mask: await this.mask.blob(naturalWidth, naturalHeight), fit: byId("fit").value };
  }

  // The inverse of `read`.
  async write(source) {
    if (!source) {
      if (this.file) this.remove();
      return;
    }
    this.file = source.file;
    byId("fit").value = source.fit;
    await this.#show();
    if (source.mask) await this.mask.restore(source.mask);
  }

  async #offered(files) {
    const all = [...(files ?? [])];
    const file = all.find((one) => one.type.startsWith("image/")) ?? all[0]; // what is no picture is said to be none
    if (file) await this.offer(file);
  }

  async #show() {
    const original = byId("original");
    URL.revokeObjectURL(original.src);
    original.src = URL.createObjectURL(this.file);
    await original.decode();
    this.#turn(true);
    this.mask.start(original.naturalWidth, original.naturalHeight);
  }

  #turn(there) {
    byId("choose").hidden = there;
    byId("chosen").hidden = !there;
    this.#changed(there);
  }
}

async function decoded(blob) {
  const image = new Image();
  image.src = URL.createObjectURL(blob);
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(image.src);
    throw new Error("This browser cannot read that file as a picture.");
  }
  return image;
}

// As a JPEG, transparency laid over white, as the server lays it.
function redrawn(image, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(image.naturalWidth * scale);
  canvas.height = Math.round(image.naturalHeight * scale);
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The picture is too large."))), "image/jpeg", 0.95);
  });
}
