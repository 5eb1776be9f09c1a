// Streams one completion and prints what it heard as a line of JSON.
//
//   node stream.js HOST:PORT ROOT REQUEST
//
// ROOT is the folder that holds proto/, REQUEST a GenerateStreamRequest as JSON in the field names
// of the .proto file. Packages are found through NODE_PATH. Exit status 1 where the call failed.
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

if (process.argv.length !== 5) {
  console.error("usage: node stream.js HOST:PORT ROOT REQUEST (REQUEST: GenerateStreamRequest as JSON)");
  process.exit(2);
}
const [address, root, request] = process.argv.slice(2);
const definition = protoLoader.loadSync(path.join(root, "proto/niyama/v1/inference.proto"), {
  keepCase: true,
  longs: String,
  enums: String,
  oneofs: true,
  includeDirs: [root],
});
const { Inference } = grpc.loadPackageDefinition(definition).niyama.v1;
const client = new Inference(address, grpc.credentials.createInsecure());
const heard = { events: [], text: "", token_ids: [], request_id: "", reason: "" };

const call = client.GenerateStream(JSON.parse(request));
call.on("data", (message) => {
  heard.events.push(message.event);
  if (message.event === "accepted") heard.request_id = message.accepted.request_id;
  if (message.event === "tokens") {
    heard.text += message.tokens.text;
    heard.token_ids.push(...message.tokens.token_ids);
  }
  if (message.event === "finished") heard.reason = message.finished.reason;
});
call.on("error", (error) => {
  console.error(error.message);
  process.exitCode = 1;
  client.close();
});
call.on("end", () => {
  console.log(JSON.stringify(heard));
  client.close();
});
