//! What a server counts and measures, as a page of Prometheus's text format.
//!
//! Every metric is a row of [`table`]. What the engine counts is read from it when somebody asks, by
//! [`collect`]; requests are counted at the edge, in [`CallMeter`]. [`page`] makes rows and values a
//! text, and [`facade`] tells the same to a recorder of the crate `metrics` that the process has.
//! Nothing is global: two servers in one process have two pages.

#[cfg(test)]
mod artifacts;
mod calls;
mod collect;
mod facade;
mod page;
mod process;
pub mod table;

use std::fmt;
use std::sync::Arc;

use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use sconce_models::DeviceChoice;
use sconce_proto::FILE_DESCRIPTOR_SET;
use sconce_proto::health::health_check_response::ServingStatus;
use tonic::body::Body;

pub use self::calls::CallMeter;
use self::page::Page;
use crate::build;
use crate::grpc::health::{HealthBoard, READINESS};
use crate::layer::HttpResponse;
use crate::models::Models;
use crate::serve::Secrets;

/// The metrics of a server; clones are the same.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    models: Models,
    health: HealthBoard,
    secrets: Secrets,
    device: DeviceChoice,
    calls: Arc<CallMeter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Those of a server with these `models`, this `health` and these `secrets`, which computes on
    /// `device`.
    pub fn new(
        models: Models,
        health: HealthBoard,
        secrets: Secrets,
        device: DeviceChoice,
    ) -> Self {
        let calls = Arc::new(CallMeter::new(FILE_DESCRIPTOR_SET));
        Self { inner: Arc::new(Inner { models, health, secrets, device, calls }) }
    }

    /// Where requests are counted.
    pub fn calls(&self) -> Arc<CallMeter> {
        self.inner.calls.clone()
    }

    /// The page as an answer over HTTP.
    pub fn page(&self) -> HttpResponse {
        let mut response = HttpResponse::new(Body::new(self.render()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(page::CONTENT_TYPE));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// The page: every metric as it is now. It waits for nothing, a step of the engine least of all.
    pub fn render(&self) -> String {
        self.collected().text()
    }

    /// Every metric as it is now.
    fn collected(&self) -> Page {
        let Inner { models, health, secrets, device, calls } = &*self.inner;
        let mut page = Page::new();
        let labels = [build::VERSION, build::commit().unwrap_or("unknown"), &device.to_string()];
        page.set(&table::BUILD_INFO, &labels, 1.0);
        let ready = health.get(READINESS) == Some(ServingStatus::Serving);
        page.set(&table::READY, &[], truth(ready));
        page.set(&table::DRAINING, &[], truth(models.is_draining()));
        page.set(&table::UPTIME, &[], models.uptime().as_secs_f64());
        collect::secrets(&mut page, secrets);
        collect::calls(&mut page, calls);
        let status = models.status();
        collect::engine(&mut page, &status);
        collect::models(&mut page, models, &status);
        collect::cache(&mut page, &status);
        collect::process(&mut page);
        page
    }
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}
