//! `vllm.grpc.engine.VllmEngine/SubscribeKvEvents` over a socket: a reader's picture is what a prompt
//! really resumes.

mod support;

use std::collections::BTreeMap;

use sconce_proto::compat::smg::grpc::common::kv_cache_event::Data;
use sconce_proto::compat::smg::grpc::common::{
    FlushCacheRequest, KvEventBatch, SubscribeKvEventsRequest,
};
use sconce_proto::v1::{CacheOptions, CompleteRequest, LoadRequest, UnloadRequest};
use sconce_server::serve::ServePlan;
use support::vllm::{engine, generate, greedy, request};
use support::{Fixture, MODEL, details, plan, tokens, within};
use tonic::{Code, Streaming};

const BLOCK: usize = 64;

/// Readers at once, as docs/PROTOCOL.md says.
const READERS_MAX: usize = 64;

/// What a gateway makes of the events.
#[derive(Debug, Default)]
struct Picture {
    /// Tokens up to the end of each block, by the block's hash.
    paths: BTreeMap<i64, Vec<u32>>,
    newest: u64,
    events: u64,
}

impl Picture {
    fn take(&mut self, batch: &KvEventBatch) {
        let load = batch.load.as_ref().expect("each batch has a load");
        if load.load_only {
            assert_eq!((batch.sequence_number, batch.events.len()), (self.newest, 0));
            return;
        }
        let next = self.newest + 1;
        assert!(
            self.newest == 0 || batch.sequence_number == next,
            "{} after {next}",
            batch.sequence_number
        );
        self.newest = batch.sequence_number;
        for event in &batch.events {
            if event.event_id > 0 {
                assert!(event.event_id > self.events);
                self.events = event.event_id;
            }
            match event.data.as_ref().expect("an event says something") {
                Data::Cleared(_) => self.paths.clear(),
                Data::Removed(removed) => {
                    for hash in &removed.block_hashes {
                        assert!(self.paths.remove(hash).is_some(), "removed and not known");
                    }
                }
                Data::Stored(stored) => {
                    let mut path = match stored.parent_block_hash {
                        None => Vec::new(),
                        Some(parent) => {
                            self.paths.get(&parent).expect("parents come first").clone()
                        }
                    };
                    for block in &stored.blocks {
                        assert_eq!(
                            (block.block_size as usize, block.token_ids.len()),
                            (BLOCK, BLOCK)
                        );
                        path.extend_from_slice(&block.token_ids);
                        let before = self.paths.insert(block.block_hash, path.clone());
                        assert!(before.is_none(), "stored and known already");
                    }
                }
            }
        }
    }

    /// Tokens of the longest beginning of `prompt` that is known.
    fn known(&self, prompt: &[u32]) -> usize {
        let fits = self.paths.values().filter(|path| prompt.starts_with(path));
        fits.map(Vec::len).max().unwrap_or(0)
    }
}

struct Reader {
    stream: Streaming<KvEventBatch>,
    picture: Picture,
}

impl Reader {
    async fn from(fixture: &Fixture, cursor: u64) -> Self {
        let stream = subscribe(fixture, cursor).await.expect("opens");
        let picture = Picture { newest: cursor, ..Picture::default() };
        Self { stream, picture }
    }

    async fn next(&mut self) {
        let batch = self.stream.message().await.expect("is alive").expect("is open");
        self.picture.take(&batch);
    }

    async fn until(&mut self, holds: impl Fn(&Picture) -> bool) {
        while !holds(&self.picture) {
            self.next().await;
        }
    }
}

async fn subscribe(
    fixture: &Fixture,
    cursor: u64,
) -> Result<Streaming<KvEventBatch>, tonic::Status> {
    let request = SubscribeKvEventsRequest {
        start_sequence_number: cursor,
        load_records_before_first_batch: true,
    };
    Ok(engine(fixture).subscribe_kv_events(request).await?.into_inner())
}

fn prompt(length: usize, seed: u32) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 31 + seed * 17) % 250).collect()
}

/// What a prompt resumes, told by the engine itself.
async fn resumed(fixture: &Fixture, prompt: &[u32]) -> usize {
    let asked = sconce_proto::v1::MatchPrefixRequest {
        model: MODEL.to_owned(),
        prompt: Some(sconce_proto::v1::match_prefix_request::Prompt::Tokens(
            sconce_proto::v1::TokensPrompt { ids: prompt.to_vec() },
        )),
        ..Default::default()
    };
    let report = fixture.state().match_prefix(asked).await.expect("tells").into_inner();
    report.cache.expect("a report").resumed_tokens as usize
}

#[tokio::test]
async fn the_picture_is_what_a_prompt_resumes() {
    within(async {
        for options in ["", "recurrent=true"] {
            let fixture = Fixture::with(plan(options)).await;
            let mut reader = Reader::from(&fixture, 0).await;
            reader.next().await;
            assert!(reader.picture.newest > 0 && reader.picture.paths.is_empty());

            let first = prompt(300, 1);
            generate(&fixture, request("a", first.clone(), greedy(30))).await;
            reader.until(|picture| picture.known(&first) == 256).await;
            assert!(resumed(&fixture, &[&first[..], &[1]].concat()).await >= 256);

            // A branch in the middle of a block shares the blocks before it.
            let branch = [&first[..200], &prompt(300, 2)].concat();
            generate(&fixture, request("b", branch.clone(), greedy(4))).await;
            reader.until(|picture| picture.known(&branch) == 448).await;
            assert_eq!(reader.picture.known(&first), 256);
            let roots = reader.picture.paths.values().filter(|path| path.len() == BLOCK).count();
            assert_eq!(roots, 1);
            fixture.end().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_reader_goes_on_where_it_was_or_begins_again() {
    within(async {
        let fixture = Fixture::start().await;
        let first = prompt(128, 1);
        let mut reader = Reader::from(&fixture, 0).await;
        generate(&fixture, request("a", first.clone(), greedy(4))).await;
        reader.until(|picture| picture.known(&first) == 128).await;
        let seen = reader.picture.newest;
        drop(reader.stream);

        let second = prompt(192, 2);
        generate(&fixture, request("b", second.clone(), greedy(4))).await;
        let mut resumed = Reader::from(&fixture, seen).await;
        resumed.picture.paths = reader.picture.paths;
        resumed.until(|picture| picture.known(&second) == 192).await;
        assert_eq!(resumed.picture.known(&first), 128);

        let mut anew = Reader::from(&fixture, 0).await;
        anew.next().await;
        assert_eq!(anew.picture.newest, resumed.picture.newest);
        assert_eq!(anew.picture.paths, resumed.picture.paths);

        for unknown in [1, resumed.picture.newest + 1000] {
            let refused = subscribe(&fixture, unknown).await.expect_err("is refused");
            details(&refused, Code::OutOfRange, "EVENTS_UNKNOWN");
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_forgotten_is_told_and_a_salt_is_not() {
    within(async {
        let fixture = Fixture::start().await;
        let mut reader = Reader::from(&fixture, 0).await;
        let (public, secret) = (prompt(256, 1), prompt(256, 2));
        let cache = Some(CacheOptions { salt: Some("mine".to_owned()), ..CacheOptions::default() });
        let salted = CompleteRequest { cache, ..tokens(secret.clone(), 4) };
        fixture.complete(salted).await.expect("completes");
        generate(&fixture, request("a", public.clone(), greedy(4))).await;
        reader.until(|picture| picture.known(&public) == 256).await;
        assert_eq!(reader.picture.known(&secret), 0);

        let flush = FlushCacheRequest { timeout_s: 0.0 };
        let done = engine(&fixture).flush_cache(flush).await.expect("flushes").into_inner();
        assert!(done.success);
        reader.until(|picture| picture.paths.is_empty()).await;
        assert_eq!(resumed(&fixture, &public).await, 0);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_move_to_another_tier_is_nothing_and_another_model_is_all_new() {
    within(async {
        let mut tiers: ServePlan = plan("");
        tiers.cache.host = 1 << 30;
        let fixture = Fixture::with(tiers).await;
        let mut reader = Reader::from(&fixture, 0).await;
        let first = prompt(256, 1);
        generate(&fixture, request("a", first.clone(), greedy(4))).await;
        reader.until(|picture| picture.known(&first) == 256).await;

        // What moves to main memory as the model goes is there when it comes again.
        let unload = UnloadRequest { model: MODEL.to_owned() };
        fixture.models().unload(unload.clone()).await.expect("unloads");
        reader.until(|picture| picture.paths.is_empty()).await;
        let load = LoadRequest {
            model: MODEL.to_owned(),
            path: "sim:".to_owned(),
            ..LoadRequest::default()
        };
        let mut loading = fixture.models().load(load).await.expect("loads").into_inner();
        while loading.message().await.expect("loads").is_some() {}
        reader.until(|picture| picture.known(&first) == 256).await;
        assert!(resumed(&fixture, &[&first[..], &[1]].concat()).await >= 256);

        // Paged in: from one tier to another.
        let before = reader.picture.paths.clone();
        let second = prompt(192, 9);
        generate(&fixture, request("b", first.clone(), greedy(1))).await;
        generate(&fixture, request("c", second.clone(), greedy(1))).await;
        reader.until(|picture| picture.known(&second) == 192).await;
        assert!(before.keys().all(|hash| reader.picture.paths.contains_key(hash)));
        drop(reader);
        fixture.shut_down().await;
    })
    .await;
}

#[tokio::test]
async fn after_a_panic_of_the_device_thread_the_picture_is_true_again() {
    within(async {
        let mut tiers: ServePlan = plan("crash_at=600");
        tiers.cache.host = 1 << 30;
        let fixture = Fixture::with(tiers).await;
        let mut reader = Reader::from(&fixture, 0).await;
        let (first, killer, second) = (prompt(256, 1), prompt(700, 2), prompt(192, 3));
        generate(&fixture, request("a", first.clone(), greedy(4))).await;
        reader.until(|picture| picture.known(&first) == 256).await;
        let refused = fixture.complete(tokens(killer, 4)).await.expect_err("dies");
        details(&refused, Code::Internal, "INTERNAL");

        let mut refused = 0;
        while let Err(error) = fixture.complete(tokens(second.clone(), 4)).await {
            assert_eq!(error.code(), Code::Unavailable, "{error:?}");
            refused += 1;
            assert!(refused < 100_000, "it never comes back");
        }
        assert_eq!(fixture.handle.models().device().restarts, 1);
        // What moved to main memory in time is there still.
        reader.until(|p| p.known(&second) == 192 && p.known(&first) == 256).await;
        assert!(resumed(&fixture, &[&first[..], &[1]].concat()).await >= 256);
        drop(reader);
        fixture.shut_down().await;
    })
    .await;
}

#[tokio::test]
async fn there_are_so_many_readers_at_once() {
    within(async {
        let fixture = Fixture::start().await;
        let mut readers = Vec::new();
        for _ in 0..READERS_MAX {
            readers.push(subscribe(&fixture, 0).await.expect("has a place"));
        }
        let refused = subscribe(&fixture, 0).await.expect_err("is one too many");
        details(&refused, Code::ResourceExhausted, "QUEUE_FULL");
        // A place is free again when the server hears that its reader has gone.
        readers.pop();
        let mut calls = 0;
        while subscribe(&fixture, 0).await.is_err() {
            calls += 1;
            assert!(calls < 20_000, "the place is never free again");
            tokio::task::yield_now().await;
        }
        drop(readers);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_server_that_closes_ends_the_stream() {
    within(async {
        let fixture = Fixture::start().await;
        let mut stream = subscribe(&fixture, 0).await.expect("opens");
        fixture.handle.shut_down();
        let status = loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("expected a reason"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        fixture.shut_down().await;
    })
    .await;
}
