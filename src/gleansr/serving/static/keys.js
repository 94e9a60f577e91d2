// Keyboard shortcuts, and the table of them.
import { $ } from "./status.js";

const KEPT = "gleansr-single-keys";  // whether shortcuts without Ctrl are wanted is all that the page stores

/**
 * Listens to shortcuts and lists them.
 * @param {Array<[string, string, string, (() => void)|null]>} shortcuts group, keys such as "Ctrl+Z" or "P", what they do, the work itself, null
 *   where the image's own listeners do it; several keys for one thing are separated by spaces
 */
export function listen(shortcuts) {
  const works = new Map(shortcuts.flatMap(([, keys, , work]) => keys.split(" ").map((key) => [key.toLowerCase(), work])));
  $("single").checked = stored() !== "no";
  $("single").addEventListener("change", () => stored($("single").checked ? "yes" : "no"));
  document.addEventListener("keydown", (event) => {
    if (event.altKey || document.querySelector("dialog[open]")) return;
    const name = event.key.toLowerCase(), control = event.ctrlKey || event.metaKey;
    const typing = event.target.matches("select, input:not([type=range], [type=radio], [type=checkbox])");
    if (!control && name !== "escape" && (typing || !$("single").checked)) return;
    const work = works.get((control ? event.shiftKey ? "ctrl+shift+" : "ctrl+" : "") + name);
    if (!work) return;
    event.preventDefault();
    work(event);
  });
  list(shortcuts);
}

function stored(value) {
  try {
    if (value) localStorage.setItem(KEPT, value);
    return localStorage.getItem(KEPT);
  } catch {
    return null;  // the browser may forbid it
  }
}

function list(shortcuts) {
  for (const group of new Set(shortcuts.map(([name]) => name))) {
    const lines = document.createElement("dl");
    for (const [, keys, what] of shortcuts.filter(([name]) => name === group)) {
      const term = document.createElement("dt");
      for (const key of keys.split(" ")) term.append(Object.assign(document.createElement("kbd"), { textContent: key }), " ");
      lines.append(term, Object.assign(document.createElement("dd"), { textContent: what }));
    }
    const part = document.createElement("section");
    part.append(Object.assign(document.createElement("h3"), { textContent: group }), lines);
    $("keys").append(part);
  }
}
