import com.google.gson.Gson;
import com.google.protobuf.Any;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.ChannelCredentials;
import io.grpc.ClientInterceptor;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import niyama.v1.Finished;
import niyama.v1.GenerateStreamRequest;
import niyama.v1.GenerateStreamResponse;
import niyama.v1.InferenceGrpc;
import niyama.v1.Input;
import niyama.v1.QualityOfService;
import niyama.v1.Sampling;
import niyama.v1.TargetResult;

/**
 * Streams one completion and prints it as it comes.
 *
 * <pre>java Stream HOST:PORT TIER PROMPT</pre>
 *
 * Its last line of output is a JSON object: what was promised and what became of it, or, with exit
 * status 1, why the call failed and what to do about it. NIYAMA_CA names a file with the server's
 * certificate authority (TLS), NIYAMA_TOKEN_FILE one with a bearer token.
 */
public final class Stream {
  // What is tried again, and how often. A delay that the server states takes the place of the backoff.
  private static final String SERVICE_CONFIG =
      """
      {"methodConfig": [{"name": [{"service": "niyama.v1.Inference"}], 
          "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.5s", "maxBackoff": "8s", "backoffMultiplier": 2,
            "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"]}}], 
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1}}
      """;
  private static final long CALL_SECONDS = 60; // after which the call ends, and all that it holds

  public static void main(String[] args) throws IOException, InterruptedException {
    if (args.length != 3) {
      System.err.println("usage: java Stream HOST:PORT TIER PROMPT");
      System.exit(2);
    }
    ManagedChannel channel = connect(args[0]);
    int status = 0;
    Map<String, Object> told;
    try {
      told = stream(channel, args[1], args[2]);
    } catch (StatusRuntimeException error) {
      told = explain(error);
      status = 1;
    }
    System.out.println("\n" + new Gson().toJson(told));
    channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    System.exit(status);
  }

  private static ManagedChannel connect(String address) throws IOException {
    String caFile = System.getenv("NIYAMA_CA");
    ChannelCredentials credentials =
        caFile == null
            ? InsecureChannelCredentials.create()
            : TlsChannelCredentials.newBuilder().trustManager(new File(caFile)).build();
    Map<String, ?> serviceConfig = new Gson().<Map<String, ?>>fromJson(SERVICE_CONFIG, Map.class);
    return Grpc.newChannelBuilder(address, credentials)
        .defaultServiceConfig(serviceConfig)
        .enableRetry()
        .build();
  }

  // The token is read anew for each call, so that it may be renewed.
  private static ClientInterceptor bearer(String file) throws IOException {
    Metadata headers = new Metadata();
    Metadata.Key<String> key = Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
    headers.put(key, "Bearer " + Files.readString(Path.of(file)).strip());
    return MetadataUtils.newAttachHeadersInterceptor(headers);
  }

  private static Map<String, Object> stream(ManagedChannel channel, String tier, String prompt)
      throws IOException {
    var stub = InferenceGrpc.newBlockingStub(channel).withDeadlineAfter(CALL_SECONDS, TimeUnit.SECONDS);
    String tokenFile = System.getenv("NIYAMA_TOKEN_FILE");
    if (tokenFile != null) {
      stub = stub.withInterceptors(bearer(tokenFile));
    }
    GenerateStreamRequest request =
        GenerateStreamRequest.newBuilder()
            .setInput(Input.newBuilder().setText(prompt))
            .setSampling(Sampling.newBuilder().setMaxTokens(16).setSeed(7)) // the same text each time
            .setQos(QualityOfService.newBuilder().setTier(tier))
            .build();
    Map<String, Object> told = new LinkedHashMap<>();
    var received = stub.generateStream(request);
    while (received.hasNext()) {
      GenerateStreamResponse event = received.next();
      switch (event.getEventCase()) {
        case ACCEPTED -> {
          told.put("request_id", event.getAccepted().getRequestId());
          told.put("tier", event.getAccepted().getTargets().getTier());
          told.put("expected_on_time", event.getAccepted().getForecast().getOnTime());
        }
        case TOKENS -> {
          System.out.print(event.getTokens().getText());
          System.out.flush();
        }
        case RELEGATED -> System.err.println("will be late: " + event.getRelegated().getReason());
        case FINISHED -> finish(told, event.getFinished());
        default -> {}
      }
    }
    return told;
  }

  private static void finish(Map<String, Object> told, Finished finished) {
    List<String> met = new ArrayList<>();
    for (TargetResult target : finished.getTargetsList()) {
      if (target.getMet()) {
        met.add(target.getName().name());
      }
    }
    told.put("finish_reason", finished.getReason().name());
    told.put("targets_met", met);
    told.put("output_tokens", finished.getUsage().getOutputTokens());
  }

  private static Map<String, Object> explain(StatusRuntimeException error) throws IOException {
    String reason = ""; // for programs
    List<String> fields = new ArrayList<>(); // of the request that are wrong
    double retryAfterS = 0; // 0: trying again is no use, or at once
    com.google.rpc.Status status = StatusProto.fromThrowable(error);
    for (Any detail : status.getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        reason = detail.unpack(ErrorInfo.class).getReason();
      } else if (detail.is(BadRequest.class)) {
        for (var violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
          fields.add(violation.getField());
        }
      } else if (detail.is(RetryInfo.class)) {
        var delay = detail.unpack(RetryInfo.class).getRetryDelay();
        retryAfterS = delay.getSeconds() + delay.getNanos() / 1e9;
      }
    }
    Map<String, Object> told = new LinkedHashMap<>();
    told.put("code", error.getStatus().getCode().name());
    told.put("message", status.getMessage());
    told.put("reason", reason);
    told.put("fields", fields);
    told.put("retry_after_s", retryAfterS);
    return told;
  }
}
