//! Who may connect, who may ask, and what may be loaded: plain data, as [`plan`](super::plan).

use std::path::PathBuf;

use crate::caller::Role;

/// What guards a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityPlan {
    /// TLS of the TCP addresses; `None` for plain text. Unix sockets are plain.
    pub tls: Option<TlsPlan>,
    /// Who may ask.
    pub auth: AuthPlan,
    /// Whether RPCs that change what the server has are served.
    pub admin_rpcs: bool,
    /// What a request may have loaded: directories, and `sim:` for simulated models. Empty for
    /// anything where nobody but this machine, or somebody with a name, can ask; else nothing.
    pub model_roots: Vec<String>,
    /// Most connections from one address.
    pub connections_per_address_max: usize,
}

impl Default for SecurityPlan {
    /// Plain text, nobody asked who they are: for loopback and Unix sockets.
    fn default() -> Self {
        Self {
            tls: None,
            auth: AuthPlan::default(),
            admin_rpcs: true,
            model_roots: Vec::new(),
            connections_per_address_max: 512,
        }
    }
}

/// TLS, as files in PEM. They are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPlan {
    /// The server's certificate, then those that lead to its authority.
    pub certificate: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// Authorities of clients' certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether clients show certificates.
    pub client_auth: ClientAuth,
}

/// Whether clients show certificates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked for one.
    #[default]
    None,
    /// They may; one that cannot be verified ends the handshake.
    Optional,
    /// They must.
    Required,
}

/// Who may ask. Nobody is asked for a name unless `tokens` or `certificates` is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthPlan {
    /// File of tokens; read again when it changes.
    pub tokens: Option<PathBuf>,
    /// Takes the name in a client's certificate as its identity.
    pub certificates: bool,
    /// Identities with the role [`Role::Admin`]; the others have [`Role::Inference`].
    pub admins: Vec<String>,
    /// What needs no identity.
    pub exempt: Vec<Exempt>,
    /// Whether identities share what is remembered of prompts.
    pub shared_cache: bool,
    /// Most open requests of one identity.
    pub requests_max: usize,
    /// Most requests of one identity that wait for admission.
    pub waiting_max: usize,
}

impl Default for AuthPlan {
    /// Nobody is asked for a name.
    fn default() -> Self {
        Self {
            tokens: None,
            certificates: false,
            admins: Vec::new(),
            exempt: vec![Exempt::Health],
            shared_cache: false,
            requests_max: 256,
            waiting_max: 64,
        }
    }
}

impl AuthPlan {
    /// Whether requests need an identity.
    pub fn is_on(&self) -> bool {
        self.tokens.is_some() || self.certificates
    }

    /// What the identity `name` may do.
    pub fn role_of(&self, name: &str) -> Role {
        let is_admin = self.admins.iter().any(|admin| admin == name);
        if is_admin { Role::Admin } else { Role::Inference }
    }
}

/// What may need no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exempt {
    /// Probes cannot show credentials.
    Health,
    /// Descriptions of the protocol.
    Reflection,
    /// `GET /metrics`.
    Metrics,
}
