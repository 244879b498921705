//! What the admin port answers, by path. A page is a line of [`ROUTES`].

use std::fmt::Write as _;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use sconce_proto::health::health_check_response::ServingStatus;
use tonic::body::Body;

use super::{Admin, page};
use crate::grpc::health::{LIVENESS, READINESS};
use crate::layer::HttpResponse;

/// A page: where it is, and what answers. GET and HEAD alone come this far; an answer that goes on
/// is a body that streams, and ends when [`Admin::closing`] is cancelled.
pub(super) struct Route {
    path: &'static str,
    answer: fn(&Admin, &Parts) -> HttpResponse,
}

/// Every page.
pub(super) const ROUTES: &[Route] = &[
    Route { path: "/", answer: |_, _| page::answer() },
    Route { path: "/status.json", answer: |admin, _| admin.dashboard.status() },
    Route { path: "/events", answer: |admin, _| admin.dashboard.events(&admin.closing) },
    Route { path: "/cache.json", answer: |admin, head| admin.dashboard.cache(head) },
    Route { path: "/livez", answer: |admin, _| health(admin, LIVENESS) },
    Route { path: "/readyz", answer: |admin, _| health(admin, READINESS) },
    Route { path: "/healthz", answer: |admin, _| all_health(admin) },
    Route { path: "/metrics", answer: |admin, _| admin.metrics.page() },
];

/// The answer to a request.
pub(super) fn answer(admin: &Admin, head: &Parts) -> HttpResponse {
    let Some(route) = ROUTES.iter().find(|route| route.path == head.uri.path()) else {
        let paths: Vec<&str> = ROUTES.iter().map(|route| route.path).collect();
        let text = format!("expected one of {}\n", paths.join(", "));
        return plain(StatusCode::NOT_FOUND, text);
    };
    if head.method != Method::GET && head.method != Method::HEAD {
        let text = format!("expected GET, found {}\n", head.method);
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, text);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    (route.answer)(admin, head)
}

/// A text that is not to be kept, since it is of now.
pub(super) fn plain(status: StatusCode, text: String) -> HttpResponse {
    let mut response = HttpResponse::new(Body::new(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// 200 if the health service `name` serves, 503 if not.
fn health(admin: &Admin, name: &str) -> HttpResponse {
    let serves = admin.health.get(name) == Some(ServingStatus::Serving);
    let (code, word) = verdict(serves);
    plain(code, format!("{word}\n"))
}

/// Every health service with its state, as gRPC's `List` has them; the code is that of `/readyz`.
fn all_health(admin: &Admin) -> HttpResponse {
    let mut text = String::new();
    for (name, status) in admin.health.all() {
        let name = if name.is_empty() { "(server)" } else { name };
        let (_, word) = verdict(status == ServingStatus::Serving);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name} {word}");
    }
    let ready = admin.health.get(READINESS) == Some(ServingStatus::Serving);
    plain(verdict(ready).0, text)
}

fn verdict(serves: bool) -> (StatusCode, &'static str) {
    if serves {
        (StatusCode::OK, "serving")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not serving")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::admin::Dashboard;
    use crate::grpc::health::{HealthBoard, Vitals};
    use crate::layer::recent::RecentRequests;
    use crate::metrics::Metrics;
    use crate::models::Models;
    use crate::serve::{Secrets, ServePlan};

    /// What a server without models answers from.
    pub(in crate::admin) fn admin() -> Admin {
        let plan = ServePlan::default();
        let models = Models::start(&plan.engine, &plan.cache, plan.precision).expect("starts");
        let health = HealthBoard::new();
        let dashboard = Dashboard::new(models.clone(), RecentRequests::default());
        let metrics = Metrics::new(models, health.clone(), Secrets::default(), plan.engine.device);
        Admin { health, metrics, dashboard, closing: CancellationToken::new() }
    }

    fn ask(admin: &Admin, method: Method, path: &str) -> HttpResponse {
        let request = http::Request::builder().method(method).uri(path).body(()).expect("is one");
        answer(admin, &request.into_parts().0)
    }

    #[tokio::test]
    async fn readiness_follows_the_health_board_and_life_goes_on() {
        let admin = admin();
        let codes = |admin: &Admin| {
            ["/livez", "/readyz", "/healthz"]
                .map(|path| ask(admin, Method::GET, path).status().as_u16())
        };
        assert_eq!(codes(&admin), [200, 503, 503]);
        admin.health.set(Vitals { alive: true, ready: true, draining: false });
        assert_eq!(codes(&admin), [200, 200, 200]);
        admin.health.set(Vitals { alive: true, ready: true, draining: true });
        assert_eq!(codes(&admin), [200, 503, 503]);
    }

    #[tokio::test]
    async fn what_is_not_there_or_not_read_is_refused() {
        let admin = admin();
        for path in ["/index.html", "/health", "/livez/", "/metrics/x", "//metrics"] {
            assert_eq!(ask(&admin, Method::GET, path).status(), StatusCode::NOT_FOUND, "{path}");
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let response = ask(&admin, method, "/metrics");
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(response.headers()[ALLOW], "GET, HEAD");
        }
        assert_eq!(ask(&admin, Method::HEAD, "/livez").status(), StatusCode::OK);
    }
}
