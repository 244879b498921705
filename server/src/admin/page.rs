//! The page itself: one document with its style and its script in it, and a policy that lets it run
//! these two and nothing else, ask this server and nobody else.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use sha2::{Digest as _, Sha256};
use tonic::body::Body;

use crate::layer::HttpResponse;

const PAGE: &str = include_str!("page.html");

/// What the browser may do with the page; style and script are named by their hashes.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |name: &str| STANDARD.encode(Sha256::digest(inner(name).as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("style"),
        hash("script")
    );
    HeaderValue::from_str(&policy).expect("hashes are written in letters, digits and signs")
});

/// What is between the tags of the page's only element of that name.
fn inner(name: &str) -> &'static str {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let inner = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
    inner.expect("the page has a style and a script").0
}

/// `GET /`.
pub(super) fn answer() -> HttpResponse {
    let mut response = HttpResponse::new(Body::new(PAGE.to_owned()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for foreign in ["src=", "@import", "url(", "<link rel=\"stylesheet\""] {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
        // The one address is the name of a format.
        let addresses = PAGE.matches("http://").count() + PAGE.matches("https://").count();
        assert_eq!(addresses, PAGE.matches("http://www.w3.org/2000/svg").count());
        // What the policy would refuse to run or to apply.
        for inline in [" onclick=", " onload=", " style=\""] {
            assert!(!PAGE.contains(inline), "{inline}");
        }
        assert_eq!((PAGE.matches("<style>").count(), PAGE.matches("<script>").count()), (1, 1));
    }

    #[test]
    fn the_policy_names_what_the_page_runs() {
        let policy = POLICY.to_str().expect("is text");
        assert_eq!(policy.matches("'sha256-").count(), 2);
        assert!(!policy.contains("unsafe"), "{policy}");
        assert!(inner("script").contains("EventSource"));
    }
}
