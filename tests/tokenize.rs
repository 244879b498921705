//! Tokenize and Detokenize over a socket.

mod support;

use sconce_proto::v1::tokenize_request::Prompt;
use sconce_proto::v1::{
    ChatMessage, ChatPrompt, DetokenizeRequest, TokenizeRequest, TokenizeResponse,
};
use support::{Fixture, MODEL, details, names_field, within};
use tonic::{Code, Status};

async fn tokenize(fixture: &Fixture, prompt: Prompt) -> Result<TokenizeResponse, Status> {
    let request =
        TokenizeRequest { model: MODEL.to_owned(), prompt: Some(prompt), add_special_tokens: None };
    fixture.inference().tokenize(request).await.map(tonic::Response::into_inner)
}

async fn detokenize(fixture: &Fixture, token_ids: Vec<u32>) -> Result<String, Status> {
    let request =
        DetokenizeRequest { model: MODEL.to_owned(), token_ids, skip_special_tokens: None };
    let answer = fixture.inference().detokenize(request).await;
    answer.map(|answer| answer.into_inner().text)
}

fn user(content: &str) -> ChatPrompt {
    let content = Some(content.to_owned());
    let message = ChatMessage { role: "user".to_owned(), content, ..ChatMessage::default() };
    ChatPrompt { messages: vec![message], ..ChatPrompt::default() }
}

#[tokio::test]
async fn text_comes_back_from_its_tokens() {
    within(async {
        let fixture = Fixture::start().await;
        for text in ["", "hello", "\u{1f525} caf\u{e9}\n\t\u{0}", "\u{4f60}\u{597d}"] {
            let tokens = tokenize(&fixture, Prompt::Text(text.to_owned())).await.expect(text);
            assert_eq!(tokens.token_ids.len(), tokens.pieces.len());
            let back = detokenize(&fixture, tokens.token_ids).await.expect(text);
            assert_eq!(back, text);
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_text_of_a_megabyte_is_taken_whole() {
    within(async {
        let fixture = Fixture::start().await;
        let text = "0123456789abcdef".repeat(1 << 16);
        let tokens = tokenize(&fixture, Prompt::Text(text.clone())).await.expect("is taken");
        let back = detokenize(&fixture, tokens.token_ids).await.expect("is taken");
        assert!(back == text, "the text differs");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_chat_is_rendered_first() {
    within(async {
        let fixture = Fixture::start().await;
        let tokens = tokenize(&fixture, Prompt::Chat(user("hello"))).await.expect("renders");
        let rendered = detokenize(&fixture, tokens.token_ids).await.expect("decodes");
        assert!(rendered.contains("user") && rendered.contains("hello"), "{rendered:?}");
        let closed = ChatPrompt { add_generation_prompt: Some(false), ..user("hello") };
        let tokens = tokenize(&fixture, Prompt::Chat(closed)).await.expect("renders");
        let shorter = detokenize(&fixture, tokens.token_ids).await.expect("decodes");
        assert!(rendered.starts_with(&shorter) && rendered.len() > shorter.len(), "{shorter:?}");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn refusals_name_the_field() {
    within(async {
        let fixture = Fixture::start().await;
        let mut client = fixture.inference();
        let nothing = TokenizeRequest { model: MODEL.to_owned(), ..TokenizeRequest::default() };
        names_field(&client.tokenize(nothing).await.expect_err("no prompt"), "prompt");
        let status = client.tokenize(TokenizeRequest::default()).await.expect_err("no model");
        names_field(&status, "model");
        let status = tokenize(&fixture, Prompt::Chat(ChatPrompt::default())).await;
        names_field(&status.expect_err("no message"), "chat.messages");
        let status = detokenize(&fixture, vec![97, u32::MAX]).await.expect_err("unknown id");
        names_field(&status, "token_ids[1]");

        let unknown = DetokenizeRequest { model: "nobody".to_owned(), ..Default::default() };
        let status = client.detokenize(unknown).await.expect_err("unknown model");
        let details = details(&status, Code::NotFound, "MODEL_NOT_FOUND");
        let resource = details.resource_info().expect("names the model");
        assert_eq!(
            (resource.resource_type.as_str(), resource.resource_name.as_str()),
            ("model", "nobody")
        );
        fixture.end().await;
    })
    .await;
}
