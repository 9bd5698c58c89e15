// Small pieces that panels are made of.

export function element(document, tag, style = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made.style, style);
  made.append(...children);
  return made;
}

// Colours told apart without red and green, on the host's own background.
export function colors(element) {
  const style = getComputedStyle(element), host = (name, other) => style.getPropertyValue(name).trim() || other;
  return {
    text: host("--input-text", "#ddd"),
    grid: host("--border-color", "#4448"),
    lines: ["#56b4e9", "#e69f00", "#cc79a7"],
  };
}

export function panelBox(document, label) {
  const box = element(document, "div", {
    width: "100%", boxSizing: "border-box", font: "12px sans-serif", color: "var(--input-text)",
    background: "var(--comfy-input-bg)", borderRadius: "4px", padding: "6px", overflow: "hidden",
  });
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  return box;
}

// A canvas as sharp as the screen, drawn anew whenever its size changes.
export function canvasOf(document, height, label, draw) {
  const canvas = element(document, "canvas", { width: "100%", height: `${height}px`, display: "block" });
  canvas.setAttribute("role", "img");
  const redraw = () => {
    const width = canvas.clientWidth;
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    canvas.setAttribute("aria-label", label());
    draw(context, width, height);
  };
  new ResizeObserver(redraw).observe(canvas);
  return { canvas, redraw };
}

export function film(document, label) {
  const video = element(document, "video", { width: "100%", display: "block", background: "#000" });
  Object.assign(video, { muted: true, loop: true, playsInline: true });
  video.setAttribute("aria-label", label);
  return element(document, "figure", { margin: 0, flex: "1 1 0", minWidth: 0 }, video, element(document, "figcaption", {}, label));
}
