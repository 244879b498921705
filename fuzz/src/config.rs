//! Any text as the configuration file: planned, or refused with the name of the setting or the place
//! in the text. What is taken, written again as `sconce config` writes it, means the same.

use std::io::Write as _;
use std::path::Path;

use sconce_server::config::{Config, ConfigError, Layers, Machine, to_toml};
use sconce_server::serve::ServePlan;

use crate::files;

/// One with a memory and a disk, so that shares of them are computed.
const MACHINE: Machine =
    Machine { memory: Some(64 << 30), device_memory: |_| None, disk: |_| Ok(1 << 40) };

pub(crate) fn run(bytes: &[u8]) {
    match read(bytes) {
        Ok((layers, config, plan)) => {
            let origins = layers.origins().expect("as what was extracted");
            let written = to_toml(&origins, true);
            let again = read(written.as_bytes());
            let (_, same, plan_again) = again.unwrap_or_else(|error| panic!("{error}: {written}"));
            assert_eq!((same, plan_again), (config, plan), "{written}");
        }
        Err(error) => check(bytes, &error),
    }
}

fn read(text: &[u8]) -> Result<(Layers, Config, ServePlan), ConfigError> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text).expect("room for the text");
    let layers = Layers::new(Some(file.path()), Vec::new())?;
    let config = layers.extract()?;
    let plan = config.plan_on(&MACHINE, &layers)?;
    Ok((layers, config, plan))
}

fn check(bytes: &[u8], error: &ConfigError) {
    let names_a_setting = match error {
        ConfigError::File { .. } => return assert!(std::str::from_utf8(bytes).is_err(), "{error}"),
        ConfigError::Syntax { error, .. } => error.contains("line"),
        // The name of a key may be empty, and is told so.
        ConfigError::Unknown { expected, .. } => !expected.is_empty(),
        ConfigError::Value { key, .. } => !key.is_empty(),
    };
    assert!(names_a_setting, "{error}");
}

/// Every setting at its default, and what defaults leave out.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let (layers, ..) = read(b"").expect("defaults are right");
    let defaults = to_toml(&layers.origins().expect("as what was extracted"), false);
    let mut texts = vec![defaults];
    texts.extend(
        [
            "",
            "server.listen = [\"127.0.0.1:1\", \"unix:/s\"]\nserver.admin = \"[::1]:2\"",
            "[server]\ndrain = \"1h 30m\"\nrequest_time_max = \"250ms\"\nmodel_roots = [\"/m\", \"sim:\"]",
            "[server.tls]\ncertificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/a\"\nclient_auth = \"optional\"",
            "[server.auth]\ntokens = \"/t\"\nadmins = [\"ops\"]\nexempt = [\"health\", \"metrics\"]\nrequests_max = 7",
            "[engine]\nthreads = 3\nmemory_budget = \"90%\"\ndevice = \"cpu\"\nprecision = \"exact\"",
            "[cache]\ndevice = \"25%\"\nhost = \"6KiB\"\ndisk = \"7TB\"\ndirectory = \"/nowhere\"\npolicy = \"lru\"",
            "[models]\nsmall = \"/m/small.gguf\"\n\"big-1.5\" = { path = \"sim:\", context_length = 4096, keep_alive = \"5m\" }",
            "[models.\"a/b:c\"]\npath = \"sim:\"\ncontext_length = \"auto\"",
            "[telemetry]\nlog = \"debug,h2=off\"\nlog_format = \"json\"\nlog_prompts = true\notlp = \"http://h:1\"",
            "[compat]\nvllm = false\nvllm_model = \"m\"",
            "[server]\nlistne = 1",
            "[engine]\nthreads = [1, 2.5, 1979-05-27T07:32:00Z, \"\"\"\n\"\"\", {a.b = nan}]",
        ]
        .map(str::to_owned),
    );
    let mut seeds: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
    for folder in ["base", "overlays/gpu", "overlays/sidecar"] {
        let is_config = |path: &Path| path.file_name().is_some_and(|name| name == "config.toml");
        seeds.extend(files(&format!("deploy/kustomize/{folder}"), is_config));
    }
    seeds
}
