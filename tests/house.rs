//! The house rules that a machine can check: what each crate may depend on, how long a file may
//! grow, and where `unsafe` may stand. `docs/ARCHITECTURE.md` gives the reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crate, and the packages that must not appear anywhere below it.
const WALLS: &[(&str, &[&str])] = &[
    ("sconce-proto", &["sconce-server", "sconce-engine", "sconce-models", "candle-core"]),
    ("sconce-kernels", &["sconce-models", "sconce-server", "tokio", "tonic"]),
    ("sconce-bench", &["sconce-models", "sconce-engine", "tokio", "tonic", "clap"]),
    ("sconce-models", &["tokio", "tonic", "sconce-cache"]),
    ("sconce-cache", &["candle-core", "tokio", "tonic", "prost", "sconce-proto"]),
    ("sconce-text", &["candle-core", "tonic", "sconce-engine", "sconce-models"]),
    ("sconce-engine", &["tonic", "prost", "sconce-proto", "sconce-text"]),
];

/// Packages that a crate must not name itself, though it may reach them through another.
const NOT_DIRECT: &[(&str, &[&str])] =
    &[("sconce-server", &["sconce-kernels", "candle-core"]), ("sconce-engine", &["tokenizers"])];

/// Longest source file outside tests, in lines.
const FILE_LINES_MAX: usize = 600;

/// Folders whose code may be `unsafe`.
const UNSAFE_ALLOWED: &[&str] = &["kernels/", "models/src/checkpoint/"];

#[test]
fn the_walls_between_the_crates_hold() {
    let metadata = Metadata::read();
    for (package, forbidden) in WALLS {
        let reached = metadata.reachable(package);
        for name in *forbidden {
            assert!(!reached.contains(*name), "{package} must not depend on {name}, but does");
        }
    }
    for (package, forbidden) in NOT_DIRECT {
        for name in *forbidden {
            let direct = &metadata.edges[*package];
            assert!(!direct.contains(*name), "{package} must not depend on {name} itself");
        }
    }
    // The check can tell: a dependency that is there is seen, through other packages too.
    assert!(metadata.reachable("sconce-engine").contains("candle-core"));
}

#[test]
fn no_source_file_outgrows_a_reader() {
    let long: Vec<String> = sources()
        .into_iter()
        .filter(|path| !is_test(path))
        .filter_map(|path| {
            let lines = read(&path).lines().count();
            (lines > FILE_LINES_MAX).then(|| format!("{} ({lines} lines)", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "split before {FILE_LINES_MAX} lines: {long:?}");
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let silent: Vec<PathBuf> =
        sources().into_iter().filter(|path| !read(path).starts_with("//!")).collect();
    assert!(silent.is_empty(), "files without a `//!` header: {silent:?}");
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    for path in sources() {
        let relative = path.strip_prefix(root()).expect("sources lie below the root");
        let allowed =
            UNSAFE_ALLOWED.iter().any(|folder| relative.starts_with(folder)) || is_test(&path);
        let uses = read(&path)
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default())
            .any(|code| code.contains("unsafe {") || code.contains("unsafe fn"));
        assert!(allowed || !uses, "{} is unsafe outside its rooms", relative.display());
    }
}

/// Normal dependencies between packages, by name.
struct Metadata {
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Metadata {
    /// Asks cargo for the resolved graph, default features, normal dependencies alone.
    fn read() -> Self {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--offline"])
            .current_dir(root())
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let graph: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
        let names: BTreeMap<&str, &str> = array(&graph["packages"])
            .map(|package| (text(&package["id"]), text(&package["name"])))
            .collect();
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in array(&graph["resolve"]["nodes"]) {
            let below = edges.entry(names[text(&node["id"])].to_owned()).or_default();
            for dependency in array(&node["deps"]) {
                if array(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null()) {
                    below.insert(names[text(&dependency["pkg"])].to_owned());
                }
            }
        }
        Self { edges }
    }

    fn reachable(&self, package: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut open = vec![package];
        while let Some(name) = open.pop() {
            for below in &self.edges[name] {
                if seen.insert(below.clone()) {
                    open.push(below);
                }
            }
        }
        seen
    }
}

fn array(value: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    value.as_array().expect("cargo metadata holds an array here").iter()
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().expect("cargo metadata holds a string here")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("source files are UTF-8")
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| {
        ["tests", "benches", "examples", "fuzz"]
            .map(std::ffi::OsStr::new)
            .contains(&part.as_os_str())
    })
}

/// Every Rust file of the workspace.
fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open: Vec<PathBuf> =
        ["proto", "kernels", "models", "server", "tests"].map(|folder| root().join(folder)).into();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("folder exists") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}
