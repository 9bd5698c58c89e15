// A line on a 2D context: axes that fit, gaps where there is no number, never more points than pixels.

const PAD = { left: 48, right: 8, top: 16, bottom: 16 };

// The lowest and highest number, widened where they are one; null where there is none.
export function range(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return null;
  return low === high ? [low - Math.max(Math.abs(low) * 0.05, 1e-6), high + Math.max(Math.abs(high) * 0.05, 1e-6)] : [low, high];
}

export function scale([from, to], [start, end]) {
  return (value) => start + ((value - from) / (to - from)) * (end - start);
}

// At most `most` points: of each stretch its lowest and its highest, in their order, so that no peak is lost.
export function thinned(points, most) {
  if (points.length <= most) return points;
  const size = Math.ceil((2 * points.length) / most), kept = [];
  for (let i = 0; i < points.length; i += size) {
    const finite = points.slice(i, i + size).filter(([, y]) => Number.isFinite(y));
    if (!finite.length) {
      kept.push(points[i]);
      continue;
    }
    const low = finite.reduce((a, b) => (b[1] < a[1] ? b : a)), high = finite.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
  }
  return kept;
}

export function number(value) {
  if (!Number.isFinite(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toPrecision(3);
}

// Draw points [x, y]; returns how many were drawn.
export function drawChart(context, { width, height, title, points, colors, limits }) {
  context.clearRect(0, 0, width, height);
  context.font = "11px sans-serif";
  context.fillStyle = colors.text;
  context.textAlign = "left";
  const spanX = range(points.map(([x]) => x)), spanY = range(points.map(([, y]) => y));
  const last = points.findLast(([, y]) => Number.isFinite(y));
  context.fillText(last ? `${title}  ${number(last[1])}` : `${title}  –`, PAD.left, 11);
  if (!spanX || !spanY) return 0;
  const x = scale(limits ?? spanX, [PAD.left, width - PAD.right]), y = scale(spanY, [height - PAD.bottom, PAD.top]);
  context.strokeStyle = colors.grid;
  context.lineWidth = 1;
  context.textAlign = "right";
  for (const value of spanY) {
    context.beginPath();
    context.moveTo(PAD.left, y(value));
    context.lineTo(width - PAD.right, y(value));
    context.stroke();
    context.fillText(number(value), PAD.left - 4, y(value) + 4);
  }
  context.strokeStyle = colors.line;
  context.lineWidth = 1.5;
  context.beginPath();
  let drawn = 0, open = false;
  for (const [px, py] of thinned(points, 2 * width)) {
    if (!Number.isFinite(py)) {
      open = false;
      continue;
    }
    if (open) context.lineTo(x(px), y(py));
    else context.moveTo(x(px), y(py));
    open = true;
    drawn += 1;
  }
  context.stroke();
  if (drawn === 1) context.fillRect(x(last[0]) - 1.5, y(last[1]) - 1.5, 3, 3);
  return drawn;
}
