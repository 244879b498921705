//! The same numbers for a program that has this server in it and watches itself by the crate
//! `metrics`: they go to the recorder that it has installed, whatever that sends them to.
//!
//! A histogram of the table has its buckets counted already, and a recorder would want each
//! observation. It is told as Prometheus would write it: counters `NAME_bucket` with the upper bound
//! in the label `le`, a counter `NAME_count` and a gauge `NAME_sum`. Counters of a recorder are whole
//! numbers, so that one of seconds is told as a gauge.

use std::cell::Cell;
use std::convert::Infallible;
use std::time::Duration;

use metrics::{IntoF64, Key, Label, Level, Metadata, Recorder, SharedString};
use prometheus::proto::Metric;
use tokio::time::{MissedTickBehavior, interval};

use super::Metrics;
use super::table::{self, Kind, Row, Unit};

/// How often the recorder of the process is told.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(10);

/// Of a bucket for whatever is above all bounds.
const NO_BOUND: &str = "+Inf";

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

impl Metrics {
    /// Tells `recorder` every metric as it is now.
    pub fn publish(&self, recorder: &dyn Recorder) {
        for (row, sample) in self.collected().samples() {
            match row.kind {
                Kind::Counter => {
                    let (key, value) =
                        (key(row.name, sample, None), sample.get_counter().get_value());
                    if is_whole(row) {
                        counter(recorder, &key, value as u64);
                    } else {
                        gauge(recorder, &key, value);
                    }
                }
                Kind::Gauge => {
                    gauge(recorder, &key(row.name, sample, None), sample.get_gauge().get_value())
                }
                Kind::Histogram => histogram(recorder, row, sample),
            }
        }
    }

    /// Tells the recorder of the process what the metrics mean, then what they are, again and again.
    /// Without a recorder nothing is collected.
    pub(crate) async fn publish_always(&self) -> Infallible {
        metrics::with_recorder(describe);
        let mut ticks = interval(PUBLISH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            metrics::with_recorder(|recorder| {
                if is_heard(recorder) {
                    self.publish(recorder);
                }
            });
        }
    }
}

/// Whether somebody takes what `recorder` is told; where none is installed, the crate has one that
/// takes nothing. It does not say so, but it asks for no value.
fn is_heard(recorder: &dyn Recorder) -> bool {
    let asked = Cell::new(false);
    for row in [&table::READY, &table::UPTIME] {
        recorder
            .register_gauge(&Key::from_static_name(row.name), &METADATA)
            .increment(Zero(&asked));
    }
    asked.get()
}

/// Nothing, and whether anybody wanted it.
struct Zero<'a>(&'a Cell<bool>);

impl IntoF64 for Zero<'_> {
    fn into_f64(self) -> f64 {
        self.0.set(true);
        0.0
    }
}

/// Whether a counter of the table counts things, and no time.
fn is_whole(row: &Row) -> bool {
    row.unit != Unit::Seconds
}

/// Tells `recorder` what each metric means.
fn describe(recorder: &dyn Recorder) {
    for row in table::all() {
        let help = SharedString::const_str(row.help);
        match row.kind {
            Kind::Counter if is_whole(row) => {
                recorder.describe_counter(row.name.into(), None, help);
            }
            Kind::Counter | Kind::Gauge => recorder.describe_gauge(row.name.into(), None, help),
            Kind::Histogram => {
                let part = |suffix| format!("{}_{suffix}", row.name).into();
                recorder.describe_counter(part("bucket"), None, help.clone());
                recorder.describe_counter(part("count"), None, help.clone());
                recorder.describe_gauge(part("sum"), None, help);
            }
        }
    }
}

fn histogram(recorder: &dyn Recorder, row: &Row, sample: &Metric) {
    let reading = sample.get_histogram();
    let part = |suffix: &str, bound| key(&format!("{}_{suffix}", row.name), sample, bound);
    for bucket in reading.get_bucket() {
        let bound = bucket.upper_bound().to_string();
        counter(recorder, &part("bucket", Some(bound)), bucket.cumulative_count());
    }
    let all = reading.get_sample_count();
    counter(recorder, &part("bucket", Some(NO_BOUND.to_owned())), all);
    counter(recorder, &part("count", None), all);
    gauge(recorder, &part("sum", None), reading.get_sample_sum());
}

fn counter(recorder: &dyn Recorder, key: &Key, value: u64) {
    recorder.register_counter(key, &METADATA).absolute(value);
}

fn gauge(recorder: &dyn Recorder, key: &Key, value: f64) {
    recorder.register_gauge(key, &METADATA).set(value);
}

fn key(name: &str, sample: &Metric, bound: Option<String>) -> Key {
    let labels = sample.get_label().iter();
    let mut labels: Vec<Label> =
        labels.map(|pair| Label::new(pair.name().to_owned(), pair.value().to_owned())).collect();
    labels.extend(bound.map(|bound| Label::new("le", bound)));
    Key::from_parts(name.to_owned(), labels)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use metrics::{Counter, Gauge, Histogram, KeyName, Unit};
    use parking_lot::Mutex;
    use tonic::Code;

    use super::*;
    use crate::grpc::health::HealthBoard;
    use crate::models::Models;
    use crate::serve::{Secrets, ServePlan};

    /// Keeps what it is told; gauges as bits.
    #[derive(Debug, Default)]
    struct Kept {
        counters: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
        gauges: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
        described: Mutex<Vec<String>>,
    }

    impl Recorder for Kept {
        fn describe_counter(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            self.described.lock().push(key.as_str().to_owned());
        }

        fn describe_gauge(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            self.described.lock().push(key.as_str().to_owned());
        }

        fn describe_histogram(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            panic!("{} is told in parts", key.as_str());
        }

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.counters.lock().entry(key.to_string()).or_default().clone())
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.gauges.lock().entry(key.to_string()).or_default().clone())
        }

        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            panic!("{key} is told in parts");
        }
    }

    #[tokio::test]
    async fn a_recorder_hears_what_the_page_says() {
        let plan = ServePlan::default();
        let models = Models::start(&plan.engine, &plan.cache, plan.precision).expect("starts");
        let metrics =
            Metrics::new(models, HealthBoard::new(), Secrets::default(), plan.engine.device);
        let rpc = "sconce.v1.InferenceService/Complete";
        metrics.calls().ended(rpc, Code::Ok, Duration::from_millis(250));
        let kept = Kept::default();
        describe(&kept);
        metrics.publish(&kept);
        metrics.calls().ended(rpc, Code::Ok, Duration::from_millis(250));
        metrics.publish(&kept);

        let counters = kept.counters.lock();
        let counted = |name: &str, labels: &[&str]| {
            let found = counters.iter().find(|(key, _)| {
                key.contains(&format!("({name},")) && labels.iter().all(|label| key.contains(label))
            });
            found.map(|(_, value)| value.load(Ordering::Relaxed))
        };
        assert_eq!(counted("sconce_requests_total", &["code = OK", rpc]), Some(2), "{counters:#?}");
        assert_eq!(counted("sconce_request_seconds_bucket", &["le = 0.1"]), Some(0));
        assert_eq!(counted("sconce_request_seconds_bucket", &["le = 0.3"]), Some(2));
        assert_eq!(counted("sconce_request_seconds_bucket", &["le = +Inf"]), Some(2));
        assert_eq!(counted("sconce_request_seconds_count", &[rpc]), Some(2));
        let gauges = kept.gauges.lock();
        let sums = gauges.iter().filter(|(key, _)| key.contains("sconce_request_seconds_sum"));
        let sums: Vec<f64> =
            sums.map(|(_, bits)| f64::from_bits(bits.load(Ordering::Relaxed))).collect();
        assert_eq!(sums, [0.5]);
        assert!(kept.described.lock().iter().any(|name| name == "sconce_requests_total"));
        let is_cpu = |key: &&String| key.contains("process_cpu_seconds_total");
        assert_eq!(counters.keys().find(is_cpu), None);
        assert_eq!(gauges.keys().any(|key| is_cpu(&key)), cfg!(target_os = "linux"));
    }

    #[test]
    fn it_is_known_whether_anybody_listens() {
        assert!(!is_heard(&metrics::NoopRecorder));
        let kept = Kept::default();
        assert!(is_heard(&kept));
        let gauges = kept.gauges.lock();
        assert!(gauges.values().all(|bits| f64::from_bits(bits.load(Ordering::Relaxed)) == 0.0));
    }
}
