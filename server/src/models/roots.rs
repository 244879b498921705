//! Which paths a request may have loaded. What the configuration names is the operator's own choice
//! and is not asked about.

use std::path::{Component, Path, PathBuf};

use crate::error::CallError;

/// What stands for simulated models, as a root and as the beginning of a path.
const SIMULATED: &str = "sim:";

/// The paths that a request may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRoots {
    allowed: Allowed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Allowed {
    Anything,
    Within { roots: Vec<Root>, simulated: bool },
}

/// A directory under which models lie.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Root {
    /// As it was named.
    named: PathBuf,
    /// Where that leads.
    real: PathBuf,
}

impl ModelRoots {
    /// Every path.
    pub fn anything() -> Self {
        Self { allowed: Allowed::Anything }
    }

    /// No path.
    pub fn nothing() -> Self {
        Self { allowed: Allowed::Within { roots: Vec::new(), simulated: false } }
    }

    /// What lies under `roots`, directories that exist, or `sim:`.
    ///
    /// # Errors
    /// The first root that is no directory, and why.
    pub fn within(roots: &[String]) -> Result<Self, String> {
        let simulated = roots.iter().any(|root| root == SIMULATED);
        let directories = roots.iter().filter(|root| *root != SIMULATED);
        let roots = directories.map(|root| Root::open(root)).collect::<Result<_, _>>()?;
        Ok(Self { allowed: Allowed::Within { roots, simulated } })
    }

    /// The path to load for one that a request names: under a root, the same with all links followed,
    /// so that a link which is changed later changes nothing.
    ///
    /// # Errors
    /// A path outside of the roots. The error is the same whether anything is there, and a path that
    /// does not read as one below a root is refused without a look at the file system.
    pub fn admit(&self, path: &str) -> Result<String, CallError> {
        let refused = || CallError::PathRefused;
        let (roots, simulated) = match &self.allowed {
            Allowed::Anything => return Ok(path.to_owned()),
            Allowed::Within { roots, simulated } => (roots, *simulated),
        };
        if path.starts_with(SIMULATED) {
            return if simulated { Ok(path.to_owned()) } else { Err(refused()) };
        }
        let asked = Path::new(path);
        // `..` after a link leads elsewhere than it reads, and no caller needs it.
        let plain = asked.is_absolute() && !asked.components().any(|c| c == Component::ParentDir);
        let under = |root: &Root| asked.starts_with(&root.named) || asked.starts_with(&root.real);
        if !plain || !roots.iter().any(under) {
            return Err(refused());
        }
        let real = real_path(asked).ok_or_else(refused)?;
        if !roots.iter().any(|root| real.starts_with(&root.real)) {
            return Err(refused());
        }
        real.into_os_string().into_string().map_err(|_| refused())
    }

    /// How [`admit`](Self::admit) would spell a path of the configuration, so that a request for the
    /// same model finds it loaded.
    pub fn spell(&self, path: &str) -> String {
        self.admit(path).unwrap_or_else(|_| path.to_owned())
    }
}

impl Root {
    fn open(root: &str) -> Result<Self, String> {
        let named = Path::new(root);
        let problem =
            |why: &str| format!("expected `sim:` or a directory by its whole path, {why}: {root}");
        if !named.is_absolute() {
            return Err(problem("found another path"));
        }
        let real = named.canonicalize().map_err(|error| problem(&error.to_string()))?;
        if !real.is_dir() {
            return Err(problem("found no directory"));
        }
        Ok(Self { named: named.to_owned(), real })
    }
}

/// Where `path` leads, also where its last parts do not exist; `None` if it ends in a link to nowhere,
/// or cannot be followed.
fn real_path(path: &Path) -> Option<PathBuf> {
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return Some(missing.iter().rev().fold(real, |real, part| real.join(part)));
        }
        if ancestor.symlink_metadata().is_ok() {
            return None;
        }
        missing.push(ancestor.file_name()?);
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A root with a model, links out of it, and a directory beside it.
    struct House {
        dir: tempfile::TempDir,
        roots: ModelRoots,
    }

    impl House {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temp dir");
            let at = |path: &str| dir.path().join(path);
            for folder in ["models/a", "models-of-others", "secret"] {
                std::fs::create_dir_all(at(folder)).expect("makes");
            }
            std::fs::write(at("secret/key"), "x").expect("writes");
            symlink("a", at("models/alias")).expect("links");
            symlink(at("secret"), at("models/out")).expect("links");
            symlink(at("secret/none"), at("models/dangling")).expect("links");
            symlink("models", at("mounted")).expect("links");
            let root = at("mounted").to_str().expect("is UTF-8").to_owned();
            let roots = ModelRoots::within(&[root]).expect("is a directory");
            Self { dir, roots }
        }

        fn path(&self, path: &str) -> String {
            self.dir.path().join(path).to_str().expect("is UTF-8").to_owned()
        }

        fn refused(&self, path: &str) -> String {
            let error = self.roots.admit(path).expect_err(path);
            assert_eq!(error, CallError::PathRefused, "{path}");
            error.to_string()
        }
    }

    #[test]
    fn what_is_under_a_root_is_taken_by_its_real_path() {
        let house = House::new();
        let real = std::fs::canonicalize(house.path("models/a")).expect("exists");
        for path in ["mounted/a", "models/a", "mounted/alias", "mounted/./a/"] {
            let admitted = house.roots.admit(&house.path(path)).expect(path);
            assert_eq!(Path::new(&admitted), real, "{path}");
        }
        // Whoever loads it is told that nothing is there.
        let missing =
            house.roots.admit(&house.path("mounted/b/c.gguf")).expect("is under the root");
        assert!(missing.ends_with("models/b/c.gguf"), "{missing}");
    }

    #[test]
    fn what_is_outside_is_refused_alike_whether_it_is_there_or_not() {
        let house = House::new();
        let mut said = std::collections::HashSet::new();
        for path in [
            "secret",
            "secret/key",
            "secret/none",
            "none/at/all",
            "models-of-others",
            "mounted/out",
            "mounted/out/key",
            "mounted/out/none",
            "mounted/dangling",
            "mounted/../secret/key",
            "mounted/../secret/none",
            "mounted/none/../../secret/key",
        ] {
            said.insert(house.refused(&house.path(path)));
        }
        for path in ["", "a", "models/a", "/", "/etc/passwd", "/etc/none", "sim:", "sim:layers=1"] {
            said.insert(house.refused(path));
        }
        assert_eq!(said.len(), 1, "{said:?}");
    }

    #[test]
    fn a_link_that_is_swapped_after_the_check_is_not_followed_again() {
        let house = House::new();
        let admitted = house.roots.admit(&house.path("mounted/alias")).expect("leads to a model");
        std::fs::remove_file(house.path("models/alias")).expect("removes");
        symlink(house.path("secret"), house.path("models/alias")).expect("links");
        assert_eq!(
            Path::new(&admitted),
            std::fs::canonicalize(house.path("models/a")).expect("is")
        );
        house.refused(&house.path("mounted/alias"));
    }

    #[test]
    fn simulated_models_are_a_root_of_their_own() {
        let roots = ModelRoots::within(&["sim:".to_owned()]).expect("is a root");
        assert_eq!(roots.admit("sim:layers=1"), Ok("sim:layers=1".to_owned()));
        assert!(roots.admit("/etc/passwd").is_err());
        assert!(ModelRoots::nothing().admit("sim:").is_err());
        assert_eq!(ModelRoots::anything().admit("../x"), Ok("../x".to_owned()));
    }

    #[test]
    fn a_root_is_a_directory_by_its_whole_path() {
        let house = House::new();
        for root in ["models".to_owned(), house.path("secret/key"), house.path("none")] {
            let error = ModelRoots::within(std::slice::from_ref(&root)).expect_err(&root);
            assert!(error.contains(&root), "{error}");
        }
    }

    #[test]
    fn a_path_of_the_configuration_is_spelled_as_a_request_would_be() {
        let house = House::new();
        let asked = house.roots.admit(&house.path("mounted/alias")).expect("is under the root");
        assert_eq!(house.roots.spell(&house.path("models/a")), asked);
        assert_eq!(house.roots.spell("/elsewhere/m.gguf"), "/elsewhere/m.gguf");
    }
}
