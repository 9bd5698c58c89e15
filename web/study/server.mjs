// What the page asks of its own server, and whom it is to it. Addresses are relative: any server, any folder.

export class Told extends Error {
  constructor(sentence, status = 0) { super(sentence); this.status = status; }
}

async function json(answer) {
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Told(told.error ?? `The server answered ${answer.status}.`, answer.status);
  return told;
}

// fetch: the page's; store: where the voter's id is kept, may refuse; key: of this study.
export function serverOf({ fetch, store, key }) {
  let voter = null;
  try { voter = store.getItem(key); } catch { /* a page that may keep nothing still works until it is closed */ }
  async function asked(address, options) {
    try {
      return await json(await fetch(address, options));
    } catch (error) {
      throw error instanceof Told ? error : new Told("The server cannot be reached: your last answers are still here.");
    }
  }
  const post = (address, message) =>
    asked(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(message) });
  return {
    get voter() { return voter; },
    async join() {
      voter = (await post("join", {})).voter;
      try { store.setItem(key, voter); } catch { /* as above */ }
    },
    forget() {
      voter = null;
      try { store.removeItem(key); } catch { /* as above */ }
    },
    next: () => asked("next?" + new URLSearchParams({ voter })),
    vote: (trial, answers, seconds, plays) => post("vote", { voter, trial, answers, seconds, plays }),
  };
}
