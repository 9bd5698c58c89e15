// IPRO in the page: gives our nodes their panels, and tells these what the server says.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { comparePanel } from "./compare.mjs";
import { poolPanel } from "./face_pool.mjs";
import { runPanel } from "./run_monitor.mjs";
import { studyPanel } from "./study_panel.mjs";

const HEIGHTS = { run: 330, pool: 220, compare: 320, study: 190 };
// What a node's `ui` holds decides which panel it gets.
const PANELS = { ipro_run: ["run", runPanel], ipro_pool: ["pool", poolPanel], ipro_compare: ["compare", comparePanel], ipro_study: ["study", studyPanel] };
const RUNS = ["IPRO_Train", "IPRO_ResumeRun", "IPRO_LoadRun"];

const ours = (node) => Boolean(node.comfyClass?.startsWith("IPRO_"));

// A file of the host's, as the page reaches it.
export function view(file) {
  return api.apiURL("/view?" + new URLSearchParams(file));
}

function panelOf(node, kind, make) {
  node.iproPanels ??= {};
  if (!node.iproPanels[kind]) {
    const panel = make({ view, address: (path) => api.apiURL(path), document });
    for (const event of ["pointerdown", "wheel"]) panel.element.addEventListener(event, (e) => e.stopPropagation());
    node.addDOMWidget("ipro_" + kind, "ipro_" + kind, panel.element, { serialize: false, getMinHeight: () => HEIGHTS[kind] });
    node.iproPanels[kind] = panel;
  }
  return node.iproPanels[kind];
}

const root = () => app.rootGraph ?? app.graph;

// An id such as 129:85 is of a node within a subgraph.
function nodeOf(id) {
  let graph = root(), node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

const plain = (title) => title.replace(/^⚠ /, "");

function show(node, output) {
  for (const [key, [kind, make]] of Object.entries(PANELS)) {
    for (const told of output?.[key] ?? []) panelOf(node, kind, make).tell("ui", told);
  }
  const title = plain(node.title);
  node.title = output?.ipro_warning?.length ? `⚠ ${title}` : title;
  node.iproShown = true;
}

function toast(node, sentences) {
  if (sentences.length) app.extensionManager?.toast?.add?.({ severity: "warn", summary: plain(node.title), detail: sentences.join(" "), life: 8000 });
}

// A page that was reloaded has forgotten what its nodes gave; the server has not.
async function drawPast() {
  const history = await (await api.fetchApi("/history?max_items=16")).json();
  for (const { prompt, outputs } of Object.values(history).reverse()) {
    if (prompt[3]?.extra_pnginfo?.workflow?.id !== root().id) continue;
    for (const [id, output] of Object.entries(outputs)) {
      const node = nodeOf(id);
      if (node && !node.iproShown && ours(node) && node.comfyClass === prompt[2][id]?.class_type) show(node, output);
    }
  }
}

async function drawGoingRuns() {
  const { runs } = await (await api.fetchApi("/ipro/active")).json();
  for (const { node: id, run } of runs) {
    const node = nodeOf(id);
    if (!node) continue;
    const answer = await api.fetchApi("/ipro/run?" + new URLSearchParams({ name: run }));
    if (answer.ok) panelOf(node, "run", runPanel).tell("ui", await answer.json());
  }
}

app.registerExtension({
  name: "ipro",
  async setup() {
    for (const kind of ["step", "state"]) {
      api.addEventListener("ipro." + kind, ({ detail }) => {
        const node = nodeOf(detail.node);
        if (node) panelOf(node, "run", runPanel).tell(kind, detail);
      });
    }
  },
  async afterConfigureGraph() {
    drawPast().then(drawGoingRuns).catch((error) => console.warn("IPRO: the server could not be asked for its runs.", error));
  },
  async nodeCreated(node) {
    if (!ours(node)) return;
    if (RUNS.includes(node.comfyClass)) panelOf(node, "run", runPanel);
    const saved = node.onSerialize;
    node.onSerialize = function (told) {
      saved?.call(this, told);
      if (told.title) told.title = plain(told.title); // the warning is of this run, not of the workflow
    };
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.call(this, output);
      show(this, output);
      toast(this, output?.ipro_warning ?? []);
    };
  },
});
