//! `/metrics` over a socket: after some requests, exactly what they were.

mod support;

use std::collections::BTreeMap;

use sconce_proto::v1::load_response::Event;
use sconce_proto::v1::{CacheReport, CompleteRequest, LoadRequest, Tier, UnloadRequest};
use sconce_server::metrics::table;
use support::http::get;
use support::prometheus::Scrape;
use support::{Completed, Fixture, MODEL, plan, tokens, within};

const COMPLETE: &str = "sconce.v1.InferenceService/Complete";

/// A model whose completions outlast a test.
const SLOW: &str = "decode_us=1000,context=2000000";

/// Completion tokens of each request.
const TOKENS: u32 = 8;

/// Longest that counts may take to arrive, in scrapes.
const SCRAPES_MAX: usize = 20_000;

async fn scrape(fixture: &Fixture) -> Scrape {
    let answer = get(&fixture.handle.local_addrs()[0], "/metrics").await;
    assert_eq!(answer.status, 200);
    Scrape::read(&answer.body)
}

/// Scrapes until `holds`: a request is counted when its last byte is gone, which its caller cannot
/// see.
async fn until(fixture: &Fixture, holds: impl Fn(&Scrape) -> bool) -> Scrape {
    for _ in 0..SCRAPES_MAX {
        let page = scrape(fixture).await;
        if holds(&page) {
            return page;
        }
        tokio::task::yield_now().await;
    }
    panic!("not after {SCRAPES_MAX} scrapes: {:#?}", scrape(fixture).await);
}

fn requests(page: &Scrape, rpc: &str, code: &str) -> f64 {
    page.value("sconce_requests_total", &[("rpc", rpc), ("code", code)])
}

fn prompt() -> Vec<u32> {
    (0..1000).map(|i| i * 7 % 251).collect()
}

async fn complete(fixture: &Fixture, request: CompleteRequest) -> (u32, CacheReport) {
    let completed: Completed = fixture.complete(request).await.expect("completes");
    assert_eq!(completed.token_ids().len(), TOKENS as usize);
    let started = completed.started.expect("a first message");
    (started.prompt_tokens, started.cache.expect("a report"))
}

async fn reload(fixture: &Fixture, path: &str) {
    let model = MODEL.to_owned();
    fixture.models().unload(UnloadRequest { model: model.clone() }).await.expect("is unloaded");
    let request = LoadRequest { model, path: path.to_owned(), ..LoadRequest::default() };
    let mut news = fixture.models().load(request).await.expect("begins").into_inner();
    while let Some(message) = news.message().await.expect("goes on") {
        if let Some(Event::ModelInfo(_)) = message.event {
            return;
        }
    }
    panic!("the load ended without a model");
}

/// The counts of one family by one label.
fn by(page: &Scrape, name: &str, label: &str) -> BTreeMap<String, f64> {
    page.of(name).map(|(labels, value)| (labels[label].clone(), value)).collect()
}

#[tokio::test]
async fn the_counts_are_those_of_the_requests_and_outlive_an_unload() {
    within(async {
        let mut plan = plan("weights_bytes=4096");
        let path = plan.models[0].path.clone();
        plan.cache.host = 1 << 30;
        let fixture = Fixture::with(plan).await;
        let mut reports = Vec::new();
        for ids in [prompt(), prompt(), vec![250; 20]] {
            reports.push(complete(&fixture, tokens(ids, TOKENS)).await);
        }
        fixture.refused(tokens(Vec::new(), TOKENS)).await;
        let done = |page: &Scrape, ok: f64| {
            requests(page, COMPLETE, "OK") == ok
                && requests(page, COMPLETE, "INVALID_ARGUMENT") == 1.0
        };
        let before = until(&fixture, |page| done(page, 3.0)).await;
        reload(&fixture, &path).await;
        reports.push(complete(&fixture, tokens(prompt(), TOKENS)).await);
        assert_eq!(reports[3].1.tier(), Tier::Host);
        let page = until(&fixture, |page| done(page, 4.0)).await;

        // By what the answers said.
        let (mut tiers, mut reasons, mut lookups) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (_, report) in &reports {
            let tier = report.tier().as_str_name().trim_start_matches("TIER_").to_ascii_lowercase();
            let reason = report.reason().as_str_name();
            let reason = reason.trim_start_matches("CACHE_REASON_").to_ascii_lowercase();
            *tiers.entry(tier).or_insert(0.0) += f64::from(report.resumed_tokens);
            *reasons.entry(reason.clone()).or_insert(0.0) += f64::from(report.recomputed_tokens);
            *lookups.entry(reason).or_insert(0.0) += 1.0;
        }
        let positive = |name: &str, label: &str| {
            let mut found = by(&page, name, label);
            found.retain(|_, value| *value > 0.0);
            found
        };
        tiers.retain(|_, tokens| *tokens > 0.0);
        assert_eq!(tiers.len(), 2, "{tiers:?}");
        assert_eq!(positive("sconce_resumed_tokens_total", "tier"), tiers);
        assert_eq!(positive("sconce_recomputed_tokens_total", "reason"), reasons);
        assert_eq!(positive("sconce_cache_lookups_total", "reason"), lookups);
        let prompts: f64 = reports.iter().map(|(tokens, _)| f64::from(*tokens)).sum();
        let (cached, computed): (f64, f64) = (tiers.values().sum(), reasons.values().sum());
        let completions = 4.0 * f64::from(TOKENS);
        let expected = [
            ("prompt", prompts),
            ("cached", cached),
            ("computed", computed),
            ("completion", completions),
        ];
        let expected = expected.map(|(kind, value)| (kind.to_owned(), value)).into();
        assert_eq!(by(&page, "sconce_tokens_total", "kind"), expected);
        assert_eq!(
            positive("sconce_completions_total", "end"),
            [("length".to_owned(), 4.0)].into()
        );

        let labels = [("model_name", MODEL), ("engine", "0")];
        for (name, value) in [
            ("vllm:prompt_tokens_total", prompts),
            ("vllm:prefix_cache_queries_total", prompts),
            ("vllm:prefix_cache_hits_total", cached),
            ("vllm:generation_tokens_total", completions),
            ("vllm:time_to_first_token_seconds_count", 4.0),
            ("vllm:inter_token_latency_seconds_count", completions - 4.0),
            ("vllm:request_time_per_output_token_seconds_count", 4.0),
            ("vllm:e2e_request_latency_seconds_count", 4.0),
            ("vllm:request_queue_time_seconds_count", 4.0),
            ("vllm:request_prefill_time_seconds_count", 4.0),
            ("vllm:request_decode_time_seconds_count", 4.0),
            ("vllm:request_inference_time_seconds_count", 4.0),
            ("vllm:request_prompt_tokens_sum", prompts),
            ("vllm:request_generation_tokens_sum", completions),
            ("vllm:request_params_max_tokens_sum", completions),
            ("vllm:num_requests_running", 0.0),
            ("vllm:num_requests_waiting", 0.0),
            ("vllm:kv_cache_usage_perc", 0.0),
        ] {
            assert_eq!(page.value(name, &labels), value, "{name}");
        }
        // The steps evaluated what was computed, and each token but the last of each completion.
        let steps = page.value("sconce_batch_tokens_sum", &[("model", MODEL)]);
        assert_eq!(steps, computed + completions - 4.0);
        let counted = page.value("sconce_batch_tokens_count", &[("model", MODEL)]);
        assert_eq!(page.sum("sconce_step_seconds_count"), counted);
        for phase in ["prefill", "decode"] {
            let labels = [("model", MODEL), ("phase", phase)];
            assert!(page.value("sconce_step_seconds_count", &labels) > 0.0, "{phase}");
            assert!(page.value("sconce_step_seconds_sum", &labels) > 0.0, "{phase}");
        }
        let held = |class: &str| {
            page.value("sconce_memory_bytes", &[("tier", "device"), ("class", class)])
        };
        assert_eq!(held("weights"), 4096.0);
        assert!(held("cached_state") > 0.0, "prompts are remembered");
        assert_eq!(page.value("sconce_loads_total", &[("outcome", "ready")]), 2.0);
        assert_eq!(page.value("sconce_load_seconds_count", &[]), 2.0);

        for (series, value) in before.growing() {
            assert!(page.growing()[series] >= value, "{series} has shrunk from {value}");
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_request_that_runs_or_waits_is_seen_and_what_is_remembered_is_not_use() {
    within(async {
        let mut plan = plan(SLOW);
        plan.engine.sequences_max = 1;
        let fixture = Fixture::with(plan).await;
        let mut running = fixture.open(tokens(prompt(), 1_000_000)).await.expect("opens");
        running.message().await.expect("is alive").expect("has started");
        let waiting = tokio::spawn({
            let mut client = fixture.inference();
            async move { client.complete(tokens(vec![1, 2, 3], TOKENS)).await }
        });
        let state = |page: &Scrape, state: &str| {
            page.value("sconce_sequences", &[("model", MODEL), ("state", state)])
        };
        let pages = |page: &Scrape, kind: &str| {
            page.value("sconce_state_pages", &[("model", MODEL), ("kind", kind)])
        };
        // A page may be from before the first was told of as running.
        let both = |page: &Scrape| state(page, "running") == 1.0 && state(page, "waiting") == 1.0;
        let page = until(&fixture, both).await;
        assert_eq!(page.value("sconce_queue_requests", &[]), 1.0);
        assert!(pages(&page, "running") > 0.0 && pages(&page, "running") <= pages(&page, "held"));
        let usage = page.sum("vllm:kv_cache_usage_perc");
        assert_eq!(usage, pages(&page, "running") / pages(&page, "max"));
        assert_eq!(page.sum("vllm:num_requests_waiting"), 1.0);

        drop(running);
        let stream = waiting.await.expect("does not panic").expect("is admitted").into_inner();
        support::collect(stream).await;
        let over =
            |page: &Scrape| state(page, "running") == 0.0 && requests(page, COMPLETE, "OK") == 1.0;
        let page = until(&fixture, over).await;
        assert_eq!((pages(&page, "running"), page.sum("vllm:kv_cache_usage_perc")), (0.0, 0.0));
        assert!(pages(&page, "held") > 0.0, "prompts are remembered");
        let ended =
            |end: &str| page.value("sconce_completions_total", &[("model", MODEL), ("end", end)]);
        assert_eq!((ended("cancelled"), ended("length")), (1.0, 1.0));
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn recurrent_slots_count_as_use() {
    within(async {
        let mut plan = plan(&format!("recurrent=true,{SLOW}"));
        plan.engine.sequences_max = 2;
        let fixture = Fixture::with(plan).await;
        let mut stream = fixture.open(tokens(vec![1, 2, 3], 1_000_000)).await.expect("opens");
        stream.message().await.expect("is alive").expect("has started");
        let page = until(&fixture, |page| page.sum("vllm:num_requests_running") == 1.0).await;
        assert_eq!(page.sum("vllm:kv_cache_usage_perc"), 0.5);
        drop(stream);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_name_that_a_client_invents_becomes_no_label() {
    within(async {
        let fixture = Fixture::start().await;
        let invented = "invented.Service/Method";
        let uri = format!("http://{}/{invented}", fixture.handle.local_addrs()[0]);
        let executor = hyper_util::rt::TokioExecutor::new();
        let client = hyper_util::client::legacy::Client::builder(executor)
            .http2_only(true)
            .build_http::<tonic::body::Body>();
        let request = http::Request::post(uri).body(tonic::body::Body::empty()).expect("is one");
        client.request(request).await.expect("is answered");
        let request = CompleteRequest { model: "invented".to_owned(), ..tokens(vec![1], 1) };
        fixture.refused(request).await;
        let done = |page: &Scrape| {
            requests(page, "other", "UNIMPLEMENTED") == 1.0
                && requests(page, COMPLETE, "NOT_FOUND") == 1.0
        };
        until(&fixture, done).await;
        let text = get(&fixture.handle.local_addrs()[0], "/metrics").await.body;
        assert!(!text.contains("invented"), "{text}");
        drop(client);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn two_servers_of_one_process_count_apart() {
    within(async {
        let (one, two) = (Fixture::start().await, Fixture::start().await);
        complete(&one, tokens(prompt(), TOKENS)).await;
        until(&one, |page| requests(page, COMPLETE, "OK") == 1.0).await;
        let page = scrape(&two).await;
        assert_eq!((requests(&page, COMPLETE, "OK"), page.sum("sconce_tokens_total")), (0.0, 0.0));
        one.end().await;
        two.end().await;
    })
    .await;
}

#[tokio::test]
async fn the_page_has_every_row_of_the_table() {
    within(async {
        let mut plan = plan("recurrent=true");
        plan.engine.memory_budget = Some(8 << 30);
        let fixture = Fixture::with(plan).await;
        complete(&fixture, tokens(prompt(), TOKENS)).await;
        let page = until(&fixture, |page| requests(page, COMPLETE, "OK") == 1.0).await;
        // Shown while something is loading, where there are such files, and where the system tells of
        // processes.
        let sometimes = |name: &str| {
            [table::LOAD_PROGRESS.name, table::SECRET_STALE.name].contains(&name)
                || (name.starts_with("process_") && cfg!(not(target_os = "linux")))
        };
        let found: Vec<&str> = page.families().collect();
        for row in table::all().filter(|row| !sometimes(row.name)) {
            assert!(found.contains(&row.name), "{} is not on the page", row.name);
        }
        fixture.end().await;
    })
    .await;
}
