// The server's HTTP API: every path that the page uses, and what a refusal says.

export class Refused extends Error {
  constructor(status, problem, seconds) {
    super(problem.message);
    this.status = status;
    this.param = problem.param;
    this.code = problem.code;
    this.seconds = seconds; // until it makes sense to ask again; null if it does not
  }
}

export class Api {
  constructor(key) {
    this.key = key;
  }

  // The model that is served, with its defaults (missing while it is being loaded) and the server's limits.
  async model() {
    return (await this.#json("v1/models")).data[0];
  }

  // A job for pictures from text, or for edits where there is a source: {file, mask, fit}.
  submit(fields, source) {
    const given = Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null));
    if (!source) {
      const headers = { "content-type": "application/json" };
      return this.#json("v1/jobs/generations", { method: "POST", headers, body: JSON.stringify(given) });
    }
    const form = new FormData();
    const { lora = {}, ...texts } = given;
    for (const [name, value] of Object.entries({ ...texts, fit: source.fit })) form.append(name, String(value));
    for (const [name, weight] of Object.entries(lora)) form.append(`lora[${name}]`, String(weight));
    form.append("image", source.file, "source");
    if (source.mask) form.append("mask", source.mask, "mask.png");
    return this.#json("v1/jobs/edits", { method: "POST", body: form });
  }

  job(id) {
    return this.#json(`v1/jobs/${id}`);
  }

  cancel(id) {
    return this.#json(`v1/jobs/${id}/cancel`, { method: "POST" });
  }

  // The pictures of a job that has succeeded: [{blob, seed, prompt}], the prompt where it was written out.
  async pictures(id) {
    const { data } = await this.#json(`v1/jobs/${id}/result`);
    return data.map(({ b64_json, seed, revised_prompt: prompt }) => ({ blob: ofBase64(b64_json), seed, prompt }));
  }

  // How a running job's first picture looks by now, as a blob; null if it has none.
  async preview(id) {
    const response = await this.#fetch(`v1/jobs/${id}/preview`);
    return response.ok ? response.blob() : null;
  }

  async #json(path, options) {
    const response = await this.#fetch(path, options);
    const body = await response.json().catch(() => ({}));
    if (response.ok) return body;
    const problem = body.error ?? { message: `The server answered ${response.status}.` };
    if (!body.error && response.status >= 500) throw new Error(problem.message); // a proxy's, of a server that is silent
    const seconds = response.headers.get("retry-after");
    throw new Refused(response.status, problem, seconds === null ? null : Number(seconds));
  }

  // Throws Refused, as the server would, for a key with letters that no header can carry.
  #fetch(path, options = {}) {
    const headers = new Headers(options.headers);
    try {
      if (this.key) headers.set("authorization", `Bearer ${this.key}`);
    } catch {
      throw new Refused(401, { message: "No server can have that API key." }, null);
    }
    return fetch(path, { ...options, headers, cache: "no-store" });
  }
}

function ofBase64(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}
