// The panel of a blind study: its address as a button, how many have voted, and what they say so far.
import { element, panelBox } from "./parts.mjs";

export function summary({ methods, scenes, voters, votes }) {
  const many = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  return `${methods.join(", ")} · ${many(scenes, "scene")} · ${many(votes, "vote")} by ${many(voters, "voter")}`;
}

export function studyPanel({ address, document }) {
  const box = panelBox(document, "Blind study"), line = element(document, "div", { marginBottom: "6px" });
  const open = element(document, "a", {
    display: "none", padding: "6px 12px", borderRadius: "4px", border: "1px solid var(--border-color, #4448)", color: "inherit",
  }, "Open the study");
  Object.assign(open, { target: "_blank", rel: "noopener" });
  const whole = element(document, "div", { margin: "6px 0", overflowWrap: "anywhere", userSelect: "text" });
  const results = element(document, "pre", { margin: "6px 0 0", whiteSpace: "pre-wrap" });
  line.textContent = "No study yet: queue the graph.";
  box.append(line, open, whole, results);
  return {
    element: box,
    tell(_, told) {
      line.textContent = summary(told);
      open.href = address(told.address);
      open.style.display = "inline-block";
      whole.textContent = new URL(open.href, document.baseURI).href;
      results.textContent = told.results;
    },
  };
}
