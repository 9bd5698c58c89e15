// The panel of a run: how far it is, its curves, and what it last made of one scene, before and after.
import { drawChart, number } from "./chart.mjs";
import { canvasOf, colors, element, film, panelBox } from "./parts.mjs";
import { EMPTY, duration, heard, points } from "./run_state.mjs";

const CURVES = [["reward", "reward"], ["kl", "KL"], ["grad_norm", "gradient norm"]];

export function headline(known) {
  if (!known.run) return "No run yet: queue the graph.";
  const done = known.records.at(-1)?.step ?? 0, left = known.state === "training" ? duration(known.left) : "";
  const parts = [known.run, known.state, `${done} of ${known.updates} updates`, left && `${left} left`, known.message];
  return parts.filter(Boolean).join(" · ");
}

export function runPanel({ view, document }) {
  let known = EMPTY, shown = "";
  const box = panelBox(document, "Training run"), line = element(document, "div", { marginBottom: "4px" });
  line.setAttribute("aria-live", "polite");
  const charts = CURVES.map(([metric, title], index) =>
    canvasOf(document, 72, () => `${title} ${number(known.records.at(-1)?.metrics[metric])}`, (context, width, height) => {
      const { text, grid, lines } = colors(box);
      drawChart(context, {
        width, height, title, points: points(known.records, metric),
        colors: { text, grid, line: lines[index] }, limits: known.updates > 1 ? [1, known.updates] : undefined,
      });
    }));
  const films = ["base", "tuned"].map((which) => film(document, which));
  const pair = element(document, "div", { display: "none", gap: "4px" }, ...films);
  box.append(line, ...charts.map(({ canvas }) => canvas), pair);

  function draw() {
    line.textContent = headline(known);
    for (const { redraw } of charts) redraw();
    const now = JSON.stringify(known.sample);
    if (!known.sample || now === shown) return;
    shown = now;
    pair.style.display = "flex";
    ["base", "tuned"].forEach((which, index) => {
      const video = films[index].firstChild;
      video.src = view(known.sample[which]);
      video.play().catch(() => {}); // a page in the background may not play
    });
  }

  draw();
  return { element: box, tell(kind, told) { known = heard(known, kind, told); draw(); } };
}
