//! Certificates made for a test, and connections that show and expect them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use sconce_server::serve::{ListenAddress, ServerHandle};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// An authority of its own.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        let key = KeyPair::generate().expect("makes a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("signs") }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.as_ref().pem()
    }

    /// For a server at 127.0.0.1.
    pub(crate) fn server(&self) -> Pair {
        let address = SanType::IpAddress([127, 0, 0, 1].into());
        self.pair(vec![address], ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// For a client with these names.
    pub(crate) fn client(&self, names: Vec<SanType>) -> Pair {
        self.pair(names, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn pair(&self, names: Vec<SanType>, purpose: ExtendedKeyUsagePurpose) -> Pair {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().expect("makes a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signs");
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A name of a certificate, such as SPIFFE's.
pub(crate) fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().expect("is ASCII"))
}

/// A name of a certificate.
pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("is ASCII"))
}

/// Files of a server.
pub(crate) struct Folder(pub(crate) tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temp dir"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).expect("writes");
        self.path(name)
    }

    /// Writes `tls.crt` and `tls.key`.
    pub(crate) fn keep(&self, pair: &Pair) {
        self.write("tls.crt", &pair.certificate);
        self.write("tls.key", &pair.key);
    }
}

/// The first address of a server.
pub(crate) fn address(handle: &ServerHandle) -> SocketAddr {
    match &handle.local_addrs()[0] {
        ListenAddress::Tcp(address) => *address,
        other => panic!("expected a TCP address first, found {other}"),
    }
}

/// A connection over TLS to a server that `authority` vouches for.
pub(crate) async fn channel(
    handle: &ServerHandle,
    authority: &Authority,
    shown: Option<&Pair>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem()));
    if let Some(pair) = shown {
        tls = tls.identity(Identity::from_pem(&pair.certificate, &pair.key));
    }
    let address = format!("https://{}", address(handle));
    Endpoint::from_shared(address).expect("a valid address").tls_config(tls)?.connect().await
}

/// A bare connection over TLS, for what a gRPC client does not tell.
pub(crate) async fn bare(
    handle: &ServerHandle,
    authority: &Authority,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    let der = CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("is PEM");
    roots.add(der).expect("is an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let mut config = config.expect("are known").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("127.0.0.1").expect("is a name");
    let socket = TcpStream::connect(address(handle)).await?;
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

/// The certificate that a pair has, as a connection tells it.
pub(crate) fn der(pair: &Pair) -> CertificateDer<'static> {
    let _key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("is a key");
    CertificateDer::from_pem_slice(pair.certificate.as_bytes()).expect("is PEM")
}

/// Swaps what the link at `folder/..data` leads to, as Kubernetes does with a mounted secret.
pub(crate) fn swap(folder: &Path, to: &str) {
    std::os::unix::fs::symlink(to, folder.join("..new")).expect("links");
    std::fs::rename(folder.join("..new"), folder.join("..data")).expect("swaps");
}
