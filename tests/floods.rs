//! Clients that mean harm, on connections of their own: they are sent away or bounded, and everybody
//! else is served meanwhile.

mod support;

use std::net::SocketAddr;

use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_server::serve::{ClientAuth, SecurityPlan, ServePlan, TlsPlan};
use support::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, INITIAL_WINDOW_SIZE,
    PING, PREFACE, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, frame, from_elsewhere, headers_of,
    large_header, message,
};
use support::tls::{Authority, Folder, address, channel};
use support::{Fixture, Secured, plan, text, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const COMPLETE: &str = "/sconce.v1.InferenceService/Complete";
const LIST: &str = "/sconce.v1.ModelService/ListModels";

/// Connections that attack one after another.
const ATTACKERS: usize = 4;

async fn others_are_served(fixture: &Fixture) {
    let completed = fixture.complete(text("still here", 4)).await.expect("others are served");
    assert_eq!(completed.token_ids().len(), 4);
}

/// The numbers of streams that a client opens.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|index| 2 * index + 1)
}

fn call(stream: u32, path: &str, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &headers_of(path))
}

#[tokio::test]
async fn a_client_that_resets_what_it_opens_is_sent_away() {
    within(async {
        let fixture = Fixture::start().await;
        for path in [LIST, COMPLETE] {
            for _ in 0..ATTACKERS {
                let mut raw = Raw::greet(address(&fixture.handle), &[]).await;
                let cancel = 8_u32.to_be_bytes();
                let flood: Vec<u8> = streams(1000)
                    .flat_map(|id| [call(id, path, 0), frame(RST_STREAM, 0, id, &cancel)].concat())
                    .collect();
                // It may be sent away before it has said everything.
                drop(raw.send(&flood).await);
                let heard = raw.is_sent_away().await;
                assert!(heard.goaway.iter().all(|code| *code == ENHANCE_YOUR_CALM), "{heard:?}");
                others_are_served(&fixture).await;
            }
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_has_so_many_requests_open_and_further_ones_are_refused_alone() {
    within(async {
        let mut plan = plan("");
        plan.limits.streams_per_connection_max = 2;
        let fixture = Fixture::with(plan).await;
        let mut raw = Raw::greet(address(&fixture.handle), &[]).await;
        // Requests whose message never comes.
        let open: Vec<u8> = streams(5).flat_map(|id| call(id, COMPLETE, 0)).collect();
        raw.send(&open).await.expect("is open");
        let heard = raw.hear(|heard| heard.kinds[usize::from(RST_STREAM)] == 3).await;
        assert!(heard.goaway.is_empty(), "{heard:?}");
        others_are_served(&fixture).await;
        // Where one has ended another may begin.
        let end = [frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()), call(11, LIST, END_STREAM)];
        raw.send(&end.concat()).await.expect("is open");
        let heard = raw.hear(|heard| heard.kinds[usize::from(HEADERS)] > 0).await;
        assert_eq!(heard.kinds[usize::from(RST_STREAM)], 0, "{heard:?}");
        drop(raw);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_has_its_streams_reset_is_sent_away() {
    within(async {
        let fixture = Fixture::start().await;
        for _ in 0..ATTACKERS {
            let mut raw = Raw::greet(address(&fixture.handle), &[]).await;
            // A window that grows by nothing is a fault of its stream.
            let fault = |id| frame(WINDOW_UPDATE, 0, id, &[0; 4]);
            let flood: Vec<u8> =
                streams(1000).flat_map(|id| [call(id, COMPLETE, 0), fault(id)].concat()).collect();
            drop(raw.send(&flood).await);
            raw.is_sent_away().await;
            others_are_served(&fixture).await;
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn pings_and_settings_are_answered_as_fast_as_answers_are_read() {
    within(async {
        let fixture = Fixture::start().await;
        for (kind, payload) in [(PING, &[7; 8][..]), (SETTINGS, &[])] {
            let one = frame(kind, 0, 0, payload);
            let flood = one.repeat(1 << 19);
            // It reads nothing: what waits for it is what sockets hold, and then it has to wait.
            let mut deaf = Raw::greet(address(&fixture.handle), &[]).await;
            let sending = tokio::spawn({
                let flood = flood.clone();
                async move {
                    drop(deaf.send(&flood).await);
                    deaf
                }
            });
            for _ in 0..ATTACKERS {
                others_are_served(&fixture).await;
            }
            sending.abort();
            // It reads: each is answered, and others are served between.
            let raw = Raw::greet(address(&fixture.handle), &[]).await;
            let (mut reader, mut writer) = raw.0.into_split();
            let some = one.repeat(5_000);
            let sending = tokio::spawn(async move {
                drop(writer.write_all(&some).await);
                writer
            });
            let mut answer = vec![0; 5_000 * one.len()];
            reader.read_exact(&mut answer).await.expect("is answered");
            others_are_served(&fixture).await;
            sending.await.expect("ends");
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn headers_have_a_bound() {
    within(async {
        let fixture = Fixture::start().await;
        // 17 KiB in all, in a list of its own: refused, without a look at the call.
        let mut raw = Raw::greet(address(&fixture.handle), &[]).await;
        let mut block = headers_of(LIST);
        (0..2).for_each(|_| block.extend(large_header("x-large", 8704)));
        let (first, rest) = block.split_at(16 << 10);
        raw.send(&frame(HEADERS, END_STREAM, 1, first)).await.expect("is open");
        raw.send(&frame(CONTINUATION, END_HEADERS, 1, rest)).await.expect("is open");
        let heard = raw
            .hear(|heard| {
                [HEADERS, RST_STREAM].iter().any(|kind| heard.kinds[usize::from(*kind)] > 0)
            })
            .await;
        assert_eq!(heard.kinds[usize::from(DATA)], 0, "the call was answered: {heard:?}");
        others_are_served(&fixture).await;
        // A list that never ends, of full frames and of empty ones.
        let full = large_header("x-large", 16_000);
        for piece in [&full[..], &[]] {
            let mut raw = Raw::greet(address(&fixture.handle), &[]).await;
            raw.send(&frame(HEADERS, END_STREAM, 1, &headers_of(LIST))).await.expect("is open");
            let flood = frame(CONTINUATION, 0, 1, piece).repeat(100);
            let mut sent = 0;
            while raw.send(&flood).await.is_ok() {
                sent += 1;
                assert!(sent < 1000, "a list of headers goes on for ever");
            }
            others_are_served(&fixture).await;
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_what_its_streams_may() {
    within(async {
        let fixture = Fixture::with(plan("context=100000000")).await;
        // No byte of an answer may be sent.
        let mut raw = Raw::greet(address(&fixture.handle), &[(INITIAL_WINDOW_SIZE, 0)]).await;
        let mut calls = Vec::new();
        for id in streams(16) {
            calls.extend(call(id, COMPLETE, 0));
            let request = message(&text("never read", 50_000_000));
            calls.extend(frame(DATA, END_STREAM, id, &request));
        }
        raw.send(&calls).await.expect("is open");
        fixture
            .until("all of them run", |status| status.sequences.unwrap_or_default().running >= 16)
            .await;
        // They come to stand still, while others go on.
        let used = async || fixture.status().await.models[0].state_bytes_used;
        let (mut last, mut still, mut rounds) = (used().await, 0, 0);
        while still < 20 {
            others_are_served(&fixture).await;
            let now = used().await;
            still = if now == last { still + 1 } else { 0 };
            last = now;
            rounds += 1;
            assert!(rounds < 20_000, "their state grows for ever: {now} bytes");
        }
        drop(raw);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn connections_that_say_little_hold_up_nobody() {
    within(async {
        let fixture = Fixture::start().await;
        let mut open = Vec::new();
        for said in [&b""[..], &PREFACE[..1], &PREFACE[..23], PREFACE] {
            for _ in 0..32 {
                let mut socket =
                    TcpStream::connect(address(&fixture.handle)).await.expect("connects");
                socket.write_all(said).await.expect("is open");
                open.push(socket);
            }
            let another = support::connect(&fixture.handle).await;
            let mut client = InferenceServiceClient::new(another);
            client.complete(text("still here", 4)).await.expect("others are served");
        }
        drop(open);
        fixture.end().await;
    })
    .await;
}

async fn elsewhere(address: SocketAddr) -> TcpStream {
    from_elsewhere(address).await.expect("connects")
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_address_takes_its_connections_and_not_those_of_others() {
    within(async {
        let mut plan = plan("");
        plan.security.connections_per_address_max = 4;
        let fixture = Fixture::with(plan).await;
        let at = address(&fixture.handle);
        let mut held = Vec::new();
        for count in 1..=5 {
            let mut socket = elsewhere(at).await;
            let greeting = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
            // It may be closed already.
            drop(socket.write_all(&greeting).await);
            let answer = socket.read_exact(&mut [0; 9]).await;
            assert_eq!(answer.is_ok(), count <= 4, "connection {count}: {answer:?}");
            held.push(socket);
        }
        others_are_served(&fixture).await;
        let _another = support::connect(&fixture.handle).await;
        fixture.end().await;
    })
    .await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn handshakes_that_do_not_end_hold_up_nobody_else() {
    within(async {
        let (authority, folder) = (Authority::new(), Folder::new());
        folder.keep(&authority.server());
        let tls = Some(TlsPlan {
            certificate: folder.path("tls.crt"),
            key: folder.path("tls.key"),
            client_ca: None,
            client_auth: ClientAuth::None,
        });
        let security = SecurityPlan { tls, ..SecurityPlan::default() };
        let server = Secured::start(ServePlan { security, ..plan("") }).await;
        let at = address(&server.handle);
        // The beginning of a ClientHello, from more connections than one address may have in a
        // handshake. That this is bounded, and in time, is tested beside the code, by its own clock.
        let mut open = Vec::new();
        for _ in 0..80 {
            let mut socket = elsewhere(at).await;
            // It may be closed already.
            drop(socket.write_all(&[22, 3, 1, 2, 0, 1]).await);
            open.push(socket);
        }
        let mut client = InferenceServiceClient::new(
            channel(&server.handle, &authority, None).await.expect("others are let in"),
        );
        client.complete(text("still here", 4)).await.expect("others are served");
        drop((open, client));
        server.end().await;
    })
    .await;
}
