// Reads the load as balancers of gRPC do, with what grpc-js has for that: prints a report out of band
// and the one in the trailers of a call as lines of JSON.
//
//   node orca.js HOST:PORT FOLDER
//
// FOLDER holds niyama/v1/inference.proto. Packages are found through NODE_PATH.
"use strict";

const grpc = require("@grpc/grpc-js");
const orca = require("@grpc/grpc-js/build/src/orca");
const protoLoader = require("@grpc/proto-loader");

const [address, folder] = process.argv.slice(2);
const definition = protoLoader.loadSync("niyama/v1/inference.proto", { includeDirs: [folder] });
const { Inference } = grpc.loadPackageDefinition(definition).niyama.v1;
const credentials = grpc.credentials.createInsecure();
const client = new Inference(address, credentials);
const balancer = orca.createOrcaClient(new grpc.Channel(address, credentials, {}));

const fail = (error) => {
  console.error(error.message);
  process.exit(1);
};
const reports = balancer.StreamCoreMetrics({ reportInterval: { seconds: 1 } });
reports.on("error", (error) => error.code === grpc.status.CANCELLED || fail(error));
reports.once("data", (report) => {
  console.log(JSON.stringify(report));
  reports.cancel();
  const request = { input: { text: "Once" }, sampling: { maxTokens: 3 }, requestId: "from-orca" };
  const call = client.GenerateStream(request);
  call.on("data", () => {});
  call.on("error", fail);
  call.on("status", ({ metadata }) => {
    const [bytes] = metadata.get(orca.GRPC_METRICS_HEADER);
    const { responseDeserialize } = balancer.constructor.service.StreamCoreMetrics;
    console.log(JSON.stringify(responseDeserialize(bytes)));
    process.exit(0);
  });
});
