// Completes a prompt, with gRPC's own retries, and prints what came of it as a line of JSON.
//
//   node complete.js HOST:PORT ROOT REQUEST SERVICE_CONFIG TIMEOUT_MS
//
// ROOT is the folder that holds proto/, REQUEST a GenerateRequest as JSON in the field names of the
// .proto file, SERVICE_CONFIG JSON as gRPC has it. Packages are found through NODE_PATH.
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [address, root, request, config, timeout] = process.argv.slice(2);
const definition = protoLoader.loadSync("niyama/v1/inference.proto", {
  keepCase: true,
  longs: String,
  enums: String,
  oneofs: true,
  includeDirs: [path.join(root, "proto")],
});
const { Inference } = grpc.loadPackageDefinition(definition).niyama.v1;
const options = { "grpc.service_config": config };
const client = new Inference(address, grpc.credentials.createInsecure(), options);
const deadline = Date.now() + Number(timeout);

client.Generate(JSON.parse(request), { deadline }, (error, answer) => {
  const pushback = error ? error.metadata.get("grpc-retry-pushback-ms") : [];
  const heard = error
    ? { status: grpc.status[error.code], pushback: pushback.map(String) }
    : { status: "OK", completions: answer.completions.length };
  console.log(JSON.stringify(heard));
  client.close();
});
