//! The way from an accepted socket to a connection: bounds for each address, then TLS.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use super::listener::{Accepted, Io};
use super::tls::Tls;
use crate::layer::auth::Peer;
use crate::quota::{Place, Quota};

/// Most TLS handshakes of one address at once: they cost more than what is bounded otherwise, and a
/// slow one holds its place for [`HANDSHAKE_TIME`](super::tls::HANDSHAKE_TIME).
const HANDSHAKES_PER_ADDRESS_MAX: usize = 64;

/// Leading bits of an IPv6 address that one subscriber has (RFC 6177, section 2).
const SUBSCRIBER_BITS: u32 = 64;

/// Lets connections in; clones share the counts.
#[derive(Debug, Clone)]
pub(super) struct Door {
    connections: Quota<IpAddr>,
    handshakes: Quota<IpAddr>,
    tls: Option<Tls>,
}

/// A connection that was let in.
pub(super) struct Guest {
    /// What is read and written.
    pub(super) io: Box<dyn Io>,
    /// Who the other end is, as far as the connection tells.
    pub(super) peer: Peer,
    /// Counts until it is dropped.
    pub(super) place: Option<Place<IpAddr>>,
}

impl Door {
    /// A door that speaks TLS if there is `tls`.
    pub(super) fn new(connections_per_address_max: usize, tls: Option<Tls>) -> Self {
        Self {
            connections: Quota::new(connections_per_address_max),
            handshakes: Quota::new(HANDSHAKES_PER_ADDRESS_MAX),
            tls,
        }
    }

    /// Lets a connection in. Those from a Unix socket are neither counted nor encrypted.
    ///
    /// # Errors
    /// The address has as many connections, or handshakes, as it may; the handshake fails.
    pub(super) async fn let_in(&self, accepted: Accepted) -> io::Result<Guest> {
        let Accepted { io, peer } = accepted;
        let Some(address) = peer.map(|peer| subscriber(peer.ip())) else {
            return Ok(Guest { io, peer: Peer::default(), place: None });
        };
        let full = |what: &str, max: usize| {
            io::Error::other(format!("{address} has {max} {what}, as many as it may"))
        };
        let place = self.connections.enter(address);
        let place = place.ok_or_else(|| full("connections", self.connections.max()))?;
        let (io, certificate) = match &self.tls {
            None => (io, None),
            Some(tls) => {
                let handshake = self.handshakes.enter(address);
                let _handshake =
                    handshake.ok_or_else(|| full("handshakes", self.handshakes.max()))?;
                tls.handshake(io).await?
            }
        };
        Ok(Guest { io, peer: Peer { address: peer, certificate }, place: Some(place) })
    }
}

/// Whom an address is counted as.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() >> SUBSCRIBER_BITS << SUBSCRIBER_BITS;
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::security::{ClientAuth, TlsPlan};
    use super::super::tls::HANDSHAKE_TIME;
    use super::*;

    fn from(peer: Option<&str>) -> Accepted {
        let (io, _) = tokio::io::duplex(1);
        Accepted { io: Box::new(io), peer: peer.map(socket_address) }
    }

    fn socket_address(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().expect("an address"), 50_000)
    }

    #[tokio::test]
    async fn an_address_has_so_many_connections_and_others_have_theirs() {
        let door = Door::new(2, None);
        let _first = door.let_in(from(Some("192.0.2.1"))).await.expect("is free");
        // The same address, as a socket of both families tells it.
        let second = door.let_in(from(Some("::ffff:192.0.2.1"))).await.expect("is free");
        assert!(door.let_in(from(Some("192.0.2.1"))).await.is_err());
        let _another = door.let_in(from(Some("192.0.2.2"))).await.expect("is another");
        drop(second);
        let _again = door.let_in(from(Some("192.0.2.1"))).await.expect("is free again");
        for _ in 0..3 {
            let guest = door.let_in(from(None)).await.expect("is a Unix socket");
            assert!(guest.place.is_none());
        }
    }

    /// TLS with a certificate of its own.
    fn tls() -> (tempfile::TempDir, Tls) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("signs");
        let dir = tempfile::tempdir().expect("a temp dir");
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        std::fs::write(&certificate, made.cert.pem()).expect("writes");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("writes");
        let client_auth = ClientAuth::None;
        let plan = TlsPlan { certificate, key, client_ca: None, client_auth };
        (dir, Tls::open(&plan).expect("is right"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_ends_in_time_and_an_address_has_so_many() {
        let (_dir, tls) = tls();
        let door = Door::new(usize::MAX, Some(tls));
        let mut clients = Vec::new();
        let mut shake = |peer: &str| {
            let (client, server) = tokio::io::duplex(1 << 10);
            clients.push(client);
            let peer = Some(socket_address(peer));
            let (door, accepted) = (door.clone(), Accepted { io: Box::new(server), peer });
            let began = tokio::time::Instant::now();
            tokio::spawn(async move {
                let refused = door.let_in(accepted).await.err().expect("is not let in");
                (began.elapsed(), refused.to_string())
            })
        };
        let silent: Vec<_> = (0..HANDSHAKES_PER_ADDRESS_MAX).map(|_| shake("192.0.2.1")).collect();
        tokio::task::yield_now().await;
        let (after, why) = shake("192.0.2.1").await.expect("ends");
        assert_eq!(after, std::time::Duration::ZERO);
        assert!(why.contains("64 handshakes"), "{why}");
        let another = shake("192.0.2.2");
        for silent in silent.into_iter().chain([another]) {
            let (after, why) = silent.await.expect("ends");
            assert_eq!(after, HANDSHAKE_TIME, "{why}");
        }
    }

    #[test]
    fn a_subscriber_of_ipv6_has_a_whole_network() {
        let of = |text: &str| subscriber(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
