//! Files with secrets that are read again when they change. What was read last and was right stays in
//! force until something right takes its place.
//!
//! Contents are compared, not times: an orchestrator swaps the link to a whole directory, and the
//! files behind it keep the times of another day.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use sha2::{Digest as _, Sha256};

/// How often files are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// Largest file; a thousand certificates have room.
const FILE_BYTES_MAX: u64 = 4 << 20;

type Parse<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync>;

/// What files say, in its latest right form.
pub struct Watched<T> {
    name: &'static str,
    files: Vec<PathBuf>,
    parse: Parse<T>,
    current: RwLock<Arc<T>>,
    /// Held while files are read, so that what was read last is what counts.
    reading: Mutex<()>,
    /// Never held while files are read: a disk that hangs must not hold up who asks for the status.
    state: Mutex<State>,
}

struct State {
    /// What was read last, right or wrong; `None` if it could not be read.
    seen: Option<[u8; 32]>,
    problem: Option<String>,
    since: Instant,
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T> Watched<T> {
    /// Reads `files`, named `name` in logs and in the status of the server.
    ///
    /// # Errors
    /// A file that cannot be read, or what `parse` finds wrong.
    pub(super) fn open(
        name: &'static str,
        files: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let contents = read_all(&files)?;
        let current = RwLock::new(Arc::new(parse(&contents)?));
        let seen = Some(digest(&contents));
        let state = State { seen, problem: None, since: Instant::now() };
        let (reading, state) = (Mutex::new(()), Mutex::new(state));
        Ok(Self { name, files, parse: Box::new(parse), current, reading, state })
    }

    /// What never changes, for tests.
    #[cfg(test)]
    pub(crate) fn fixed(name: &'static str, value: T) -> Self {
        Self {
            name,
            files: Vec::new(),
            parse: Box::new(|_| Err("is fixed".to_owned())),
            current: RwLock::new(Arc::new(value)),
            reading: Mutex::new(()),
            state: Mutex::new(State { seen: None, problem: None, since: Instant::now() }),
        }
    }

    /// What is in force.
    pub(crate) fn current(&self) -> Arc<T> {
        self.current.read().clone()
    }
}

/// Something that was read from files.
pub(super) trait Refresh: Send + Sync {
    /// Reads the files again if they have changed; reads files, so for a thread that may wait.
    fn refresh(&self);
    /// What became of it.
    fn status(&self) -> SecretStatus;
}

/// Everything that was read from files; clones are the same.
#[derive(Clone, Default)]
pub struct Secrets(Arc<Vec<Arc<dyn Refresh>>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secrets").field(&self.0.len()).finish()
    }
}

impl Secrets {
    /// These.
    pub(super) fn new(secrets: Vec<Arc<dyn Refresh>>) -> Self {
        Self(Arc::new(secrets))
    }

    /// What became of each.
    pub fn status(&self) -> Vec<SecretStatus> {
        self.0.iter().map(|secret| secret.status()).collect()
    }

    /// Reads again what has changed.
    pub(super) async fn refresh(&self) {
        let secrets = self.0.clone();
        let reading = tokio::task::spawn_blocking(move || {
            secrets.iter().for_each(|secret| secret.refresh());
        });
        if let Err(error) = reading.await {
            tracing::error!(%error, "files with secrets were not looked at");
        }
    }

    /// Reads again what has changed, for ever.
    pub(super) async fn watch(&self) -> std::convert::Infallible {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            self.refresh().await;
        }
    }
}

/// What became of a file with secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretStatus {
    /// The setting that names it.
    pub name: &'static str,
    /// Time since what is in force was read.
    pub age: Duration,
    /// Why what the file says now is not in force.
    pub problem: Option<String>,
}

impl<T: Send + Sync> Refresh for Watched<T> {
    fn refresh(&self) {
        let _reading = self.reading.lock();
        let contents = read_all(&self.files);
        let seen = contents.as_deref().ok().map(digest);
        if seen.is_some() && seen == self.state.lock().seen {
            return;
        }
        let parsed = contents.and_then(|contents| (self.parse)(&contents));
        let mut state = self.state.lock();
        state.seen = seen;
        match parsed {
            Ok(value) => {
                *self.current.write() = Arc::new(value);
                state.problem = None;
                state.since = Instant::now();
                tracing::info!(setting = self.name, "read again and in force");
            }
            Err(problem) if state.problem.as_ref() != Some(&problem) => {
                tracing::error!(
                    setting = self.name,
                    problem,
                    "not read again; the last stays in force"
                );
                state.problem = Some(problem);
            }
            Err(_) => {}
        }
    }

    fn status(&self) -> SecretStatus {
        let state = self.state.lock();
        SecretStatus { name: self.name, age: state.since.elapsed(), problem: state.problem.clone() }
    }
}

fn read_all(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    files.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let problem = |why: &dyn fmt::Display| format!("{}: {why}", path.display());
    let file = std::fs::File::open(path).map_err(|error| problem(&error))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| problem(&error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(problem(&format_args!("expected at most {FILE_BYTES_MAX} bytes, found more")));
    }
    Ok(bytes)
}

fn digest(contents: &[Vec<u8>]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for content in contents {
        hasher.update((content.len() as u64).to_le_bytes());
        hasher.update(content);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(contents: &[Vec<u8>]) -> Result<u32, String> {
        let text = String::from_utf8_lossy(&contents[0]);
        text.parse().map_err(|_| format!("expected a number, found {text:?}"))
    }

    #[test]
    fn what_is_wrong_changes_nothing_and_is_told_until_it_is_right() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("number");
        std::fs::write(&path, "1").expect("writes");
        let watched = Watched::open("n", vec![path.clone()], number).expect("is right");
        for (text, value, problem) in
            [("2", 2, None), ("x", 2, Some("expected a number, found \"x\"")), ("3", 3, None)]
        {
            std::fs::write(&path, text).expect("writes");
            watched.refresh();
            assert_eq!(*watched.current(), value);
            assert_eq!(watched.status().problem.as_deref(), problem);
        }
        std::fs::remove_file(&path).expect("removes");
        watched.refresh();
        assert_eq!(*watched.current(), 3);
        let problem = watched.status().problem.expect("is told");
        assert!(problem.contains("number"), "{problem}");
        std::fs::write(&path, "3").expect("writes");
        watched.refresh();
        assert_eq!(watched.status().problem, None, "it is back");
    }

    #[test]
    fn a_link_that_is_swapped_is_followed() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().expect("a temp dir");
        for (name, text) in [("one", "1"), ("two", "2")] {
            let folder = dir.path().join(name);
            std::fs::create_dir(&folder).expect("makes");
            std::fs::write(folder.join("number"), text).expect("writes");
        }
        // As Kubernetes mounts a secret: number -> ..data/number, ..data -> a folder.
        symlink("one", dir.path().join("..data")).expect("links");
        symlink("..data/number", dir.path().join("number")).expect("links");
        let watched =
            Watched::open("n", vec![dir.path().join("number")], number).expect("is right");
        assert_eq!(*watched.current(), 1);
        symlink("two", dir.path().join("..new")).expect("links");
        std::fs::rename(dir.path().join("..new"), dir.path().join("..data")).expect("swaps");
        watched.refresh();
        assert_eq!(*watched.current(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn files_are_looked_at_now_and_then() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("number");
        std::fs::write(&path, "1").expect("writes");
        let watched = Arc::new(Watched::open("n", vec![path.clone()], number).expect("is right"));
        let secrets = Secrets::new(vec![watched.clone()]);
        std::fs::write(&path, "2").expect("writes");
        // The clock stands while a thread reads, so that this is the second look.
        tokio::time::timeout(WATCH_INTERVAL * 2, secrets.watch()).await.expect_err("never ends");
        assert_eq!(*watched.current(), 2);
    }

    #[test]
    fn a_file_has_a_bound() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("number");
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(FILE_BYTES_MAX + 1))
            .expect("makes");
        let error = Watched::open("n", vec![path], number).expect_err("is too large");
        assert!(error.contains("at most"), "{error}");
    }
}
