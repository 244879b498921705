//! Lets requests in: who asks, by a bearer token or by the certificate of the connection, and whether
//! they may. Whoever is let in is in the request's extensions as a [`Caller`].

use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::Either;
use http::{HeaderMap, StatusCode, header};
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::access_log::RequestFacts;
use super::{HttpRequest, HttpResponse};
use crate::caller::{Caller, Role};
use crate::error::CallError;
use crate::serve::{AuthPlan, Exempt, Tokens, Watched};

/// RPCs that change what the server has for all, or what leaves it. Of a snapshot whoever took it
/// disposes: another's is as if it were not there.
const ADMIN_RPCS: &[&str] = &[
    "/sconce.v1.ModelService/Load",
    "/sconce.v1.ModelService/Unload",
    "/sconce.v1.ModelService/EstimateLoad",
    "/sconce.v1.StateService/ExportSnapshot",
    "/sconce.v1.StateService/ImportSnapshot",
    "/vllm.grpc.engine.VllmEngine/FlushCache",
];

/// What a connection tells of the other end; in the extensions of its requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its address; none of a Unix socket.
    pub address: Option<SocketAddr>,
    /// Name in the client's certificate, if it showed one that was verified.
    pub certificate: Option<Arc<str>>,
}

/// Decides who is let in.
#[derive(Debug, Clone)]
pub struct Gate {
    tokens: Option<Arc<Watched<Tokens>>>,
    plan: Arc<AuthPlan>,
    admin_rpcs: bool,
}

impl Gate {
    /// A gate as planned; `tokens` are those of `plan.tokens`.
    pub fn new(plan: AuthPlan, tokens: Option<Arc<Watched<Tokens>>>, admin_rpcs: bool) -> Self {
        Self { tokens, plan: Arc::new(plan), admin_rpcs }
    }

    /// Most open requests of one identity.
    pub fn requests_max(&self) -> usize {
        self.plan.requests_max
    }

    /// Who asks for `path`.
    ///
    /// # Errors
    /// No credentials or wrong ones where some are due, an identity without the role, an RPC that is
    /// turned off.
    pub fn admit(
        &self,
        path: &str,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<Caller, CallError> {
        let admin = ADMIN_RPCS.contains(&path);
        if admin && !self.admin_rpcs {
            return Err(CallError::not_offered(path.trim_start_matches('/')));
        }
        if !self.plan.is_on() {
            return Ok(Caller::anonymous());
        }
        let name = match self.identify(headers, peer) {
            Ok(name) => name,
            Err(_) if self.is_exempt(path) => return Ok(Caller::anonymous()),
            Err(error) => return Err(error),
        };
        let is_admin = self.plan.role_of(&name) == Role::Admin;
        if admin && !is_admin {
            return Err(CallError::RoleRequired {
                role: "admin",
                rpc: path.trim_start_matches('/').to_owned(),
            });
        }
        Ok(Caller::known(name, self.plan.shared_cache))
    }

    fn is_exempt(&self, path: &str) -> bool {
        let kind = if path.starts_with("/grpc.health.") {
            Exempt::Health
        } else if path.starts_with("/grpc.reflection.") {
            Exempt::Reflection
        } else if path == "/metrics" {
            Exempt::Metrics
        } else {
            return false;
        };
        self.plan.exempt.contains(&kind)
    }

    /// A token, if one is given, is what counts, and has to be right.
    fn identify(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Arc<str>, CallError> {
        let unauthenticated = |problem| Err(CallError::Unauthenticated { problem });
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        if let Some(tokens) = &self.tokens
            && let Some(value) = given.next()
        {
            if given.next().is_some() {
                return unauthenticated("expected one `authorization`, found several");
            }
            let Some(token) = bearer(value.as_bytes()) else {
                return unauthenticated(
                    "expected `authorization: Bearer TOKEN`, found another form",
                );
            };
            return match tokens.current().identity(token) {
                Some(name) => Ok(name),
                None => unauthenticated("expected a token that this server knows, found another"),
            };
        }
        let certificate = peer.and_then(|peer| peer.certificate.clone());
        match certificate.filter(|_| self.plan.certificates) {
            Some(name) => Ok(name),
            None if self.tokens.is_some() => {
                unauthenticated("expected `authorization: Bearer TOKEN`, found none")
            }
            None => unauthenticated("expected a client certificate with a name, found none"),
        }
    }
}

/// The token of an `authorization` header (RFC 6750, section 2.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// See the module.
#[derive(Debug, Clone)]
pub struct AuthLayer {
    gate: Gate,
}

impl AuthLayer {
    /// Lets in whom `gate` lets in.
    pub fn new(gate: Gate) -> Self {
        Self { gate }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = AuthService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AuthService { inner, gate: self.gate.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct AuthService<S> {
    inner: S,
    gate: Gate,
}

impl<S> Service<HttpRequest> for AuthService<S>
where
    S: Service<HttpRequest, Response = HttpResponse>,
{
    type Response = HttpResponse;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<HttpResponse, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: HttpRequest) -> Self::Future {
        let peer = request.extensions().get::<Peer>();
        match self.gate.admit(request.uri().path(), request.headers(), peer) {
            Ok(caller) => {
                if let Some(name) = caller.name() {
                    let told = RequestFacts::of(request.extensions());
                    told.tell(|facts| facts.identity = Some(name.clone()));
                }
                request.extensions_mut().insert(caller);
                // Nobody behind this needs it, and what is not there cannot be logged.
                request.headers_mut().remove(header::AUTHORIZATION);
                Either::Left(self.inner.call(request))
            }
            Err(error) => Either::Right(ready(Ok(refusal(&request, error)))),
        }
    }
}

/// A refusal as the caller's protocol has it: a status of gRPC, or one of HTTP.
pub(super) fn refusal(request: &HttpRequest, error: CallError) -> HttpResponse {
    let content = request.headers().get(header::CONTENT_TYPE);
    let is_grpc = content.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if is_grpc || request.method() == http::Method::POST {
        return Status::from(error).into_http();
    }
    let code = match error {
        CallError::Unauthenticated { .. } => StatusCode::UNAUTHORIZED,
        _ => StatusCode::FORBIDDEN,
    };
    let mut response = HttpResponse::new(Body::empty());
    *response.status_mut() = code;
    if code == StatusCode::UNAUTHORIZED {
        let scheme = http::HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: &str = "/sconce.v1.ModelService/Load";
    const COMPLETE: &str = "/sconce.v1.InferenceService/Complete";
    const CHECK: &str = "/grpc.health.v1.Health/Check";
    const TOKEN: &str = "0123456789abcdef";

    fn gate(plan: AuthPlan) -> Gate {
        let tokens = Tokens::parse(format!("alice:{TOKEN}\nops:fedcba9876543210\n").as_bytes());
        let tokens = Watched::fixed("tokens", tokens.expect("is right"));
        let plan = AuthPlan { tokens: Some("tokens".into()), admins: vec!["ops".into()], ..plan };
        Gate::new(plan, Some(Arc::new(tokens)), true)
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, value.parse().expect("a header value"));
        }
        headers
    }

    fn refused(gate: &Gate, path: &str, values: &[&str]) -> CallError {
        gate.admit(path, &headers(values), None).expect_err("is refused")
    }

    #[test]
    fn a_right_token_names_its_identity_and_a_wrong_one_is_refused() {
        let gate = gate(AuthPlan::default());
        for scheme in ["Bearer", "bearer", "BEARER "] {
            let value = format!("{scheme} {TOKEN}");
            let caller = gate.admit(COMPLETE, &headers(&[&value]), None).expect("is let in");
            assert_eq!(caller, Caller::known("alice".into(), false), "{scheme}");
        }
        let right = format!("Bearer {TOKEN}");
        let longer = format!("Bearer {TOKEN}0");
        for values in [
            &[][..],
            &["Bearer 0123456789abcdeX"],
            &[&longer],
            &["Bearer "],
            &["Bearer"],
            &["Basic 0123456789abcdef"],
            &[&right, &right],
        ] {
            let error = refused(&gate, COMPLETE, values);
            assert!(matches!(error, CallError::Unauthenticated { .. }), "{values:?}: {error:?}");
        }
    }

    #[test]
    fn only_admins_change_the_server() {
        let gate = gate(AuthPlan::default());
        let alice = format!("Bearer {TOKEN}");
        for path in ADMIN_RPCS {
            let error = refused(&gate, path, &[&alice]);
            assert!(matches!(error, CallError::RoleRequired { role: "admin", .. }), "{error:?}");
            let ops = headers(&["Bearer fedcba9876543210"]);
            assert!(gate.admit(path, &ops, None).is_ok(), "{path}");
        }
    }

    #[test]
    fn every_admin_rpc_is_one_of_the_protocol() {
        for path in ADMIN_RPCS {
            let (service, method) = path[1..].split_once('/').expect("a path of an RPC");
            let name = |text: &str| {
                sconce_proto::FILE_DESCRIPTOR_SET.windows(text.len()).any(|w| w == text.as_bytes())
            };
            let service = service.rsplit('.').next().expect("has a name");
            assert!(name(service) && name(method), "{path}");
        }
    }

    #[test]
    fn what_is_exempt_is_open_and_nothing_else() {
        let closed = gate(AuthPlan { exempt: Vec::new(), ..AuthPlan::default() });
        refused(&closed, CHECK, &[]);
        let open = gate(AuthPlan::default());
        for values in [&[][..], &["Bearer wrong"]] {
            let caller = open.admit(CHECK, &headers(values), None).expect("is open");
            assert_eq!(caller, Caller::anonymous());
        }
        refused(&open, "/metrics", &[]);
        refused(&open, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &[]);
        let exempt = vec![Exempt::Health, Exempt::Reflection, Exempt::Metrics];
        let all = AuthPlan { exempt, ..AuthPlan::default() };
        assert!(gate(all.clone()).admit("/metrics", &HeaderMap::new(), None).is_ok());
        refused(&gate(all), COMPLETE, &[]);
    }

    #[test]
    fn a_certificate_names_its_identity_where_that_is_asked_for() {
        let peer = Peer { address: None, certificate: Some("spiffe://x/gateway".into()) };
        let none = HeaderMap::new();
        gate(AuthPlan::default())
            .admit(COMPLETE, &none, Some(&peer))
            .expect_err("is not asked for");
        let asked = gate(AuthPlan { certificates: true, ..AuthPlan::default() });
        let caller = asked.admit(COMPLETE, &none, Some(&peer)).expect("is let in");
        assert_eq!(caller.name().map(|name| &**name), Some("spiffe://x/gateway"));
        // A token that is given counts, even beside a certificate.
        let wrong = headers(&["Bearer 0123456789abcdeX"]);
        asked.admit(COMPLETE, &wrong, Some(&peer)).expect_err("is wrong");
        let token = headers(&[&format!("Bearer {TOKEN}")]);
        let caller = asked.admit(COMPLETE, &token, Some(&peer)).expect("is let in");
        assert_eq!(caller.name().map(|name| &**name), Some("alice"));
        asked.admit(COMPLETE, &none, Some(&Peer::default())).expect_err("showed none");
    }

    #[test]
    fn what_is_turned_off_is_not_offered_to_anybody() {
        let gate = Gate::new(AuthPlan::default(), None, false);
        let error = refused(&gate, LOAD, &[]);
        let expected = CallError::not_offered("sconce.v1.ModelService/Load");
        assert_eq!(error, expected);
        assert_eq!(gate.admit(COMPLETE, &HeaderMap::new(), None), Ok(Caller::anonymous()));
    }

    #[test]
    fn a_refusal_speaks_the_callers_protocol() {
        let mut request = HttpRequest::new(Body::empty());
        let error = || CallError::Unauthenticated { problem: "x" };
        let response = refusal(&request, error());
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
        *request.method_mut() = http::Method::POST;
        let response = refusal(&request, error());
        assert_eq!(response.headers()["grpc-status"], "16");
    }
}
