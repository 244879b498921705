//! Events of the cache and the load that is pushed with them, as the gateway's index of prefixes is fed.

use std::collections::BTreeMap;

use openai_protocol::worker::SchedulerLoadSnapshot;
use serde_json::json;
use smg_grpc_client::VllmEngineClient;
use smg_grpc_client::common_proto::KvEventBatch;
use smg_grpc_client::common_proto::kv_cache_event::Data;
use tonic::{Code, Streaming};

use crate::requests::{chat, endless};
use crate::worker::{SLOW, Worker, answered, load, run, within};

/// Tokens of a block.
const BLOCK: usize = 64;

/// What an index makes of the events of one worker.
struct Index {
    stream: Streaming<KvEventBatch>,
    /// Tokens up to the end of each block, by the block's hash.
    paths: BTreeMap<i64, Vec<u32>>,
    /// Number of the last batch that was no mere load record; 0 before the first.
    cursor: u64,
    /// Number of the last load record.
    sample: u64,
}

impl Index {
    /// Of what comes after `cursor`, with what is known already.
    async fn after(client: &VllmEngineClient, cursor: u64, paths: BTreeMap<i64, Vec<u32>>) -> Self {
        let stream = client.subscribe_kv_events_with_load_records(cursor).await.expect("opens");
        Self { stream, paths, cursor, sample: 0 }
    }

    async fn anew(client: &VllmEngineClient) -> Self {
        Self::after(client, 0, BTreeMap::new()).await
    }

    /// Takes in the next batch and returns it.
    async fn next(&mut self) -> KvEventBatch {
        let batch = self.stream.message().await.expect("is alive").expect("is open");
        let load = batch.load.as_ref().expect("each batch has a load");
        assert!(load.sample > self.sample, "records can be ordered");
        self.sample = load.sample;
        if load.load_only {
            assert_eq!((batch.sequence_number, batch.events.len()), (self.cursor, 0), "{batch:?}");
            return batch;
        }
        let follows = self.cursor == 0 || batch.sequence_number == self.cursor + 1;
        assert!(follows, "{} after {}", batch.sequence_number, self.cursor);
        assert_eq!(batch.snapshot.is_some(), self.cursor == 0 && self.sample == 1, "{batch:?}");
        self.cursor = batch.sequence_number;
        batch.events.iter().for_each(|event| self.take(event.data.as_ref().expect("says what")));
        batch
    }

    fn take(&mut self, event: &Data) {
        match event {
            Data::Cleared(_) => self.paths.clear(),
            Data::Removed(removed) => {
                for hash in &removed.block_hashes {
                    assert!(self.paths.remove(hash).is_some(), "removed and not known");
                }
            }
            Data::Stored(stored) => {
                let parent = stored.parent_block_hash;
                let mut path = parent.map(|hash| self.paths[&hash].clone()).unwrap_or_default();
                for block in &stored.blocks {
                    let sizes = (block.block_size as usize, block.token_ids.len());
                    assert_eq!(sizes, (BLOCK, BLOCK));
                    path.extend_from_slice(&block.token_ids);
                    let before = self.paths.insert(block.block_hash, path.clone());
                    assert!(before.is_none(), "stored and known already");
                }
            }
        }
    }

    async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            self.next().await;
        }
    }

    /// Tokens of the longest beginning of `prompt` that the worker has.
    fn known(&self, prompt: &[u32]) -> usize {
        let fits = self.paths.values().filter(|path| prompt.starts_with(path));
        fits.map(Vec::len).max().unwrap_or(0)
    }
}

fn prompt(length: usize, seed: u32) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 31 + seed * 17) % 250).collect()
}

/// Makes the worker remember `prompt`, and returns what of it was there.
async fn remember(client: &VllmEngineClient, prompt: &[u32]) -> usize {
    let request = chat("remember", prompt.to_vec(), json!({"max_completion_tokens": 4}));
    run(client, request).await.end().cached_tokens as usize
}

#[tokio::test]
async fn an_index_knows_what_a_prompt_resumes() {
    within(async {
        // A recurrent model can be resumed at some places only, and says so.
        for path in ["sim:", "sim:recurrent=true"] {
            let worker = Worker::start(path, &[]);
            let client = worker.client().await;
            let mut index = Index::anew(&client).await;
            let first = index.next().await;
            let snapshot = first.snapshot.expect("from nothing on, all comes first");
            assert_eq!((snapshot.count, snapshot.blocks, snapshot.unknown_before), (1, 0, 0));
            assert!(matches!(first.events[0].data, Some(Data::Cleared(_))));

            let long = prompt(300, 1);
            assert_eq!(remember(&client, &long).await, 0);
            index.until(|index| index.known(&long) == 256).await;
            let branch = [&long[..200], &prompt(300, 2)].concat();
            let shared = index.known(&branch);
            assert!((128..=192).contains(&shared), "{shared}");
            assert!(remember(&client, &branch).await >= shared);
            index.until(|index| index.known(&branch) == 448).await;

            client.flush_cache(0.0).await.expect("flushes");
            index.until(|index| index.paths.is_empty()).await;
            assert_eq!(remember(&client, &long).await, 0);
        }
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_comes_back_is_told_what_it_missed() {
    within(async {
        let worker = Worker::start("sim:", &[]);
        let client = worker.client().await;
        let (one, two) = (prompt(128, 1), prompt(192, 2));
        let mut index = Index::anew(&client).await;
        remember(&client, &one).await;
        index.until(|index| index.known(&one) == 128).await;
        let (cursor, paths) = (index.cursor, index.paths.clone());
        drop(index);

        remember(&client, &two).await;
        let mut back = Index::after(&client, cursor, paths).await;
        back.until(|index| index.known(&two) == 192).await;
        assert_eq!(back.known(&one), 128);
        let mut anew = Index::anew(&client).await;
        anew.next().await;
        assert_eq!((anew.cursor, &anew.paths), (back.cursor, &back.paths));

        // Who does not ask for load records gets none before the first batch.
        let mut plain = client.subscribe_kv_events(0).await.expect("opens");
        let first = plain.message().await.expect("is alive").expect("is open");
        assert!(first.snapshot.is_some() && first.sequence_number == back.cursor, "{first:?}");

        for unknown in [1, back.cursor + 1000] {
            let refused = client.subscribe_kv_events(unknown).await.expect_err("is refused");
            answered(&refused, Code::OutOfRange);
        }
        // A cursor into what another process told is found out too.
        let other = Worker::start("sim:", &[]);
        let refused = other.client().await.subscribe_kv_events(cursor).await;
        answered(&refused.expect_err("is refused"), Code::OutOfRange);
    })
    .await;
}

#[tokio::test]
async fn the_load_that_is_pushed_is_the_one_that_is_polled() {
    within(async {
        let worker = Worker::start(SLOW, &[("ENGINE__SEQUENCES_MAX", "3")]);
        let client = worker.client().await;
        let mut index = Index::anew(&client).await;
        let running = client.generate(endless("runs")).await.expect("runs");
        // What comes without an event comes within a second or so.
        let pushed = loop {
            let record = index.next().await.load.expect("each batch has a load");
            let load = SchedulerLoadSnapshot::from(&record);
            if load.num_running_reqs == 1 && load.token_usage > 0.0 {
                break load;
            }
        };
        let polled = load(&client).await;
        let same = |load: &SchedulerLoadSnapshot| {
            let counts = (load.num_running_reqs, load.num_waiting_reqs, load.num_total_reqs);
            (counts, load.max_total_num_tokens, load.max_running_requests)
        };
        assert_eq!(same(&pushed), same(&polled));
        for load in [&pushed, &polled] {
            // Whichever way it comes, the gateway reads the share of the memory from both.
            assert_eq!(load.utilization, load.token_usage, "{load:?}");
            assert!(load.num_used_tokens > 0, "{load:?}");
        }
        assert_eq!(pushed.active_token_usage, Some(pushed.token_usage));
        drop(running);
    })
    .await;
}

#[tokio::test]
async fn a_drain_ends_the_events_with_a_reason() {
    within(async {
        let worker = Worker::start("sim:", &[]);
        let client = worker.client().await;
        let mut index = Index::anew(&client).await;
        index.next().await;
        worker.terminate();
        let status = loop {
            match index.stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("expected a reason"),
                Err(status) => break status,
            }
        };
        answered(&status, Code::Unavailable);
    })
    .await;
}
