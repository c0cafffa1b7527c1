// The page put together: the key where one is asked for, the form, the jobs, the pictures.
//
// Jobs are remembered in the tab, so that a page that is loaded again, or a phone that slept, finds what it asked for.

import { Api, Refused } from "./api.js";
import { byId, isBusy, say, setBusy } from "./dom.js";
import { follow, patiently, unheard } from "./follow.js";
import { RequestForm, told } from "./form.js";
import { Gallery } from "./gallery.js";
import { Source } from "./source.js";

const KEY = "kandinsky5.key";
const JOBS = "kandinsky5.jobs";
const MOST_JOBS = 50;
const LOADING_PAUSE = 2000; // milliseconds

const api = new Api(sessionStorage.getItem(KEY));
let form;
let source;
let gallery;
let watched = 0; // jobs, so that pictures stand in the order in which they were asked for

function remembered() {
  return JSON.parse(sessionStorage.getItem(JOBS) ?? "[]");
}

function remember(jobs) {
  sessionStorage.setItem(JOBS, JSON.stringify(jobs.slice(-MOST_JOBS)));
}

// The model, once it is loaded; the person is asked for a key where the server wants one.
async function loaded() {
  for (;;) {
    try {
      const model = await api.model();
      if (model.defaults) return model;
      say("The model is being loaded.");
    } catch (error) {
      if (error instanceof Refused && error.status === 401) await enterKey(error);
      else unheard();
    }
    await new Promise((resolve) => setTimeout(resolve, LOADING_PAUSE));
  }
}

function enterKey() {
  const entry = byId("entry");
  say(api.key ? "The server does not know that API key." : "The server asks for an API key.");
  entry.hidden = false;
  byId("key").focus();
  return new Promise((resolve) => {
    entry.onsubmit = async (event) => {
      event.preventDefault();
      const key = byId("key").value.trim();
      try {
        await new Api(key).model();
      } catch (error) {
        const wrong = error instanceof Refused && error.status === 401;
        return say(wrong ? "The server does not know that API key." : "The server does not answer; try again.");
      }
      api.key = key;
      sessionStorage.setItem(KEY, key);
      entry.hidden = true;
      resolve();
    };
  });
}

// The server was started again with other keys.
async function enterOtherKey() {
  await enterKey();
  say("The server knows that API key. Draw again.");
  byId("draw").focus();
}

// While a request is sent, a second press does nothing; the button stays where it is for who uses the keyboard.
async function submit() {
  if (isBusy(byId("draw"))) return;
  form.forgive();
  setBusy(byId("draw"), true);
  try {
    const fields = form.read();
    const given = (await source?.read()) ?? null;
    const job = await api.submit(fields, given);
    remember([...remembered(), { id: job.id, fields }]);
    watch(job.id, fields, given);
    byId("running").scrollIntoView({ block: "nearest" }); // below the form on a phone
  } catch (error) {
    if (error.status === 401) return void enterOtherKey();
    if (!(error instanceof Refused)) error = new Error("The server does not answer; nothing was sent.");
    else if (error.seconds !== null) error.message += ` It expects room in ${error.seconds} s.`;
    form.refuse(error);
  } finally {
    setBusy(byId("draw"), false);
  }
}

// Follow a job to its pictures, or to the reason why there are none.
async function watch(id, fields, given) {
  const place = (watched += 1);
  try {
    const job = await follow(api, id, fields, byId("running"));
    if (job.status === "succeeded") {
      const pictures = await patiently(() => api.pictures(id), unheard);
      const drawn = { ...fields, ...job.model_parameters, size: job.size, n: 1, expand_prompt: null };
      delete drawn.fit;
      for (const { blob, seed, prompt = fields.prompt } of pictures.reverse()) {
        gallery.add(blob, { ...drawn, seed, prompt }, given, place);
      }
      say(pictures.length === 1 ? "Done: 1 picture." : `Done: ${pictures.length} pictures.`);
    } else {
      forget(id);
      if (job.status === "cancelled") say("Cancelled.");
      else byId("problem").textContent = job.error.message;
    }
  } catch (error) {
    if (error.status === 401) return enterOtherKey();
    if (error instanceof Refused) forget(id);
    byId("problem").textContent = lost(error, fields.prompt);
  }
}

function lost(error, prompt) {
  if (!(error instanceof Refused)) return `The server stopped answering about “${prompt}”; load the page again to ask.`;
  return error.status === 404 ? `The server no longer has “${prompt}”.` : error.message;
}

function forget(id) {
  remember(remembered().filter((job) => job.id !== id));
}

async function useAgain(fields, given) {
  form.write(fields);
  await source?.write(given);
  say("The picture's parameters are in the form.");
  byId("prompt").focus();
  byId("request").scrollIntoView();
}

async function editThis(blob) {
  if (!(await source.offer(blob))) return byId("problem").scrollIntoView({ block: "nearest" });
  byId("prompt").value = "";
  byId("seed").value = "";
  byId("prompt").focus();
  byId("request").scrollIntoView();
}

async function start() {
  const model = await loaded();
  byId("model").textContent = model.id;
  form = new RequestForm(model);
  const edits = model.defaults.tasks.includes("editing");
  if (edits) source = new Source(model.limits, (there) => form.speakOfEditing(there));
  gallery = new Gallery(useAgain, edits ? editThis : null);
  byId("request").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("request").requestSubmit();
  });
  byId("main").hidden = false;
  byId("draw").disabled = false;
  say(`Ready: ${told(model.defaults.size)}, ${model.defaults.steps} steps unless you say otherwise.`);
  for (const { id, fields } of remembered()) watch(id, fields, null);
}

start();
