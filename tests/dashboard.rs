//! The page of the admin port and what it is fed from, over sockets. What its script draws of that is
//! checked by `tests/dashboard/page.sh`.

mod support;

use sconce_server::serve::ListenAddress;
use serde_json::Value;
use support::http::{ask, get};
use support::{Fixture, MODEL, plan, text, within};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;

/// Pages with events at once, as docs/OPERATIONS.md says.
const SUBSCRIBERS_MAX: usize = 16;

/// A server with an admin port.
async fn watched() -> (Fixture, ListenAddress) {
    let mut plan = plan("");
    plan.admin = vec![ListenAddress::Tcp(([127, 0, 0, 1], 0).into())];
    let fixture = Fixture::with(plan).await;
    let address = fixture.handle.admin_addrs()[0].clone();
    (fixture, address)
}

async fn json(address: &ListenAddress, path: &str) -> Value {
    let answer = get(address, path).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    assert_eq!(answer.headers["content-type"], "application/json");
    // Without chunks, or in one: the text is between the first and the last brace.
    let (from, to) = (answer.body.find('{'), answer.body.rfind('}'));
    let text = &answer.body[from.expect("is an object")..=to.expect("is an object")];
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
}

/// The lines of `GET /events`, after its head; the status code of an answer without events.
async fn events(address: &ListenAddress) -> Result<Lines<BufReader<TcpStream>>, u16> {
    let ListenAddress::Tcp(address) = address else { panic!("the address is TCP") };
    let mut socket = TcpStream::connect(address).await.expect("connects");
    socket.write_all(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("is read");
    let mut lines = BufReader::new(socket).lines();
    let mut status = None;
    while let Some(line) = lines.next_line().await.expect("is answered") {
        if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
            status = rest.get(..3).and_then(|code| code.parse::<u16>().ok());
        }
        if line.is_empty() {
            break;
        }
    }
    match status.expect("a status line") {
        200 => Ok(lines),
        code => Err(code),
    }
}

/// The next event; none at the end of the stream.
async fn next(lines: &mut Lines<BufReader<TcpStream>>) -> Option<Value> {
    while let Some(line) = lines.next_line().await.expect("is open") {
        if let Some(data) = line.strip_prefix("data: ") {
            return Some(serde_json::from_str(data).expect("an event is JSON"));
        }
    }
    None
}

#[tokio::test]
async fn the_page_is_served_with_a_policy_and_nothing_is_taken() {
    within(async {
        let (fixture, address) = watched().await;
        let page = get(&address, "/").await;
        assert_eq!(page.status, 200);
        assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
        let policy = &page.headers["content-security-policy"];
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(page.headers["x-content-type-options"], "nosniff");
        assert!(page.body.contains("</html>"));
        for path in ["/", "/status.json", "/events", "/cache.json"] {
            for method in ["POST", "PUT", "DELETE"] {
                assert_eq!(ask(&address, method, path).await.status, 405, "{method} {path}");
            }
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn the_snapshot_tells_what_was_done_and_nothing_that_was_said() {
    within(async {
        let (fixture, address) = watched().await;
        let before = json(&address, "/status.json").await;
        assert_eq!(before["totals"]["completion_tokens"], 0);
        assert_eq!(before["recent"], Value::Array(Vec::new()));
        let secret = "a lamp that nobody else should read of, long enough to be kept whole";
        fixture.complete(text(secret, 8)).await.expect("completes");
        let second = fixture.complete(text(secret, 8)).await.expect("completes");
        assert!(second.text().len() > 1);
        // The account of a request is written when its body is dropped, after its last message.
        let status = loop {
            let status = json(&address, "/status.json").await;
            if status["recent"].as_array().map_or(0, Vec::len) == 2 {
                break status;
            }
            tokio::task::yield_now().await;
        };
        let totals = &status["totals"];
        assert_eq!(totals["completion_tokens"], 16);
        assert_eq!(totals["first_tokens"], 2);
        assert_eq!(totals["requests_finished"], 2);
        assert!(totals["resumed_tokens"].as_u64() > Some(0), "{totals}");
        assert!(totals["token_gap_seconds"].as_f64() >= Some(0.0), "{totals}");
        assert!(totals["step_seconds"].as_f64() > Some(0.0), "{totals}");
        assert_eq!(status["models"][0]["model"], MODEL);
        assert_eq!(status["models"][0]["state"], "ready");
        assert_eq!(status["memory"][0]["tier"], "device");
        let reasons = status["cache_reasons"].as_array().expect("a list");
        let looked_up: u64 = reasons.iter().filter_map(|count| count["requests"].as_u64()).sum();
        assert_eq!(looked_up, 2);
        let newest = &status["recent"][0];
        assert_eq!((&newest["model"], &newest["code"]), (&MODEL.into(), &"OK".into()));
        assert_eq!(newest["completion_tokens"], 8);
        assert!(newest["cached_tokens"].as_u64() > Some(0), "{newest}");
        assert_ne!(newest["request_id"], "");
        let tree = json(&address, &format!("/cache.json?model={MODEL}")).await;
        let nodes = tree["nodes"].as_array().expect("a list");
        assert!(nodes.iter().any(|node| node["hits"].as_u64() > Some(0)), "{tree}");
        for told in [status.to_string(), tree.to_string()] {
            assert!(!told.contains("lamp") && !told.contains(&second.text()), "{told}");
        }
        assert_eq!(get(&address, "/cache.json?model=other").await.status, 404);
        assert_eq!(get(&address, "/cache.json").await.status, 400);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn events_come_to_so_many_and_end_with_the_server() {
    within(async {
        let (fixture, address) = watched().await;
        let mut watching = Vec::new();
        for _ in 0..SUBSCRIBERS_MAX {
            watching.push(events(&address).await.expect("has a place"));
        }
        assert_eq!(events(&address).await.err(), Some(503));
        let first = next(&mut watching[0]).await.expect("is open");
        let second = next(&mut watching[0]).await.expect("is open");
        assert!(second["uptime_seconds"].as_f64() > first["uptime_seconds"].as_f64());
        // A place is free again when the server sees that its reader has gone.
        watching.pop();
        loop {
            match events(&address).await {
                Ok(lines) => break watching.push(lines),
                Err(code) => assert_eq!(code, 503),
            }
        }
        fixture.end().await;
        for mut lines in watching {
            while next(&mut lines).await.is_some() {}
        }
    })
    .await;
}
