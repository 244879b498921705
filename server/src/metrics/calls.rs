//! Requests by RPC and code. A caller can ask for any path, so that only names the server knows are
//! told apart.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message as _;
use prost_types::FileDescriptorSet;
use sconce_engine::{Histogram, HistogramReading, bounds};
use tonic::Code;

/// Where requests are counted whose path is none of ours.
const OTHER: &str = "other";

/// Reflection comes from another descriptor set than ours.
const REFLECTION: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Codes of gRPC, from 0.
const CODES: usize = Code::Unauthenticated as usize + 1;

/// Counts requests when they end.
#[derive(Debug)]
pub struct CallMeter {
    /// By `package.Service/Method`; [`OTHER`] among them.
    rpcs: BTreeMap<String, RpcMeter>,
}

#[derive(Debug)]
struct RpcMeter {
    codes: [AtomicU64; CODES],
    seconds: Histogram,
}

/// What was counted of an RPC.
pub(super) struct RpcReading<'a> {
    pub(super) rpc: &'a str,
    /// Codes that were answered, and how often.
    pub(super) codes: Vec<(Code, u64)>,
    pub(super) seconds: HistogramReading,
}

impl CallMeter {
    /// For the RPCs of a descriptor set, and reflection.
    pub(super) fn new(descriptors: &[u8]) -> Self {
        let known = methods(descriptors).into_iter();
        let rpcs = known.chain([REFLECTION[0], REFLECTION[1], OTHER].map(str::to_owned));
        let meter = |rpc| {
            let codes = [const { AtomicU64::new(0) }; CODES];
            (rpc, RpcMeter { codes, seconds: Histogram::of_seconds(bounds::REQUEST) })
        };
        Self { rpcs: rpcs.map(meter).collect() }
    }

    /// A request of `rpc` ended.
    pub(crate) fn ended(&self, rpc: &str, code: Code, time: Duration) {
        let Some(meter) = self.rpcs.get(rpc).or_else(|| self.rpcs.get(OTHER)) else { return };
        meter.codes[code as usize].fetch_add(1, Ordering::Relaxed);
        meter.seconds.observe(time);
    }

    /// The RPCs that were called.
    pub(super) fn read(&self) -> Vec<RpcReading<'_>> {
        let mut readings = Vec::new();
        for (rpc, meter) in &self.rpcs {
            let counts = meter.codes.iter().map(|count| count.load(Ordering::Relaxed));
            let codes: Vec<_> =
                (0..).map(Code::from_i32).zip(counts).filter(|(_, count)| *count > 0).collect();
            if !codes.is_empty() {
                readings.push(RpcReading { rpc, codes, seconds: meter.seconds.read() });
            }
        }
        readings
    }
}

/// Every method of a descriptor set, as `package.Service/Method`.
fn methods(descriptors: &[u8]) -> Vec<String> {
    let set = FileDescriptorSet::decode(descriptors);
    let set = set.expect("the descriptor set was made by the build and decodes");
    let mut methods = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let service = format!("{}.{}", file.package(), service.name());
                methods.push(format!("{service}/{}", method.name()));
            }
        }
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_invented_is_counted_as_other() {
        let meter = CallMeter::new(sconce_proto::FILE_DESCRIPTOR_SET);
        let before = meter.rpcs.len();
        let second = Duration::from_secs(1);
        meter.ended("sconce.v1.InferenceService/Complete", Code::Ok, second);
        for path in ["", "invented.Service/Method", "sconce.v1.InferenceService/complete"] {
            meter.ended(path, Code::Unimplemented, second);
        }
        let read: Vec<_> = meter
            .read()
            .into_iter()
            .map(|r| (r.rpc.to_owned(), r.codes, r.seconds.count()))
            .collect();
        let complete = "sconce.v1.InferenceService/Complete".to_owned();
        assert_eq!(
            read,
            [
                (OTHER.to_owned(), vec![(Code::Unimplemented, 3)], 3),
                (complete, vec![(Code::Ok, 1)], 1)
            ]
        );
        assert_eq!(meter.rpcs.len(), before);
    }
}
