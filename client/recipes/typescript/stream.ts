// Streams one completion and prints it as it comes.
//
//   node build/stream.js HOST:PORT TIER PROMPT
//
// Its last line of output is a JSON object: what was promised and what became of it, or, with exit
// status 1, why the call failed and what to do about it. NIYAMA_CA names a file with the server's
// certificate authority (TLS), NIYAMA_TOKEN_FILE one with a bearer token.
import * as fs from "node:fs";
import * as path from "node:path";
import * as grpc from "@grpc/grpc-js";
import * as protoLoader from "@grpc/proto-loader";
import * as protobuf from "protobufjs";
import type { ProtoGrpcType } from "./generated/inference";
import type { GenerateStreamResponse__Output } from "./generated/niyama/v1/GenerateStreamResponse";

// What is tried again, and how often. A delay that the server states takes the place of the backoff.
const SERVICE_CONFIG = `{"methodConfig": [{"name": [{"service": "niyama.v1.Inference"}], 
    "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.5s", "maxBackoff": "8s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"]}}], 
  "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1}}`;
const PROTO = "niyama/v1/inference.proto";
const CALL_SECONDS = 60; // after which the call ends, and all that it holds

// The details of a status (google/rpc/status.proto and error_details.proto), as far as they are read.
const RPC = protobuf.parse(`
  syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message FieldViolation { string field = 1; string description = 2; }
  message BadRequest { repeated FieldViolation field_violations = 1; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }`, { keepCase: true }).root;

interface Failure {
  code: string;
  message: string;
  reason: string; // for programs
  fields: string[]; // of the request that are wrong
  retry_after_s: number; // 0: trying again is no use, or at once
}

function explain(error: grpc.ServiceError): Failure {
  const found: Failure = {
    code: grpc.status[error.code], message: error.details, reason: "", fields: [], retry_after_s: 0,
  };
  const [packed] = error.metadata.get("grpc-status-details-bin");
  if (!(packed instanceof Buffer)) return found;
  const read = (name: string, bytes: Uint8Array): any => {
    const type = RPC.lookupType(name);
    return type.toObject(type.decode(bytes), { defaults: true, longs: Number });
  };
  for (const detail of read("Status", packed).details) {
    const name = detail.type_url.split(".").pop();
    if (name === "ErrorInfo") found.reason = read(name, detail.value).reason;
    if (name === "BadRequest") {
      found.fields = read(name, detail.value).field_violations.map((each: { field: string }) => each.field);
    }
    if (name === "RetryInfo") {
      const { seconds, nanos } = read(name, detail.value).retry_delay;
      found.retry_after_s = seconds + nanos / 1e9;
    }
  }
  return found;
}

// The token is read anew for each call, so that it may be renewed. (Node sends call credentials over
// TLS alone; an interceptor sends them over loopback, too.)
function bearer(file: string): grpc.Interceptor {
  return (options, next) =>
    new grpc.InterceptingCall(next(options), {
      start(metadata, listener, send) {
        metadata.set("authorization", `Bearer ${fs.readFileSync(file, "utf8").trim()}`);
        send(metadata, listener);
      },
    });
}

function connect(address: string) {
  const { NIYAMA_CA: caFile, NIYAMA_TOKEN_FILE: tokenFile } = process.env;
  const root = process.env.NIYAMA_PROTO ?? path.join(__dirname, "../../../../proto");
  const loaded = protoLoader.loadSync(PROTO, {
    keepCase: true, longs: String, enums: String, oneofs: true, includeDirs: [root],
  });
  const { niyama } = grpc.loadPackageDefinition(loaded) as unknown as ProtoGrpcType;
  const credentials = caFile
    ? grpc.credentials.createSsl(fs.readFileSync(caFile))
    : grpc.credentials.createInsecure();
  return new niyama.v1.Inference(address, credentials, {
    "grpc.service_config": SERVICE_CONFIG,
    interceptors: tokenFile ? [bearer(tokenFile)] : [],
  });
}

function main(address: string, tier: string, prompt: string): void {
  const client = connect(address);
  const told = {
    request_id: "", tier: "", expected_on_time: false, finish_reason: "",
    targets_met: [] as string[], output_tokens: 0,
  };
  const call = client.GenerateStream(
    // With a seed, it is the same text each time.
    { input: { text: prompt }, sampling: { max_tokens: 16, seed: 7 }, qos: { tier } },
    { deadline: Date.now() + CALL_SECONDS * 1000 },
  );
  call.on("data", ({ accepted, tokens, relegated, finished }: GenerateStreamResponse__Output) => {
    if (accepted) {
      told.request_id = accepted.request_id ?? "";
      told.tier = accepted.targets?.tier ?? "";
      told.expected_on_time = accepted.forecast?.on_time ?? false;
    }
    if (tokens) process.stdout.write(tokens.text ?? "");
    if (relegated) console.error(`will be late: ${relegated.reason}`);
    if (finished) {
      told.finish_reason = finished.reason ?? "";
      told.output_tokens = finished.usage?.output_tokens ?? 0;
      told.targets_met = (finished.targets ?? []).filter((each) => each.met).map((each) => `${each.name}`);
    }
  });
  call.on("error", (error: grpc.ServiceError) => {
    console.log(`\n${JSON.stringify(explain(error))}`);
    process.exitCode = 1;
    client.close();
  });
  call.on("end", () => {
    if (told.finish_reason) console.log(`\n${JSON.stringify(told)}`);
    client.close();
  });
}

const given = process.argv.slice(2);
if (given.length === 3) {
  main(given[0], given[1], given[2]);
} else {
  console.error("usage: node build/stream.js HOST:PORT TIER PROMPT");
  process.exitCode = 2;
}
