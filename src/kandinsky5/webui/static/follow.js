// A job on its way: asked about until it ends, shown with its progress, its preview, and a way to give it up.

import { Refused } from "./api.js";
import { byId, isBusy, make, say, setBusy } from "./dom.js";

const SHORTEST_PAUSE = 250; // milliseconds between two questions
const LONGEST_PAUSE = 1500;
const LONGEST_SILENCE = 60_000; // from the first question that is not answered

// Follow a job to its end inside `room`. Returns the job as it ended; throws what the server refuses.
export async function follow(api, id, asked, room) {
  const card = new Card(asked.prompt, async () => card.show(await api.cancel(id)));
  room.append(card.element);
  try {
    return await watched(api, id, card);
  } finally {
    card.remove();
  }
}

async function watched(api, id, card) {
  let pause = SHORTEST_PAUSE;
  let previews = 0;
  for (;;) {
    const job = await patiently(() => api.job(id), () => card.unheard());
    card.show(job);
    if (job.ended_at !== null) return job;
    if (job.previews > previews) {
      const picture = await patiently(() => api.preview(id), () => card.unheard());
      previews = job.previews;
      if (picture) card.picture(picture);
    }
    await rest(pause);
    pause = Math.min(LONGEST_PAUSE, pause * 1.1);
  }
}

// What `ask` returns, asked again while nobody answers; each time `unheard` is called. The clock starts at the first
// silence: a phone that slept was not waiting. Throws what the server refuses, and the last failure after a long silence.
export async function patiently(ask, unheard) {
  let since = null;
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      since ??= performance.now();
      if (error instanceof Refused || performance.now() - since > LONGEST_SILENCE) throw error;
      unheard();
    }
    await rest(LONGEST_PAUSE);
  }
}

function rest(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

export function unheard() {
  say("The server does not answer; asking again.");
}

class Card {
  constructor(prompt, cancel) {
    this.said = null;
    this.progress = make("progress", { max: 1, "aria-label": `Progress of: ${prompt}` });
    this.words = make("span", { class: "words" }, "Sent");
    this.preview = make("img", { class: "preview", alt: `Preview of: ${prompt}`, hidden: true });
    this.button = make("button", { type: "button", "aria-label": `Cancel: ${prompt}` }, "Cancel");
    this.button.addEventListener("click", () => {
      if (isBusy(this.button)) return;
      setBusy(this.button, true);
      cancel().catch(() => setBusy(this.button, false));
    });
    const told = make("div", {}, make("p", { class: "prompt" }, prompt), this.progress, this.words, this.button);
    this.element = make("article", { class: "job" }, this.preview, told);
  }

  show(job) {
    if (job.status === "queued") {
      this.words.textContent = job.before_it ? `Waiting, ${job.before_it} before it` : "Waiting, next";
      this.#say(this.words.textContent);
    } else if (job.steps_total) {
      const part = job.steps_done / job.steps_total;
      this.progress.value = part;
      this.words.textContent = `Step ${job.steps_done} of ${job.steps_total}`;
      this.#say(`Drawing, ${Math.floor(part * 4) * 25} %`); // quarters: a listener need not hear every step
    }
  }

  // The server was asked about the job and did not answer.
  unheard() {
    this.said = null;
    unheard();
  }

  // Each job is told when it changes, whatever another has said since.
  #say(text) {
    if (this.said === text) return;
    this.said = text;
    say(text);
  }

  picture(blob) {
    URL.revokeObjectURL(this.preview.src);
    this.preview.src = URL.createObjectURL(blob);
    this.preview.hidden = false;
  }

  // Who was at its button finds the next job's, or the prompt.
  remove() {
    URL.revokeObjectURL(this.preview.src);
    const held = this.element.contains(document.activeElement);
    const next = this.element.nextElementSibling ?? this.element.previousElementSibling;
    this.element.remove();
    if (held) (next?.querySelector("button") ?? byId("prompt")).focus();
  }
}
