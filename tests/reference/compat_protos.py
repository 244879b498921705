"""Writes tests/golden/compat_protos.txt: every message and enum of the gateway protocols that sconce
speaks, as the package of the gateway's authors has them, one field a line.

    pip install smg-grpc-proto==0.4.28
    python tests/reference/compat_protos.py > tests/golden/compat_protos.txt
"""

from google.protobuf import descriptor_pb2
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2

PACKAGE = "smg-grpc-proto 0.4.28"


def field_line(message, field):
    kind = descriptor_pb2.FieldDescriptorProto
    label = kind.Label.Name(field.label)[len("LABEL_") :].lower()
    wire = kind.Type.Name(field.type)[len("TYPE_") :].lower()
    of = field.type_name.lstrip(".") or "-"
    oneof = "-"
    if field.proto3_optional:
        oneof = "optional"
    elif field.HasField("oneof_index"):
        oneof = message.oneof_decl[field.oneof_index].name
    return f"{field.number} {field.name} {label} {wire} {of} {oneof}"


def message_lines(scope, message):
    name = f"{scope}.{message.name}"
    yield f"message {name}"
    for field in sorted(message.field, key=lambda field: field.number):
        yield f"  {field_line(message, field)}"
    for nested in message.nested_type:
        yield from message_lines(name, nested)


def file_lines(module):
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        yield from message_lines(file.package, message)
    for enum in file.enum_type:
        yield f"enum {file.package}.{enum.name}"
        for value in enum.value:
            yield f"  {value.number} {value.name}"
    for service in file.service:
        for method in service.method:
            streams = "stream " if method.server_streaming else ""
            yield (
                f"rpc {file.package}.{service.name}/{method.name} "
                f"{method.input_type.lstrip('.')} {streams}{method.output_type.lstrip('.')}"
            )


def main():
    print(f"# {PACKAGE}, by tests/reference/compat_protos.py")
    for module in (common_pb2, vllm_engine_pb2):
        for line in file_lines(module):
            print(line)


if __name__ == "__main__":
    main()
