//! TLS on the way in: rustls with ring, TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN. Certificates
//! are those of the files as they are now; connections that there are keep theirs.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::listener::Io;
use super::security::{ClientAuth, TlsPlan};
use super::tokens::NAME_BYTES_MAX;
use super::watched::Watched;

/// A handshake must be over by then. A client on the far side of the world needs one second.
pub(super) const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// What is spoken inside, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The setting, in logs and in the status of the server.
const NAME: &str = "server.tls";

/// What ends plain text.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    config: Arc<Watched<ServerConfig>>,
}

impl Tls {
    /// Reads what is planned.
    ///
    /// # Errors
    /// A file that cannot be read, or certificates that do not fit each other.
    pub(super) fn open(plan: &TlsPlan) -> Result<Self, String> {
        let mut files = vec![plan.certificate.clone(), plan.key.clone()];
        files.extend(plan.client_ca.clone());
        let plan = plan.clone();
        let config = Watched::open(NAME, files, move |contents| config(&plan, contents))?;
        Ok(Self { config: Arc::new(config) })
    }

    /// The files behind it.
    pub(super) fn watched(&self) -> Arc<Watched<ServerConfig>> {
        self.config.clone()
    }

    /// Speaks TLS with the other end of `io`; tells the name in its certificate, if it has shown one.
    ///
    /// # Errors
    /// The other end does not speak TLS in time, or shows no certificate that is due.
    pub(super) async fn handshake(
        &self,
        io: Box<dyn Io>,
    ) -> io::Result<(Box<dyn Io>, Option<Arc<str>>)> {
        let acceptor = TlsAcceptor::from(self.config.current());
        let stream = timeout(HANDSHAKE_TIME, acceptor.accept(io)).await??;
        let name = stream.get_ref().1.peer_certificates().and_then(|chain| name_of(chain.first()?));
        Ok((Box::new(stream), name))
    }
}

/// The name of a client: the first URI (as SPIFFE has it), else the first DNS name, among the
/// alternative names of its certificate. The subject's common name is not one (RFC 9525, section 2).
fn name_of(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let name =
        certificate.valid_uri_names().next().or_else(|| certificate.valid_dns_names().next())?;
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic());
    (plain && (1..=NAME_BYTES_MAX).contains(&name.len())).then(|| name.into())
}

/// One implementation of cryptography in the whole program.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// `contents` are those of the certificate, the key and, if planned, the clients' authorities.
fn config(plan: &TlsPlan, contents: &[Vec<u8>]) -> Result<ServerConfig, String> {
    let [certificate, key, authorities @ ..] = contents else {
        return Err("expected a certificate and a key".to_owned());
    };
    let chain = certificates(&plan.certificate, certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| format!("{}: expected a key in PEM: {error}", plan.key.display()))?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| error.to_string())?;
    let builder = match (plan.client_auth, &plan.client_ca, authorities) {
        (ClientAuth::None, ..) => builder.with_no_client_auth(),
        (_, Some(path), [authorities]) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path, authorities)? {
                let added = roots.add(authority);
                added.map_err(|error| format!("{}: {error}", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
            let verifier = match plan.client_auth {
                ClientAuth::Optional => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            let verifier = verifier.build();
            builder.with_client_cert_verifier(
                verifier.map_err(|error| format!("{}: {error}", path.display()))?,
            )
        }
        _ => return Err("expected authorities for the certificates of clients".to_owned()),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        let (certificate, key) = (plan.certificate.display(), plan.key.display());
        format!("{certificate} and {key}: {error}")
    })?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain
        .map_err(|error| format!("{}: expected certificates in PEM: {error}", path.display()))?;
    if chain.is_empty() {
        return Err(format!("{}: expected certificates in PEM, found none", path.display()));
    }
    Ok(chain)
}
