//! HTTP/2 by hand (RFC 9113), for clients that do not keep to its manners. Frames are written as
//! bytes, since a library would keep the peace.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ACK: u8 = 1;

/// The setting of a stream's first window.
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;

/// The error code for peers that ask too much.
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// Frames read of a connection at most.
const FRAMES_MAX: usize = 1_000_000;

/// One frame as bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("is short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The headers of a call of `path`, in HPACK without compression.
pub(crate) fn headers_of(path: &str) -> Vec<u8> {
    // POST and http, from the static table.
    let mut block = vec![0x83, 0x86];
    let mut literal = |name: &[u8], value: &str| {
        block.extend(name);
        block.push(u8::try_from(value.len()).expect("is short"));
        block.extend(value.as_bytes());
    };
    literal(&[0x04], path);
    literal(&[0x01], "localhost");
    // Entry 31 of the static table is content-type.
    literal(&[0x0f, 0x10], "application/grpc");
    literal(b"\x00\x02te", "trailers");
    block
}

/// A header `name` with `bytes` of value, at most 127 x 128 of them.
pub(crate) fn large_header(name: &str, bytes: usize) -> Vec<u8> {
    let mut block = vec![0, u8::try_from(name.len()).expect("is short")];
    block.extend(name.as_bytes());
    // An integer of a 7-bit prefix in two further bytes.
    let rest = bytes - 127;
    block.extend([0x7f, (rest & 0x7f) as u8 | 0x80, (rest >> 7) as u8]);
    block.extend(std::iter::repeat_n(b'x', bytes));
    block
}

/// A message as gRPC frames it.
pub(crate) fn message(message: &impl prost::Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(body.len()).expect("is short").to_be_bytes());
    bytes.extend(body);
    bytes
}

/// What a connection was told at its end.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Frames by type.
    pub(crate) kinds: [usize; 16],
    /// Acknowledgements of PING and SETTINGS among them.
    pub(crate) acks: usize,
    /// Error codes of GOAWAY.
    pub(crate) goaway: Vec<u32>,
}

/// A connection to misuse.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    /// Connects and says what an HTTP/2 client says first, with these settings.
    pub(crate) async fn greet(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self(TcpStream::connect(address).await.expect("connects"));
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        raw.send(PREFACE).await.expect("is open");
        raw.send(&frame(SETTINGS, 0, 0, &payload)).await.expect("is open");
        raw
    }

    /// Writes bytes; fails when the server has closed.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// Reads until the server closes, or `enough`.
    pub(crate) async fn hear(&mut self, enough: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = Heard::default();
        for _ in 0..FRAMES_MAX {
            let mut head = [0; 9];
            if self.0.read_exact(&mut head).await.is_err() {
                return heard;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            if self.0.read_exact(&mut payload).await.is_err() {
                return heard;
            }
            let kind = head[3];
            heard.kinds[usize::from(kind)] += 1;
            if matches!(kind, PING | SETTINGS) && head[4] & ACK != 0 {
                heard.acks += 1;
            }
            if kind == GOAWAY {
                heard.goaway.push(u32::from_be_bytes(payload[4..8].try_into().expect("has four")));
            }
            if enough(&heard) {
                return heard;
            }
        }
        panic!("expected an end, found {FRAMES_MAX} frames: {heard:?}");
    }

    /// Reads until the server closes, and asserts that it does.
    pub(crate) async fn is_sent_away(&mut self) -> Heard {
        self.hear(|_| false).await
    }
}

/// A connection from another address of this machine.
pub(crate) async fn from_elsewhere(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 2], 0).into())?;
    socket.connect(address).await
}
