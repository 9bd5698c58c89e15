// The page of a blind study: shows what the server gives, sends what is chosen. It never learns who made what.
import { begin, chosen, complete, counted, pressed } from "./choices.mjs";
import { together } from "./films.mjs";
import { serverOf } from "./server.mjs";

const at = (id) => document.getElementById(id);
const server = serverOf({ fetch: window.fetch.bind(window), store: window.localStorage, key: `ipro study ${location.pathname}` });
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const films = together([...document.querySelectorAll("video")], { onRound: seen });
let told = null, state = begin([]), shown = 0, sending = false, retry = null, slow = false;

function show(id) {
  for (const part of ["welcome", "trial", "done"]) at(part).hidden = part !== id;
}

async function attempt(work) {
  at("problem").hidden = true;
  try {
    await work();
  } catch (error) {
    retry = () => attempt(work);
    at("problem").firstElementChild.textContent = error.message;
    at("problem").hidden = false;
    if (error.status === 404 && server.voter) { server.forget(); retry = () => location.reload(); }
  }
}

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// One question: three radio buttons, that a screen reader and the arrow keys know already.
function asked({ name, title, words }) {
  const choice = (side, label, spoken) => {
    const input = make("input", { type: "radio", name, value: side });
    input.setAttribute("aria-label", spoken);
    input.addEventListener("change", () => { state = chosen(state, name, side); mark(); });
    return make("label", {}, input, label);
  };
  return make("fieldset", { id: `question-${name}` }, make("legend", { textContent: title }), make("p", { textContent: words }),
    make("div", { className: "choices" }, choice("left", "1", "Video 1"), choice("none", "no preference", "No preference"), choice("right", "2", "Video 2")));
}

function mark({ focus = false } = {}) {
  state.questions.forEach((name, index) => {
    const field = at(`question-${name}`);
    field.disabled = !films.plays;
    field.classList.toggle("now", Boolean(films.plays) && index === state.now);
    for (const input of field.querySelectorAll("input")) input.checked = input.value === state.answers[name];
  });
  at("send").disabled = !films.plays || !complete(state) || sending;
  at("hint").textContent = films.plays ? "" : films.going ? "Watch both videos to their end, then choose." : "Press Replay to watch both videos.";
  at("pause").textContent = films.going ? "Stop" : "Go on";
  at("pause").setAttribute("aria-pressed", String(!films.going));
  if (focus && complete(state)) at("send").focus();
}

function seen() { mark(); }

function draw(answer) {
  told = answer;
  document.title = at("title").textContent = told.title;
  at("progress").hidden = false;
  at("count").textContent = counted(told.done, told.total);
  [at("bar").value, at("bar").max] = [told.done, Math.max(told.total, 1)];
  const { trial } = told;
  if (!trial) { films.stop(); show("done"); return; }
  state = begin(told.questions.map(({ name }) => name));
  at("questions").replaceChildren(...told.questions.map(asked));
  at("image").hidden = !trial.image;
  if (trial.image) at("image").src = trial.image;
  at("prompt").hidden = !trial.prompt;
  at("prompt").textContent = trial.prompt ? `“${trial.prompt}”` : "";
  shown = performance.now();
  show("trial");
  films.show(trial.videos, trial.fps, { play: !still });
  films.speed(slow ? 0.5 : 1);
  mark();
  window.scrollTo(0, 0);
}

async function send() {
  if (sending || !films.plays || !complete(state)) return;
  sending = true;
  mark();
  await attempt(async () => draw(await server.vote(told.trial.id, state.answers, (performance.now() - shown) / 1000, films.plays)));
  sending = false;
  if (told.trial) mark();
}

const acts = {
  send,
  replay() { films.replay(); mark(); },
  pause() { films.toggle(); mark(); },
  slow() {
    slow = !slow;
    films.speed(slow ? 0.5 : 1);
    at("slow").setAttribute("aria-pressed", String(slow));
  },
  moved() { mark({ focus: true }); },
};

for (const id of ["replay", "pause", "slow", "send"]) at(id).addEventListener("click", acts[id]);
for (const video of document.querySelectorAll("video")) {
  video.addEventListener("click", acts.pause);
  video.addEventListener("error", () => {
    if (video.src) attempt(async () => { throw new Error("A video cannot be played here."); }).then(() => { retry = () => attempt(async () => draw(told)); });
  });
}
at("questions").addEventListener("submit", (event) => event.preventDefault());
at("again").addEventListener("click", () => retry?.());
at("begin").addEventListener("click", () => attempt(async () => {
  if (!server.voter) await server.join();
  draw(await server.next());
}));
document.addEventListener("keydown", (event) => {
  if (at("trial").hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  // What has the focus takes its own keys.
  const own = { BUTTON: [" ", "Enter"], INPUT: [" "] }[event.target.tagName] ?? [];
  if (own.includes(event.key)) return;
  const after = pressed(state, event.key, { seen: Boolean(films.plays) });
  if (!after.told) return;
  event.preventDefault();
  state = after.state;
  acts[after.told]();
});

if (server.voter) await attempt(async () => draw(await server.next()));
else show("welcome");
