"""Streams a chat completion; run from the root of the repository: `pip install grpcio-tools` first."""
import sys, grpc

sys.path.append("proto")
pb, rpc = grpc.protos_and_services("sconce/v1/inference.proto")
stub = rpc.InferenceServiceStub(grpc.insecure_channel("127.0.0.1:50051"))
chat = pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="Name three things that give light.")])
for response in stub.Complete(pb.CompleteRequest(model="smollm2", chat=chat, max_tokens=64)):
    print(response.delta.text, end="", flush=True)
