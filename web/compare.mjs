// The panel of a comparison: videos that run as one, and beneath them each frame's likeness, which seeks.
import { number, range, scale } from "./chart.mjs";
import { canvasOf, colors, element, film, panelBox } from "./parts.mjs";

const STRIP = 96;

export function frameAt(x, width, frames) {
  return Math.min(frames - 1, Math.max(0, Math.floor((x / width) * frames)));
}

// The points of each video's likeness; null where no face was found.
export function curves(similarity, width, height, top = 4) {
  const span = range(similarity.flat().filter((value) => value !== null));
  if (!span) return [];
  const y = scale(span, [height - 4, top]);
  return similarity.map((line) => line.map((value, frame) => [((frame + 0.5) * width) / line.length, value === null ? null : y(value)]));
}

export function comparePanel({ view, document }) {
  let told = { fps: 1, frames: 0, videos: [], similarity: [] }, frame = 0, films = [];
  const box = panelBox(document, "Comparison"), row = element(document, "div", { display: "flex", gap: "4px" });
  const figures = element(document, "div", { marginTop: "4px" }), warning = element(document, "div", { color: "#e69f00" });
  const likeness = canvasOf(document, STRIP, () => `Likeness, frame ${frame + 1} of ${told.frames}`, (context, width, height) => {
    const { text, grid, lines } = colors(box);
    context.clearRect(0, 0, width, height);
    curves(told.similarity, width, height, 8 + 13 * told.similarity.length).forEach((line, index) => {
      context.strokeStyle = context.fillStyle = lines[index % lines.length];
      context.beginPath();
      let open = false;
      for (const [x, y] of line) {
        if (y === null) open = false;
        else if (open) context.lineTo(x, y);
        else { context.moveTo(x, y); context.fillRect(x - 1, y - 1, 2, 2); open = true; }
      }
      context.stroke();
      const value = told.similarity[index][frame];
      context.fillText(`${told.videos[index]?.label ?? ""} ${value === null || value === undefined ? "no face" : number(value)}`, 4, 12 + 13 * index);
    });
    context.strokeStyle = text ?? grid;
    context.beginPath();
    context.moveTo(((frame + 0.5) * width) / Math.max(told.frames, 1), 0);
    context.lineTo(((frame + 0.5) * width) / Math.max(told.frames, 1), height);
    context.stroke();
  });
  const { canvas } = likeness;
  canvas.tabIndex = 0;

  function seek(to) {
    frame = Math.min(Math.max(to, 0), Math.max(told.frames - 1, 0));
    for (const video of films) { video.pause(); video.currentTime = (frame + 0.5) / told.fps; }
    likeness.redraw();
  }
  function follow() {
    const [first, ...others] = films;
    if (!first || first.paused) return;
    for (const video of others) if (Math.abs(video.currentTime - first.currentTime) > 0.5 / told.fps) video.currentTime = first.currentTime;
    frame = frameAt(first.currentTime, told.frames / told.fps, told.frames);
    likeness.redraw();
    requestAnimationFrame(follow);
  }
  function play() {
    const still = films[0]?.paused;
    for (const video of films) still ? video.play().catch(() => {}) : video.pause();
    if (still) requestAnimationFrame(follow);
  }
  canvas.addEventListener("pointerdown", (event) => seek(frameAt(event.offsetX, canvas.clientWidth, told.frames)));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) seek(frame + step);
    else if (event.key === " ") play();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  row.addEventListener("click", play);
  row.title = "Click to play or to stop";
  box.append(warning, row, canvas, figures);
  return {
    element: box,
    tell(_, given) {
      told = given;
      row.replaceChildren(...told.videos.map(({ label, ...file }) => {
        const one = film(document, label);
        one.firstChild.src = view(file);
        return one;
      }));
      films = [...row.querySelectorAll("video")];
      warning.textContent = told.warning ? `⚠ ${told.warning}` : "";
      figures.textContent = Object.entries(told.figures ?? {}).filter(([, value]) => typeof value === "number")
        .map(([name, value]) => `${name.replaceAll("_", " ")} ${number(value)}`).join(" · ");
      seek(0);
      play();
    },
  };
}
