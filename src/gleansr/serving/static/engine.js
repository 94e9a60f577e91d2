// Who does the work: the service that the page comes from, or this browser.
import { Service } from "./api.js";
import { askToken } from "./status.js";

/**
 * The engine that the page names: a list of models to be run in the browser, or else the service.
 * @returns {Promise<Service|import("./engine/browser.js").Browser>}
 */
export async function engine() {
  const list = document.querySelector("meta[name=gleansr-models]");
  if (!list) return new Service(askToken);
  const [{ Browser }, { keep }] = await Promise.all([import("./engine/browser.js"), import("./engine/offline.js")]);
  keep();
  return new Browser(list.content);
}
