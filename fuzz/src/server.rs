//! One server of this process for all inputs: services and layers as connections have them, without
//! a socket, on the simulated model.

use std::convert::Infallible;
use std::future::Future;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use arbitrary::Unstructured;
use sconce_engine::LoadSettings;
use sconce_models::Precision;
use sconce_server::caller::Namespace;
use sconce_server::compat::vllm;
use sconce_server::grpc;
use sconce_server::grpc::health::{HealthBoard, Vitals};
use sconce_server::layer::deadline::DeadlineLayer;
use sconce_server::layer::error_detail::ErrorDetailLayer;
use sconce_server::layer::panic::PanicLayer;
use sconce_server::layer::request_id::RequestIdLayer;
use sconce_server::layer::{HttpRequest, HttpResponse};
use sconce_server::models::Models;
use sconce_server::serve::{CachePlan, EnginePlan, Secrets};
use tokio::runtime::{Builder, Runtime};
use tonic::{Code, Status};
use tower::ServiceBuilder;
use tower::util::BoxCloneSyncService;

/// The model that every input finds.
pub(crate) const MODEL: &str = "sim";
const PATH: &str = "sim:context=256";

/// What a model may take, so that no load of a stranger's fills the machine.
const MEMORY_BUDGET: u64 = 128 << 20;
/// What is remembered of prompts, small enough that the fuzzer sees evictions.
const CACHED_DEVICE: u64 = 1 << 20;
const CACHED_HOST: u64 = 1 << 20;
/// Longest a request may take, and longest that all may take to be gone.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(20);
const SETTLE_PATIENCE: Duration = Duration::from_secs(20);
/// How often is looked whether they are.
const SETTLE_INTERVAL: Duration = Duration::from_micros(200);
/// Most completion tokens that are asked for.
pub(crate) const COMPLETION_TOKENS_MAX: u32 = 40;

pub(crate) type Service = BoxCloneSyncService<HttpRequest, HttpResponse, Infallible>;

/// See the module.
pub(crate) struct Server {
    models: Models,
    pub(crate) service: Service,
}

static SERVER: LazyLock<Server> = LazyLock::new(Server::start);
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let built = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.expect("the system gives threads")
});

/// The runtime of the server.
pub(crate) fn runtime() -> &'static Runtime {
    &RUNTIME
}

/// One input at a time, also where tests run side by side.
static TURN: Mutex<()> = Mutex::new(());

/// Does `work` on the server as a new one would be, and waits until nothing of it runs any more.
pub(crate) fn with<T>(work: impl AsyncFnOnce(&Server) -> T) -> T {
    // An input that panicked is told by its own test.
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    RUNTIME.block_on(async {
        SERVER.reset().await;
        let done = work(&SERVER).await;
        SERVER.settle().await;
        done
    })
}

/// Asks up to `most` times, with what is drawn from `bytes`, one after the other.
pub(crate) fn each(
    bytes: &[u8],
    most: usize,
    ask: impl AsyncFn(&Server, &mut Unstructured<'_>) -> arbitrary::Result<()>,
) {
    let mut u = Unstructured::new(bytes);
    with(async |server| {
        for _ in 0..most {
            if u.is_empty() || ask(server, &mut u).await.is_err() {
                break;
            }
        }
    });
}

impl Server {
    fn start() -> Self {
        let engine = EnginePlan {
            memory_budget: Some(MEMORY_BUDGET),
            sequences_max: 4,
            waiting_max: 4,
            context_length_max: 512,
            prefill_chunk_tokens: 64,
            threads: Some(crate::COMPUTE_THREADS),
            ..EnginePlan::default()
        };
        let cache = CachePlan {
            device: CACHED_DEVICE,
            host: CACHED_HOST,
            spacing: 64,
            ..CachePlan::default()
        };
        let models = Models::start(&engine, &cache, Precision::Fast).expect("an engine");
        let health = HealthBoard::new();
        health.set(Vitals { alive: true, ready: true, draining: false });
        let vllm =
            vllm::Settings { model: Some(MODEL.to_owned()), sequences_max: engine.sequences_max };
        let service = ServiceBuilder::new()
            .layer(RequestIdLayer::new())
            .layer(ErrorDetailLayer)
            .layer(PanicLayer)
            .layer(DeadlineLayer::new(REQUEST_TIME_MAX))
            .service(grpc::routes(&models, &health, &Secrets::default(), true, Some(vllm)));
        Self { models, service: BoxCloneSyncService::new(service) }
    }

    /// Leaves the model alone, as it was loaded, and no snapshot.
    async fn reset(&self) {
        let everybody = Namespace::default();
        for snapshot in self.models.snapshots(&everybody).await.expect("snapshots are listed") {
            // It may be gone with another that it shares state with.
            let _ = self.models.drop_snapshot(&snapshot.id, &everybody).await;
        }
        let mut there = false;
        for status in self.models.status().models {
            if status.name == MODEL && self.is_ours().await {
                there = true;
            } else {
                // A load that the input gave up may still end by itself.
                let _ = self.models.unload(&status.name).await;
            }
        }
        if !there {
            let settings = LoadSettings { path: PATH.to_owned(), ..LoadSettings::default() };
            let load = self.models.load(MODEL, settings).await.expect("a load");
            load.finished().await.expect("the simulated model loads");
        }
    }

    async fn is_ours(&self) -> bool {
        let model = self.models.ready(MODEL).await;
        model.is_ok_and(|model| model.loaded().settings.path == PATH)
    }

    /// Waits until no sequence is left.
    async fn settle(&self) {
        let gone = async {
            // The engine tells nobody that a sequence is gone, so it is asked.
            while self.models.status().models.iter().any(|model| model.waiting + model.running > 0)
            {
                tokio::time::sleep(SETTLE_INTERVAL).await;
            }
        };
        let gone = tokio::time::timeout(SETTLE_PATIENCE, gone).await;
        assert!(gone.is_ok(), "sequences are stuck: {:?}", self.models.status().models);
    }
}

/// Waits for an answer, which must come.
pub(crate) async fn answered<T>(what: &str, answer: impl Future<Output = T>) -> T {
    let answer = tokio::time::timeout(2 * REQUEST_TIME_MAX, answer).await;
    answer.unwrap_or_else(|_| panic!("{what}: no answer"))
}

/// Refusals are the caller's fault or a matter of room; never the server's.
pub(crate) fn check(what: &str, status: &Status) {
    let fault = matches!(status.code(), Code::Internal | Code::Unknown | Code::Ok);
    assert!(!fault, "{what}: {status:?}");
}

/// Whether a load of `path` may be tried: none of files, which are not the fuzzer's business, and
/// none that waits, fails or panics as it is told to.
pub(crate) fn is_harmless(path: &str) -> bool {
    let told = ["_us", "_ms", "_at"].iter().any(|option| path.contains(option));
    path.is_empty() || (path.starts_with("sim:") && !told)
}
