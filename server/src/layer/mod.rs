//! What every request passes on its way in and out, as tower layers; one file each.
//!
//! Outermost first: [`scrape`] answers scrapers, [`request_id`] names the request, [`access_log`]
//! writes one line about it and leaves it in [`recent`], [`error_detail`] completes its error,
//! [`panic`] turns a panic into one, [`auth`] asks who it is from, [`limits`] bounds what they have
//! open, [`deadline`] how long it takes.

pub mod access_log;
pub mod auth;
pub mod deadline;
pub mod error_detail;
pub mod limits;
pub mod panic;
pub mod recent;
pub mod request_id;
pub mod scrape;

use tonic::body::Body;

/// Requests as the layers see them.
pub type HttpRequest = http::Request<Body>;
/// Responses as the layers see them.
pub type HttpResponse = http::Response<Body>;
