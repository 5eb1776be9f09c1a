// Streams one completion and prints it as it comes.
//
//   stream HOST:PORT TIER PROMPT
//
// Its last line of output is a JSON object: what was promised and what became of it, or, with exit
// status 1, why the call failed and what to do about it. NIYAMA_CA names a file with the server's
// certificate authority (TLS), NIYAMA_TOKEN_FILE one with a bearer token.
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "niyama/v1/inference.grpc.pb.h"

using niyama::v1::Inference;

// What is tried again, and how often. A delay that the server states takes the place of the backoff.
const char kServiceConfig[] = R"json({"methodConfig": [{"name": [{"service": "niyama.v1.Inference"}], 
    "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.5s", "maxBackoff": "8s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"]}}], 
  "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1}})json";
constexpr auto kDeadline = std::chrono::minutes(1);  // ends the call, and all that it holds

std::string ReadFile(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(kServiceConfig);
  const char* ca_file = std::getenv("NIYAMA_CA");
  auto credentials = ca_file == nullptr
                         ? grpc::InsecureChannelCredentials()
                         : grpc::SslCredentials({.pem_root_certs = ReadFile(ca_file)});
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

// Puts the token of a file into the call's metadata. The file is read anew for each call, so that it
// may be renewed.
void AddToken(grpc::ClientContext& context) {
  const char* token_file = std::getenv("NIYAMA_TOKEN_FILE");
  if (token_file == nullptr) return;
  std::string token = ReadFile(token_file);
  token.erase(token.find_last_not_of(" \r\n") + 1);
  context.AddMetadata("authorization", "Bearer " + token);
}

void Print(const google::protobuf::Struct& told) {
  std::string json;
  (void)google::protobuf::util::MessageToJsonString(told, &json);
  std::cout << "\n" << json << std::endl;
}

google::protobuf::Struct Explain(const grpc::Status& status) {
  google::protobuf::Struct told;
  auto& fields = *told.mutable_fields();
  fields["code"].set_number_value(status.error_code());
  fields["message"].set_string_value(status.error_message());
  fields["reason"].set_string_value("");        // for programs
  fields["fields"].mutable_list_value();        // of the request that are wrong
  fields["retry_after_s"].set_number_value(0);  // 0: trying again is no use, or at once
  google::rpc::Status details;
  details.ParseFromString(status.error_details());
  for (const auto& detail : details.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad_request;
    google::rpc::RetryInfo retry;
    if (detail.UnpackTo(&info)) fields["reason"].set_string_value(info.reason());
    if (detail.UnpackTo(&bad_request)) {
      for (const auto& violation : bad_request.field_violations()) {
        fields["fields"].mutable_list_value()->add_values()->set_string_value(violation.field());
      }
    }
    if (detail.UnpackTo(&retry)) {
      const auto& delay = retry.retry_delay();
      fields["retry_after_s"].set_number_value(delay.seconds() + delay.nanos() / 1e9);
    }
  }
  return told;
}

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: stream HOST:PORT TIER PROMPT" << std::endl;
    return 2;
  }
  auto stub = Inference::NewStub(Connect(argv[1]));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kDeadline);
  AddToken(context);
  niyama::v1::GenerateStreamRequest request;
  request.mutable_qos()->set_tier(argv[2]);
  request.mutable_input()->set_text(argv[3]);
  request.mutable_sampling()->set_max_tokens(16);
  request.mutable_sampling()->set_seed(7);  // the same text each time

  google::protobuf::Struct told;
  auto& fields = *told.mutable_fields();
  niyama::v1::GenerateStreamResponse event;
  auto reader = stub->GenerateStream(&context, request);
  while (reader->Read(&event)) {
    if (event.has_accepted()) {
      fields["request_id"].set_string_value(event.accepted().request_id());
      fields["tier"].set_string_value(event.accepted().targets().tier());
      fields["expected_on_time"].set_bool_value(event.accepted().forecast().on_time());
    } else if (event.has_tokens()) {
      std::cout << event.tokens().text() << std::flush;
    } else if (event.has_relegated()) {
      std::cerr << "will be late: " << event.relegated().reason() << std::endl;
    } else if (event.has_finished()) {
      const auto& finished = event.finished();
      fields["finish_reason"].set_string_value(niyama::v1::FinishReason_Name(finished.reason()));
      fields["output_tokens"].set_number_value(finished.usage().output_tokens());
      auto* met = fields["targets_met"].mutable_list_value();
      for (const auto& target : finished.targets()) {
        if (target.met()) met->add_values()->set_string_value(niyama::v1::TargetName_Name(target.name()));
      }
    }
  }
  const grpc::Status status = reader->Finish();
  Print(status.ok() ? told : Explain(status));
  return status.ok() ? 0 : 1;
}
