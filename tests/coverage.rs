//! Every RPC of the descriptor set is described in `docs/PROTOCOL.md` and tried by a test here.

use std::fs;
use std::path::Path;

use prost::Message as _;

/// Test files by what they try; an RPC's client method must appear in one of them.
const TESTS: &[&str] = &[
    "cancel.rs",
    "complete.rs",
    "deadline.rs",
    "drain.rs",
    "health.rs",
    "invalid.rs",
    "models.rs",
    "reflection.rs",
    "snapshots.rs",
    "state.rs",
    "support/mod.rs",
    "tiers.rs",
    "tokenize.rs",
    "transport.rs",
    "vllm_engine.rs",
    "vllm_kv_events.rs",
    "vllm_server.rs",
];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Full service name, method name.
fn rpcs() -> Vec<(String, String)> {
    let set = prost_types::FileDescriptorSet::decode(sconce_proto::FILE_DESCRIPTOR_SET)
        .expect("the descriptor set decodes");
    let mut rpcs = Vec::new();
    for file in &set.file {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            rpcs.extend(service.method.iter().map(|m| (name.clone(), m.name().to_owned())));
        }
    }
    rpcs
}

/// `GetStatus` as clients spell it: `get_status`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for (i, c) in name.char_indices() {
        if c.is_uppercase() && i > 0 {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
}

#[test]
fn the_descriptor_set_has_the_services() {
    let mut services: Vec<_> = rpcs().into_iter().map(|(service, _)| service).collect();
    services.dedup();
    services.sort();
    let mut expected = [
        sconce_proto::names::HEALTH_SERVICE,
        sconce_proto::names::INFERENCE_SERVICE,
        sconce_proto::names::MODEL_SERVICE,
        sconce_proto::names::STATE_SERVICE,
        sconce_proto::names::VLLM_ENGINE,
    ];
    expected.sort_unstable();
    assert_eq!(services, expected);
}

#[test]
fn every_rpc_is_described() {
    let page = read("docs/PROTOCOL.md");
    for (service, method) in rpcs() {
        assert!(page.contains(&format!("`{service}`")), "{service} is not in docs/PROTOCOL.md");
        assert!(page.contains(&format!("`{method}`")), "{service}/{method} is not in the page");
    }
}

#[test]
fn every_rpc_is_tried() {
    let tests: String = TESTS.iter().map(|file| read(&format!("tests/{file}"))).collect();
    for (service, method) in rpcs() {
        let call = format!(".{}(", snake(&method));
        assert!(tests.contains(&call), "no test calls {service}/{method} ({call})");
    }
}

#[test]
fn every_reason_of_an_error_is_described() {
    let page = read("docs/PROTOCOL.md");
    let source = read("server/src/grpc/status.rs");
    let reasons: Vec<_> = source
        .lines()
        .filter_map(|line| line.split_once("=> (Code::")?.1.split('"').nth(1))
        .collect();
    assert!(reasons.len() > 10, "found only {reasons:?}");
    for reason in reasons {
        assert!(page.contains(&format!("`{reason}`")), "{reason} is not in docs/PROTOCOL.md");
    }
}
