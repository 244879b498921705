//! The tokenizer as the gateway fetches, checks and unpacks it.

use std::path::Path;

use serde_json::Value;
use smg_grpc_client::tokenizer_bundle::{validate_bundle_sha256, with_extracted_bundle};

use crate::requests::bytes;
use crate::worker::{Worker, within};

/// The JSON of a file of an unpacked bundle.
pub(crate) fn json_of(folder: &Path, name: &str) -> Result<Value, String> {
    let text = std::fs::read(folder.join(name)).map_err(|error| format!("{name}: {error}"))?;
    serde_json::from_slice(&text).map_err(|error| format!("{name}: {error}"))
}

#[tokio::test]
async fn the_bundle_is_whole_and_says_how_to_cut_a_text() {
    within(async {
        let worker = Worker::start("sim:", &[]);
        let client = worker.client().await;
        let bundle = client.get_tokenizer().await.expect("is streamed");
        assert!(bundle.sha256.len() == 64 && !bundle.sha256.contains(char::is_uppercase));
        validate_bundle_sha256(&bundle).expect("arrived as it was sent");
        let again = client.get_tokenizer().await.expect("is streamed");
        assert_eq!(again.sha256, bundle.sha256, "the gateway caches by it");

        let files = with_extracted_bundle(&bundle, |folder| {
            ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
                .into_iter()
                .map(|name| json_of(folder, name))
                .collect::<Result<Vec<_>, _>>()
        });
        let [tokenizer, config, generation] = &files.expect("unpacks")[..] else {
            panic!("expected three files");
        };
        let vocabulary = &tokenizer["model"]["vocab"];
        let ids: Vec<u32> = "Once".chars().map(|c| number(&vocabulary[c.to_string()])).collect();
        assert_eq!(ids, bytes("Once"));
        assert!(config["chat_template"].as_str().is_some_and(|text| text.contains("messages")));
        assert_eq!(config["eos_token"], "<|end|>");
        assert!(generation["eos_token_id"].to_string().contains("257"), "{generation}");
    })
    .await;
}

/// An id of a vocabulary.
pub(crate) fn number(id: &Value) -> u32 {
    let id = id.as_u64().unwrap_or_else(|| panic!("expected an id, found {id}"));
    u32::try_from(id).expect("ids fit 32 bits")
}
