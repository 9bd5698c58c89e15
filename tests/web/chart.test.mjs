import assert from "node:assert/strict";
import test from "node:test";
import { drawChart, number, range, scale, thinned } from "../../web/chart.mjs";

const COLORS = { text: "t", grid: "g", line: "l" };

// A 2D context that remembers what it was told.
function paper() {
  const calls = [];
  return new Proxy({ calls }, {
    get: (target, name) => (name in target ? target[name] : (...given) => calls.push([name, ...given])),
    set: (target, name, value) => ((target[name] = value), true),
  });
}

function drawn(points, more = {}) {
  const context = paper();
  const count = drawChart(context, { width: 200, height: 100, title: "reward", points, colors: COLORS, ...more });
  return { count, of: (name) => context.calls.filter(([call]) => call === name) };
}

test("the range leaves out what is no number and is never empty", () => {
  assert.equal(range([]), null);
  assert.equal(range([NaN, undefined, Infinity]), null);
  assert.deepEqual(range([3, NaN, -1, 2]), [-1, 3]);
  const [low, high] = range([2]);
  assert.ok(low < 2 && 2 < high);
  const [zeroLow, zeroHigh] = range([0]);
  assert.ok(zeroLow < 0 && 0 < zeroHigh);
});

test("a scale is the straight line through both ends", () => {
  const y = scale([1, 3], [100, 0]);
  assert.deepEqual([y(1), y(2), y(3)], [100, 50, 0]);
});

test("an empty chart says so and draws no line", () => {
  const { count, of } = drawn([]);
  assert.equal(count, 0);
  assert.deepEqual(of("fillText").map(([, text]) => text), ["reward  –"]);
  assert.equal(of("lineTo").length, 0);
});

test("one point is a dot", () => {
  const { count, of } = drawn([[1, 0.5]]);
  assert.equal(count, 1);
  assert.equal(of("fillRect").length, 1);
});

test("a number that is none leaves a gap", () => {
  const { count, of } = drawn([[1, 1], [2, 2], [3, NaN], [4, 3], [5, 4]]);
  assert.equal(count, 4);
  assert.equal(of("moveTo").length - 2, 2); // two lines of the grid, two pieces of the curve
  for (const [, ...at] of [...of("moveTo"), ...of("lineTo")]) assert.ok(at.every(Number.isFinite));
});

test("ten thousand points are thinned to what the pixels hold, and no peak is lost", () => {
  const points = Array.from({ length: 10_000 }, (_, i) => [i, Math.sin(i / 50)]);
  points[5_003] = [5_003, 9];
  const kept = thinned(points, 400);
  assert.ok(kept.length <= 400, String(kept.length));
  assert.ok(kept.some(([x, y]) => x === 5_003 && y === 9));
  assert.ok(kept.every(([x], i) => i === 0 || kept[i - 1][0] < x));
  assert.ok(drawn(points).count <= 400);
});

test("the axis can span what is still to come", () => {
  const alone = drawn([[1, 0], [2, 1]]), ahead = drawn([[1, 0], [2, 1]], { limits: [1, 101] });
  assert.equal(alone.of("lineTo").at(-1)[1], 192);
  assert.ok(ahead.of("lineTo").at(-1)[1] < 60);
});

test("numbers are short", () => {
  assert.deepEqual([0, 0.123456, 1e-5, 12345, NaN, undefined].map(number), ["0", "0.123", "1.0e-5", "12345", "–", "–"]);
});
