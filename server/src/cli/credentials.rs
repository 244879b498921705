//! How a server is reached and what is shown to it: TLS, a client certificate, a token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use super::error::CliError;

/// How long a connection may take to come about, its TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a server that shows a token with every request, if one was given.
pub(crate) type Connection = InterceptedService<Channel, Bearer>;

/// What is shown to a server, and what it must show.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct CredentialArgs {
    /// Authorities that the certificate of an https:// server may come from, a PEM file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Certificate to show to an https:// server, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// File with the token to show, alone
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl CredentialArgs {
    /// Refuses all of them where they mean nothing.
    pub(crate) fn refuse(&self, to: &str) -> Result<(), CliError> {
        let given = [&self.tls_ca, &self.tls_cert, &self.tls_key, &self.token_file];
        if given.iter().all(|file| file.is_none()) {
            return Ok(());
        }
        Err(CliError::Usage(format!(
            "--tls-ca, --tls-cert, --tls-key and --token-file are for a server of its own, not for {to}"
        )))
    }

    fn tls(&self) -> Result<ClientTlsConfig, CliError> {
        let Some(authorities) = &self.tls_ca else {
            return Err(CliError::Usage(
                "--tls-ca: expected a file of authorities for an https:// server, found none; that of \
                 this system may be /etc/ssl/certs/ca-certificates.crt"
                    .to_owned(),
            ));
        };
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(authorities)?));
        Ok(match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                tls.identity(Identity::from_pem(read(certificate)?, read(key)?))
            }
            _ => tls,
        })
    }

    fn bearer(&self) -> Result<Bearer, CliError> {
        let Some(path) = &self.token_file else { return Ok(Bearer(None)) };
        let token = read(path)?;
        let wrong = || {
            let expected = "expected a token, alone, of printable ASCII characters";
            CliError::Usage(format!("--token-file {}: {expected}", path.display()))
        };
        let token = std::str::from_utf8(&token).map_err(|_| wrong())?.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong());
        }
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().map_err(|_| wrong())?;
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }
}

/// Adds the token to each request.
#[derive(Debug, Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Connects to `address`.
pub(crate) async fn connect(
    address: &str,
    credentials: &CredentialArgs,
) -> Result<Connection, CliError> {
    let uri = if address.starts_with("unix:") || address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let wrong = |error: tonic::transport::Error| {
        CliError::Usage(format!("server address `{address}`: {}", root_of(&error)))
    };
    let encrypted = uri.starts_with("https://");
    let mut endpoint = Endpoint::from_shared(uri).map_err(wrong)?;
    if encrypted {
        endpoint = endpoint.tls_config(credentials.tls()?).map_err(wrong)?;
    } else if credentials.tls_ca.is_some() || credentials.tls_cert.is_some() {
        let expected = "expected https://HOST:PORT with --tls-ca or --tls-cert";
        return Err(CliError::Usage(format!("server address `{address}`: {expected}")));
    }
    let bearer = credentials.bearer()?;
    let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await.map_err(|error| {
        let cause = root_of(&error);
        CliError::Unavailable(format!("cannot reach a server at {address}: {cause}"))
    })?;
    Ok(InterceptedService::new(channel, bearer))
}

/// What an error comes from at last, which says the most.
fn root_of(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(path).map_err(|error| CliError::Usage(format!("{}: {error}", path.display())))
}
