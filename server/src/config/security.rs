//! `[server.tls]`, `[server.auth]` and the rules between them: who may connect, who may ask, what may
//! be loaded.

use std::path::{Path, PathBuf};

use crate::serve::{AuthPlan, ClientAuth, Exempt, SecurityPlan, TlsPlan};
use serde::{Deserialize, Serialize};

use super::plan::Checker;
use super::{ConfigError, ServerConfig};

/// Most requests of one identity, open or waiting.
const REQUESTS_MAX: usize = 1 << 20;

/// `[server.tls]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The server's certificate and those above it, in PEM; empty for plain text.
    pub certificate: PathBuf,
    /// The certificate's key, in PEM.
    pub key: PathBuf,
    /// Authorities of clients' certificates, in PEM; empty for none.
    pub client_ca: PathBuf,
    /// Whether clients show certificates.
    pub client_auth: ClientAuthChoice,
}

/// Whether clients show certificates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuthChoice {
    /// They must where there are authorities for them.
    #[default]
    Auto,
    /// They are not asked for one.
    None,
    /// They may.
    Optional,
    /// They must.
    Required,
}

/// `[server.auth]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// File of bearer tokens; empty for none.
    pub tokens: PathBuf,
    /// Takes the name in a client's certificate as its identity.
    pub certificates: bool,
    /// Identities that may change the server.
    pub admins: Vec<String>,
    /// What needs no identity.
    pub exempt: Vec<ExemptChoice>,
    /// Whether identities share what is remembered of prompts.
    pub shared_cache: bool,
    /// Most open requests of one identity.
    pub requests_max: usize,
    /// Most requests of one identity that wait for admission.
    pub waiting_max: usize,
}

/// What may need no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExemptChoice {
    /// Probes.
    Health,
    /// Descriptions of the protocol.
    Reflection,
    /// `GET /metrics`.
    Metrics,
}

impl From<Exempt> for ExemptChoice {
    fn from(exempt: Exempt) -> Self {
        match exempt {
            Exempt::Health => Self::Health,
            Exempt::Reflection => Self::Reflection,
            Exempt::Metrics => Self::Metrics,
        }
    }
}

impl From<ExemptChoice> for Exempt {
    fn from(choice: ExemptChoice) -> Self {
        match choice {
            ExemptChoice::Health => Self::Health,
            ExemptChoice::Reflection => Self::Reflection,
            ExemptChoice::Metrics => Self::Metrics,
        }
    }
}

impl Default for AuthConfig {
    /// Nobody is asked for a name.
    fn default() -> Self {
        let plan = AuthPlan::default();
        Self {
            tokens: PathBuf::new(),
            certificates: plan.certificates,
            admins: plan.admins,
            exempt: plan.exempt.into_iter().map(ExemptChoice::from).collect(),
            shared_cache: plan.shared_cache,
            requests_max: plan.requests_max,
            waiting_max: plan.waiting_max,
        }
    }
}

impl ServerConfig {
    /// What guards the server.
    ///
    /// # Errors
    /// The first setting that breaks a rule.
    pub(super) fn security(&self, check: &Checker<'_>) -> Result<SecurityPlan, ConfigError> {
        if let Some(root) = self.model_roots.iter().find(|root| root.is_empty()) {
            let expected = "directories by their whole path, or `sim:`";
            return Err(check.refuse(&["server", "model_roots"], expected, format!("{root:?}")));
        }
        let tls = self.tls.plan(check)?;
        Ok(SecurityPlan {
            auth: self.auth.plan(tls.as_ref(), check)?,
            tls,
            admin_rpcs: self.admin_rpcs,
            model_roots: self.model_roots.clone(),
            connections_per_address_max: self.connections_per_address_max,
        })
    }

    /// Drops what guards a server from others, for one that nobody else can reach.
    pub fn unguard(&mut self) {
        self.tls = TlsConfig::default();
        self.auth = AuthConfig::default();
        self.model_roots.clear();
        self.admin_rpcs = true;
    }
}

impl TlsConfig {
    fn plan(&self, check: &Checker<'_>) -> Result<Option<TlsPlan>, ConfigError> {
        let refuse = |key: &str, expected: &str, found: &str| {
            Err(check.refuse(&["server", "tls", key], expected, found))
        };
        let client_ca = given(&self.client_ca);
        let client_auth = match (self.client_auth, client_ca) {
            (ClientAuthChoice::None, Some(_)) => {
                return refuse("client_auth", "`optional` or `required` with `client_ca`", "none");
            }
            (ClientAuthChoice::Optional | ClientAuthChoice::Required, None) => {
                return refuse("client_ca", "a file of authorities with `client_auth`", "none");
            }
            (ClientAuthChoice::Auto | ClientAuthChoice::None, None) => ClientAuth::None,
            (ClientAuthChoice::Optional, Some(_)) => ClientAuth::Optional,
            (ClientAuthChoice::Auto | ClientAuthChoice::Required, Some(_)) => ClientAuth::Required,
        };
        match (given(&self.certificate), given(&self.key)) {
            (Some(certificate), Some(key)) => Ok(Some(TlsPlan {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
                client_ca: client_ca.map(Path::to_owned),
                client_auth,
            })),
            (Some(_), None) => refuse("key", "the key of `certificate`", "none"),
            (None, Some(_)) => refuse("certificate", "the certificate of `key`", "none"),
            (None, None) if client_ca.is_some() => {
                refuse("certificate", "a certificate of the server with `client_ca`", "none")
            }
            (None, None) => Ok(None),
        }
    }
}

impl AuthConfig {
    fn plan(&self, tls: Option<&TlsPlan>, check: &Checker<'_>) -> Result<AuthPlan, ConfigError> {
        for (key, found) in [("requests_max", self.requests_max), ("waiting_max", self.waiting_max)]
        {
            check.range_at(&["server", "auth", key], found, REQUESTS_MAX)?;
        }
        let plan = AuthPlan {
            tokens: given(&self.tokens).map(Path::to_owned),
            certificates: self.certificates,
            admins: self.admins.clone(),
            exempt: self.exempt.iter().copied().map(Exempt::from).collect(),
            shared_cache: self.shared_cache,
            requests_max: self.requests_max,
            waiting_max: self.waiting_max,
        };
        let shown = tls.is_some_and(|tls| tls.client_auth != ClientAuth::None);
        if plan.certificates && !shown {
            let expected = "false without `server.tls.client_ca`";
            return Err(check.refuse(&["server", "auth", "certificates"], expected, true));
        }
        if !plan.admins.is_empty() && !plan.is_on() {
            let expected = "none without `server.auth.tokens` or `server.auth.certificates`";
            let found = plan.admins.join(", ");
            return Err(check.refuse(&["server", "auth", "admins"], expected, found));
        }
        Ok(plan)
    }
}

fn given(path: &Path) -> Option<&Path> {
    (!path.as_os_str().is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::super::machine::Machine;
    use super::super::tests::load_on;
    use super::*;

    const UNKNOWN: Machine = Machine {
        memory: None,
        device_memory: |_| None,
        disk: |_| Err(std::io::ErrorKind::Unsupported.into()),
    };

    fn security(text: &str) -> Result<SecurityPlan, ConfigError> {
        load_on(&UNKNOWN, text, Vec::new()).map(|(_, plan)| plan.security)
    }

    const PAIR: &str = "[server.tls]\ncertificate = \"/c\"\nkey = \"/k\"\n";

    #[test]
    fn authorities_make_clients_show_certificates_unless_told_otherwise() {
        let client_auth = |text: &str| {
            let plan = security(&format!("{PAIR}{text}")).expect(text);
            plan.tls.expect("is planned").client_auth
        };
        assert_eq!(client_auth(""), ClientAuth::None);
        assert_eq!(client_auth("client_ca = \"/a\""), ClientAuth::Required);
        let optional = "client_ca = \"/a\"\nclient_auth = \"optional\"";
        assert_eq!(client_auth(optional), ClientAuth::Optional);
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_by_name() {
        for (text, parts) in [
            ("[server.tls]\nkey = \"/k\"", &["`server.tls.certificate`", "found none"][..]),
            ("[server.tls]\ncertificate = \"/c\"", &["`server.tls.key`", "found none"]),
            ("[server.tls]\nclient_ca = \"/a\"", &["`server.tls.certificate`", "client_ca"]),
            (&format!("{PAIR}client_auth = \"required\""), &["`server.tls.client_ca`"]),
            (
                &format!("{PAIR}client_ca = \"/a\"\nclient_auth = \"none\""),
                &["`server.tls.client_auth`", "file"],
            ),
            ("[server.auth]\ncertificates = true", &["`server.auth.certificates`", "client_ca"]),
            ("[server.auth]\nadmins = [\"a\"]", &["`server.auth.admins`", "found a"]),
            ("[server.auth]\nrequests_max = 0", &["`server.auth.requests_max`", "found 0"]),
            ("[server.auth]\nexempt = [\"all\"]", &["server.auth.exempt", "`health`", "all"]),
            ("[server]\nmodel_roots = [\"\"]", &["`server.model_roots`", "sim:"]),
            ("[server]\nconnections_per_address_max = 0", &["connections_per_address_max"]),
        ] {
            let message = security(text).expect_err(text).to_string();
            for part in parts {
                assert!(message.contains(part), "{text:?}: `{part}` not in: {message}");
            }
        }
    }

    #[test]
    fn what_is_set_is_planned() {
        let text = "[server]\nadmin_rpcs = false\nmodel_roots = [\"/m\", \"sim:\"]\n\
                    [server.auth]\ntokens = \"/t\"\nadmins = [\"ops\"]\nexempt = [\"metrics\"]\n\
                    shared_cache = true\nrequests_max = 7\nwaiting_max = 3";
        let plan = security(text).expect("is right");
        assert_eq!((plan.admin_rpcs, plan.model_roots.len()), (false, 2));
        assert_eq!(plan.auth.tokens.as_deref(), Some(Path::new("/t")));
        assert_eq!(plan.auth.exempt, [Exempt::Metrics]);
        assert_eq!((plan.auth.requests_max, plan.auth.waiting_max), (7, 3));
        assert!(plan.auth.shared_cache && plan.auth.is_on());
    }
}
