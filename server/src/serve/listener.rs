//! Listening sockets, TCP and Unix, behind one `accept`.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::ListenAddress;

/// Who may connect to a Unix socket: its owner and group.
const SOCKET_MODE: u32 = 0o660;

/// A byte stream of either kind.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that was accepted.
pub(crate) struct Accepted {
    /// What is read and written.
    pub(crate) io: Box<dyn Io>,
    /// The other end's address; none of a Unix socket.
    pub(crate) peer: Option<SocketAddr>,
}

/// A socket that accepts connections.
#[derive(Debug)]
pub(crate) struct Listener {
    address: ListenAddress,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix { socket: UnixListener, _file: SocketFile },
}

impl Listener {
    /// Listens on `address`. A socket file that no process listens on any more is replaced.
    pub(crate) async fn bind(address: &ListenAddress) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => {
                let socket = TcpListener::bind(address).await?;
                let address = ListenAddress::Tcp(socket.local_addr()?);
                Ok(Self { address, socket: Socket::Tcp(socket) })
            }
            ListenAddress::Unix(path) => {
                remove_stale(path).await?;
                let socket = UnixListener::bind(path)?;
                let file = SocketFile::of(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
                Ok(Self { address: address.clone(), socket: Socket::Unix { socket, _file: file } })
            }
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                // Tokens are small and wanted at once.
                stream.set_nodelay(true)?;
                Ok(Accepted { io: Box::new(stream), peer: Some(peer) })
            }
            Socket::Unix { socket, .. } => {
                Ok(Accepted { io: Box::new(socket.accept().await?.0), peer: None })
            }
        }
    }
}

/// Removes the file of a socket nobody listens on. Anything else at `path` is an error.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        let found = "the path exists and is not a socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, found));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
    }
}

/// The file of a Unix socket; removed when dropped, unless another took its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the socket file");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &Path) -> ListenAddress {
        ListenAddress::Unix(path.to_owned())
    }

    #[tokio::test]
    async fn the_socket_file_lives_as_long_as_the_listener() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("s.sock");
        let listener = Listener::bind(&unix(&path)).await.expect("binds");
        let mode = std::fs::metadata(&path).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("s.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("leaves a stale file"));
        assert!(path.exists());
        let _live = Listener::bind(&unix(&path)).await.expect("replaces the stale file");
        let error = Listener::bind(&unix(&path)).await.expect_err("is in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").expect("writes");
        let error = Listener::bind(&unix(&path)).await.expect_err("refuses");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "data");
    }
}
