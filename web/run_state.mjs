// What is known of a run, from events and from the server's own account; no matter in which order they come.

export const EMPTY = Object.freeze({ run: "", updates: 0, records: [], state: "", message: "", left: null, sample: null });

// kind: "ui" the whole run, "step" one update, "state" a word. Anything else changes nothing.
export function heard(known, kind, told) {
  if (!told || typeof told.run !== "string") return known;
  const same = known.run === told.run;
  const before = same ? known : { ...EMPTY, run: told.run };
  if (kind === "state") return { ...before, state: told.state ?? "", message: told.message ?? "" };
  if (kind === "step") {
    const record = { step: told.step, seconds: told.seconds, metrics: told.metrics ?? {} };
    return {
      ...before,
      updates: told.updates,
      records: merged(before.records, [record]),
      state: "training",
      message: "",
      left: told.left ?? null,
      sample: told.sample ?? before.sample,
    };
  }
  if (kind !== "ui") return known;
  return {
    ...before,
    updates: told.updates,
    records: merged(before.records, told.records ?? []),
    state: told.state ?? before.state,
    left: told.state === "finished" ? null : before.left,
    sample: told.sample ?? before.sample,
  };
}

// By step, each once; what comes later counts.
function merged(known, more) {
  const last = known.at(-1)?.step ?? -Infinity;
  if (more.length === 1 && more[0].step > last) return [...known, more[0]];
  const bySteps = new Map([...known, ...more].map((record) => [record.step, record]));
  return [...bySteps.values()].sort((a, b) => a.step - b.step);
}

export function points(records, metric) {
  return records.map((record) => [record.step, record.metrics[metric]]);
}

export function duration(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "";
  const whole = Math.round(seconds), hours = Math.floor(whole / 3600), minutes = Math.floor((whole % 3600) / 60);
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}
