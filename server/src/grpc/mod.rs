//! The gRPC edge: one file per service, [`convert`] between wire and domain, [`status`] for errors.

pub mod convert;
pub mod health;
pub mod inference;
pub mod model;
pub mod notes;
pub mod state;
pub mod status;

use std::time::Instant;

use sconce_proto::FILE_DESCRIPTOR_SET;
use sconce_proto::compat::vllm::grpc::engine::vllm_engine_server::VllmEngineServer;
use sconce_proto::health::health_server::HealthServer;
use sconce_proto::v1::inference_service_server::InferenceServiceServer;
use sconce_proto::v1::model_service_server::ModelServiceServer;
use sconce_proto::v1::state_service_server::StateServiceServer;
use tonic::Request;
use tonic::service::Routes;

use crate::caller::Caller;
use crate::compat::vllm::{self, VllmEngine};
use crate::completion::CallContext;
use crate::error::CallError;
use crate::layer::access_log::RequestFacts;
use crate::layer::deadline::Deadline;
use crate::layer::request_id::RequestId;
use crate::models::Models;
use crate::serve::Secrets;
use health::HealthBoard;
use inference::Inference;
use model::ModelManager;
use state::State;

/// Largest request of the services that take prompts: one of a million tokens has room.
pub const INFERENCE_REQUEST_BYTES_MAX: usize = 32 << 20;

/// Largest request of the other services.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;

/// All services, by path.
pub fn routes(
    models: &Models,
    health: &HealthBoard,
    secrets: &Secrets,
    reflection: bool,
    vllm: Option<vllm::Settings>,
) -> Routes {
    let mut routes = Routes::builder();
    routes
        .add_service(
            InferenceServiceServer::new(Inference::new(models.clone()))
                .max_decoding_message_size(INFERENCE_REQUEST_BYTES_MAX),
        )
        .add_service(
            ModelServiceServer::new(ModelManager::new(models.clone(), secrets.clone()))
                .max_decoding_message_size(REQUEST_BYTES_MAX),
        )
        .add_service(
            StateServiceServer::new(State::new(models.clone()))
                .max_decoding_message_size(INFERENCE_REQUEST_BYTES_MAX),
        )
        .add_service(
            HealthServer::new(health.clone()).max_decoding_message_size(REQUEST_BYTES_MAX),
        );
    if let Some(settings) = vllm {
        routes.add_service(
            VllmEngineServer::new(VllmEngine::new(models.clone(), settings))
                .max_decoding_message_size(INFERENCE_REQUEST_BYTES_MAX),
        );
    }
    if reflection {
        let described = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                // With these a client can show the details of an error.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let why = "the descriptor set was made by the build and decodes";
        routes
            .add_service(described().build_v1().expect(why))
            .add_service(described().build_v1alpha().expect(why));
    }
    routes.routes()
}

/// Whose call it is and how long it may take.
pub(crate) fn call_context<T>(request: &Request<T>) -> Result<CallContext, CallError> {
    let extensions = request.extensions();
    let Some(&Deadline(deadline)) = extensions.get() else {
        return Err(CallError::Internal { problem: "a request without a deadline".into() });
    };
    let request_id = RequestId::of(extensions).as_str().to_owned();
    let (caller, facts) = (Caller::of(extensions), RequestFacts::of(extensions));
    let trace = extensions.get().copied();
    Ok(CallContext { request_id, caller, facts, trace, deadline, arrived: Instant::now() })
}
