// What must be drawn of what a server told.
"use strict";

const assert = require("node:assert/strict");

// As in the page.
const HISTORY_MAX = 120;
const TIERS = ["weights", "steps", "running", "cached"];

/** Follows the snapshots, and checks the page against each. */
class Drawn {
  #page;
  #before = null;
  #looks = [];

  constructor(page) {
    this.#page = page;
  }

  /** Fails where the page shows other than `now`, its last snapshot. */
  check(now) {
    this.#follow(now);
    const { text, number, time } = this.#tools();
    const serving = now.models.some((model) => model.state === "ready");
    const state = this.#page.document.getElementById("state");
    const word = now.draining ? "draining" : serving ? "serving" : "not ready";
    const kind = word === "serving" ? "good" : "wait";
    assert.deepEqual([state.textContent, state.className], [word, `state ${kind}`]);
    const commit = now.commit ? ` (${now.commit.slice(0, 12)})` : "";
    assert.equal(text("about"), `${now.version}${commit}, up ${time(now.uptime_seconds)}`);
    assert.equal(text("running"), String(now.sequences.running));
    const { waiting, waiting_max: most } = now.sequences;
    const done = number(now.totals.requests_finished);
    assert.equal(text("waiting"), `${waiting} of ${number(most)} waiting, ${done} done`);
    this.#checkSpeeds();
    this.#checkMemory(now.memory);
    this.#checkModels(now.models);
    this.#checkRecent(now.recent);
    const words = (reason) => reason.toLowerCase().replaceAll("_", " ");
    const reasons = now.cache_reasons.map((count) => [words(count.reason), number(count.requests)]);
    assert.deepEqual(this.#page.rows("reasons"), reasons.length ? reasons : [["nothing was looked up yet"]]);
  }

  /** The page's own ways to write numbers, which a test of their own checks. */
  #tools() {
    const [bytes, number, time] = ["bytes", "number", "time"].map((name) => this.#page.window.eval(name));
    return { bytes, number, time, text: (id) => this.#page.text(id) };
  }

  /** What happened since the snapshot before. */
  #follow(now) {
    const old = this.#before;
    this.#before = now;
    if (!old || now.totals.steps < old.totals.steps || now.uptime_seconds <= old.uptime_seconds) return;
    const grown = (name) => now.totals[name] - old.totals[name];
    const speed = (name) => grown(name) / (now.uptime_seconds - old.uptime_seconds);
    const mean = (sum, count) => (count > 0 ? grown(sum) / count : null);
    this.#looks.push({
      out: speed("completion_tokens"), in: speed("prompt_tokens"), resumed: speed("resumed_tokens"),
      running: now.sequences.running,
      first: mean("first_token_seconds", grown("first_tokens")),
      gap: mean("token_gap_seconds", grown("completion_tokens") - grown("first_tokens")),
      step: mean("step_seconds", grown("steps")),
    });
    this.#looks = this.#looks.slice(-HISTORY_MAX);
  }

  #checkSpeeds() {
    const { text, time } = this.#tools();
    const last = this.#looks.at(-1);
    assert.equal(text("out"), last ? last.out.toFixed(1) : "-");
    assert.equal(text("in"), last ? `${last.in.toFixed(1)}/s in, ${last.resumed.toFixed(1)}/s resumed` : "-");
    const latest = (name) => time(this.#looks.findLast((look) => look[name] !== null)?.[name]);
    assert.equal(text("first"), latest("first"));
    assert.equal(text("gap"), latest("gap"));
    assert.equal(text("step"), `a step takes ${latest("step")}`);
    for (const name of ["out", "running", "first", "gap"]) {
      this.#checkLine(`${name}-line`, this.#looks.map((look) => look[name]));
    }
  }

  /** A point for each value that there is, the newest at the right, the highest near the top, 0 at the bottom. */
  #checkLine(id, values) {
    const shapes = this.#page.document.getElementById(id);
    const points = shapes.querySelector("polyline").getAttribute("points").split(" ").filter(Boolean)
      .map((point) => point.split(",").map(Number));
    const known = values.filter((value) => value !== null);
    assert.equal(points.length, known.length, id);
    assert.equal(shapes.querySelectorAll("polygon").length, known.length > 1 ? 1 : 0, id);
    if (values.length > 0 && values.at(-1) !== null) assert.equal(points.at(-1)[0], 120, id);
    assert.ok(points.every(([x], index) => x <= 120 && (index === 0 || x > points[index - 1][0])), id);
    const most = Math.max(...known);
    points.forEach(([, y], index) => {
      const height = most > 0 ? known[index] / most : 0;
      assert.ok(Math.abs(y - (38 - 34 * height)) < 0.06, `${id}: ${y} for ${known[index]} of ${most}`);
    });
  }

  #checkMemory(tiers) {
    const { bytes } = this.#tools();
    const blocks = Array.from(this.#page.document.querySelectorAll("#memory .tier"));
    assert.equal(blocks.length, tiers.length);
    tiers.forEach((tier, index) => {
      const held = [tier.weights_bytes, tier.workspace_bytes, tier.live_state_bytes, tier.cached_state_bytes];
      const used = held.reduce((sum, part) => sum + part);
      const limit = tier.budget_bytes === null ? ", no limit" : ` of ${bytes(tier.budget_bytes)}`;
      const head = Array.from(blocks[index].querySelectorAll("p span"), (span) => span.textContent);
      assert.deepEqual(head, [tier.tier, bytes(used) + limit]);
      const whole = Math.max(tier.budget_bytes ?? 0, used, 1);
      const pieces = Array.from(blocks[index].querySelectorAll(".bar span"));
      assert.deepEqual(pieces.map((piece) => [piece.className, piece.title]),
        TIERS.map((kind, part) => [kind, `${kind} ${bytes(held[part])}`]));
      pieces.forEach((piece, part) => {
        const width = parseFloat(piece.style.width);
        assert.ok(Math.abs(width - (100 * held[part]) / whole) < 0.01, `${tier.tier}, ${TIERS[part]}: ${width} %`);
      });
    });
  }

  #checkModels(models) {
    const { bytes, number, time } = this.#tools();
    const state = (model) => {
      if (!model.progress) return model.state;
      const { bytes_done: done, bytes_total: total } = model.progress;
      return `loading ${total > 0 ? Math.floor((100 * done) / total) : 0} % `;
    };
    const rows = models.map((model) => [model.model, state(model), number(model.running), number(model.waiting),
      bytes(model.state_bytes_used), model.idle_seconds === null ? "busy" : time(model.idle_seconds)]);
    assert.deepEqual(this.#page.rows("models"), rows.length ? rows : [["none is loaded"]]);
    const ready = models.filter((model) => model.state === "ready").map((model) => model.model);
    const options = this.#page.document.getElementById("model").options;
    assert.deepEqual(Array.from(options, (option) => [option.value, option.text]), ready.map((name) => [name, name]));
  }

  #checkRecent(requests) {
    const { number, time } = this.#tools();
    const ended = (ago) => (ago < 1 ? "now" : `${time(Math.floor(ago))} ago`);
    const rows = requests.map((request) => [ended(request.ended_seconds_ago), request.request_id, request.model ?? "-",
      request.code, number(request.prompt_tokens), number(request.cached_tokens), number(request.completion_tokens),
      time(request.first_token_seconds), time(request.seconds), request.rpc.split("/").at(-1)]);
    assert.deepEqual(this.#page.rows("recent"), rows.length ? rows : [["none yet"]]);
    const marked = Array.from(this.#page.document.querySelectorAll("#recent td.bad"), (cell) => cell.textContent);
    assert.deepEqual(marked, requests.map((request) => request.code).filter((code) => code !== "OK"));
  }
}

/** The tree as it is drawn: of each node its words, its marks, its children. */
function drawnTree(page) {
  const item = (element) => {
    const below = Array.from(element.children);
    return {
      words: element.firstChild.data,
      marks: below.filter((child) => child.matches(".mark")).map((mark) => mark.textContent),
      children: below.filter((child) => child.matches("ul")).flatMap((list) => Array.from(list.children, item)),
    };
  };
  return Array.from(page.document.querySelectorAll("#tree > ul > li"), item);
}

/** The same of what the server told last. */
function toldTree(page) {
  const bytes = page.window.eval("bytes");
  const { nodes } = page.tree;
  const item = (node, index) => ({
    words: `+${node.edge_tokens} tokens to ${node.depth_tokens}, ${node.hits} ${node.hits === 1 ? "hit" : "hits"}, ` +
      (node.tier ? `${bytes(node.bytes)} on ${node.tier}` : "evicted"),
    marks: [node.restore_point && "restore point", node.pinned && "pinned", node.leased && "in use"].filter(Boolean),
    children: below(index),
  });
  const below = (parent) => nodes.flatMap((node, index) => (node.parent === parent ? [item(node, index)] : []));
  assert.notEqual(nodes.length, 0);
  return below(null);
}

module.exports = { Drawn, drawnTree, toldTree };
