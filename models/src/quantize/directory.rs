//! A directory that appears whole or not at all: written beside its place and renamed at the end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Names tried for the directory that is written before it is renamed; only runs that were killed
/// leave such names behind.
const STAGING_NAMES_MAX: u32 = 100;

/// Files of a model directory that are copied as they are: tokenizer, templates, defaults.
const COPIED: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// A directory that is being written. Dropped before [`publish`](Self::publish), it is removed.
#[derive(Debug)]
pub(super) struct OutputDirectory {
    staging: PathBuf,
    target: PathBuf,
}

impl OutputDirectory {
    /// Begins the directory `target`, which must not exist yet; its parent must.
    ///
    /// # Errors
    /// [`Error::OutputExists`]; [`Error::Io`] if nothing can be made beside it.
    pub(super) fn create(target: &Path) -> Result<Self, Error> {
        if fs::symlink_metadata(target).is_ok() {
            return Err(Error::OutputExists { path: target.to_path_buf() });
        }
        let Some(name) = target.file_name() else {
            let expected = "the path of a new directory";
            return Err(Error::option("output", expected, target.display()));
        };
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        for attempt in 0..STAGING_NAMES_MAX {
            let id = std::process::id();
            let staging = parent.join(format!(".{}.{id}-{attempt}.partial", name.display()));
            match fs::create_dir(&staging) {
                Ok(()) => return Ok(Self { staging, target: target.to_path_buf() }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(staging)(error)),
            }
        }
        Err(Error::OutputExists { path: parent.join(format!(".{}.*.partial", name.display())) })
    }

    /// Where a file is to be written.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.staging.join(name)
    }

    /// Writes a text file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.file(name);
        fs::write(&path, text).map_err(Error::io(&path))?;
        sync(&path)
    }

    /// Copies what stands beside the weights in `source`, where it is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn copy_from(&self, source: &Path) -> Result<(), Error> {
        for name in COPIED {
            let from = source.join(name);
            if from.is_file() {
                let to = self.file(name);
                fs::copy(&from, &to).map_err(Error::io(&from))?;
                sync(&to)?;
            }
        }
        Ok(())
    }

    /// Gives the directory its name. What it holds must be on disk already.
    ///
    /// # Errors
    /// [`Error::OutputExists`] if somebody else made it meanwhile, [`Error::Io`].
    pub(super) fn publish(self) -> Result<(), Error> {
        if fs::symlink_metadata(&self.target).is_ok() {
            return Err(Error::OutputExists { path: self.target.clone() });
        }
        sync(&self.staging)?;
        fs::rename(&self.staging, &self.target).map_err(Error::io(&self.target))?;
        match self.target.parent() {
            Some(parent) if parent != Path::new("") => sync(parent),
            _ => sync(Path::new(".")),
        }
    }
}

impl Drop for OutputDirectory {
    fn drop(&mut self) {
        // After a rename there is nothing left; otherwise nobody can be told that this failed.
        let _ = fs::remove_dir_all(&self.staging);
    }
}

/// Waits until the file or directory is on disk.
fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_appears_whole_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("model");
        let names = || -> Vec<_> {
            fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        let output = OutputDirectory::create(&target).unwrap();
        output.write("config.json", "{}").unwrap();
        drop(output);
        assert!(names().is_empty());

        let output = OutputDirectory::create(&target).unwrap();
        output.write("config.json", "{}").unwrap();
        output.publish().unwrap();
        assert_eq!(names(), ["model"]);
        assert!(target.join("config.json").is_file());
    }

    #[test]
    fn what_exists_is_not_touched() {
        let parent = tempfile::tempdir().unwrap();
        let error = OutputDirectory::create(parent.path()).unwrap_err();
        assert!(matches!(error, Error::OutputExists { .. }), "{error}");

        let target = parent.path().join("model");
        let output = OutputDirectory::create(&target).unwrap();
        fs::write(&target, "somebody else's").unwrap();
        assert!(matches!(output.publish(), Err(Error::OutputExists { .. })));
        assert_eq!(fs::read_to_string(&target).unwrap(), "somebody else's");
    }
}
