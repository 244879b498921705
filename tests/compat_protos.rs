//! The gateway protocols under `proto/compat` are, on the wire, those of their authors: the table in
//! `tests/golden` was written from their own package by `tests/reference/compat_protos.py`.

use std::fmt::Write as _;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet,
};

const GOLDEN: &str = include_str!("golden/compat_protos.txt");

fn field_line(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let lower = |name: &str, prefix: &str| {
        name.strip_prefix(prefix).expect("a name of the descriptor").to_lowercase()
    };
    let label = lower(Label::as_str_name(&field.label()), "LABEL_");
    let wire = lower(Type::as_str_name(&field.r#type()), "TYPE_");
    let of = match field.type_name().trim_start_matches('.') {
        "" => "-",
        name => name,
    };
    let oneof = match field.oneof_index {
        _ if field.proto3_optional() => "optional",
        Some(index) => message.oneof_decl[index as usize].name(),
        None => "-",
    };
    format!("{} {} {label} {wire} {of} {oneof}", field.number(), field.name())
}

fn message_lines(scope: &str, message: &DescriptorProto, lines: &mut String) {
    let name = format!("{scope}.{}", message.name());
    writeln!(lines, "message {name}").expect("a string grows");
    let mut fields: Vec<_> = message.field.iter().collect();
    fields.sort_by_key(|field| field.number());
    for field in fields {
        writeln!(lines, "  {}", field_line(message, field)).expect("a string grows");
    }
    for nested in &message.nested_type {
        message_lines(&name, nested, lines);
    }
}

fn enum_lines(package: &str, one: &EnumDescriptorProto, lines: &mut String) {
    writeln!(lines, "enum {package}.{}", one.name()).expect("a string grows");
    for value in &one.value {
        writeln!(lines, "  {} {}", value.number(), value.name()).expect("a string grows");
    }
}

fn file_lines(file: &FileDescriptorProto, lines: &mut String) {
    let package = file.package();
    file.message_type.iter().for_each(|message| message_lines(package, message, lines));
    file.enum_type.iter().for_each(|one| enum_lines(package, one, lines));
    for service in &file.service {
        for method in &service.method {
            let streams = if method.server_streaming() { "stream " } else { "" };
            writeln!(
                lines,
                "rpc {package}.{}/{} {} {streams}{}",
                service.name(),
                method.name(),
                method.input_type().trim_start_matches('.'),
                method.output_type().trim_start_matches('.'),
            )
            .expect("a string grows");
        }
    }
}

#[test]
fn names_numbers_and_types_are_those_of_the_protocols_authors() {
    let set = FileDescriptorSet::decode(sconce_proto::FILE_DESCRIPTOR_SET).expect("decodes");
    let mut lines = String::new();
    for package in ["smg.grpc.common", "vllm.grpc.engine"] {
        let file = set.file.iter().find(|file| file.package() == package);
        file_lines(file.expect("the package is in the descriptor set"), &mut lines);
    }
    let golden: Vec<_> = GOLDEN.lines().filter(|line| !line.starts_with('#')).collect();
    for (ours, theirs) in lines.lines().zip(&golden) {
        assert_eq!(ours, *theirs);
    }
    assert_eq!(lines.lines().count(), golden.len());
}
