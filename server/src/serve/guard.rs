//! What decides who comes in and what they may ask, from the plan and the files that it names.

use std::sync::Arc;

use super::door::Door;
use super::security::ClientAuth;
use super::tls::Tls;
use super::tokens::Tokens;
use super::watched::{Refresh, Secrets, Watched};
use super::{ListenAddress, SecurityPlan, ServeError, ServePlan};
use crate::layer::auth::Gate;
use crate::models::{ModelGuard, ModelRoots};

/// Decides at every stage of a request's way in.
#[derive(Debug)]
pub(super) struct Guard {
    /// Who may connect.
    pub(super) door: Door,
    /// Who may ask.
    pub(super) gate: Gate,
    /// What they may ask of models.
    pub(super) models: ModelGuard,
}

impl Guard {
    /// Reads the files that `plan` names, and says what they could not guard.
    ///
    /// # Errors
    /// A file, or a root of models, that cannot be used.
    pub(super) fn new(plan: &ServePlan) -> Result<(Self, Secrets), ServeError> {
        let security = &plan.security;
        let wrong = |setting| move |problem| ServeError::Setting { setting, problem };
        let tls = security.tls.as_ref().map(Tls::open).transpose();
        let tls = tls.map_err(wrong("server.tls"))?;
        let tokens = security.auth.tokens.clone().map(|file| {
            Watched::open("server.auth.tokens", vec![file], |read| Tokens::parse(&read.concat()))
        });
        let tokens = tokens.transpose().map_err(wrong("server.auth.tokens"))?.map(Arc::new);
        let mut secrets: Vec<Arc<dyn Refresh>> = Vec::new();
        secrets.extend(tokens.clone().map(|tokens| tokens as Arc<dyn Refresh>));
        secrets.extend(tls.as_ref().map(|tls| tls.watched() as Arc<dyn Refresh>));
        let roots = model_roots(plan).map_err(wrong("server.model_roots"))?;
        let models = ModelGuard { roots, waiting_per_identity_max: security.auth.waiting_max };
        let door = Door::new(security.connections_per_address_max, tls);
        let gate = Gate::new(security.auth.clone(), tokens, security.admin_rpcs);
        warn_of_strangers(plan);
        Ok((Self { door, gate, models }, Secrets::new(secrets)))
    }
}

/// Says what others on the network could do or hear. A mesh or a firewall may see to it that they do
/// not, so that it is no error.
fn warn_of_strangers(plan: &ServePlan) {
    let SecurityPlan { auth, tls, .. } = &plan.security;
    let shown = tls.as_ref().is_some_and(|tls| tls.client_auth == ClientAuth::Required);
    for address in plan.listen.iter().filter(|address| !address.is_local()) {
        if !auth.is_on() && !shown {
            tracing::warn!(%address, "whoever can connect may ask: there is no server.auth");
        } else if tls.is_none() {
            tracing::warn!(%address, "tokens and prompts go in plain text: there is no server.tls");
        }
    }
}

/// Without roots, whoever can log in to this machine, or has a name and the role for it, may load what
/// the server can read. Strangers on a network may load nothing.
fn model_roots(plan: &ServePlan) -> Result<ModelRoots, String> {
    let SecurityPlan { auth, model_roots, .. } = &plan.security;
    if !model_roots.is_empty() {
        return ModelRoots::within(model_roots);
    }
    let known = auth.is_on() || plan.listen.iter().all(ListenAddress::is_local);
    Ok(if known { ModelRoots::anything() } else { ModelRoots::nothing() })
}
