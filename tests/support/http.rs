//! HTTP/1.1 by hand: one request a connection, as a probe or a scraper sends it.

use std::collections::BTreeMap;

use sconce_server::serve::ListenAddress;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Header lines by name, in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

/// Asks `address` with `method` for `path`.
pub(crate) async fn ask(address: &ListenAddress, method: &str, path: &str) -> Answer {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut heard = Vec::new();
    match address {
        ListenAddress::Tcp(address) => {
            let mut socket = TcpStream::connect(address).await.expect("connects");
            socket.write_all(request.as_bytes()).await.expect("is read");
            socket.read_to_end(&mut heard).await.expect("is answered");
        }
        ListenAddress::Unix(path) => {
            let mut socket = UnixStream::connect(path).await.expect("connects");
            socket.write_all(request.as_bytes()).await.expect("is read");
            socket.read_to_end(&mut heard).await.expect("is answered");
        }
    }
    let heard = String::from_utf8(heard).expect("is text");
    let (head, body) = heard.split_once("\r\n\r\n").expect("a head and a body");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').expect("a header line");
        (name.to_ascii_lowercase(), value.trim().to_owned())
    });
    Answer {
        status: status.parse().expect("is a number"),
        headers: headers.collect(),
        body: body.to_owned(),
    }
}

/// Asks `address` for `path` with GET.
pub(crate) async fn get(address: &ListenAddress, path: &str) -> Answer {
    ask(address, "GET", path).await
}
