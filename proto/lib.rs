//! Wire types of the protocols sconce speaks, made from `proto/` by the root build script.
//!
//! Types, names and the descriptor set only; what they mean is in `docs/PROTOCOL.md`, what is done
//! with them in `server/src/grpc`.
#![forbid(unsafe_code)]

/// `sconce.v1`: models, inference, state.
#[expect(clippy::large_enum_variant, reason = "generated; messages are not kept in numbers")]
pub mod v1 {
    tonic::include_proto!("sconce.v1");
}

/// `grpc.health.v1`: the health checking protocol.
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// Protocols of others that sconce speaks beside its own.
#[expect(missing_docs, reason = "generated; what sconce does not use is not described")]
pub mod compat {
    /// `vllm.grpc.engine`: what gateways speak to a worker.
    pub mod vllm {
        /// Its engine service.
        pub mod grpc {
            /// Messages and service.
            #[expect(
                clippy::large_enum_variant,
                reason = "generated; messages are not kept in numbers"
            )]
            pub mod engine {
                tonic::include_proto!("vllm.grpc.engine");
            }
        }
    }
    /// `smg.grpc.common`: messages that gateway protocols share.
    pub mod smg {
        /// As the package is called.
        pub mod grpc {
            /// Messages.
            pub mod common {
                tonic::include_proto!("smg.grpc.common");
            }
        }
    }
}

/// All files above and what they import, as a serialized `FileDescriptorSet` with comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Full names of the services, as health checks and reflection use them.
pub mod names {
    /// Completion and tokenization.
    pub const INFERENCE_SERVICE: &str = "sconce.v1.InferenceService";
    /// Loading and describing models.
    pub const MODEL_SERVICE: &str = "sconce.v1.ModelService";
    /// Snapshots and the cache.
    pub const STATE_SERVICE: &str = "sconce.v1.StateService";
    /// The engine protocol of vLLM, for gateways.
    pub const VLLM_ENGINE: &str = "vllm.grpc.engine.VllmEngine";
    /// Health checks.
    pub const HEALTH_SERVICE: &str = "grpc.health.v1.Health";
}
