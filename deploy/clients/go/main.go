// Streams a completion from sconce. In this folder, with protoc, protoc-gen-go and protoc-gen-go-grpc:
//
//	go generate && go mod tidy && go run . -address 127.0.0.1:50051
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	// Client-side health checking, which the service config asks for.
	_ "google.golang.org/grpc/health"

	pb "example.com/sconce-client/sconcev1"
)

// The protos name no Go package, so that it is named here.
//go:generate protoc --proto_path=../../../proto --go_out=. --go-grpc_out=. --go_opt=module=example.com/sconce-client --go-grpc_opt=module=example.com/sconce-client --go_opt=Msconce/v1/inference.proto=example.com/sconce-client/sconcev1 --go-grpc_opt=Msconce/v1/inference.proto=example.com/sconce-client/sconcev1 sconce/v1/inference.proto

func main() {
	address := flag.String("address", "127.0.0.1:50051", "the server, or a name of several such as dns:///sconce:50051")
	model := flag.String("model", "smollm2", "name of a loaded model")
	prompt := flag.String("prompt", "The lamp on the wall", "what to complete")
	config := flag.String("config", "../service_config.json", "round robin, health and retries")
	flag.Parse()
	if err := complete(*address, *model, *prompt, *config); err != nil {
		log.Fatal(err)
	}
}

// complete prints the completion of a prompt as it comes, and its account.
func complete(address, model, prompt, config string) error {
	serviceConfig, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(string(serviceConfig)))
	if err != nil {
		return err
	}
	defer connection.Close()

	// The deadline holds for the whole stream; when it passes, or cancel is called, the work ends.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	maxTokens, temperature := uint32(32), float32(0)
	stream, err := pb.NewInferenceServiceClient(connection).Complete(ctx, &pb.CompleteRequest{
		Model:     model,
		Prompt:    &pb.CompleteRequest_Text{Text: prompt},
		MaxTokens: &maxTokens,
		Sampling:  &pb.Sampling{Temperature: &temperature},
	})
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch event := response.Event.(type) {
		case *pb.CompleteResponse_Delta:
			fmt.Print(event.Delta.Text)
		case *pb.CompleteResponse_Finished:
			usage := event.Finished.Usage
			fmt.Printf("\n[%d prompt tokens, %d remembered; %d new; %s]\n",
				usage.PromptTokens, usage.CachedTokens, usage.CompletionTokens, event.Finished.Reason)
		}
	}
}
