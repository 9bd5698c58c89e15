import assert from "node:assert/strict";
import test from "node:test";
import { curves, frameAt } from "../../web/compare.mjs";
import { sentence, strip } from "../../web/face_pool.mjs";
import { headline } from "../../web/run_monitor.mjs";
import { EMPTY, duration, heard, points } from "../../web/run_state.mjs";

const step = (n, more = {}) => ({ run: "a", step: n, updates: 10, metrics: { reward: n / 10 }, seconds: 2, left: 2 * (10 - n), sample: null, ...more });
const whole = (n, state = "finished") => ({
  run: "a", updates: 10, state, sample: null,
  records: Array.from({ length: n }, (_, i) => ({ step: i + 1, seconds: 2, metrics: { reward: (i + 1) / 10 } })),
});

test("events build what the history tells", () => {
  let known = heard(EMPTY, "state", { run: "a", state: "preparing", message: "" });
  for (let n = 1; n <= 10; n++) known = heard(known, "step", step(n));
  known = heard(known, "ui", whole(10));
  assert.deepEqual(known.records, whole(10).records);
  assert.equal(known.state, "finished");
  assert.equal(known.left, null);
});

test("after a reload the account and the events may come in any order, and each update once", () => {
  const first = heard(heard(EMPTY, "step", step(5)), "ui", whole(4, "training"));
  const second = heard(heard(EMPTY, "ui", whole(4, "training")), "step", step(5));
  const twice = heard(second, "step", step(5));
  for (const known of [first, second, twice]) assert.deepEqual(points(known.records, "reward").map(([x]) => x), [1, 2, 3, 4, 5]);
});

test("a run that went on from an older state counts as the newer line tells", () => {
  const known = heard(heard(heard(EMPTY, "step", step(5)), "step", step(4, { metrics: { reward: 7 } })), "step", step(5, { metrics: { reward: 8 } }));
  assert.deepEqual(points(known.records, "reward"), [[4, 7], [5, 8]]);
});

test("another run begins afresh, and what is not understood changes nothing", () => {
  const known = heard(EMPTY, "step", step(3));
  assert.deepEqual(heard(known, "step", step(1, { run: "b" })).records.map((r) => r.step), [1]);
  for (const [kind, told] of [["song", step(4)], ["step", null], ["step", {}], ["ui", undefined]]) assert.equal(heard(known, kind, told), known);
});

test("a sample stays until there is a newer one", () => {
  const sample = { base: { filename: "b" }, tuned: { filename: "t" } };
  assert.deepEqual(heard(heard(EMPTY, "step", step(1, { sample })), "step", step(2)).sample, sample);
});

test("the headline says how far it is and how long it takes", () => {
  assert.equal(headline(heard(EMPTY, "step", step(4, { left: 3725 }))), "a · training · 4 of 10 updates · 1 h 2 min left");
  assert.match(headline(EMPTY), /queue the graph/);
  assert.deepEqual([59.6, 61, 7200, null, NaN].map(duration), ["1 min 0 s", "1 min 1 s", "2 h 0 min", "", ""]);
});

test("a pool is told in one line, and its strip has a place for every frame", () => {
  const pool = { frames: [0, 2], seen: [1, 0, 1, 0], self_similarity: 0.9, ceiling: NaN, source: "clip.mp4" };
  assert.equal(sentence(pool), "2 faces · in 2 of 4 frames · alike 0.900 · ceiling – · clip.mp4");
  assert.deepEqual(strip(pool.seen, 8), [[0, 2, true], [2, 2, false], [4, 2, true], [6, 2, false]]);
  assert.deepEqual(strip([], 8), []);
});

test("a place in the strip is a frame, and a frame without a face is a gap", () => {
  assert.deepEqual([-5, 0, 49, 50, 99, 100, 500].map((x) => frameAt(x, 100, 2)), [0, 0, 0, 1, 1, 1, 1]);
  assert.deepEqual(curves([[null, null]], 100, 84), []);
  const [line] = curves([[0, null, 1]], 90, 84);
  assert.deepEqual(line, [[15, 80], [45, null], [75, 4]]);
});
