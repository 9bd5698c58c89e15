// The panel of a face pool: its faces, the frames that show one, and how alike they are.
import { number } from "./chart.mjs";
import { canvasOf, colors, element, panelBox } from "./parts.mjs";

export function sentence(pool) {
  const seen = pool.seen.reduce((sum, one) => sum + one, 0);
  return [
    `${pool.frames.length} faces`, `in ${seen} of ${pool.seen.length} frames`,
    `alike ${number(pool.self_similarity)}`, `ceiling ${number(pool.ceiling)}`, pool.source,
  ].filter(Boolean).join(" · ");
}

// Where each frame lies in a strip: [left, width, seen].
export function strip(seen, width) {
  return seen.map((one, index) => [(index * width) / seen.length, width / seen.length, Boolean(one)]);
}

export function poolPanel({ view, document }) {
  let pool = { frames: [], seen: [] };
  const box = panelBox(document, "Face pool"), line = element(document, "div"), warning = element(document, "div", { color: "#e69f00" });
  const sheet = element(document, "img", { maxWidth: "100%", display: "block", margin: "4px 0" });
  const seen = canvasOf(document, 10, () => "Frames that show the face", (context, width, height) => {
    const { grid, lines } = colors(box);
    context.clearRect(0, 0, width, height);
    for (const [left, wide, one] of strip(pool.seen, width)) {
      context.fillStyle = one ? lines[0] : grid;
      context.fillRect(left, one ? 0 : height / 2 - 1, Math.max(wide, 0.5), one ? height : 2);
    }
  });
  box.append(line, warning, seen.canvas, sheet);
  return {
    element: box,
    tell(_, told) {
      pool = told;
      line.textContent = sentence(pool);
      warning.textContent = pool.warning ? `⚠ ${pool.warning}` : "";
      sheet.style.display = pool.faces && pool.frames.length ? "block" : "none";
      if (pool.faces) {
        const { filename, subfolder, type } = pool.faces;
        sheet.src = view({ filename, subfolder, type });
        sheet.alt = `The ${pool.frames.length} faces of the pool`;
      }
      seen.redraw();
    },
  };
}
