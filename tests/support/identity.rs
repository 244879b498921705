//! Clients with names: a file of tokens for the server, and a token with each request.

use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_proto::v1::model_service_client::ModelServiceClient;
use sconce_proto::v1::state_service_client::StateServiceClient;
use sconce_server::serve::{AuthPlan, SecurityPlan, ServePlan, ServerHandle};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::tls::Folder;

/// The tokens of [`guarded`], by name.
pub(crate) const TOKENS: &str = "alice:token-of-alice-0001\nbob:token-of-bob-00000001\n\
                                 ops:token-of-ops-00000001\n";

/// `plan` for those alone who have a token of the file `tokens` in `folder`; `ops` is an admin.
pub(crate) fn guarded(plan: ServePlan, folder: &Folder) -> ServePlan {
    let tokens = Some(folder.write("tokens", TOKENS));
    let auth = AuthPlan { tokens, admins: vec!["ops".to_owned()], ..AuthPlan::default() };
    ServePlan { security: SecurityPlan { auth, ..SecurityPlan::default() }, ..plan }
}

/// Adds a header to each request.
#[derive(Clone)]
pub(crate) struct Header(Option<MetadataValue<Ascii>>);

impl Interceptor for Header {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

pub(crate) type Named = InterceptedService<Channel, Header>;

/// Somebody who asks.
#[derive(Clone)]
pub(crate) struct Client(Named);

impl Client {
    /// On a connection of its own, with the token that [`TOKENS`] has for `name`.
    pub(crate) async fn named(handle: &ServerHandle, name: &str) -> Self {
        let lines = TOKENS.lines().filter_map(|line| line.split_once(':'));
        let (_, token) = lines.clone().find(|(known, _)| *known == name).expect("has a token");
        Self::with(handle, Some(&format!("Bearer {token}"))).await
    }

    /// On a connection of its own, with this `authorization`.
    pub(crate) async fn with(handle: &ServerHandle, value: Option<&str>) -> Self {
        Self::on(super::connect(handle).await, value)
    }

    /// On this connection, with this `authorization`.
    pub(crate) fn on(channel: Channel, value: Option<&str>) -> Self {
        let header = Header(value.map(|value| value.parse().expect("is ASCII")));
        Self(InterceptedService::new(channel, header))
    }

    pub(crate) fn channel(&self) -> Named {
        self.0.clone()
    }

    pub(crate) fn inference(&self) -> InferenceServiceClient<Named> {
        InferenceServiceClient::new(self.channel())
    }

    pub(crate) fn models(&self) -> ModelServiceClient<Named> {
        ModelServiceClient::new(self.channel())
    }

    pub(crate) fn state(&self) -> StateServiceClient<Named> {
        StateServiceClient::new(self.channel())
    }
}
