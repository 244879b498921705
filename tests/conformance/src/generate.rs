//! Generate, from each of the gateway's routes: what streams and what does not, what ends it, logprobs.

use serde_json::json;
use smg_grpc_client::VllmEngineClient;
use smg_grpc_client::vllm_proto::generate_complete::MatchedStop;
use smg_grpc_client::vllm_proto::generate_request::Input;
use smg_grpc_client::vllm_proto::{GenerateRequest, OutputLogProbs};

use crate::requests::{bytes, chat, completion, messages, plain, responses};
use crate::worker::{Worker, run, within};

/// What the simulated model says to `prompt`.
async fn greedy(client: &VllmEngineClient, prompt: &[u32], tokens: u32) -> Vec<u32> {
    let request = chat("greedy", prompt.to_vec(), json!({"max_completion_tokens": tokens}));
    run(client, request).await.end().output_ids.clone()
}

#[tokio::test]
async fn a_stream_tells_what_is_new_and_one_answer_tells_all() {
    within(async {
        let worker = Worker::start("sim:", &[]);
        let client = worker.client().await;
        let prompt = bytes("Once");
        let options = json!({"stream": true, "max_completion_tokens": 12});
        let streamed = run(&client, chat("a", prompt.clone(), options)).await;
        // Of the prompt's 4 tokens none was there; the gateway adds up what each chunk counts.
        for chunk in &streamed.chunks {
            assert_eq!(chunk.completion_tokens as usize, chunk.token_ids.len());
            assert_eq!((chunk.prompt_tokens, chunk.cached_tokens, chunk.index), (4, 0, 0));
        }
        let end = streamed.end();
        assert_eq!((end.finish_reason.as_str(), end.completion_tokens), ("length", 12));
        assert_eq!((end.prompt_tokens, end.matched_stop.clone()), (4, None));

        let whole =
            run(&client, chat("b", prompt.clone(), json!({"max_completion_tokens": 12}))).await;
        assert!(whole.chunks.is_empty());
        assert_eq!(whole.end().output_ids, streamed.ids(0));
        assert_eq!((whole.end().completion_tokens, whole.end().cached_tokens), (12, 3));

        // No route of the gateway sends text; the protocol has it.
        let text = GenerateRequest {
            input: Some(Input::Text("Once".to_owned())),
            ..chat("c", Vec::new(), json!({"max_completion_tokens": 12}))
        };
        assert_eq!(run(&client, text).await.end().output_ids, streamed.ids(0));
    })
    .await;
}

#[tokio::test]
async fn every_route_reaches_the_same_completion() {
    within(async {
        let worker = Worker::start("sim:", &[]);
        let client = worker.client().await;
        let expected = greedy(&client, &bytes("Once"), 12).await;
        let asked = [
            completion("a", bytes("Once"), json!({"max_tokens": 12})),
            plain("b", bytes("Once"), false, json!({"max_new_tokens": 12, "top_k": -1})),
            messages("c", bytes("Once"), json!({"max_tokens": 12, "temperature": 0.0})),
            responses("d", bytes("Once"), json!({"max_output_tokens": 12, "temperature": 0.0})),
        ];
        for request in asked {
            assert_eq!(run(&client, request).await.end().output_ids, expected);
        }
        let asked = [
            completion("a", bytes("Once"), json!({"max_tokens": 12, "stream": true})),
            plain("b", bytes("Once"), true, json!({"max_new_tokens": 12})),
            messages("c", bytes("Once"), json!({"max_tokens": 12, "top_k": 1, "stream": true})),
            responses(
                "d",
                bytes("Once"),
                json!({"max_output_tokens": 12, "top_k": 1, "stream": true}),
            ),
        ];
        for request in asked {
            let said = run(&client, request).await;
            assert_eq!((said.ids(0), said.end().completion_tokens), (expected.clone(), 12));
        }
    })
    .await;
}

#[tokio::test]
async fn the_model_and_the_caller_end_a_completion() {
    within(async {
        let worker = Worker::start("sim:eos_after=5", &[]);
        let client = worker.client().await;
        let options = json!({"stream": true, "max_completion_tokens": 64});
        let ended = run(&client, chat("a", bytes("x"), options)).await;
        let ids = ended.ids(0);
        assert_eq!((ids.len(), ids[5]), (6, 257), "the end is a token like others");
        let end = ended.end();
        assert_eq!((end.finish_reason.as_str(), end.completion_tokens), ("stop", 6));
        assert_eq!(end.matched_stop, None);

        let first = ids.iter().position(|&id| id == ids[3]).expect("is there");
        let options = json!({"max_completion_tokens": 64, "stop_token_ids": [ids[3]]});
        let stopped = run(&client, chat("b", bytes("x"), options)).await;
        assert_eq!(stopped.end().output_ids, ids[..=first]);
        assert_eq!(stopped.end().matched_stop, Some(MatchedStop::MatchedTokenId(ids[3])));

        let options = json!({"max_completion_tokens": 20, "ignore_eos": true});
        let endless = run(&client, chat("c", bytes("x"), options)).await;
        assert_eq!(
            (endless.end().completion_tokens, endless.end().finish_reason.as_str()),
            (20, "length")
        );

        let longer = [
            completion("d", bytes("x"), json!({"max_tokens": 64, "min_tokens": 9})),
            plain("e", bytes("x"), false, json!({"max_new_tokens": 64, "min_new_tokens": 9})),
        ];
        for request in longer {
            let later = run(&client, request).await;
            assert!(later.end().completion_tokens > 9, "{later:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_stop_string_of_each_route_ends_the_generation() {
    within(async {
        let worker = Worker::start("sim:", &[]);
        let client = worker.client().await;
        let all = greedy(&client, &bytes("Once"), 200).await;
        let text: String = all.iter().map(|&id| char::from(id as u8)).collect();
        let stop = &text[20..24];
        let end = text.find(stop).expect("is there") + stop.len();
        let several = json!([stop, "not said"]);
        let asked = [
            chat("a", bytes("Once"), json!({"max_completion_tokens": 200, "stop": stop})),
            completion("b", bytes("Once"), json!({"max_tokens": 200, "stop": several})),
            plain("c", bytes("Once"), false, json!({"max_new_tokens": 200, "stop": several})),
            messages(
                "d",
                bytes("Once"),
                json!({
                    "max_tokens": 200, "temperature": 0.0, "stop_sequences": several
                }),
            ),
        ];
        for request in asked {
            let stopped = run(&client, request).await;
            let last = stopped.end();
            assert_eq!(last.output_ids, all[..end]);
            assert_eq!(
                (last.finish_reason.as_str(), last.completion_tokens as usize),
                ("stop", end)
            );
            assert_eq!(last.matched_stop, Some(MatchedStop::MatchedStopStr(stop.to_owned())));
        }
    })
    .await;
}

#[tokio::test]
async fn choices_come_by_index_and_repeat_with_a_seed() {
    within(async {
        let worker = Worker::start("sim:", &[]);
        let client = worker.client().await;
        let options = |seed: i64, stream: bool| {
            json!({
                "temperature": 4.0, "n": 3, "seed": seed, "max_completion_tokens": 16, "ignore_eos": true,
                "stream": stream, "top_p": 0.999, "min_p": 0.00001, "top_k": 200,
                "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1
            })
        };
        let one = run(&client, chat("a", bytes("Once"), options(-7, true))).await;
        assert_eq!(one.ends.len(), 3);
        assert!((0..3).all(|index| one.ids(index).len() == 16));
        assert_ne!(one.ids(0), one.ids(1), "each draws for itself");
        let again = run(&client, chat("b", bytes("Once"), options(-7, false))).await;
        let mut indices: Vec<_> = again.ends.iter().map(|end| end.index).collect();
        indices.sort_unstable();
        assert_eq!(indices, [0, 1, 2]);
        for end in &again.ends {
            assert_eq!(end.output_ids, one.ids(end.index));
        }
        // The protocol has 32 bits for a seed, and the client keeps to them.
        let other = run(&client, chat("c", bytes("Once"), options(i64::MAX, true))).await;
        assert_ne!(other.ids(0), one.ids(0));
    })
    .await;
}

#[tokio::test]
async fn logprobs_are_of_the_tokens_they_come_with() {
    within(async {
        let worker = Worker::start("sim:", &[]);
        let client = worker.client().await;
        let of = |told: &Option<OutputLogProbs>, ids: &[u32], most: usize| {
            let told = told.as_ref().expect("was asked for");
            assert_eq!(told.token_ids, ids);
            assert_eq!(
                (told.token_logprobs.len(), told.top_logprobs.len()),
                (ids.len(), ids.len())
            );
            for (i, top) in told.top_logprobs.iter().enumerate() {
                assert_eq!((top.values.len(), top.token_ids.len()), (most, most));
                assert!(told.token_logprobs[i] <= 0.0);
                assert!(top.values.is_sorted_by(|a, b| a >= b), "{top:?}");
                // Greedy: what was said is the likeliest.
                if most > 0 {
                    assert_eq!((top.token_ids[0], top.values[0]), (ids[i], told.token_logprobs[i]));
                }
            }
        };
        let options = json!({
            "stream": true, "max_completion_tokens": 5, "logprobs": true, "top_logprobs": 3
        });
        let told = run(&client, chat("a", bytes("x"), options)).await;
        told.chunks.iter().for_each(|chunk| of(&chunk.output_logprobs, &chunk.token_ids, 3));
        let options = json!({"max_tokens": 5, "logprobs": 0});
        let told = run(&client, completion("b", bytes("x"), options)).await;
        of(&told.end().output_logprobs, &told.end().output_ids, 0);
        // Unless told otherwise, a chat has the likeliest one.
        let options = json!({"max_completion_tokens": 5, "logprobs": true});
        let told = run(&client, chat("c", bytes("x"), options)).await;
        of(&told.end().output_logprobs, &told.end().output_ids, 1);
        let told = run(&client, chat("d", bytes("x"), json!({"max_completion_tokens": 5}))).await;
        assert_eq!(told.end().output_logprobs, None);
    })
    .await;
}

#[tokio::test]
async fn a_prompt_of_megabytes_comes_through() {
    within(async {
        let worker = Worker::start("sim:", &[]);
        let client = worker.client().await;
        let expected = greedy(&client, &bytes("Once"), 4).await;
        let mut request = chat("a", bytes("Once"), json!({"max_completion_tokens": 4}));
        // The gateway sends the text along with the tokens.
        let Some(Input::Tokenized(tokenized)) = &mut request.input else {
            panic!("expected tokens, found {:?}", request.input);
        };
        tokenized.original_text = "Once ".repeat(2 << 20);
        assert_eq!(run(&client, request).await.end().output_ids, expected);
    })
    .await;
}
