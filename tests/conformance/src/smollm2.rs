//! A real model, as the gateway uses one: the tokenizer out of the bundle, tokens in, tokens out, text.

use std::collections::HashMap;

use serde_json::{Value, json};
use smg_grpc_client::tokenizer_bundle::{validate_bundle_sha256, with_extracted_bundle};
use smg_grpc_client::vllm_proto::GenerateRequest;
use smg_grpc_client::vllm_proto::generate_request::Input;

use crate::requests::chat;
use crate::tokenizer::{json_of, number};
use crate::worker::{Worker, run, within};

/// Its pieces, spelled as in its tokenizer, where Ġ is a space.
const PROMPT: [&str; 5] = ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"];

#[tokio::test]
async fn a_real_model_answers_in_the_tokens_of_its_bundle() {
    let path = std::env::var("SCONCE_TEST_MODEL").expect("SCONCE_TEST_MODEL names SmolLM2");
    within(async {
        let settings = [("ENGINE__CONTEXT_LENGTH_MAX", "1024"), ("ENGINE__THREADS", "2")];
        let worker = Worker::start(&path, &settings);
        let client = worker.client().await;
        let bundle = client.get_tokenizer().await.expect("is streamed");
        validate_bundle_sha256(&bundle).expect("arrived as it was sent");
        let tokenizer = with_extracted_bundle(&bundle, |folder| {
            let config = json_of(folder, "tokenizer_config.json")?;
            assert!(config["chat_template"].is_string(), "{config:#}");
            json_of(folder, "tokenizer.json")
        });
        let vocabulary = vocabulary(&tokenizer.expect("unpacks"));
        let model = client.get_model_info().await.expect("tells");
        assert_eq!((model.model_type.as_str(), model.max_context_length), ("llama", 1024));
        assert!(vocabulary.len() <= model.vocab_size as usize);

        let ids: Vec<u32> = PROMPT.iter().map(|piece| vocabulary[*piece]).collect();
        let options = json!({
            "stream": true, "max_completion_tokens": 8, "logprobs": true, "top_logprobs": 2
        });
        let said = run(&client, chat("a", ids.clone(), options)).await;
        assert_eq!(said.end().prompt_tokens as usize, ids.len());
        let pieces: HashMap<u32, &str> =
            vocabulary.iter().map(|(piece, id)| (*id, piece.as_str())).collect();
        let text: String = said.ids(0).iter().map(|id| pieces[id]).collect();
        assert!(text.replace('Ġ', " ").starts_with(" Paris"), "{text}");

        // The server cuts a text as its bundle says.
        let text = PROMPT.concat().replace('Ġ', " ");
        let request = GenerateRequest {
            input: Some(Input::Text(text)),
            ..chat("b", Vec::new(), json!({"max_completion_tokens": 8}))
        };
        let again = run(&client, request).await;
        assert_eq!(again.end().output_ids, said.ids(0));
        assert_eq!(again.end().prompt_tokens as usize, ids.len());
    })
    .await;
}

fn vocabulary(tokenizer: &Value) -> HashMap<String, u32> {
    let vocabulary = tokenizer["model"]["vocab"].as_object().expect("a vocabulary");
    vocabulary.iter().map(|(piece, id)| (piece.clone(), number(id))).collect()
}
