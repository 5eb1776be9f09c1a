// Streams one completion and prints it as it comes.
//
//	stream HOST:PORT TIER PROMPT
//
// Its last line of output is a JSON object: what was promised and what became of it, or, with exit
// status 1, why the call failed and what to do about it. NIYAMA_CA names a file with the server's
// certificate authority (TLS), NIYAMA_TOKEN_FILE one with a bearer token.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	pb "niyama/v1"
)

// What is tried again, and how often. A delay that the server states takes the place of the backoff.
const serviceConfig = `{"methodConfig": [{"name": [{"service": "niyama.v1.Inference"}], 
    "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.5s", "maxBackoff": "8s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"]}}], 
  "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1}}`

// bearer sends the token of a file with each call. The file is read anew, so that it may be renewed.
type bearer struct {
	file   string
	secure bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(b.file)
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.secure }

func options() ([]grpc.DialOption, error) {
	given := []grpc.DialOption{grpc.WithDefaultServiceConfig(serviceConfig)}
	caFile, tokenFile := os.Getenv("NIYAMA_CA"), os.Getenv("NIYAMA_TOKEN_FILE")
	if caFile == "" {
		given = append(given, grpc.WithInsecure())
	} else {
		authority, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(authority) {
			return nil, fmt.Errorf("%s holds no certificate", caFile)
		}
		given = append(given, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool})))
	}
	if tokenFile != "" {
		given = append(given, grpc.WithPerRPCCredentials(bearer{tokenFile, caFile != ""}))
	}
	return given, nil
}

// outcome is what the last line tells.
type outcome struct {
	RequestID string   `json:"request_id"`
	Tier      string   `json:"tier"`
	OnTime    bool     `json:"expected_on_time"`
	Reason    string   `json:"finish_reason"`
	Met       []string `json:"targets_met"`
	Tokens    uint32   `json:"output_tokens"`
}

func stream(ctx context.Context, client pb.InferenceClient, tier, prompt string) (*outcome, error) {
	maxTokens, seed := uint32(16), uint64(7) // the same text each time
	call, err := client.GenerateStream(ctx, &pb.GenerateStreamRequest{
		Input:    &pb.Input{Form: &pb.Input_Text{Text: prompt}},
		Sampling: &pb.Sampling{MaxTokens: &maxTokens, Seed: &seed},
		Qos:      &pb.QualityOfService{Tier: tier},
	})
	if err != nil {
		return nil, err
	}
	told := &outcome{}
	for {
		message, err := call.Recv()
		if errors.Is(err, io.EOF) {
			return told, nil
		}
		if err != nil {
			return nil, err
		}
		switch event := message.Event.(type) {
		case *pb.GenerateStreamResponse_Accepted:
			told.RequestID, told.Tier = event.Accepted.RequestId, event.Accepted.GetTargets().GetTier()
			told.OnTime = event.Accepted.GetForecast().GetOnTime()
		case *pb.GenerateStreamResponse_Tokens:
			fmt.Print(event.Tokens.Text)
		case *pb.GenerateStreamResponse_Relegated:
			fmt.Fprintln(os.Stderr, "will be late:", event.Relegated.Reason)
		case *pb.GenerateStreamResponse_Finished:
			told.Reason, told.Tokens = event.Finished.Reason.String(), event.Finished.GetUsage().GetOutputTokens()
			for _, target := range event.Finished.Targets {
				if target.Met {
					told.Met = append(told.Met, target.Name.String())
				}
			}
		}
	}
}

// failure is what the last line tells of a call that failed.
type failure struct {
	Code        string   `json:"code"`
	Message     string   `json:"message"`
	Reason      string   `json:"reason"`        // for programs
	Fields      []string `json:"fields"`        // of the request that are wrong
	RetryAfterS float64  `json:"retry_after_s"` // 0: trying again is no use, or at once
}

func explain(err error) failure {
	told := status.Convert(err)
	found := failure{Code: told.Code().String(), Message: told.Message()}
	for _, detail := range told.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			found.Reason = detail.Reason
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				found.Fields = append(found.Fields, violation.Field)
			}
		case *errdetails.RetryInfo:
			found.RetryAfterS = float64(detail.RetryDelay.Seconds) + float64(detail.RetryDelay.Nanos)/1e9
		}
	}
	return found
}

func run() error {
	if len(os.Args) != 4 {
		return errors.New("usage: stream HOST:PORT TIER PROMPT")
	}
	dial, err := options()
	if err != nil {
		return err
	}
	connection, err := grpc.Dial(os.Args[1], dial...)
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // ends the call, and all it holds
	defer cancel()
	told, err := stream(ctx, pb.NewInferenceClient(connection), os.Args[2], os.Args[3])
	fmt.Println()
	if err != nil {
		json.NewEncoder(os.Stdout).Encode(explain(err))
		os.Exit(1)
	}
	return json.NewEncoder(os.Stdout).Encode(told)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
