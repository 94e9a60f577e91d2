// Requests to the service: the token, problems (RFC 9457), waiting for a full queue or a server that is gone.
import { encode } from "./files.js";

/** What went wrong, in words for the user. */
export class Problem extends Error {
  /** @param {{status?: number, type?: string, title?: string, detail?: string}} fields of the problem document */
  constructor({ status = 0, type = "about:blank", title = "", detail = "" }) {
    super(detail || title || `The server answered ${status}. Try again.`);
    Object.assign(this, { status, type });
  }
}

const ASKED = 700;  // ms between questions for the progress

/** What a stage of the service's work is called, see /v1/progress. */
const STAGES = {
  waiting: () => "Waiting for other images…",
  searching: () => "Looking for faces and cats…",
  objects: (done, total) => total > 1 ? `Head ${Math.min(done + 1, total)} of ${total}…` : "",
  background: (done, total) => total > 1 ? `Background, ${Math.round(100 * done / total)} %…` : "Background…",
  finishing: () => "Writing the file…",
};

const pause = (seconds, signal) => new Promise((resolve, reject) => {
  signal?.throwIfAborted();
  const timer = setTimeout(resolve, seconds * 1000);
  signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
});

/** The service, seen from one page. */
export class Service {
  /**
   * @param {(wrong: boolean) => Promise<string|null>} askToken is called when the server wants a token, or another one
   */
  constructor(askToken) {
    this.askToken = askToken;
    this.token = null;  // in memory only
    this.asking = null;
  }

  /** The models that are served, and whether it chooses; see the service's documentation. */
  async models(options) {
    return (await this.send("v1/models", { ...options })).json();
  }

  /**
   * Sends images and settings.
   * @param {"upscale"|"retouch"} what
   * @param {Object<string, Blob|string|number|null>} fields of the form; those that are null are left out
   * @param {{signal?: AbortSignal, editor?: string, waits?: (why: string) => void, progress?: (stage: string) => void}} options
   *   editor: by which a newer request replaces an older one; waits: is told why nothing happens yet; progress: is told what is being done
   * @returns {Promise<{blob: Blob, model: string, note: string, summary: string, box: number[]|null, seconds: number}>}
   * @throws {Problem} and an AbortError when aborted
   */
  async process(what, fields, { editor, progress, ...options } = {}) {
    const body = new FormData();
    for (const [name, value] of Object.entries(fields)) {
      if (value instanceof Blob) body.append(name, value, `${name}.${value.type.split("/")[1] || "bin"}`);
      else if (value !== null && value !== undefined) body.append(name, value);
    }
    const text = (name) => decodeURIComponent(response.headers.get(name) ?? "");
    const name = progress && randomName(), headers = { ...editor && { "Gleansr-Editor": editor }, ...name && { "Gleansr-Progress": name } };
    const asked = new AbortController(), sent = this.send(`v1/${what}`, { method: "POST", body, headers, ...options });
    if (name) this.follow(name, progress, asked.signal);
    const response = await sent.finally(() => asked.abort());
    return {
      blob: await response.blob(),
      model: text("Gleansr-Model"),
      note: text("Gleansr-Note"),
      summary: text("Gleansr-Summary"),
      box: response.headers.get("Gleansr-Box")?.split(",").map(Number) ?? null,
      seconds: Number(response.headers.get("Gleansr-Seconds") ?? NaN),
    };
  }

  /** Tells how far a request is, until that is aborted. */
  async follow(name, progress, signal) {
    try {
      for (;;) {
        await pause(ASKED / 1000, signal);
        const { stage, done, total } = await (await fetch(`v1/progress/${name}`, { signal, headers: this.authorized(), cache: "no-store" })).json();
        if (!signal.aborted) progress(STAGES[stage]?.(done, total) ?? "");
      }
    } catch {
      // The request has ended, or the server does not answer, which `send` notices.
    }
  }

  /** An image will be retouched: a service is ready for that. */
  warm() {}

  /** What `process` takes for an image. */
  encode(image) {
    return encode(image);
  }

  /** Headers with the token, if there is one. */
  authorized(headers = {}) {
    return this.token ? { ...headers, Authorization: `Bearer ${this.token}` } : headers;
  }

  async send(path, { waits = () => {}, headers = {}, ...request }) {
    for (;;) {
      const sent = this.token;
      let response;
      try {
        response = await fetch(path, { ...request, headers: this.authorized(headers) });
      } catch (error) {
        if (request.signal?.aborted) throw error;
        waits("The server does not answer. Trying again by itself…");
        await this.ready(request.signal);
        waits("");
        continue;
      }
      if (response.ok) return response;
      const problem = new Problem({ status: response.status, ...await fieldsOf(response) });
      if (problem.status === 401 && await this.authorise(sent)) continue;
      if (problem.status !== 429 && problem.status !== 503) throw problem;
      const seconds = Math.min(Math.max(Number(response.headers.get("Retry-After")) || 1, 0.2), 60);
      waits(problem.status === 429 ? `The server is busy. Trying again in ${Math.ceil(seconds)} s…` : `${problem.message} Trying again…`);
      await pause(seconds, request.signal);
      waits("");
    }
  }

  /** Resolves when the server lives again. */
  async ready(signal) {
    for (let seconds = 0.5; ; seconds = Math.min(seconds * 2, 8)) {
      await pause(seconds, signal);
      const response = await fetch("readyz", { signal, cache: "no-store" }).catch(() => null);
      if (signal?.aborted) throw signal.reason;
      if (response?.ok) return;
    }
  }

  /** Asks for a token, once for all requests that need one. Returns whether there is another one than `sent`. */
  async authorise(sent) {
    if (this.token === sent) {
      this.asking ??= this.askToken(sent !== null);
      const given = await this.asking;
      this.asking = null;
      if (!given) return false;
      this.token = given;
    }
    return true;
  }
}

/** A name that nobody guesses. */
export const randomName = () => [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

async function fieldsOf(response) {
  if (!response.headers.get("Content-Type")?.includes("json")) return {};
  const { type, title, detail } = await response.json().catch(() => ({}));
  return { type, title, detail: typeof detail === "string" ? detail : "" };
}
