//! What fuzzers feed. A target takes any bytes and panics if what they are fed to breaks a promise;
//! `tests/seeds.rs` runs all on their seeds, and on changed ones, in every gate.
#![forbid(unsafe_code)]

mod chat_template;
mod checkpoint;
mod config;
mod context;
mod deadline;
mod detokenizer;
mod disk;
mod headers;
mod kv_events;
mod record;
mod requests;
mod server;
mod snapshot;
mod snapshot_file;
mod stop;
mod text;
mod tokenizer;
mod tokens;
mod vllm;
mod wire;

use std::path::Path;

/// Threads that compute in this process, in all targets: the first that asks decides.
const COMPUTE_THREADS: usize = 1;

/// Something that takes bytes from strangers.
#[derive(Debug)]
pub struct Target {
    /// Its name, also that of the folder of its committed seeds.
    pub name: &'static str,
    /// Feeds it `bytes`; panics if a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs to begin with, made anew each time.
    made: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "gguf_header", run: headers::gguf, made: headers::gguf_seeds },
    Target {
        name: "safetensors_header",
        run: headers::safetensors,
        made: headers::safetensors_seeds,
    },
    Target { name: "checkpoint_gguf", run: checkpoint::gguf, made: checkpoint::gguf_seeds },
    Target {
        name: "checkpoint_directory",
        run: checkpoint::directory,
        made: checkpoint::directory_seeds,
    },
    Target { name: "requests", run: requests::run, made: requests::seeds },
    Target { name: "vllm_engine", run: vllm::run, made: vllm::seeds },
    Target { name: "kv_events", run: kv_events::run, made: kv_events::seeds },
    Target { name: "wire", run: wire::run, made: wire::seeds },
    Target { name: "snapshot_import", run: snapshot::run, made: snapshot::seeds },
    Target { name: "snapshot_file", run: snapshot_file::run, made: snapshot_file::seeds },
    Target { name: "disk_record", run: record::run, made: record::seeds },
    Target { name: "disk_directory", run: disk::run, made: disk::seeds },
    Target { name: "tokenizer_json", run: tokenizer::json, made: tokenizer::json_seeds },
    Target { name: "tokenizer_gguf", run: tokenizer::gguf, made: tokenizer::gguf_seeds },
    Target { name: "chat_template", run: chat_template::run, made: chat_template::seeds },
    Target { name: "detokenizer", run: detokenizer::run, made: detokenizer::seeds },
    Target { name: "stop_matcher", run: stop::run, made: stop::seeds },
    Target { name: "grpc_timeout", run: deadline::run, made: deadline::seeds },
    Target { name: "trace_context", run: context::run, made: context::seeds },
    Target { name: "tokens_file", run: tokens::run, made: tokens::seeds },
    Target { name: "config_toml", run: config::run, made: config::seeds },
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// The inputs to begin with, and those committed below `fuzz/seeds`, which once found something.
    ///
    /// # Panics
    /// If a committed seed cannot be read.
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        let mut seeds = (self.made)();
        seeds.extend(files(&format!("fuzz/seeds/{}", self.name), |_| true));
        seeds
    }
}

/// Longest file that is a seed.
const SEED_BYTES_MAX: u64 = 64 << 10;

/// The small files right in a folder of the repository, by name; none if there is no such folder.
fn files(folder: &str, wanted: fn(&Path) -> bool) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| {
        let metadata = path.metadata();
        wanted(path) && metadata.is_ok_and(|found| found.is_file() && found.len() <= SEED_BYTES_MAX)
    });
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a seed can be read")).collect()
}
