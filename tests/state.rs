//! The prefix cache over a socket: what is resumed and why no more, what requests may say about it,
//! dry runs, and the tree as data.

mod support;

use sconce_proto::v1::complete_request::Prompt;
use sconce_proto::v1::{
    CacheOptions, CacheReason, CacheReport, ChatMessage, ChatPrompt, CompleteRequest,
    DescribeCacheRequest, DescribeCacheResponse, MatchPrefixRequest, MatchPrefixResponse, Media,
    Sampling, Tier, TokensPrompt, match_prefix_request,
};
use support::{Completed, Fixture, MODEL, details, names_feature, names_field, tokens, within};
use tonic::{Code, Status};

/// A model whose state lies at restore points alone.
const RECURRENT: &str = "recurrent=true";

/// Most tokens that an exact repeat may compute again on a model with restore points.
const REPEAT_MAX: u32 = 131;

/// A prompt that shares no token with one of another `seed` at the same place.
fn prompt(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7 + seed) % 251) as u32).collect()
}

/// A greedy completion with options for the cache.
fn request(ids: Vec<u32>, cache: CacheOptions) -> CompleteRequest {
    let sampling = Sampling { temperature: Some(0.0), ..Sampling::default() };
    CompleteRequest { sampling: Some(sampling), cache: Some(cache), ..tokens(ids, 8) }
}

async fn complete(fixture: &Fixture, ids: Vec<u32>, cache: CacheOptions) -> Completed {
    fixture.complete(request(ids, cache)).await.expect("completes")
}

fn report(completed: &Completed) -> CacheReport {
    let started = completed.started.as_ref().expect("a first message");
    let report = started.cache.expect("a report");
    assert_eq!(report.resumed_tokens + report.recomputed_tokens, started.prompt_tokens);
    assert!(report.resumed_tokens <= report.matched_tokens);
    assert_eq!(report.resumed_tokens > 0, report.tier() != Tier::Unspecified);
    let usage = completed.finished().usage.expect("a usage");
    assert_eq!(usage.cached_tokens, report.resumed_tokens);
    report
}

async fn ask(fixture: &Fixture, ids: Vec<u32>, salt: Option<&str>) -> MatchPrefixResponse {
    let request = MatchPrefixRequest {
        model: MODEL.to_owned(),
        prompt: Some(match_prefix_request::Prompt::Tokens(TokensPrompt { ids })),
        salt: salt.map(str::to_owned),
        ..MatchPrefixRequest::default()
    };
    fixture.state().match_prefix(request).await.expect("is looked up").into_inner()
}

async fn matched(fixture: &Fixture, ids: Vec<u32>, salt: Option<&str>) -> CacheReport {
    ask(fixture, ids, salt).await.cache.expect("a report")
}

async fn describe(fixture: &Fixture, nodes_max: Option<u32>) -> DescribeCacheResponse {
    let request = DescribeCacheRequest { model: MODEL.to_owned(), nodes_max };
    fixture.state().describe_cache(request).await.expect("is described").into_inner()
}

fn salted(salt: &str) -> CacheOptions {
    CacheOptions { salt: Some(salt.to_owned()), ..CacheOptions::default() }
}

#[tokio::test]
async fn an_exact_repeat_computes_one_token() {
    within(async {
        let fixture = Fixture::start().await;
        let first = complete(&fixture, prompt(200, 1), CacheOptions::default()).await;
        assert_eq!(report(&first).reason(), CacheReason::NotFound);
        assert_eq!(report(&first).resumed_tokens, 0);
        let again = complete(&fixture, prompt(200, 1), CacheOptions::default()).await;
        let report = report(&again);
        assert_eq!((report.matched_tokens, report.recomputed_tokens), (199, 1));
        assert_eq!((report.tier(), report.reason()), (Tier::Device, CacheReason::Full));
        assert_eq!(again.token_ids(), first.token_ids());
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_recurrent_model_resumes_at_a_restore_point_and_says_the_same() {
    within(async {
        let fixture = Fixture::with(support::plan(RECURRENT)).await;
        let first = complete(&fixture, prompt(1000, 2), CacheOptions::default()).await;
        let again = complete(&fixture, prompt(1000, 2), CacheOptions::default()).await;
        let report = report(&again);
        assert_eq!(report.matched_tokens, 999);
        assert!(report.recomputed_tokens <= REPEAT_MAX, "{report:?}");
        assert_eq!(report.tier(), Tier::Device);
        assert_eq!(again.token_ids(), first.token_ids());
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn the_first_token_that_differs_is_told() {
    within(async {
        for options in ["", RECURRENT] {
            let fixture = Fixture::with(support::plan(options)).await;
            let cold = Fixture::with(support::plan(options)).await;
            complete(&fixture, prompt(1000, 3), CacheOptions::default()).await;
            let mut changed = prompt(1000, 3);
            changed[900] = 252;
            let warm = complete(&fixture, changed.clone(), CacheOptions::default()).await;
            let report = report(&warm);
            assert_eq!((report.matched_tokens, report.divergence_index), (900, Some(900)));
            assert!(report.recomputed_tokens <= 4 * 100 + 128, "{report:?}");
            let expected = complete(&cold, changed, CacheOptions::default()).await;
            assert_eq!(warm.token_ids(), expected.token_ids());
            fixture.end().await;
            cold.end().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_prompt_is_resumed_where_its_sender_said_it_would_branch() {
    within(async {
        let fixture = Fixture::with(support::plan(RECURRENT)).await;
        let hinted = CacheOptions { restore_points: vec![999, 448], ..CacheOptions::default() };
        complete(&fixture, prompt(1000, 4), hinted).await;
        let branched = [prompt(450, 4), prompt(100, 5)].concat();
        let report = report(&complete(&fixture, branched, CacheOptions::default()).await);
        assert_eq!((report.matched_tokens, report.resumed_tokens), (450, 448));
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn salts_share_nothing() {
    within(async {
        let fixture = Fixture::start().await;
        complete(&fixture, prompt(200, 6), salted("a")).await;
        for (salt, tokens) in [(None, 0), (Some("b"), 0), (Some("a"), 199)] {
            assert_eq!(matched(&fixture, prompt(200, 6), salt).await.matched_tokens, tokens);
        }
        let other = complete(&fixture, prompt(200, 6), salted("b")).await;
        assert_eq!(report(&other).reason(), CacheReason::NotFound);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_bypassed_request_neither_uses_nor_fills_the_cache() {
    within(async {
        let fixture = Fixture::start().await;
        let bypass = || CacheOptions { bypass: true, ..CacheOptions::default() };
        let cold = complete(&fixture, prompt(200, 7), bypass()).await;
        assert_eq!(report(&cold).reason(), CacheReason::Bypassed);
        assert_eq!(matched(&fixture, prompt(200, 7), None).await.matched_tokens, 0);
        complete(&fixture, prompt(200, 7), CacheOptions::default()).await;
        let again = complete(&fixture, prompt(200, 7), bypass()).await;
        assert_eq!(report(&again).reason(), CacheReason::Bypassed);
        assert_eq!(report(&again).recomputed_tokens, 200);
        assert_eq!(again.token_ids(), cold.token_ids());
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_tells_what_a_completion_would_resume_and_changes_nothing() {
    within(async {
        let fixture = Fixture::with(support::plan(RECURRENT)).await;
        assert_eq!(matched(&fixture, prompt(300, 8), None).await.reason(), CacheReason::NotFound);
        complete(&fixture, prompt(300, 8), CacheOptions::default()).await;
        let before = describe(&fixture, None).await;
        let asked = ask(&fixture, prompt(300, 8), None).await;
        assert_eq!(asked.prompt_tokens, 300);
        assert_eq!(describe(&fixture, None).await, before);
        let told = report(&complete(&fixture, prompt(300, 8), CacheOptions::default()).await);
        assert_eq!(asked.cache, Some(told));
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_takes_prompts_as_a_completion_does() {
    within(async {
        let fixture = Fixture::start().await;
        let content = Some("hello".to_owned());
        let message = ChatMessage { role: "user".to_owned(), content, ..ChatMessage::default() };
        let chat = ChatPrompt { messages: vec![message], ..ChatPrompt::default() };
        let prompt = Some(Prompt::Chat(chat.clone()));
        let completed = fixture
            .complete(CompleteRequest { prompt, ..tokens(vec![1], 2) })
            .await
            .expect("completes");
        let started = completed.started.expect("a first message");
        let request = MatchPrefixRequest {
            model: MODEL.to_owned(),
            prompt: Some(match_prefix_request::Prompt::Chat(chat)),
            ..MatchPrefixRequest::default()
        };
        let answer = fixture.state().match_prefix(request).await.expect("is looked up");
        assert_eq!(answer.into_inner().prompt_tokens, started.prompt_tokens);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn what_a_dry_run_cannot_take_is_refused_by_name() {
    within(async {
        let fixture = Fixture::start().await;
        let ids = |ids| Some(match_prefix_request::Prompt::Tokens(TokensPrompt { ids }));
        let a = || MatchPrefixRequest {
            model: MODEL.to_owned(),
            prompt: ids(vec![1]),
            ..MatchPrefixRequest::default()
        };
        let cases = [
            ("model", MatchPrefixRequest { model: String::new(), ..a() }),
            ("prompt", MatchPrefixRequest { prompt: None, ..a() }),
            ("tokens.ids", MatchPrefixRequest { prompt: ids(vec![]), ..a() }),
            ("tokens.ids[1]", MatchPrefixRequest { prompt: ids(vec![1, u32::MAX]), ..a() }),
            ("salt", MatchPrefixRequest { salt: Some(String::new()), ..a() }),
        ];
        for (field, request) in cases {
            names_field(&refused(fixture.state().match_prefix(request).await), field);
        }
        let media = MatchPrefixRequest { media: vec![Media::default()], ..a() };
        names_feature(&refused(fixture.state().match_prefix(media).await), "media");
        let unknown = MatchPrefixRequest { model: "nobody".to_owned(), ..a() };
        let status = refused(fixture.state().match_prefix(unknown).await);
        details(&status, Code::NotFound, "MODEL_NOT_FOUND");
        fixture.end().await;
    })
    .await;
}

fn refused<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>) -> Status {
    answer.expect_err("is refused")
}

#[tokio::test]
async fn the_tree_is_told_parents_first_and_its_bytes_add_up() {
    within(async {
        let fixture = Fixture::with(support::plan(RECURRENT)).await;
        let shared = prompt(500, 9);
        for seed in [10, 11, 12] {
            let branch = [shared.clone(), prompt(200, seed)].concat();
            complete(&fixture, branch, CacheOptions::default()).await;
        }
        let cache = describe(&fixture, None).await;
        let nodes = &cache.nodes;
        assert!(nodes.len() >= 4, "what is shared, and three branches: {nodes:#?}");
        assert_eq!(nodes.iter().filter(|node| node.parent.is_none()).count(), 1);
        for (i, node) in nodes.iter().enumerate() {
            let before = node.parent.map_or(0, |parent| {
                assert!((parent as usize) < i);
                nodes[parent as usize].depth_tokens
            });
            assert_eq!(node.depth_tokens, before + node.edge_tokens);
            assert_eq!(node.bytes, node.span_bytes + node.point_bytes);
            assert!(node.last_use <= cache.lookups && !node.pinned && !node.leased);
        }
        assert!(nodes.iter().any(|node| node.restore_point && node.point_bytes > 0));
        let tiers: Vec<Tier> = cache.tiers.iter().map(|tier| tier.tier()).collect();
        assert_eq!(tiers, [Tier::Device, Tier::Host, Tier::Disk]);
        let held: u64 = nodes.iter().map(|node| node.bytes).sum();
        let told: u64 = cache.tiers.iter().map(|tier| tier.span_bytes + tier.point_bytes).sum();
        let used: u64 = cache.tiers.iter().map(|tier| tier.used_bytes).sum();
        assert_eq!((told, used), (held, held));
        assert!(cache.tiers.iter().all(|tier| tier.used_bytes <= tier.limit_bytes));
        let requests: u64 = cache.reasons.iter().map(|count| count.requests).sum();
        assert_eq!((cache.lookups, requests), (3, 3));
        let ledger = fixture.status().await.memory;
        let cached: u64 = ledger.iter().map(|tier| tier.cached_state_bytes).sum();
        assert_eq!(cached, used);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_large_tree_is_cut_where_asked() {
    within(async {
        let fixture = Fixture::start().await;
        for seed in 0..8 {
            complete(&fixture, prompt(70, seed), CacheOptions::default()).await;
        }
        let whole = describe(&fixture, None).await;
        assert_eq!(whole.nodes_left_out, 0);
        let cut = describe(&fixture, Some(3)).await;
        assert_eq!(cut.nodes, whole.nodes[..3]);
        assert_eq!(cut.nodes_left_out as usize, whole.nodes.len() - 3);
        assert_eq!(cut.tiers, whole.tiers);
        for nodes_max in [Some(0), Some(20_001)] {
            let request = DescribeCacheRequest { model: MODEL.to_owned(), nodes_max };
            names_field(&refused(fixture.state().describe_cache(request).await), "nodes_max");
        }
        let unknown = DescribeCacheRequest { model: "nobody".to_owned(), nodes_max: None };
        let status = refused(fixture.state().describe_cache(unknown).await);
        details(&status, Code::NotFound, "MODEL_NOT_FOUND");
        fixture.end().await;
    })
    .await;
}
