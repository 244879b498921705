// Tokenizes a JSON list of texts with llama.cpp: the ids with special tokens parsed and with
// special tokens as plain text, without BOS. Used by text_fixtures.py as a second opinion.
// usage: node llama_cpp_tokens.mjs MODEL.gguf < texts.json > ids.json   (needs node-llama-cpp)
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.cwd() + "/");
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const model = await llama.loadModel({ modelPath: process.argv[2], vocabOnly: true });
const texts = JSON.parse(readFileSync(0, "utf8"));
const ids = texts.map((text) => ({
  parsed: Array.from(model.tokenize(text, true)),
  plain: Array.from(model.tokenize(text, false)),
}));
writeFileSync(1, JSON.stringify(ids));
process.exit(0);
