// Where an edit may change its source: painted with a pointer or the keyboard over the picture.
//
// The canvas holds the paint at a working size; `blob` is what the API takes: as large as the source, transparent where
// it was painted.

import { byId } from "./dom.js";

const WORKING_SIDE = 1024;
const PAINT = "#e0218a";
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Mask {
  constructor(canvas, ring) {
    this.canvas = canvas;
    this.ring = ring;
    this.at = { x: 0, y: 0 };
    this.#strokes = 0;
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#drag(event));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    byId("brush").addEventListener("input", () => this.#showRing());
    byId("clear-mask").addEventListener("click", () => this.clear());
  }

  #strokes;

  // Begin an empty mask for a picture of this size.
  start(width, height) {
    const scale = Math.min(1, WORKING_SIDE / Math.max(width, height));
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    this.at = { x: this.canvas.width / 2, y: this.canvas.height / 2 };
    this.clear();
    this.#showRing();
  }

  clear() {
    this.#pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.#strokes = 0;
  }

  // A PNG of width x height, or null where nothing is painted.
  async blob(width, height) {
    if (!this.#strokes || !this.#painted()) return null;
    const full = document.createElement("canvas");
    Object.assign(full, { width, height });
    const pen = full.getContext("2d");
    pen.fillRect(0, 0, width, height);
    pen.globalCompositeOperation = "destination-out";
    pen.drawImage(this.canvas, 0, 0, width, height);
    return new Promise((resolve) => full.toBlob(resolve, "image/png"));
  }

  // Paint what an earlier `blob` left transparent.
  async restore(blob) {
    const image = await createImageBitmap(blob);
    const { width, height } = this.canvas;
    this.#pen.globalCompositeOperation = "source-over";
    this.#pen.fillStyle = PAINT;
    this.#pen.fillRect(0, 0, width, height);
    this.#pen.globalCompositeOperation = "destination-out";
    this.#pen.drawImage(image, 0, 0, width, height);
    this.#strokes = 1;
  }

  get #pen() {
    return this.canvas.getContext("2d", { willReadFrequently: true });
  }

  // Diameter in the canvas's own pixels, from a part of the shorter side in percent.
  get #brush() {
    return (Math.min(this.canvas.width, this.canvas.height) * Number(byId("brush").value)) / 100;
  }

  #painted() {
    const { data } = this.#pen.getImageData(0, 0, this.canvas.width, this.canvas.height);
    return data.some((value, i) => i % 4 === 3 && value > 0);
  }

  #line(from, to) {
    const pen = this.#pen;
    pen.globalCompositeOperation = byId("erase").checked ? "destination-out" : "source-over";
    Object.assign(pen, { strokeStyle: PAINT, fillStyle: PAINT, lineWidth: this.#brush, lineCap: "round" });
    pen.beginPath();
    pen.moveTo(from.x, from.y);
    pen.lineTo(to.x, to.y);
    pen.stroke();
    pen.beginPath(); // a line of no length leaves nothing in some browsers
    pen.arc(to.x, to.y, this.#brush / 2, 0, 2 * Math.PI);
    pen.fill();
    this.#strokes += 1;
  }

  #press(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.#go(this.#place(event));
    this.#line(this.at, this.at);
  }

  #drag(event) {
    const from = this.at;
    this.#go(this.#place(event));
    if (this.canvas.hasPointerCapture(event.pointerId)) this.#line(from, this.at);
  }

  #key(event) {
    const move = MOVES[event.key];
    if (move) {
      const from = this.at;
      const stride = this.#brush / 2;
      this.#go({ x: from.x + move[0] * stride, y: from.y + move[1] * stride });
      if (event.shiftKey) this.#line(from, this.at);
    } else if (event.key === " ") this.#line(this.at, this.at);
    else if (event.key === "+" || event.key === "-") {
      byId("brush").value = Number(byId("brush").value) + (event.key === "+" ? 2 : -2);
      this.#showRing();
    } else return;
    event.preventDefault();
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    const { width, height } = this.canvas;
    return { x: ((event.clientX - box.left) / box.width) * width, y: ((event.clientY - box.top) / box.height) * height };
  }

  #go({ x, y }) {
    const { width, height } = this.canvas;
    this.at = { x: Math.min(Math.max(x, 0), width), y: Math.min(Math.max(y, 0), height) };
    this.#showRing();
  }

  #showRing() {
    const { width, height } = this.canvas;
    this.ring.style.left = `${(100 * this.at.x) / width}%`;
    this.ring.style.top = `${(100 * this.at.y) / height}%`;
    this.ring.style.width = `${(100 * this.#brush) / width}%`;
  }
}
