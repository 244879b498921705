// Streams a completion. Run from the root of the repository, after `npm ci --prefix deploy/clients/node`:
//   node deploy/clients/node/complete.js [--tls-ca FILE [--tls-cert FILE --tls-key FILE] [--token-file FILE]]
//     [ADDRESS [MODEL [PROMPT]]]
// The options are those of `sconce`'s own commands: authorities that the server's certificate may come from,
// a certificate and its key to show, all PEM, and a file with the token to show, alone.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { parseArgs } = require("node:util");
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

/** What is shown to the server, and what it must show. */
function credentials(given) {
  const read = (name) => (given[name] === undefined ? null : fs.readFileSync(given[name]));
  if ((given["tls-cert"] === undefined) !== (given["tls-key"] === undefined)) {
    throw new Error("--tls-cert and --tls-key: expected both or neither");
  }
  if (given["tls-ca"] === undefined) {
    // gRPC's libraries do not send credentials in plain text.
    if (given["tls-cert"] !== undefined || given["token-file"] !== undefined) {
      throw new Error("--tls-cert, --tls-key and --token-file: expected --tls-ca with them");
    }
    return grpc.credentials.createInsecure();
  }
  const channel = grpc.credentials.createSsl(read("tls-ca"), read("tls-key"), read("tls-cert"));
  if (given["token-file"] === undefined) {
    return channel;
  }
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${read("token-file").toString().trim()}`);
  const bearer = grpc.credentials.createFromMetadataGenerator((_, done) => done(null, metadata));
  return grpc.credentials.combineChannelCredentials(channel, bearer);
}

const file = { type: "string" };
const options = { "tls-ca": file, "tls-cert": file, "tls-key": file, "token-file": file };
const { values: given, positionals } = parseArgs({ options, allowPositionals: true });
const [address = "127.0.0.1:50051", model = "smollm2", text = "The lamp on the wall"] = positionals;
const client = new InferenceService(address, credentials(given), {
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
