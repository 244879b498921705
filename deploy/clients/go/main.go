// Streams a completion from sconce. In this folder, with protoc, protoc-gen-go and protoc-gen-go-grpc:
//
//	go generate && go mod tidy && go run . -address 127.0.0.1:50051
//
// The options -tls-ca, -tls-cert, -tls-key and -token-file are those of sconce's own commands.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
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
	var shown shown
	flag.StringVar(&shown.authorities, "tls-ca", "", "authorities that the server's certificate may come from, PEM; without it, plain text")
	flag.StringVar(&shown.certificate, "tls-cert", "", "certificate to show, PEM")
	flag.StringVar(&shown.key, "tls-key", "", "key of the certificate, PEM")
	flag.StringVar(&shown.token, "token-file", "", "file with the token to show, alone")
	flag.Parse()
	credentials, err := shown.options()
	if err != nil {
		log.Fatal(err)
	}
	if err := complete(*address, *model, *prompt, *config, credentials); err != nil {
		log.Fatal(err)
	}
}

// shown names the files of what is shown to a server, and of what it must show.
type shown struct {
	authorities, certificate, key, token string
}

// options of a connection that shows it.
func (files shown) options() ([]grpc.DialOption, error) {
	if (files.certificate == "") != (files.key == "") {
		return nil, errors.New("-tls-cert and -tls-key: expected both or neither")
	}
	if files.authorities == "" {
		// gRPC's libraries do not send credentials in plain text.
		if files.certificate != "" || files.token != "" {
			return nil, errors.New("-tls-cert, -tls-key and -token-file: expected -tls-ca with them")
		}
		return []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, nil
	}
	pem, err := os.ReadFile(files.authorities)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: expected certificates in PEM, found none", files.authorities)
	}
	if files.certificate != "" {
		pair, err := tls.LoadX509KeyPair(files.certificate, files.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(config))}
	if files.token != "" {
		token, err := os.ReadFile(files.token)
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithPerRPCCredentials(bearer(strings.TrimSpace(string(token)))))
	}
	return options, nil
}

// bearer is a token that is shown with every request.
type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (token bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(token)}, nil
}

// RequireTransportSecurity keeps the token from connections that others can read.
func (bearer) RequireTransportSecurity() bool { return true }

// complete prints the completion of a prompt as it comes, and its account.
func complete(address, model, prompt, config string, credentials []grpc.DialOption) error {
	serviceConfig, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient(address,
		append(credentials, grpc.WithDefaultServiceConfig(string(serviceConfig)))...)
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
