import assert from "node:assert/strict";
import test from "node:test";
import { back, begin, chosen, complete, counted, pressed } from "../../web/study/choices.mjs";
import { together } from "../../web/study/films.mjs";
import { serverOf } from "../../web/study/server.mjs";
import { summary } from "../../web/study_panel.mjs";

const typed = (state, keys) => [...keys].reduce((now, key) => pressed(now, key).state, state);

test("1, 0 and 2 answer one question after the other, and then Enter sends", () => {
  const three = begin(["a", "b", "c"]);
  const done = typed(three, "102");
  assert.deepEqual(done.answers, { a: "left", b: "none", c: "right" });
  assert.ok(complete(done) && !complete(typed(three, "10")));
  assert.equal(pressed(done, "Enter").told, "send");
  assert.equal(pressed(typed(three, "10"), "Enter").told, undefined);
  assert.deepEqual(pressed(done, "1").state.answers, done.answers); // past the last question a key answers none
});

test("Backspace goes back, and an answer may be changed before it is sent", () => {
  const done = typed(begin(["a", "b"]), "12");
  assert.deepEqual(typed({ ...back(done) }, "0").answers, { a: "left", b: "none" });
  assert.deepEqual(pressed(pressed(done, "Backspace").state, "Backspace").state.now, 0);
  assert.equal(back(back(back(done))).now, 0);
});

test("a click on a later question leaves the earlier one to be answered", () => {
  const state = chosen(begin(["a", "b", "c"]), "b", "left");
  assert.equal(state.now, 2);
  assert.equal(chosen(state, "c", "none").now, 0);
  assert.deepEqual(typed(state, "01").answers, { b: "left", c: "none", a: "left" });
});

test("before both videos were seen nothing is answered, but they can be run", () => {
  const state = begin(["a"]);
  for (const key of ["1", "2", "0", "Enter"]) assert.deepEqual(pressed(state, key, { seen: false }), { state });
  for (const [key, told] of [["r", "replay"], ["R", "replay"], [" ", "pause"], ["s", "slow"]]) assert.equal(pressed(state, key, { seen: false }).told, told);
  assert.equal(pressed(state, "F5").told, undefined);
});

test("the line of progress counts the trial in hand", () => {
  assert.deepEqual([counted(0, 5), counted(4, 5), counted(5, 5)], ["1 of 5", "5 of 5", "5 of 5"]);
});

// A video as far as `together` asks for one.
class Film {
  constructor() { Object.assign(this, { paused: true, seeking: false, readyState: 0, currentTime: 0, playbackRate: 1, heard: {} }); }
  addEventListener(name, told) { (this.heard[name] ??= []).push(told); }
  tell(name) { for (const told of this.heard[name] ?? []) told(); }
  load() { this.readyState = 0; this.paused = true; this.currentTime = 0; }
  arrive() { this.readyState = 4; this.tell("canplay"); }
  play() { this.paused = false; return Promise.resolve(); }
  pause() { this.paused = true; }
  end() { this.paused = true; this.tell("ended"); }
}

function pair() {
  const videos = [new Film(), new Film()], waiting = [], rounds = [];
  let next = null;
  const films = together(videos, { onRound: (n) => rounds.push(n), wait: (f) => waiting.push(f), frame: (f) => { next = f; } });
  return { videos, films, rounds, waiting, frame: () => next() };
}

test("two videos start together, when both are there", () => {
  const { videos: [one, two], films } = pair();
  films.show(["a", "b"], 16);
  one.arrive();
  assert.ok(one.paused && two.paused);
  two.arrive();
  assert.ok(!one.paused && !two.paused);
});

test("a video that waits for its bytes holds the other", () => {
  const { videos: [one, two], films } = pair();
  films.show(["a", "b"], 16);
  for (const video of [one, two]) video.arrive();
  two.readyState = 2;
  two.tell("waiting");
  assert.ok(one.paused);
  two.arrive();
  assert.ok(!one.paused && !two.paused);
});

test("a video that waits after the other is over goes on alone", () => {
  const { videos: [one, two], films, rounds } = pair();
  films.show(["a", "b"], 16);
  for (const video of [one, two]) video.arrive();
  one.end();
  one.readyState = 2; // what a browser says of a video at its end
  two.readyState = 2;
  two.tell("waiting");
  two.arrive();
  assert.ok(one.paused && !two.paused);
  two.end();
  assert.deepEqual(rounds, [1]);
});

test("a video that is more than a frame off is set to where the other is, once", () => {
  const { videos: [one, two], films, frame } = pair();
  films.show(["a", "b"], 10);
  for (const video of [one, two]) video.arrive();
  [one.currentTime, two.currentTime] = [1, 1.09];
  frame();
  assert.equal(two.currentTime, 1.09);
  two.currentTime = 1.2;
  two.seeking = true;
  frame();
  assert.equal(two.currentTime, 1.2);
  two.seeking = false;
  frame();
  assert.equal(two.currentTime, 1);
});

test("a round is over when both are, and then both begin again", () => {
  const { videos: [one, two], films, rounds, waiting } = pair();
  films.show(["a", "b"], 16);
  for (const video of [one, two]) video.arrive();
  one.end();
  assert.deepEqual(rounds, []);
  two.end();
  assert.deepEqual(rounds, [1]);
  [one.currentTime, two.currentTime] = [3, 3];
  waiting.pop()();
  assert.ok(!one.paused && !two.paused && one.currentTime === 0 && two.currentTime === 0);
  assert.equal(films.plays, 1);
});

test("who stops is not played on, not by a new round either, and replay begins at once", () => {
  const { videos: [one, two], films, waiting } = pair();
  films.show(["a", "b"], 16);
  for (const video of [one, two]) video.arrive();
  one.end(); two.end();
  assert.equal(films.toggle(), false);
  waiting.pop()();
  assert.ok(one.paused && two.paused);
  films.replay();
  assert.ok(!one.paused && !two.paused && films.going);
});

test("the next trial's videos are not started by the last one's clock", () => {
  const { videos: [one, two], films, waiting } = pair();
  films.show(["a", "b"], 16);
  for (const video of [one, two]) video.arrive();
  one.end(); two.end();
  films.show(["c", "d"], 16, { play: false });
  for (const video of [one, two]) video.arrive();
  waiting.pop()();
  assert.ok(one.paused && two.paused && films.plays === 0);
});

const store = (kept = {}) => ({ kept, getItem: (key) => kept[key] ?? null, setItem: (key, value) => { kept[key] = value; }, removeItem: (key) => { delete kept[key]; } });
const replies = (...given) => async (address, options) => {
  const [status, told] = given.shift();
  if (status === 0) throw new TypeError("network");
  return { ok: status < 300, status, json: async () => told, address, options };
};

test("a voter is kept by the browser, and a browser that keeps nothing still votes", async () => {
  const kept = store();
  const server = serverOf({ fetch: replies([200, { voter: "v" }]), store: kept, key: "k" });
  await server.join();
  assert.equal(serverOf({ fetch: replies(), store: kept, key: "k" }).voter, "v");
  assert.equal(serverOf({ fetch: replies(), store: kept, key: "of another study" }).voter, null);
  const refuses = { getItem() { throw new Error("no"); }, setItem() { throw new Error("no"); } };
  const other = serverOf({ fetch: replies([200, { voter: "w" }]), store: refuses, key: "k" });
  await other.join();
  assert.equal(other.voter, "w");
});

test("what a server refuses is told in its own words, and one that is away in ours", async () => {
  const server = serverOf({ fetch: replies([400, { error: "No." }], [500, {}], [0]), store: store({ k: "v" }), key: "k" });
  await assert.rejects(server.next(), { message: "No.", status: 400 });
  await assert.rejects(server.next(), { message: "The server answered 500." });
  await assert.rejects(server.vote("t", {}, 1, 1), /cannot be reached/);
});

test("a node tells its study in one line", () => {
  assert.equal(summary({ methods: ["base", "tuned"], scenes: 1, voters: 2, votes: 12 }), "base, tuned · 1 scene · 12 votes by 2 voters");
});
