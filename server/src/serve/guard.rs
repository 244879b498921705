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

/// Settings that name files, and directories of models.
const TLS: &str = "server.tls";
const TOKENS: &str = "server.auth.tokens";
const MODEL_ROOTS: &str = "server.model_roots";

/// Reads the files and directories of `plan` that decide who comes in and what may be loaded, as a
/// server does when it starts. Those that there are, by their settings; why one cannot be used.
pub fn check_guards(plan: &ServePlan) -> Vec<(&'static str, Result<(), String>)> {
    let security = &plan.security;
    let mut checked = Vec::new();
    if security.tls.is_some() {
        checked.push((TLS, open_tls(security).map(drop)));
    }
    if security.auth.tokens.is_some() {
        checked.push((TOKENS, open_tokens(security).map(drop)));
    }
    if !security.model_roots.is_empty() {
        checked.push((MODEL_ROOTS, model_roots(plan).map(drop)));
    }
    checked
}

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
        let tls = open_tls(security).map_err(wrong(TLS))?;
        let tokens = open_tokens(security).map_err(wrong(TOKENS))?.map(Arc::new);
        let mut secrets: Vec<Arc<dyn Refresh>> = Vec::new();
        secrets.extend(tokens.clone().map(|tokens| tokens as Arc<dyn Refresh>));
        secrets.extend(tls.as_ref().map(|tls| tls.watched() as Arc<dyn Refresh>));
        let roots = model_roots(plan).map_err(wrong(MODEL_ROOTS))?;
        let models = ModelGuard { roots, waiting_per_identity_max: security.auth.waiting_max };
        let door = Door::new(security.connections_per_address_max, tls);
        let gate = Gate::new(security.auth.clone(), tokens, security.admin_rpcs);
        warn_of_strangers(plan);
        Ok((Self { door, gate, models }, Secrets::new(secrets)))
    }
}

fn open_tls(security: &SecurityPlan) -> Result<Option<Tls>, String> {
    security.tls.as_ref().map(Tls::open).transpose()
}

fn open_tokens(security: &SecurityPlan) -> Result<Option<Watched<Tokens>>, String> {
    let open =
        |file| Watched::open(TOKENS, vec![file], |read: &[Vec<u8>]| Tokens::parse(&read.concat()));
    security.auth.tokens.clone().map(open).transpose()
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
