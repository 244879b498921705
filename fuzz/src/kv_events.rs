//! What gateways are told of the cache, while prompts come and go: the batches that a reader has taken
//! in, one after the other, make what a new reader is told at once.

use std::collections::BTreeSet;

use arbitrary::{Result, Unstructured};
use sconce_proto::compat::smg::grpc::common::kv_cache_event::Data;
use sconce_proto::compat::smg::grpc::common::{
    FlushCacheRequest, KvEventBatch, SubscribeKvEventsRequest,
};
use sconce_proto::compat::vllm::grpc::engine::vllm_engine_client::VllmEngineClient;
use sconce_proto::v1::complete_request::Prompt;
use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_proto::v1::{CacheOptions, CompleteRequest, TokensPrompt};
use tonic::Streaming;

use crate::requests::stream;
use crate::server::{MODEL, Server, Service, answered, check, with};
use crate::text::{noises, several};

/// Tokens of a page, which a reader is told of once it is whole.
const PAGE: usize = 64;
/// Most things that happen.
const STEPS_MAX: usize = 6;
/// Most messages of an answer.
const MESSAGES_MAX: usize = 64;

type Client = VllmEngineClient<Service>;

pub(crate) fn run(bytes: &[u8]) {
    with(async |server| {
        let _ = follow(server, &mut Unstructured::new(bytes)).await;
    });
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    noises(32, 80)
}

async fn follow(server: &Server, u: &mut Unstructured<'_>) -> Result<()> {
    let mut client = VllmEngineClient::new(server.service.clone());
    // The server is that of all inputs.
    flush(&mut client).await;
    let mut reader = Reader::begin(&mut client).await;
    for _ in 0..u.int_in_range(1..=STEPS_MAX)? {
        match u.int_in_range(0..=7)? {
            0 => flush(&mut client).await,
            1 => begin_anywhere(&mut client, u.arbitrary()?).await,
            2 => reader.begin_again(&mut client).await,
            _ => complete(server, u).await?,
        }
        if u.arbitrary()? {
            let new = Reader::begin(&mut client).await;
            reader.read_until(new.number).await;
            assert_eq!(reader.blocks, new.blocks, "at batch {}", new.number);
        }
    }
    Ok(())
}

async fn flush(client: &mut Client) {
    let flushed = client.flush_cache(FlushCacheRequest { timeout_s: 0.0 });
    if let Err(status) = answered("FlushCache", flushed).await {
        check("FlushCache", &status);
    }
}

/// A prompt of few different pages, so that prompts begin alike.
async fn complete(server: &Server, u: &mut Unstructured<'_>) -> Result<()> {
    let page = |u: &mut Unstructured<'_>| Ok(vec![u.int_in_range(0..=2_u32)?; PAGE]);
    let mut ids = several(u, 3, page)?.concat();
    ids.extend(vec![3; u.int_in_range(1..=20)?]);
    let salt = if u.ratio(1, 8)? { Some("salt".to_owned()) } else { None };
    let cache = Some(CacheOptions { salt, bypass: u.ratio(1, 8)?, ..CacheOptions::default() });
    let request = CompleteRequest {
        model: MODEL.to_owned(),
        prompt: Some(Prompt::Tokens(TokensPrompt { ids })),
        max_tokens: Some(u.int_in_range(0..=3)?),
        cache,
        ..CompleteRequest::default()
    };
    let mut client = InferenceServiceClient::new(server.service.clone());
    stream("Complete", client.complete(request), MESSAGES_MAX).await;
    Ok(())
}

/// From a number that is hardly ever one.
async fn begin_anywhere(client: &mut Client, number: u64) {
    if let Err(status) = subscribe(client, number).await {
        check("SubscribeKvEvents", &status);
    }
}

async fn subscribe(
    client: &mut Client,
    start_sequence_number: u64,
) -> std::result::Result<Streaming<KvEventBatch>, tonic::Status> {
    let request = SubscribeKvEventsRequest { start_sequence_number, ..Default::default() };
    let answer = answered("SubscribeKvEvents", client.subscribe_kv_events(request)).await;
    answer.map(tonic::Response::into_inner)
}

/// One who takes in what is told.
#[derive(Debug)]
struct Reader {
    batches: Streaming<KvEventBatch>,
    /// Of the last batch.
    number: u64,
    blocks: BTreeSet<i64>,
}

impl Reader {
    /// One that has taken in all that is remembered.
    async fn begin(client: &mut Client) -> Self {
        let batches = subscribe(client, 0).await.expect("a new reader is served");
        let mut reader = Self { batches, number: 0, blocks: BTreeSet::new() };
        loop {
            let batch = reader.next().await;
            let part = batch.snapshot.expect("all that is remembered comes first");
            reader.number = batch.sequence_number;
            reader.take(batch);
            if part.index + 1 == part.count {
                assert_eq!(part.blocks, reader.blocks.len() as u64);
                return reader;
            }
        }
    }

    /// Goes on where it is, as after a connection that was lost.
    async fn begin_again(&mut self, client: &mut Client) {
        self.batches = subscribe(client, self.number).await.expect("few batches have come since");
    }

    async fn read_until(&mut self, number: u64) {
        while self.number < number {
            let batch = self.next().await;
            // A record of the load alone repeats the number.
            if batch.load.as_ref().is_some_and(|load| load.load_only) {
                assert_eq!(batch.sequence_number, self.number);
                continue;
            }
            assert_eq!(batch.sequence_number, self.number + 1);
            self.number = batch.sequence_number;
            self.take(batch);
        }
    }

    async fn next(&mut self) -> KvEventBatch {
        let batch = answered("SubscribeKvEvents", self.batches.message()).await;
        batch.expect("a reader is served").expect("the stream has no end")
    }

    fn take(&mut self, batch: KvEventBatch) {
        for event in batch.events {
            match event.data.expect("every event says something") {
                Data::Cleared(_) => self.blocks.clear(),
                Data::Removed(removed) => {
                    for hash in removed.block_hashes {
                        assert!(self.blocks.remove(&hash), "{hash} was not there");
                    }
                }
                Data::Stored(stored) => {
                    let parent = stored.parent_block_hash;
                    assert!(parent.is_none_or(|parent| self.blocks.contains(&parent)));
                    for block in stored.blocks {
                        assert_eq!(block.token_ids.len(), PAGE);
                        assert!(self.blocks.insert(block.block_hash), "told twice");
                    }
                }
            }
        }
    }
}
