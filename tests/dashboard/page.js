// A server with simulated models, its page in a document of jsdom, and a clock that only the test turns.
"use strict";

const { spawn } = require("node:child_process");
const { EventEmitter, once } = require("node:events");
const http2 = require("node:http2");
const { setImmediate: turn } = require("node:timers/promises");
const { EventSource } = require("eventsource");
const { JSDOM, VirtualConsole } = require("jsdom");

const SCONCE = process.env.SCONCE;
// Events, one a second, in which anything must have come about.
const EVENTS_MAX = 30;

/** A process of `sconce serve`. */
class Server {
  /** With models, NAME=PATH each, and more arguments; once it listens. */
  static async start(args, env) {
    const server = new Server();
    server.log = "";
    server.clients = [];
    server.child = spawn(SCONCE, ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", ...args],
      { env: { ...process.env, ...env } });
    server.child.stderr.on("data", (data) => { server.log += data; });
    let said = "";
    server.ended = once(server.child, "exit");
    for await (const data of server.child.stdout.iterator({ destroyOnReturn: false })) {
      said += data;
      const [, listen, admin] = /listening on (\S+)\nadmin on (\S+)\n/.exec(said) || [];
      if (admin) {
        return Object.assign(server, { listen, admin: `http://${admin}/` });
      }
    }
    return server.loss();
  }

  /** Fails when the server ends. */
  async loss() {
    await this.ended;
    throw new Error(`the server has ended; it said: ${this.log}`);
  }

  /** Starts `sconce complete`. */
  complete(model, prompt, ...options) {
    const client = spawn(SCONCE, ["complete", "--server", this.listen, "--model", model, ...options, prompt],
      { stdio: ["ignore", "ignore", "pipe"] });
    client.said = "";
    client.stderr.on("data", (data) => { client.said += data; });
    this.clients.push(client);
    return client;
  }

  /** Asks for a completion under an id of the client's, which `sconce complete` has no option for. */
  async ask(id, model) {
    // Field 1 is the model, 2 the text.
    const field = (text, index) => Buffer.from([8 * (index + 1) + 2, text.length, ...Buffer.from(text)]);
    const fields = [model, "x"].map(field);
    const message = Buffer.concat(fields);
    const frame = Buffer.alloc(5);
    frame.writeUInt32BE(message.length, 1);
    const session = http2.connect(`http://${this.listen}`);
    const call = session.request({
      ":method": "POST", ":path": "/sconce.v1.InferenceService/Complete",
      "content-type": "application/grpc", te: "trailers", "x-request-id": id,
    });
    call.end(Buffer.concat([frame, message]));
    call.resume();
    await once(call, "close");
    session.close();
  }

  /** Ends it and its clients at once. */
  async kill() {
    for (const client of this.clients) client.kill("SIGKILL");
    this.child.kill("SIGKILL");
    await this.ended;
  }
}

/** The time and the intervals of a page; both move when they are told to. */
class Clock {
  now = Date.parse("2026-01-01T00:00:00Z");
  #intervals = [];

  every(act, period) {
    this.#intervals.push({ act, period, due: this.now + period });
    return this.#intervals.length;
  }

  /** Lets milliseconds go by, and runs what falls due in its order. */
  pass(milliseconds) {
    const end = this.now + milliseconds;
    for (;;) {
      const next = this.#intervals.reduce((first, other) => (other.due < first.due ? other : first));
      if (next.due > end) break;
      this.now = next.due;
      next.due += next.period;
      next.act();
    }
    this.now = end;
  }
}

/** The page of a server. It emits `told` with each snapshot when that was drawn. */
class Page extends EventEmitter {
  clock = new Clock();
  /** The last snapshot, and the last tree. */
  told = null;
  tree = null;
  /** The last request for a tree, until the page has done with it. */
  fetched = null;
  /** Answers to such requests wait for this. */
  held = null;
  /** What the page did that it should not, and what listeners to `told` found. */
  problems = [];

  /** Loads it, and runs its script. */
  static async open(server) {
    const page = new Page();
    const url = server.admin;
    page.loss = server.loss();
    // Whether that matters, those say who wait for it.
    page.loss.catch(() => {});
    const answer = await fetch(url);
    page.policy = answer.headers.get("content-security-policy");
    const virtualConsole = new VirtualConsole();
    virtualConsole.on("jsdomError", (error) => page.problems.push(error));
    const dom = new JSDOM(await answer.text(), {
      url, virtualConsole, runScripts: "dangerously", pretendToBeVisual: true,
      beforeParse: (window) => page.#furnish(window, url),
    });
    page.blameless();
    if (!page.source) throw new Error("expected that the page listens to events");
    page.window = dom.window;
    page.document = dom.window.document;
    return page;
  }

  /** What jsdom lacks, and the clock. */
  #furnish(window, url) {
    const page = this;
    window.Date.now = () => page.clock.now;
    window.setInterval = (act, period) => page.clock.every(act, period);
    window.EventSource = class extends EventSource {
      constructor(path) {
        super(new URL(path, url));
        page.source = this;
        // After the page's own: `onmessage` comes before listeners.
        this.addEventListener("message", (event) => page.#took(event.data));
      }
    };
    window.fetch = (path) => {
      const held = page.held;
      const answer = (async () => {
        const fetched = await fetch(new URL(path, url));
        const text = await fetched.text();
        await held;
        page.tree = fetched.ok ? JSON.parse(text) : null;
        return { ok: fetched.ok, text: async () => text };
      })();
      // What the page does with it are microtasks, all done one turn later.
      page.fetched = answer.then(() => turn());
      // That one fails when the server is gone, only those mind who wait for it.
      page.fetched.catch(() => {});
      return answer;
    };
  }

  #took(data) {
    this.told = JSON.parse(data);
    try {
      this.emit("told", this.told);
    } catch (problem) {
      this.problems.push(problem);
    }
    this.emit("looked");
  }

  /** Gives the page a snapshot of the test's own. */
  tell(snapshot) {
    const data = JSON.stringify(snapshot);
    this.source.onmessage({ data });
    this.#took(data);
    this.blameless();
  }

  /** Fails if there were problems. */
  blameless() {
    if (this.problems.length > 0) throw this.problems[0];
  }

  /** Waits for a snapshot that `holds`; all until then must have been drawn well. */
  async until(what, holds) {
    for (let events = 0; events < EVENTS_MAX; events += 1) {
      this.blameless();
      if (this.told && holds(this.told)) return;
      await Promise.race([once(this, "looked"), this.loss]);
    }
    throw new Error(`${what}: not in ${EVENTS_MAX} events; the last: ${JSON.stringify(this.told)}`);
  }

  /** Does what has the page ask for a tree, and waits until it has drawn it. */
  async fetching(act) {
    const before = this.fetched;
    act();
    if (this.fetched === before) throw new Error("expected that the page asks for a tree");
    await this.fetched;
    this.blameless();
  }

  text(id) {
    return this.document.getElementById(id).textContent;
  }

  /** The text of each cell of a table's body. */
  rows(id) {
    const cells = (row) => Array.from(row.cells, (cell) => cell.textContent);
    return Array.from(this.document.getElementById(id).rows, cells);
  }

  close() {
    this.source.close();
    this.window.close();
  }
}

module.exports = { Page, Server };
