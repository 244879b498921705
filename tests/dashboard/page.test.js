// Whether the script of the admin port's page draws what its server tells: a real server with simulated
// models, a document without a browser. The tests are one story, each begins where the one before ended.
//
// Each event of the server, one a second, is checked when it was drawn. Nothing here sleeps: the page's own
// time stands still but where a test lets it go by.
"use strict";

const assert = require("node:assert/strict");
const { createHash } = require("node:crypto");
const { once } = require("node:events");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { after, before, test } = require("node:test");
const { Page, Server } = require("./page.js");
const { Drawn, drawnTree, toldTree } = require("./drawn.js");

// Longest that a test may take; far above what any needs.
const PATIENCE = { timeout: 60_000 };
// As in the page.
const TREE_EVERY = 3000;
const SILENCE_MAX = 5000;
const HISTORY_MAX = 120;

const SMALL = "small/q4:1";
// Ends by nothing but its client's leave: its steps take longer than any test.
const LARGE = "large";
const PROMPT = "You are a careful assistant who answers in one sentence and names the source of each claim. ".repeat(3);
const ID = '<img src=x onerror="window.hurt=1">';
const NAME = "<script>window.hurt=2</script>";

const folder = fs.mkdtempSync(path.join(os.tmpdir(), "sconce-page-"));
let server, page, endless;

before(async () => {
  server = await Server.start([
    "--model", `${SMALL}=sim:recurrent=true,weights_bytes=8000000`,
    "--model", `${LARGE}=sim:decode_us=50000,context=32768`,
    // Is loaded for as long as anybody looks.
    "--model", "late=sim:load_ms=80000000",
    "--cache-dir", folder, "--cache-disk", "16MB", "--cache-host", "16MB",
  ], { SCONCE__SERVER__WITHDRAWAL: "1h", SCONCE__ENGINE__MEMORY_BUDGET: "64MB" });
  page = await Page.open(server);
  const drawn = new Drawn(page);
  page.on("told", (now) => drawn.check(now));
}, PATIENCE);

after(async () => {
  // First, for what lives on keeps this process.
  await server?.kill();
  page?.close();
  fs.rmSync(folder, { recursive: true });
});

/** What picks the model whose tree is drawn. */
const pick = (name) => () => {
  const picker = page.document.getElementById("model");
  picker.value = name;
  picker.dispatchEvent(new page.window.Event("change"));
};

test("the policy lets the page's script and style run", PATIENCE, () => {
  for (const name of ["script", "style"]) {
    const text = page.document.querySelector(name).textContent;
    const hash = createHash("sha256").update(text).digest("base64");
    assert.ok(page.policy.includes(`${name}-src 'sha256-${hash}'`), `${name}: ${page.policy}`);
  }
});

test("numbers are written so that people can read them", PATIENCE, () => {
  const written = {
    bytes: [[0, "0 B"], [999, "999 B"], [1000, "1.00 kB"], [999_499, "999 kB"], [999_600, "1.00 MB"],
      [1.5e9, "1.50 GB"], [64e12, "64.0 TB"], [2e18, "2.00e+3 PB"]],
    time: [[null, "-"], [undefined, "-"], [0, "0.00 ms"], [0.0005, "0.50 ms"], [0.0123, "12.3 ms"], [1, "1 s"],
      [1.234, "1.23 s"], [12.6, "13 s"], [119, "119 s"], [120, "2 min"], [7199, "119 min"], [7260, "2 h 1 min"]],
    number: [[null, "-"], [undefined, "-"], [0, "0"], [1234567, "1,234,567"]],
  };
  for (const [name, cases] of Object.entries(written)) {
    const write = page.window.eval(name);
    assert.deepEqual(cases.map(([value]) => [value, write(value)]), cases, name);
  }
});

test("what the server tells is what is drawn", PATIENCE, async () => {
  const ready = (now) => now.models.filter((model) => model.state === "ready").length;
  await page.until("two are loaded", (now) => ready(now) === 2);
  assert.deepEqual(page.rows("reasons"), [["nothing was looked up yet"]]);
  assert.deepEqual(page.rows("recent"), [["none yet"]]);

  for (const options of [["--pin"], ["--restore-point", "100"]]) {
    const client = server.complete(SMALL, PROMPT + options.length, "--ignore-eos", "-n", "8", ...options);
    assert.deepEqual(await once(client, "close"), [0, null], client.said);
  }
  endless = server.complete(LARGE, PROMPT, "--ignore-eos", "-n", "30000");
  await page.until("all have run", (now) => now.recent.length === 2 && now.sequences.running === 1);
  assert.match(page.text("first"), /^[\d.]+ m?s$/);
  const models = page.rows("models");
  assert.deepEqual(models.map(([name, state]) => [name, state]),
    [[LARGE, "ready"], ["late", "loading 0 % "], [SMALL, "ready"]]);
  assert.equal(models[0][5], "busy");
  const tokens = String(PROMPT.length + 1);
  const [second, first] = page.rows("recent");
  assert.deepEqual(first.slice(2, 7), [SMALL, "OK", tokens, "0", "8"]);
  assert.deepEqual([...second.slice(2, 5), second[6]], [SMALL, "OK", tokens, "8"]);
  assert.ok(Number(second[5]) > 0, second[5]);
  assert.deepEqual(page.rows("reasons").map(([reason]) => reason), ["no restore point", "not found"]);

  // Between two events tokens come, as long as somebody asks for them.
  const before = page.told.totals.completion_tokens;
  await page.until("tokens come", (now) => now.totals.completion_tokens > before);
  assert.ok(Number(page.text("out")) > 0, page.text("out"));
  assert.match(page.text("gap"), /^[\d.]+ m?s$/);
});

test("the tree of the model that is picked is drawn", PATIENCE, async () => {
  // That which the page asked for by itself.
  await page.fetched;
  await page.fetching(pick(SMALL));
  assert.deepEqual(drawnTree(page), toldTree(page));
  assert.match(page.text("tree"), /restore point/);
  assert.match(page.text("tree"), /pinned/);
  assert.ok(page.document.querySelector("#tree li li + li"), "expected a tree with a branch");
  await page.fetching(pick(LARGE));
  assert.deepEqual(drawnTree(page), toldTree(page));
  assert.match(page.text("tree"), /in use/);

  // An answer that comes late is not drawn over that of the model that was picked since.
  let release;
  page.held = new Promise((resolve) => { release = resolve; });
  pick(SMALL)();
  const late = page.fetched;
  page.held = null;
  await page.fetching(pick(LARGE));
  const drawn = drawnTree(page);
  release();
  await late;
  assert.deepEqual(drawnTree(page), drawn);
});

test("a tree is asked for again and again, unless nobody sees it", PATIENCE, async () => {
  await page.fetching(() => page.clock.pass(TREE_EVERY));
  const { fetched } = page;
  Object.defineProperty(page.document, "hidden", { configurable: true, get: () => true });
  page.clock.pass(2 * TREE_EVERY);
  assert.equal(page.fetched, fetched);
  delete page.document.hidden;
  await page.fetching(() => page.clock.pass(TREE_EVERY));
});

test("text of a client's is text", PATIENCE, async () => {
  await server.ask(ID, NAME);
  endless.kill("SIGKILL");
  await page.until("both have ended", (now) => now.recent.length === 4 && now.sequences.running === 0);
  const found = page.rows("recent").find((cells) => cells[1] === ID);
  assert.deepEqual(found?.slice(1, 7), [ID, NAME, "NOT_FOUND", "-", "-", "-"]);
  assert.ok(page.rows("recent").some((cells) => cells[2] === LARGE && cells[3] === "CANCELLED"));
  assert.equal(page.document.querySelectorAll("img").length, 0);
  assert.equal(page.document.querySelectorAll("script").length, 1);
  assert.equal(page.window.hurt, undefined);
});

test("the page says that its server drains, and then that it is gone", PATIENCE, async () => {
  server.child.kill("SIGTERM");
  await page.until("it drains", (now) => now.draining);
  assert.equal(page.text("state"), "draining");
  const over = once(page.source, "error");
  await server.kill();
  await over;
  // It is not asked again, so that no event comes but the test's own.
  page.source.close();
  const state = page.document.getElementById("state");
  page.clock.pass(SILENCE_MAX);
  assert.deepEqual([state.textContent, state.className], ["draining", "state wait"]);
  page.clock.pass(1000);
  assert.deepEqual([state.textContent, state.className], ["lost; trying again", "state bad"]);
});

test("a server that begins anew is drawn from nothing", PATIENCE, () => {
  const last = page.told;
  const zeros = Object.fromEntries(Object.keys(last.totals).map((name) => [name, 0]));
  const model = { ...last.models[0], state: "ready", progress: null, running: 0, waiting: 0, idle_seconds: 0 };
  const anew = {
    // Up for longer than the other was, so that only the totals tell.
    ...last, draining: false, uptime_seconds: last.uptime_seconds + 1, totals: zeros, recent: [], cache_reasons: [],
    memory: [{ ...last.memory[0], budget_bytes: null }],
    models: [
      { ...model, model: "a", state: "failed" },
      { ...model, model: "b", state: "loading", progress: { stage: "weights", bytes_done: 1, bytes_total: 3 } },
    ],
  };
  page.tell(anew);
  assert.equal(page.text("state"), "not ready");
  assert.match(page.text("memory"), /, no limit$/);
  assert.equal(page.document.querySelector("#models td.bad").textContent, "failed");
  assert.equal(page.rows("models")[1][1], "loading 33 % ");
  assert.equal(page.text("tree"), "nothing is remembered");
  assert.equal(page.document.querySelector("#models progress").value, 1 / 3);

  const later = (seconds, models) => page.tell({
    ...anew, uptime_seconds: anew.uptime_seconds + seconds, totals: { ...zeros, completion_tokens: 5, steps: 5 }, models,
  });
  later(2, [model]);
  assert.equal(page.text("state"), "serving");
  assert.equal(page.text("out"), "2.5");
  // The lines go back so far and no further.
  for (let second = 3; second < HISTORY_MAX + 10; second += 1) later(second, []);
  const points = page.document.querySelector("#out-line polyline").getAttribute("points");
  assert.equal(points.split(" ").length, HISTORY_MAX);
});
