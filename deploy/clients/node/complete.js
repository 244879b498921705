// Streams a completion. Run from the root of the repository, after `npm ci --prefix deploy/clients/node`:
//   node deploy/clients/node/complete.js [ADDRESS [MODEL [PROMPT]]]
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const root = process.env.SCONCE_ROOT || process.cwd();
const config = fs.readFileSync(path.join(root, "deploy/clients/service_config.json"), "utf8");
const definition = loader.loadSync("sconce/v1/inference.proto", {
  includeDirs: [path.join(root, "proto")],
  keepCase: true,
  longs: String,
  enums: String,
  oneofs: true,
});
const { InferenceService } = grpc.loadPackageDefinition(definition).sconce.v1;

const [address = "127.0.0.1:50051", model = "smollm2", text = "The lamp on the wall"] = process.argv.slice(2);
const client = new InferenceService(address, grpc.credentials.createInsecure(), {
  // Retries, and calls go to servers that are healthy.
  "grpc.service_config": config,
});

const deadline = new Date(Date.now() + 60_000);
const call = client.Complete({ model, text, max_tokens: 32, sampling: { temperature: 0 } }, { deadline });
call.on("data", (response) => {
  if (response.event === "delta") {
    process.stdout.write(response.delta.text);
  } else if (response.event === "finished") {
    const { prompt_tokens, cached_tokens, completion_tokens } = response.finished.usage;
    console.log(`\n[${prompt_tokens} prompt tokens, ${cached_tokens} remembered; ${completion_tokens} new; ` +
      `${response.finished.reason}]`);
  }
});
call.on("error", (error) => {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
  client.close();
});
call.on("end", () => client.close());
