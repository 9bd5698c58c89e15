// What a voter has chosen so far in one trial, and what a key does to it. Values; nothing of the page.

const SIDES = { 1: "left", 0: "none", 2: "right" };

// questions: their names, in order. now: the question that a key answers; past the last one all are asked.
export function begin(questions) {
  return { questions, answers: {}, now: 0 };
}

// Choosing moves on to the next question that has no answer, from this one round to the first.
export function chosen(state, question, side) {
  const { questions } = state, answers = { ...state.answers, [question]: side };
  const from = questions.indexOf(question) + 1, around = [...questions.slice(from), ...questions.slice(0, from)];
  const open = around.find((name) => !(name in answers));
  return { ...state, answers, now: open === undefined ? questions.length : questions.indexOf(open) };
}

export function back(state) {
  return { ...state, now: Math.max(0, state.now - 1) };
}

export function complete(state) {
  return state.questions.every((name) => name in state.answers);
}

// The state after a key, and what the page is to do: "send", "replay", "pause", "slow" or nothing.
export function pressed(state, key, { seen = true } = {}) {
  const small = key.length === 1 ? key.toLowerCase() : key;
  const told = { r: "replay", " ": "pause", s: "slow" }[small];
  if (told) return { state, told };
  if (!seen) return { state };
  if (small === "Enter") return complete(state) ? { state, told: "send" } : { state };
  if (small === "Backspace") return { state: back(state), told: "moved" };
  const side = SIDES[small], question = state.questions[state.now];
  if (side && question) return { state: chosen(state, question, side), told: "moved" };
  return { state };
}

export function counted(done, total) {
  return done < total ? `${done + 1} of ${total}` : `${total} of ${total}`;
}
